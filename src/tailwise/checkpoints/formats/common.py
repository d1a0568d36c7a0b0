"""What all checkpoints of files and of memory share: checks before a read, and being closed."""

from __future__ import annotations

import copy
import difflib
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.checkpoint import DTYPE_BITS, NUMPY_NAMES, Checkpoint, TensorSpec
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import is_text

if TYPE_CHECKING:
    import torch

_LONGEST_NAME = 4096


class TensorStore(Checkpoint):
    """A checkpoint that checks names and ranges, then reads through `_rows`."""

    def __init__(
        self,
        uri: str,
        tensors: Mapping[str, TensorSpec],
        *,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        revision: str | None = None,
    ) -> None:
        if not tensors:
            raise UnreadableError(
                "holds no tensors",
                where=uri,
                fix="check that this is the model's weights and not a side file",
            )
        for name in tensors:
            # What tells roles by names takes time that grows faster than they do.
            if len(name) > _LONGEST_NAME or not is_text(name):
                what = "is not valid Unicode" if len(name) <= _LONGEST_NAME else f"has {len(name)} characters"
                fix = "save it with another name"
                raise UnreadableError(f"a tensor's name {what}: {ascii(name)[:120]}", where=uri, fix=fix)
        self.uri, self.tensors, self.revision = uri, dict(tensors), revision
        self.config, self.metadata = dict(config or {}), dict(metadata or {})
        self._closed = False

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        spec = self._spec(name)
        rows = spec.shape[0] if spec.shape else 1
        if not 0 <= start <= stop <= rows or not (spec.shape or start < stop):
            raise UnreadableError(
                f"rows {start}:{stop} do not exist in a tensor of {rows} rows",
                where=f"{self.uri}, tensor {name}",
                fix=f"ask for rows within 0:{rows}",
            )
        if self._closed:
            raise UnreadableError("the checkpoint is closed", where=self.uri, fix="open it again")
        return self._rows(spec, start, stop)

    @override
    def read(self, name: str) -> torch.Tensor:
        shape = self._spec(name).shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    @override
    def close(self) -> None:
        self._closed = True

    @abstractmethod
    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that exists, in a range that exists."""

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(self.tensors)} others"
            raise UsageError(f"there is no tensor named {name!r}", where=self.uri, fix=hint)
        return self.tensors[name]


class RangedStore(TensorStore):
    """A checkpoint whose every tensor is one range of one file."""

    _files: tuple[ByteSource, ...]
    _places: dict[str, tuple[ByteSource, Any]]  # tensor → its file, and what the format knows of its place there

    @override
    def identity(self, name: str) -> str | None:
        spec = self._spec(name)
        content = self._places[name][0].identity()
        return None if content is None else f"{content}:{self._offset(name)}:{spec.nbytes}"

    @override
    def part(self, names: Iterable[str]) -> Self:
        """The files are those of the whole; close that one."""
        specs = {name: self._spec(name) for name in names}
        copied = copy.copy(self)
        copied.tensors = specs
        copied._places = {name: self._places[name] for name in specs}
        copied._files = tuple({id(file): file for file in (copied._places[name][0] for name in specs)}.values())
        return copied

    @override
    def fetch(self) -> None:
        for file in self._files:
            here = [name for name, (other, _) in self._places.items() if other is file]
            spans: list[Span] = [(self._offset(name), self.tensors[name].nbytes) for name in here]
            held = HeldFile(file, spans)
            self._places |= {name: (held, self._places[name][1]) for name in here}

    @override
    def close(self) -> None:
        super().close()
        for file in self._files:
            file.close()

    @abstractmethod
    def _offset(self, name: str) -> int:
        """Where in its file a tensor begins."""


#: Bytes between two ranges that are read along rather than asked for apart: a remote request costs about as much.
GAP = 1 << 20
#: A longer range comes in parts side by side from a remote address, where one connection does not fill the line.
PART = 16 << 20
_AT_ONCE = 4

Span = tuple[int, int]  # offset, bytes


def coalesced(spans: Iterable[Span], gap: int = GAP) -> list[Span]:
    """The spans in order, those that overlap or lie at most `gap` bytes apart as one."""
    joined: list[Span] = []
    for start, nbytes in sorted(spans):
        if joined and start <= sum(joined[-1]) + gap:
            first = joined[-1][0]
            joined[-1] = first, max(sum(joined[-1]), start + nbytes) - first
        else:
            joined.append((start, nbytes))
    return joined


class HeldFile(ByteSource):
    """A file of which some ranges are in memory; the rest is read when it is asked for."""

    def __init__(self, file: ByteSource, spans: Iterable[Span]) -> None:
        self._file = file
        self.name, self.size, self.local = file.name, file.size, file.local
        self._held = [(start, _read(file, start, nbytes)) for start, nbytes in coalesced(spans)]

    @override
    def read_into(self, buffer: memoryview, offset: int) -> None:
        for start, data in self._held:
            if start <= offset and offset + len(buffer) <= start + len(data):
                buffer[:] = memoryview(data)[offset - start : offset - start + len(buffer)]
                return
        self._file.read_into(buffer, offset)

    @override
    def identity(self) -> str | None:
        return self._file.identity()

    @override
    def local_path(self) -> Path:
        return self._file.local_path()

    @override
    def close(self) -> None:
        self._held = []
        self._file.close()


def _read(file: ByteSource, start: int, nbytes: int) -> bytearray:
    data = bytearray(nbytes)
    view = memoryview(data)
    if file.local or nbytes <= PART:
        file.read_into(view, start)
        return data
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tailwise-read") as pool:
        parts = [pool.submit(file.read_into, view[at : at + PART], start + at) for at in range(0, nbytes, PART)]
        for part in parts:
            part.result()
    return data


@cache
def torch_dtypes() -> dict[str, torch.dtype]:
    """Code to torch dtype, for the codes that the installed torch has a dtype for."""
    import torch

    return {code: getattr(torch, name) for name, code in NUMPY_NAMES.items() if hasattr(torch, name)}


def torch_dtype(code: str, *, where: str) -> torch.dtype:
    """The torch dtype of `code`; `UnreadableError` at `where` when there is none."""
    known = torch_dtypes()
    if code not in known:
        raise UnreadableError(
            f"the dtype {code} is not one that tailwise can read",
            where=where,
            fix=f"convert the tensor to one of {', '.join(sorted(DTYPE_BITS))}",
        )
    return known[code]
