"""Checkpoints written shard by shard, tensor by tensor: same files, same names, same dtypes as the source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tailwise.checkpoints.bytesource import Folder, LocalFolder
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec, code_of
from tailwise.checkpoints.copied_settings import _not_of, copy_settings
from tailwise.checkpoints.layout import Weights, averaged_prefixes, find_weights, read_index
from tailwise.checkpoints.open import _locate
from tailwise.checkpoints.sniff import read_header
from tailwise.core.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    import torch

#: Of a checkpoint that is converted; one that is safetensors already keeps its shards.
_SHARD_BYTES = 5 << 30
_PIECE = 1 << 24

Change = Callable[[str], "torch.Tensor | None"]  # stored name → what takes its place, or None


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint: its tensors in the order of their bytes."""

    name: str
    specs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputLayout:
    """Which files make a checkpoint, and the folder that it comes from."""

    folder: Folder
    shards: tuple[Shard, ...]
    index: str | None = None  # name of the index file
    facts: Mapping[str, Any] = field(default_factory=dict)  # `metadata` of the index
    left_out: tuple[str, ...] = ()  # keys of config.json that a copy is not to have

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for shard in self.shards for spec in shard.specs)


def layout_of(checkpoint: Checkpoint, uri: str | os.PathLike[str], revision: str | None = None) -> OutputLayout:
    """The files that a copy of `checkpoint`, opened from `uri`, is to have.

    Those of the source where it is safetensors; PyTorch's files become safetensors. `UsageError` for other formats.
    """
    if checkpoint.format not in ("safetensors", "torch"):
        raise UsageError(
            f"a checkpoint in the format {checkpoint.format} cannot be written back",
            where=checkpoint.uri,
            fix="give one in safetensors or PyTorch files",
        )
    folder, file = _locate(os.fspath(uri), revision)
    _check_config(folder)
    if checkpoint.format == "torch":
        return _packed(folder, [s for name, s in checkpoint.tensors.items() if name not in checkpoint.shared])
    index = file if file is not None and file.endswith(".index.json") else None
    weights = find_weights(folder) if file is None else _of_file(folder, file)
    if index is None and weights.tensors:
        names = sorted(name for name in folder.names() if name.endswith(".safetensors.index.json"))
        preferred = [name for name in names if name == "model.safetensors.index.json"]
        index = (preferred or names)[0]
    metadata = folder.json(index).get("metadata", {}) if index is not None else {}
    shards = _without_averages(tuple(_shard(folder, name) for name in weights.files))
    return OutputLayout(folder, shards, index, metadata if isinstance(metadata, Mapping) else {})


def _check_config(folder: Folder) -> None:
    """`UnreadableError` before the work where a copy would lack its config."""
    if isinstance(folder, LocalFolder) and "config.json" in folder.names():
        why = _not_of(folder.path, folder.path / "config.json")
        if why is not None:
            raise UnreadableError(f"is not copied: {why}", where=folder.path / "config.json",
                                  fix="put a copy of it into the folder")  # fmt: skip


def _of_file(folder: Folder, file: str) -> Weights:
    return read_index(folder, file) if file.endswith(".index.json") else Weights("safetensors", (file,))


def _shard(folder: Folder, name: str) -> Shard:
    source = folder.source(name)
    try:
        header = read_header(source)
    finally:
        source.close()
    # Tensors without entries take no bytes, and come before the one that begins where they do.
    ordered = sorted(header.specs.values(), key=lambda spec: (header.offsets[spec.name], spec.nbytes))
    return Shard(name, tuple(ordered), header.metadata)


def _without_averages(shards: tuple[Shard, ...]) -> tuple[Shard, ...]:
    """What is opened is what is written: weights without the moving average beside them."""
    left = set(averaged_prefixes(spec.name for shard in shards for spec in shard.specs))
    if not left:
        return shards
    kept = [tuple(spec for spec in shard.specs if spec.name.partition(".")[0] not in left) for shard in shards]
    return tuple(replace(shard, specs=specs) for shard, specs in zip(shards, kept, strict=True))


