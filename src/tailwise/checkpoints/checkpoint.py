"""The contract between file formats and the rest: a checkpoint is named tensors that can be read in row blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from tailwise.core.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    import torch

#: Bits per element of every dtype code; the codes are those of the safetensors header. Packed formats of GGUF
#: use `GGUF_<type>` codes, whose size is not a whole number of bits per element, and state `nbytes` themselves.
DTYPE_BITS: Mapping[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a checkpoint's header describes it, known before any weight is read."""

    name: str
    dtype: str  # a key of DTYPE_BITS, or GGUF_<type>
    shape: tuple[int, ...]  # as stored, row-major
    nbytes: int  # on disk

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Checkpoint(ABC):
    """Named tensors, readable in blocks of rows.

    A subclass fills the attributes and implements `read_rows`. Nothing but headers may be read before the first
    `read_rows`. Reading is thread-safe. Errors are `UnreadableError`, never those of a library.
    """

    uri: str
    format: str  # "safetensors", "torch", "gguf", "memory", "peft", …
    config: Mapping[str, Any]  # the model's config.json, or {}
    tensors: Mapping[str, TensorSpec]
    local: bool = True  # whether reading twice is cheap
    resident: bool = False  # whether the tensors are in memory already
    revision: str | None = None  # the resolved commit, where the source has one
    metadata: Mapping[str, str]  # free text from the header
    shared: Mapping[str, str] = MappingProxyType({})  # tied tensors: name → the name that stands first
    module_kinds: Mapping[str, str] = MappingProxyType({})  # module → its class, where the model is live
    module_scales: Mapping[str, Mapping[str, float]] = MappingProxyType({})  # of a live model: module → adapter → alpha
    factors_apart: bool = False  # whether an adapter's factors are read as they are, by their own names
    notes: tuple[str, ...] = ()  # what was taken or left out, and the user should know
    readings: Mapping[str, str] = MappingProxyType({})  # tensors that reading decodes or computes: name → how
    members: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # decoded tensor → the stored ones it is made of
    unsupported: Mapping[str, str] = MappingProxyType({})  # stored tensors that cannot be read as weights: name → why
    aside: Mapping[str, str] = MappingProxyType(
        {}
    )  # stored tensors that are no weights, whatever their shape: name → why
    assumed: Mapping[str, str] = MappingProxyType({})  # weights that something was assumed of: name → what
    stored: Mapping[str, TensorSpec] = MappingProxyType({})  # of a decoded checkpoint: the tensors as they lie on disk
    read_whole: frozenset[str] = frozenset()  # tensors whose rows cost as much as the whole
    parts: tuple[str, ...] = ()  # what can be asked for in place of what was taken
    chosen: str = ""  # the part that was asked for

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of the tensor's first axis, in the stored dtype (quantized formats: de-quantized).

        A tensor with no axis is read with `0, 1` and has shape (). Raises `UnreadableError`.
        """

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, shape `tensors[name].shape`."""
        shape = self.tensors[name].shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def identity(self, name: str) -> str | None:  # noqa: ARG002 - a hook
        """What changes whenever the tensor's bytes change and can be known without reading them, or None.

        A file's path, size, modification time and offset; a hub's content hash and offset.
        """
        return None

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:  # noqa: ARG002 - a hook
        """(rows × r) and (r × cols) whose product the tensor is, where it is one of low rank; else None."""
        return None

    def part(self, names: Iterable[str]) -> Checkpoint:  # noqa: ARG002 - a hook
        """These stored tensors alone, as what another process can read them with.

        It is small and can be pickled: addresses, offsets, lengths and dtypes, never values. `UsageError` where there
        are no such addresses, as for tensors in memory.
        """
        raise UsageError(
            "lies in the memory of this process, where no other can read it",
            where=self.uri,
            fix="save it as safetensors where every worker can read it, or leave the executor local",
        )

    def fetch(self) -> None:  # noqa: B027 - a hook
        """Read what `part` has left into memory, neighbours at once, so that `read_rows` need not wait.

        A format that cannot do so does nothing.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def close(self) -> None:  # noqa: B027 - most formats hold nothing open
        """Release files. Reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: numpy's (and ml_dtypes') names that are not the code's letters with a number.
_NUMPY_NAMES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}


@cache
def torch_dtypes() -> dict[str, torch.dtype]:
    """Code to torch dtype, for the codes that the installed torch has a dtype for."""
    import torch

    return {code: getattr(torch, name) for name, code in _NUMPY_NAMES.items() if hasattr(torch, name)}


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


def code_of(dtype: Any) -> str:
    """The code of a torch or numpy dtype; its own name in capitals when the format has no code for it."""
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    return _NUMPY_NAMES.get(name, name.upper())
