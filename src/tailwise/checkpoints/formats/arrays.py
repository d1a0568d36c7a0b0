"""What Keras' and NumPy's files share: stored arrays that are shown with PyTorch's axes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.checkpoint import TensorSpec, code_of
from tailwise.checkpoints.formats.common import TensorStore, torch_dtype
from tailwise.checkpoints.formats.kernels_last import Turned
from tailwise.checkpoints.formats.memory import as_tensor
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stored:
    """An array of a file, and how it is shown."""

    key: str  # its name in the file
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    shown: Turned
    by_rows: bool = True  # whether rows can be read without the rest
    index: tuple[int, ...] = ()  # of its first axes, where what is shown is one of a stack of layers


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether entries are two bytes without a type: what bfloat16 becomes in files of NumPy and HDF5."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None


def _code(dtype: np.dtype[Any]) -> str:
    return "BF16" if is_bfloat16(dtype) else code_of(dtype)


class ArrayStore(TensorStore):
    """A checkpoint of one file of arrays."""

    def __init__(
        self,
        uri: str,
        file: ByteSource,
        arrays: Iterable[Stored],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._file = file
        self._arrays: dict[str, Stored] = {}
        self.unsupported: dict[str, str] = {}
        tensors, kinds = dict[str, TensorSpec](), dict[str, str]()
        for stored in arrays:
            name = stored.shown.name
            if name in tensors:
                name = ".".join([stored.key, *map(str, stored.index)])
            if name in tensors:
                raise UnreadableError(f"two arrays are named {name}", where=uri, fix="rename one of them")
            nbytes = stored.dtype.itemsize
            for size in stored.shape[len(stored.index) :]:
                nbytes *= size
            tensors[name] = TensorSpec(name, _code(stored.dtype), stored.shown.shape, nbytes)
            self._arrays[name] = stored
            if stored.shown.kind:
                kinds[name.rpartition(".")[0]] = stored.shown.kind
            if stored.shown.refused:
                self.unsupported[name] = stored.shown.refused
        super().__init__(uri, tensors, config=config, revision=revision)
        self.module_kinds = kinds
        if any(is_bfloat16(stored.dtype) for stored in self._arrays.values()):
            self.notes += ("entries of two bytes without a type are read as bfloat16",)
        self.read_whole = frozenset(
            name
            for name, stored in self._arrays.items()
            if stored.index or not (stored.shown.as_stored and stored.by_rows)
        )

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        stored = self._arrays[spec.name]
        torch_dtype(spec.dtype, where=f"{self._file.name}, tensor {spec.name}")
        if stored.index:
            first, *rest = stored.index
            block = self._array(stored, first, first + 1)[0]
            for index in rest:
                block = block[index]
            return as_tensor(stored.shown.turn(block)[start:stop], spec.dtype)
        if not stored.shape or (stored.shown.as_stored and stored.by_rows):
            return as_tensor(self._array(stored, start, stop), spec.dtype)
        whole = stored.shown.turn(self._array(stored, 0, stored.shape[0]))
        return as_tensor(whole[start:stop], spec.dtype)

    @abstractmethod
    def _array(self, stored: Stored, start: int, stop: int) -> NDArray[Any]:
        """Rows of the array as it is stored; all of one without axes."""

    @override
    def identity(self, name: str) -> str | None:
        """The file and the array's name in it, and how it is turned."""
        self._spec(name)
        content, stored = self._file.identity(), self._arrays[name]
        index = f"{stored.index}" if stored.index else ""
        return None if content is None else f"{content}:{stored.key}:{stored.shown.axes}{stored.shown.blocks}{index}"

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), part=self.chosen or None))

    @override
    def close(self) -> None:
        super().close()
        self._file.close()