def _packed(folder: Folder, specs: list[TensorSpec]) -> OutputLayout:
    groups: list[list[TensorSpec]] = [[]]
    room = _SHARD_BYTES
    for spec in specs:
        if groups[-1] and spec.nbytes > room:
            groups.append([])
            room = _SHARD_BYTES
        groups[-1].append(spec)
        room -= spec.nbytes
    if len(groups) == 1:
        return OutputLayout(folder, (Shard("model.safetensors", tuple(groups[0])),))
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    shards = tuple(Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True))
    return OutputLayout(folder, shards, "model.safetensors.index.json")


def write_checkpoint(layout: OutputLayout, checkpoint: Checkpoint, target: Path, change: Change) -> tuple[str, ...]:
    """Write all files into the folder `target`: the weights, then their index, then what lies beside them.

    `change` gives the tensors that differ from the source; one tensor is in memory at a time. Returns notes. A full
    disk is an `OSError`.
    """
    for shard in layout.shards:
        write_shard(target / shard.name, shard, lambda name: tensors_of(checkpoint, name, change))
    return finish_checkpoint(layout, target)


def finish_checkpoint(layout: OutputLayout, target: Path) -> tuple[str, ...]:
    """Write what is not weights: the index, and what lies beside them. Returns notes."""
    if layout.index is not None:
        write_index(layout, target)
    return tuple(copy_settings(layout, target))


def write_index(layout: OutputLayout, target: Path) -> None:
    """Write the index file that says which shard holds which tensor."""
    assert layout.index is not None  # noqa: S101 - the caller has looked
    names = {spec.name: shard.name for shard in layout.shards for spec in shard.specs}
    metadata = {**layout.facts, "total_size": layout.nbytes}
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(names.items()))}, indent=2)
    (target / layout.index).write_text(text + "\n", encoding="utf-8")


def tensors_of(checkpoint: Checkpoint, name: str, change: Change) -> Iterable[torch.Tensor]:
    """What a tensor is written as, in pieces: as `change` has it, else as it is stored."""
    changed = change(name)
    if changed is not None:
        _check(changed, checkpoint.tensors[name])
        return (changed,)
    return pieces(checkpoint, name)


def _check(tensor: torch.Tensor, spec: TensorSpec) -> None:
    if tuple(tensor.shape) != spec.shape or code_of(tensor.dtype) != spec.dtype:
        wanted = f"{spec.dtype} of shape {list(spec.shape)}"
        raise UsageError(f"{spec.name} would become {tensor.dtype} of shape {list(tensor.shape)}, and was {wanted}")


def pieces(checkpoint: Checkpoint, name: str) -> Iterator[torch.Tensor]:
    """A stored tensor in runs of rows, few megabytes each."""
    spec = checkpoint.tensors[name]
    if not spec.shape or not spec.nbytes or name in checkpoint.read_whole:
        yield checkpoint.read(name)
        return
    step = max(1, _PIECE // (spec.nbytes // spec.shape[0]))
    for start in range(0, spec.shape[0], step):
        yield checkpoint.read_rows(name, start, min(start + step, spec.shape[0]))


def write_shard(path: Path, shard: Shard, read: Callable[[str], Iterable[torch.Tensor]]) -> None:
    """Write one safetensors file; `read` gives a tensor in pieces along its first axis."""
    with path.open("wb") as file:
        file.write(_header(shard))
        for spec in shard.specs:
            start = file.tell()
            for piece in read(spec.name):
                _write(file, piece)
            if file.tell() - start != spec.nbytes:
                raise UnreadableError(f"has other bytes than its header says: {spec.name}", where=shard.name)
        file.flush()
        os.fsync(file.fileno())  # a rename must not overtake the bytes


def _header(shard: Shard) -> bytes:
    fields: dict[str, Any] = {"__metadata__": {**shard.metadata, "format": "pt"}}
    offset = 0
    for spec in shard.specs:
        place = [offset, offset + spec.nbytes]
        fields[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": place}
        offset += spec.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data then begins on a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, piece: torch.Tensor) -> None:
    import torch

    flat = piece.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
