"""A few tensors of a checkpoint that another process reads by opening the same address itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.core.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    import torch

#: Checkpoints that a process keeps open.
_OPEN = 4


@dataclass(frozen=True)
class CheckpointAddress:
    """What `open_checkpoint` takes."""

    uri: str
    base: str | None = None
    adapter_mode: Literal["delta", "merged"] = "delta"
    part: str | None = None


class ByAddress(Checkpoint):
    """Tensors of formats that are no plain byte ranges: pickles, adapters. Opened at the first read."""

    def __init__(self, whole: Checkpoint, names: Iterable[str], address: CheckpointAddress) -> None:
        self.uri, self.format, self.config, self.revision = whole.uri, whole.format, whole.config, whole.revision
        self.metadata, self.local, self.resident = whole.metadata, whole.local, whole.resident
        self.reopen = whole.reopen
        self.tensors: Mapping[str, TensorSpec] = {name: whole.tensors[name] for name in names}
        self.readings = MappingProxyType({n: whole.readings[n] for n in self.tensors if n in whole.readings})
        self.read_whole = whole.read_whole & self.tensors.keys()
        self.module_kinds = whole.module_kinds
        self._address = address
        self._identities = {name: whole.identity(name) for name in self.tensors}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "readings": dict(self.readings), "module_kinds": dict(self.module_kinds)}

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._opened(name).read_rows(name, start, stop)

    @override
    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self._opened(name).factors(name)

    @override
    def identity(self, name: str) -> str | None:
        """As the process had it that sent the address."""
        return self._identities[name]

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, self._address)

    def _opened(self, name: str) -> Checkpoint:
        if self.reopen is None:
            raise UsageError("was not opened from an address", where=self.uri, fix="open it by `open_checkpoint`")
        checkpoint = _open(self.reopen, self._address)
        if checkpoint.identity(name) == self._identities[name]:
            return checkpoint
        _open.cache_clear()
        checkpoint = _open(self.reopen, self._address)
        if checkpoint.identity(name) != self._identities[name]:
            raise UnreadableError("has changed since it was opened", where=self.uri, fix="open it again")
        return checkpoint


@lru_cache(maxsize=_OPEN)
def _open(reopen: Callable[..., Checkpoint], address: CheckpointAddress) -> Checkpoint:
    return reopen(address.uri, base=address.base, adapter_mode=address.adapter_mode, part=address.part)


def from_anywhere(uri: str) -> str:
    """A local path as one that does not depend on the working directory; other addresses as they are."""
    path = Path(uri).expanduser()
    return str(path.absolute()) if path.exists() else uri
