"""Folders of torch.distributed.checkpoint (FSDP, torchtitan, Accelerate, Megatron's `torch_dist`): tensors in chunks.

`.metadata` says which byte range of which `.distcp` file holds which chunk. It is a pickle, and is read as inert
records; PyTorch's own reader would run what it names. A chunk is a file of `torch.save`, read with tensors only.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.bytesource import ByteSource, Folder
from tailwise.checkpoints.checkpoint import DTYPE_BITS, TensorSpec, code_of
from tailwise.checkpoints.formats.common import TensorStore, torch_dtype
from tailwise.checkpoints.formats.inert import Record, read_inert
from tailwise.checkpoints.formats.pickle_bounds import check_stream
from tailwise.checkpoints.formats.repeated import Laid, beyond_what_is_held
from tailwise.checkpoints.formats.saved import find_tensors
from tailwise.checkpoints.formats.torch_pickle import NO_PICKLE
from tailwise.checkpoints.inside import inside
from tailwise.checkpoints.layout import METADATA
from tailwise.core.errors import UnreadableError, UnsafeError

if TYPE_CHECKING:
    import torch

_MAX_NUMEL = 1 << 62
_MOST_SPLIT = 6  # axes along which one tensor is split
_MOST_AXES = 16
_EXTRA = 1 << 20  # bytes that torch.save adds to a tensor's own, and more than enough
#: Megatron stacks the layers of a model along the first axis of one tensor.
_STACKED = re.compile(r"(?P<before>(?:^|.*\.)layers)\.(?P<after>(?!\d).*)")
_MOST_LAYERS = 1 << 16
_DAMAGED = "it is damaged or not all files are there: copy the folder again"


@dataclass(frozen=True)
class _Chunk:
    """A box of a tensor, and the byte range that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class _Entry:
    """A tensor as the metadata describes it; of a stack of layers, one layer."""

    key: str
    code: str
    shape: tuple[int, ...]  # of the whole stack
    chunks: tuple[_Chunk, ...]
    layer: int | None = None

    @property
    def own_shape(self) -> tuple[int, ...]:
        return self.shape if self.layer is None else self.shape[1:]


class DistributedCheckpoint(TensorStore):
    """The tensors of one folder."""

    format = "dcp"

    def __init__(
        self, uri: str, folder: Folder, *, config: Mapping[str, Any] | None = None, part: str | None = None
    ) -> None:
        if os.environ.get(NO_PICKLE):
            raise UnsafeError(f"holds pickles, and {NO_PICKLE} refuses these", where=uri,
                              fix="give a model in safetensors or GGUF")  # fmt: skip
        self._folder, self._files = folder, dict[str, ByteSource]()
        source = folder.source(METADATA)
        try:
            metadata = read_inert(source.read(0, source.size), where=source.name)
            self._stamp = source.identity()
        finally:
            source.close()
        sizes: dict[str, int] = {}
        entries = _entries(metadata, (source.name, folder, sizes))
        saved = find_tensors(_tree(entries, getattr(metadata, "planner_data", None)), part)
        self.notes, self.parts, self.chosen = saved.notes, saved.parts, saved.part
        self._entries = dict(_named(saved.tensors, entries, stacked="metadata.json" in folder.names()))
        refused = beyond_what_is_held(
            Laid(entry.key, chunk.file, sizes[chunk.file], chunk.length)
            for entry in {entry.key: entry for entry in self._entries.values()}.values() for chunk in entry.chunks
        )  # fmt: skip
        self.unsupported = {name: refused[item.key] for name, item in self._entries.items() if item.key in refused}
        specs = {name: _spec(name, entry) for name, entry in self._entries.items()}
        super().__init__(uri, specs, config=config, revision=folder.revision)
        self.read_whole = frozenset(specs)  # a chunk is read as a whole

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        import torch

        entry = self._entries[spec.name]
        dtype = torch_dtype(entry.code, where=f"{self.uri}, tensor {spec.name}")
        lows, highs = [0] * len(entry.shape), list(entry.shape)
        if entry.layer is not None:
            lows[0], highs[0] = entry.layer, entry.layer + 1
        if spec.shape:
            axis = 0 if entry.layer is None else 1
            lows[axis], highs[axis] = start, stop
        out = torch.empty([high - low for low, high in zip(lows, highs, strict=True)], dtype=dtype)
        for chunk in entry.chunks:
            bounds = zip(lows, highs, chunk.offsets, chunk.sizes, strict=True)
            box = [(max(low, at), min(high, at + size)) for low, high, at, size in bounds]
            if any(a >= b for a, b in box):
                continue
            into = tuple(slice(a - low, b - low) for (a, b), low in zip(box, lows, strict=True))
            taken = tuple(slice(a - at, b - at) for (a, b), at in zip(box, chunk.offsets, strict=True))
            out[into] = self._chunk(chunk, entry, dtype)[taken]
        return out if entry.layer is None else out[0]

    def _chunk(self, chunk: _Chunk, entry: _Entry, dtype: torch.dtype) -> torch.Tensor:
        import torch

        where = f"{chunk.file}, tensor {entry.key}"
        data = self._file(chunk.file).read(chunk.start, chunk.length)
        try:
            _check_unpacked(data)
            check_stream(io.BytesIO(data), where, is_zip=True)
            tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except UnreadableError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file
            raise UnreadableError("a chunk is not a whole file of torch.save", where=where, fix=_DAMAGED) from error
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tuple(tensor.shape) != chunk.sizes:
            raise UnreadableError("a chunk is not what the metadata says", where=where, fix=_DAMAGED)
        return tensor.detach()

    def _file(self, name: str) -> ByteSource:
        if name not in self._files:
            self._files[name] = self._folder.source(name)
        return self._files[name]

    @override
    def identity(self, name: str) -> str | None:
        """The metadata, which is written last, the files of the chunks, and the tensor's key."""
        self._spec(name)
        entry = self._entries[name]
        identities = [self._stamp, *(self._file(file).identity() for file in sorted({c.file for c in entry.chunks}))]
        known = [item for item in identities if item is not None]
        return None if len(known) < len(identities) else "+".join([*known, f"{entry.key}[{entry.layer}]"])

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), part=self.chosen or None))

    @override
    def close(self) -> None:
        super().close()
        for file in self._files.values():
            file.close()


