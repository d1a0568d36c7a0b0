"""`.npy` and `.npz`: arrays by their headers. Pickled objects are never loaded."""

from __future__ import annotations

import io
import re
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tailwise.checkpoints.bytesource import ByteSource, os_error
from tailwise.checkpoints.formats.arrays import ArrayStore, Stored, is_bfloat16
from tailwise.checkpoints.formats.kernels_last import Turned, layers_of, stacks_of
from tailwise.checkpoints.formats.unfolding import check_unfolding
from tailwise.core.archives import DAMAGED_ARCHIVE
from tailwise.core.errors import MALFORMED, UnreadableError
from tailwise.core.storage import ensure_room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DAMAGED = "it is damaged or cut off: download or save it again"
_NUMBERS = "fiubc"


class NumpyCheckpoint(ArrayStore):
    """The arrays of one `.npz` file, or the one of a `.npy` file, which is named `weight`."""

    format = "numpy"

    def __init__(
        self,
        uri: str,
        files: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        (file,) = files
        self._path = file.local_path()
        self._stamp = _stamp(self._path)
        self._zipped = not file.head.startswith(b"\x93NUMPY")
        self._starts: dict[str, int] = {}  # array → length of its header
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stacks: dict[str, int] = {}
        self._in_order: dict[str, bool] = {}  # array → whether its rows lie one after the other
        super().__init__(uri, file, list(self._found(file.name)), config=config, revision=revision)
        if len(self.unsupported) == len(self.tensors):
            why = next(iter(self.unsupported.values()))
            raise UnreadableError(f"holds no numbers: {why}", where=uri, fix="save plain arrays of numbers")

    def _found(self, where: str) -> Iterator[Stored]:
        try:
            if not self._zipped:
                with self._path.open("rb") as stream:
                    yield from self._stored("weight", stream, self._path.stat().st_size, where)
                return
            with zipfile.ZipFile(self._path) as archive:
                arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                check_unfolding(arrays, where)
                for info in arrays:
                    with archive.open(info) as member:
                        self._shapes[info.filename.removesuffix(".npy")] = _header(member)[0]  # type: ignore[arg-type]
                self._stacks = stacks_of(self._shapes)
                for info in arrays:
                    with archive.open(info) as member:
                        yield from self._stored(info.filename, member, info.file_size, where)  # type: ignore[arg-type]
        except DAMAGED_ARCHIVE as error:
            if isinstance(error, OSError) and error.errno:
                raise os_error(error, where) from error
            raise UnreadableError(f"is not a whole NumPy file: {error}", where=where, fix=_DAMAGED) from error

    def _stored(self, key: str, stream: BinaryIO, size: int, where: str) -> Iterator[Stored]:
        shape, fortran, dtype, start = _header(stream)
        name = key.removesuffix(".npy")
        place = f"{where}, array {name[:120]}"
        plain = dtype.kind in _NUMBERS or is_bfloat16(dtype)
        if plain and prod(shape) * dtype.itemsize + start != size:
            raise UnreadableError(
                f"{dtype} of shape {list(shape)} does not take the {size - start} bytes that are there",
                where=place,
                fix=_DAMAGED,
            )
        self._starts[key] = start
        if not plain:
            what = "Python objects" if dtype.kind == "O" else f"entries of the type {dtype}"
            yield Stored(key, dtype, shape, Turned(name, shape, refused=f"{what} are not read: only numbers are"))
            return
        by_rows = not fortran and not self._zipped
        self._in_order[key] = not fortran
        if "/" not in name:
            yield Stored(key, dtype, shape, Turned(name, shape), by_rows=by_rows)
            return
        for index, shown in layers_of(name, _path(name), shape, self._stacks):
            yield Stored(key, dtype, shape, shown, by_rows=by_rows, index=index)

    def _array(self, stored: Stored, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        if _stamp(self._path) != self._stamp:
            raise UnreadableError("has changed since it was opened", where=self._file.name, fix="open it again")
        try:
            if not self._zipped:
                whole: NDArray[Any] = np.load(self._path, mmap_mode="r", allow_pickle=False)
                return np.array(whole[start:stop] if stored.shape else whole)
            if stored.index and self._in_order[stored.key]:
                return self._layer(stored, start, stop)
            with zipfile.ZipFile(self._path) as archive:
                data = archive.read(stored.key)
            array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        except DAMAGED_ARCHIVE as error:
            place = f"{self._file.name}, array {stored.key[:120]}"
            raise UnreadableError(f"could not be read: {error}", where=place, fix=_DAMAGED) from error
        return array[start:stop] if stored.shape else array

    def _layer(self, stored: Stored, start: int, stop: int) -> NDArray[Any]:
        """Rows of a stack in an archive, without those before and after in memory."""
        import numpy as np

        row = prod(stored.shape[1:]) * stored.dtype.itemsize
        with zipfile.ZipFile(self._path) as archive, archive.open(stored.key) as member:
            member.seek(self._starts[stored.key] + start * row)
            data = member.read((stop - start) * row)
        return np.frombuffer(bytearray(data), stored.dtype).reshape(stop - start, *stored.shape[1:])


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether columns lie together, dtype, and the length of the header. `ValueError` where it is none."""
    from numpy.lib import format as layout

    version = layout.read_magic(stream)
    reader = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
    try:
        shape, fortran, dtype = reader(stream)
    except (*MALFORMED, SyntaxError, tokenize.TokenError) as error:
        # It is a Python literal, of which numpy takes some errors of the parser for its own, and lets others pass.
        raise ValueError(str(error) or type(error).__name__) from error
    except MemoryError as error:
        ensure_room()  # where there is room, it is the parser's own stack that 10,000 signs have used up
        raise ValueError("its header is nested too deeply") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape} cannot be")
    return shape, fortran, dtype, stream.tell()


def _path(name: str) -> list[str]:
    """Names of Flax, with what it numbers as PyTorch does: `encoderblock_3` is `encoderblock.3`."""
    parts = [part for part in name.split("/") if part]
    numbered = [re.sub(r"^(encoderblock|block|layers?)_(\d+)$", r"\1.\2", part) for part in parts]
    return numbered or [name]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise os_error(error, str(path)) from error
    return status.st_size, status.st_mtime_ns
