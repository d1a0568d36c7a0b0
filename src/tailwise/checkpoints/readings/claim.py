"""What a reading says of tensors: read so, refused, or no weights at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec


class Codec(Protocol):
    """How a weight is made of what is stored. Small, picklable; its `repr` says all that the values depend on."""

    @property
    def dtype(self) -> str:
        """What the entries are stored as, for tables."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        ...

    @property
    def by_rows(self) -> bool:
        """Whether rows can be read without the others."""
        ...

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of the weight, float32 or float64."""
        ...


@dataclass(frozen=True)
class Siblings:
    """The stored tensors of one module."""

    module: str  # "" at the top
    leaves: Mapping[str, TensorSpec]  # what follows the module's name, by which readings know them

    def named(self, leaf: str) -> str:
        """The name that a tensor of this module would have."""
        return f"{self.module}.{leaf}" if self.module else leaf

    def pick(self, *leaves: str) -> tuple[str, ...]:
        """The stored names of those leaves that are there, in this order."""
        return tuple(self.leaves[leaf].name for leaf in leaves if leaf in self.leaves)


@dataclass(frozen=True)
class Read:
    """A weight: `codec` makes it of the members; without one the single member is the weight as stored."""

    name: str
    members: tuple[str, ...]  # stored tensors; the first stands for the others
    codec: Codec | None = None
    note: str = ""  # what could not be known, and what was assumed


@dataclass(frozen=True)
class Refused:
    """Tensors that hold a weight in a way that is not known."""

    members: tuple[str, ...]
    why: str  # what they look like, and what would make them readable


@dataclass(frozen=True)
class Aside:
    """Tensors that are no weights."""

    members: tuple[str, ...]
    why: str


Claim: TypeAlias = Read | Refused | Aside


@dataclass(frozen=True)
class StoredReading:
    """A row of the table of readings."""

    name: str
    version: int  # raised when the values change that it gives: kept ones are then left alone
    find: Callable[[Siblings, Checkpoint], Iterator[Claim]]
    marks: tuple[str, ...]  # a module is looked at if one of its leaves contains one of these
    dtypes: frozenset[str] = frozenset()  # and, where there are some, one of its tensors is of one of these
    packed: bool = False  # whether it is a number format: such weights can be written dequantized