def _check_unpacked(data: bytes) -> None:
    """Raise `ValueError` for an archive that would become larger than it is."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(data):
            raise ValueError("it is compressed")


def _spec(name: str, entry: _Entry) -> TensorSpec:
    shape = entry.own_shape
    return TensorSpec(name, entry.code, shape, prod(shape) * DTYPE_BITS.get(entry.code, 8) // 8)


def _entries(metadata: Any, at: tuple[str, Folder, dict[str, int]]) -> dict[str, _Entry | None]:
    """Key → the tensor, or None for what is no tensor. `at`: its place, and the sizes of files, which are added."""
    where, folder, sizes = at
    described, stored = getattr(metadata, "state_dict_metadata", None), getattr(metadata, "storage_data", None)
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise UnreadableError("is not the metadata of torch.distributed.checkpoint", where=where, fix=_DAMAGED)
    places = {}
    for index, info in stored.items():
        name, offset = getattr(index, "fqn", None), getattr(index, "offset", None)
        if isinstance(name, str) and isinstance(offset, tuple) and all(isinstance(start, int) for start in offset):
            places[name, tuple(offset)] = info
    return {str(key): _entry(str(key), item, (places, where, folder, sizes)) for key, item in described.items()}


_Context = tuple[dict[Any, Any], str, Folder, dict[str, int]]


def _entry(key: str, item: Any, context: _Context) -> _Entry | None:
    chunks = getattr(item, "chunks", None)
    if not isinstance(chunks, list):
        return None
    where = f"{context[1]}, tensor {key[:120]}"
    shape = _sizes(getattr(item, "size", None), where)
    code = _code(getattr(item, "properties", None))
    pieces = tuple(_chunk(key, chunk, code, context) for chunk in chunks)
    _check_tiles(shape, pieces, where)
    return _Entry(key, code, shape, pieces)


def _code(properties: Any) -> str:
    """The dtype of torch's TensorProperties, the first of their state."""
    state = getattr(properties, "state", None)
    named = state[0] if isinstance(state, tuple) and state else getattr(properties, "dtype", None)
    return code_of(named.path) if isinstance(named, type) and issubclass(named, Record) else "?"


