"""Dtype codes of checkpoints and the dtypes of torch and numpy that they stand for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import DTYPE_BITS
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch


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
