"""A checkpoint as it will be written: tensors of other shapes and names, each made when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec, code_of
from tailwise.checkpoints.writer import OutputLayout, Shard
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tailwise.models.walking.shapes import Shapes

Make = Callable[[], "torch.Tensor"]


@dataclass(frozen=True)
class RemadeTensor:
    """A tensor of the new checkpoint. Without `make` it is the source's, byte for byte."""

    spec: TensorSpec  # new name and shape
    source: str  # the stored tensor that it comes from
    make: Make | None = None


@dataclass(frozen=True)
class Made:
    """What is to be written instead of the source."""

    entries: tuple[RemadeTensor, ...]
    config: Mapping[str, object]  # fields of config.json that change
    shapes: Shapes | None  # what the config cannot say
    reached: Mapping[str, tuple[int, int | None]]  # tensor of the plan → parameters left, and its rank
    notes: tuple[str, ...] = ()


class Remade(Checkpoint):
    """The tensors of `entries`, in their order."""

    def __init__(self, source: Checkpoint, entries: tuple[RemadeTensor, ...]) -> None:
        self._source = source
        self._entries = {entry.spec.name: entry for entry in entries}
        self.uri, self.format, self.config, self.metadata = source.uri, source.format, source.config, source.metadata
        self.tensors = {name: entry.spec for name, entry in self._entries.items()}
        made = {name for name, entry in self._entries.items() if entry.make is not None}
        whole = {name for name, entry in self._entries.items() if entry.source in source.read_whole}
        self.read_whole = frozenset(made | whole)

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        entry = self._entries[name]
        if entry.make is None:
            return self._source.read_rows(entry.source, start, stop)
        tensor = entry.make()
        if tuple(tensor.shape) != entry.spec.shape or code_of(tensor.dtype) != entry.spec.dtype:
            wanted = f"{entry.spec.dtype} of shape {list(entry.spec.shape)}"
            raise UsageError(f"{name} would become {tensor.dtype} of shape {list(tensor.shape)}, and not {wanted}")
        return tensor[start:stop] if tensor.ndim else tensor


def laid_out(layout: OutputLayout, entries: tuple[RemadeTensor, ...]) -> OutputLayout:
    """The same files, holding the new tensors where their sources were; a file that would be empty is left out."""
    by_source: dict[str, list[TensorSpec]] = {}
    for entry in entries:
        by_source.setdefault(entry.source, []).append(entry.spec)
    shards = []
    for shard in layout.shards:
        specs = tuple(new for old in shard.specs for new in by_source.get(old.name, ()))
        if specs:
            shards.append(Shard(shard.name, specs, shard.metadata))
    metadata = dict(layout.facts)
    if "total_parameters" in metadata:  # of the source, whose tensors were larger
        metadata["total_parameters"] = sum(entry.spec.numel for entry in entries)
    return replace(layout, shards=tuple(shards), facts=metadata)


def resized(spec: TensorSpec, name: str, shape: tuple[int, ...]) -> TensorSpec:
    """The spec of a tensor of the same dtype with another name and shape."""
    each = spec.nbytes // max(spec.numel, 1)
    changed = TensorSpec(name, spec.dtype, shape, 0)
    return replace(changed, nbytes=changed.numel * each)