def _chunk(key: str, chunk: Any, code: str, context: _Context) -> _Chunk:
    places, where, folder, known = context
    where = f"{where}, tensor {key[:120]}"
    offsets, sizes = _sizes(getattr(chunk, "offsets", None), where), _sizes(getattr(chunk, "sizes", None), where)
    info = places.get((key, offsets))
    file, start, length = (getattr(info, name, None) for name in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or type(start) is not int or type(length) is not int:
        raise UnreadableError("a chunk lies nowhere", where=where, fix=_DAMAGED)
    if getattr(info, "transform_descriptors", None):
        raise UnreadableError(
            "its chunks are compressed or encrypted", where=where, fix="save it without extensions of the stream"
        )
    if file not in known:
        inside(folder, file, where=where, what="a chunk")
        if "/" in file or file not in folder.names():
            raise UnreadableError(f"the file {file[:120]!r} is missing", where=folder.uri, fix=_DAMAGED)
        source = folder.source(file)
        known[file] = source.size
        source.close()
    least, most = (prod(sizes) * DTYPE_BITS.get(code, bits) // 8 for bits in (0, 128))
    if start < 0 or not least <= length <= most + _EXTRA or start + length > known[file]:
        raise UnreadableError(
            f"a chunk would be bytes {start} to {start + length} of {file}, which has {known[file]}",
            where=where,
            fix=_DAMAGED,
        )
    return _Chunk(offsets, sizes, file, start, length)


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    # torch.Size is pickled as a call with one tuple, or with nothing for a scalar.
    if (
        not isinstance(value, tuple)
        or len(value) > _MOST_AXES
        or not all(type(size) is int and size >= 0 for size in value)
    ):
        raise UnreadableError("a shape is no list of sizes", where=where, fix=_DAMAGED)
    if prod(max(size, 1) for size in value) > _MAX_NUMEL:
        raise UnreadableError("a shape overflows", where=where, fix=_DAMAGED)
    return tuple(value)


def _check_tiles(shape: tuple[int, ...], chunks: Sequence[_Chunk], where: str) -> None:
    """Fail unless the chunks lie in the tensor, do not overlap, and fill it."""
    for chunk in chunks:
        if len(chunk.sizes) != len(shape) or len(chunk.offsets) != len(shape):
            raise UnreadableError("a chunk has other axes than its tensor", where=where, fix=_DAMAGED)
        if any(at + size > whole for at, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True)):
            raise UnreadableError("a chunk lies outside its tensor", where=where, fix=_DAMAGED)
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(shape) or not _covers_once(shape, chunks, where):
        raise UnreadableError("its chunks do not fill it", where=where, fix=_DAMAGED)


def _covers_once(shape: tuple[int, ...], chunks: Sequence[_Chunk], where: str) -> bool:
    """Whether chunks that have as many entries as the tensor cover each once, in time that goes with their number.

    Where all corners of boxes but those of the whole cancel in pairs, every entry is covered an odd number of times:
    by as many entries as there are, once.
    """
    boxes = [chunk for chunk in chunks if prod(chunk.sizes)]
    split = [axis for axis, whole in enumerate(shape) if any(chunk.sizes[axis] != whole for chunk in boxes)]
    if len(split) > _MOST_SPLIT:
        raise UnreadableError(f"a tensor is split along {len(split)} axes", where=where, fix=_DAMAGED)
    odd: set[tuple[int, ...]] = set()
    for box in boxes:
        ends = ((box.offsets[axis], box.offsets[axis] + box.sizes[axis]) for axis in split)
        odd.symmetric_difference_update(product(*ends))
    return odd == set(product(*((0, shape[axis]) for axis in split))) if boxes else not prod(shape)


def _tree(entries: Mapping[str, _Entry | None], planner: Any) -> dict[str, Any]:
    """The state dict that was saved, with a tensor without values in the place of each."""
    import torch

    tree: dict[str, Any] = {}
    for key, entry in entries.items():
        path = planner.get(key) if isinstance(planner, dict) else None
        if not isinstance(path, tuple) or not path:
            first, dot, rest = key.partition(".")
            path = (first, rest) if dot and first in ("optimizer", "optim") else (key,)
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(str(part), {})
            if not isinstance(inner, dict):
                raise UnreadableError(f"two entries claim {key[:120]}", fix=_DAMAGED)
        if entry is not None:
            tensor = torch.empty(entry.shape, device="meta")
            tensor.key = key  # type: ignore[attr-defined]
            inner[str(path[-1])] = tensor
        else:
            inner.setdefault(str(path[-1]), None)
    return tree


def _named(
    tensors: Mapping[str, torch.Tensor], entries: Mapping[str, _Entry | None], *, stacked: bool
) -> Iterator[tuple[str, _Entry]]:
    """Name → entry, of Megatron's stacks of layers one for each layer."""
    for name, tensor in tensors.items():
        entry = entries[tensor.key]  # type: ignore[attr-defined]
        if entry is None:
            continue
        match = _STACKED.fullmatch(name) if stacked and entry.shape else None
        # Without entries, or with few of them each, layers cost the file next to nothing.
        match = match if match and prod(entry.shape) and entry.shape[0] <= _MOST_LAYERS else None
        if match is None:
            yield name, entry
            continue
        for layer in range(entry.shape[0]):
            yield f"{match['before']}.{layer}.{match['after']}", replace(entry, layer=layer)
