"""What is done to a site: set entries to zero, lower the rank, take units or a block out, round to a format, or two.

A treatment checks itself, says its price, works on a matrix, and says what was reached. Imports no torch: the methods
that work on matrices use what they are given.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from tailwise.compression.operators.operator import Operator, OperatorResult
from tailwise.compression.plans.patterns import UNSTRUCTURED
from tailwise.compression.plans.site import Site
from tailwise.models.activations import Activations, Need
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import Reach

if TYPE_CHECKING:
    import torch

    from tailwise.compression.plans.casting import Cast

Unit = Literal["parameters", "bits"]
_NEEDS: tuple[Need, ...] = ("none", "norms", "hessian")  # each says more than the one before

REPORT = "this is an error of tailwise: report it with the plan"


@dataclass(frozen=True)
class TreatmentSettings:
    """By which operator, with what is said once for all entries of a plan."""

    operator: Operator
    act_order: bool = False
    keep_zeros: bool = False  # what was pruned before stays zero
    then: TreatmentSettings | None = None  # of the second of two treatments
    #: Tensor → of each of its matrices, the reach of all that share a scale with it: see `shared_reaches`.
    shared: Mapping[str, tuple[Reach, ...]] = field(default_factory=dict, compare=False)
    reach: Reach | None = None  # of the matrix that is worked on: one of `shared`

    @property
    def needs(self) -> Need:
        """The most that is to be known of the inputs of a layer."""
        both = (self.operator.needs, "none" if self.then is None else self.then.needs)
        return max(both, key=_NEEDS.index)

    @property
    def looks(self) -> bool:
        """Whether it looks at the inputs of each layer."""
        return self.needs != "none"

    def at(self, tensor: str, number: int, count: int) -> TreatmentSettings:
        """For one of the `count` matrices of a tensor."""
        reaches = self.shared.get(tensor, ())
        return replace(self, reach=reaches[number]) if len(reaches) == count else self


@dataclass(frozen=True, eq=False)
class Matrices:
    """A tensor before and after, each (count, out, in) as stored, and the grids that its values were rounded to."""

    before: torch.Tensor | None  # None where it is not read
    after: torch.Tensor
    grids: tuple[ValueGrid, ...] | None = None  # None: a plain cast, or no format at all


class Treatment(ABC):
    """What is done to one site. The four properties are how a plan's file writes it."""

    unit: ClassVar[Unit]

    @property
    def sparsity(self) -> float | None:
        """Fraction of the parameters that goes."""
        return None

    @property
    def pattern(self) -> str:
        """N:M, `block`, or `unstructured`."""
        return UNSTRUCTURED

    @property
    def rank(self) -> int | None:
        """Of W ≈ A·B."""
        return None

    @property
    def format(self) -> str | None:
        """Name of a number format."""
        return None

    @property
    def experts(self) -> tuple[int, ...]:
        """Numbers of the experts that go out of a stack."""
        return ()

    @property
    def parts(self) -> tuple[Treatment, ...]:
        """What is done one after the other."""
        return (self,)

    @property
    def cast(self) -> Cast | None:
        """The rounding to a format, where there is one."""
        return None

    @property
    def idle(self) -> bool:
        """Whether it leaves the site as it is."""
        return False

    @property
    def whole(self) -> bool:
        """Whether what goes is a whole block or expert, and no matrix is cut."""
        return False

    @property
    def masks(self) -> bool:
        """Whether it sets single entries to zero."""
        return False

    def taken(self, site: Site) -> float:  # noqa: ARG002 - not all look at the site
        """The fraction of the parameters that really goes, in [0, 1]."""
        return self.sparsity or 0.0

    @abstractmethod
    def price(self, site: Site) -> float:
        """What the site takes afterwards, in `unit`."""

    @abstractmethod
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """What is wrong with it, one line each."""

    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:  # noqa: ARG002 - most fit any matrix
        """Why a matrix of so many inputs and entries cannot be worked on: what its tensor has, in words."""
        yield from ()

    @abstractmethod
    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        """Work on one matrix (out × in). Without inputs, by the operator that stands in for one that looks at them."""

    @abstractmethod
    def reached(self, site: Site, matrices: Matrices) -> float:
        """What a written tensor comes to: the fraction that went, or bits per weight.

        `UnreadableError` where it holds less than was asked.
        """

    @abstractmethod
    def words(self) -> str:
        """For a column of a table."""


def operator_for(how: TreatmentSettings, seen: Activations | None) -> Operator:
    """The operator itself, or the one in its place for a layer that no input reached."""
    from tailwise.compression.operators.registered import OPERATORS

    return how.operator if seen is not None or not how.operator.looks else OPERATORS[how.operator.blind]


def is_whole(value: object) -> bool:
    """Whether a value of a file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value of a file is a finite number."""
    # Compared and not converted: whole numbers in a file may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
