"""Tensors of torch that are codes and scales in one object: torch.ao's quantized dtypes, torchao's subclasses.

Their entries are what de-quantizing makes of them, and no operation on the codes gives these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UnreadableError, lacks_memory

if TYPE_CHECKING:
    import torch

_FIX = "give the model before quantization, or save its weights de-quantized: tensor.dequantize()"
#: A quantized Linear of torch.ao keeps weight and bias in a tuple.
_PACKED = re.compile(r"(?:(?<=\.)|^)_packed_params(?:\._packed_params)?\.([01])$")
_OUTPUT = ("scale", "zero_point")


@dataclass
class Kinds:
    """What the tensors of a file or of a model are, as `Checkpoint` has it."""

    readings: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)


def kinds_of(arrays: Mapping[str, Any]) -> Kinds:
    """Which arrays are de-quantized when they are read, which cannot be, and what only belongs to them."""
    found = Kinds()
    for name, array in arrays.items():
        if reading := _reading(array):
            found.readings[name] = reading
            stem = name.removesuffix("weight")
            if reading == "torch.ao" and stem != name:
                beside = (f"{stem}{leaf}" for leaf in _OUTPUT)
                found.aside |= dict.fromkeys(
                    (other for other in beside if other in arrays), "of the layer's output: the weight has its own"
                )
        elif kind := _closed(array):
            found.unsupported[name] = f"{kind}, a tensor class that has no dequantize() of its own; {_FIX}"
    return found


def decoded(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """The real numbers that a tensor with a reading stands for, whole: (code − zero point) · scale in float32."""
    try:
        return tensor.detach().dequantize().detach()
    except Exception as error:  # the code of another library
        if lacks_memory(error):
            raise
        raise UnreadableError(
            f"{type(tensor).__name__} of {tensor.dtype} could not be de-quantized: {str(error)[:200]}",
            where=where,
            fix=_FIX,
        ) from error


def plain_names(name: str) -> str:
    """The name of what torch.ao packs: `fc._packed_params._packed_params.0` is `fc.weight`, `.1` its bias."""
    return _PACKED.sub(lambda match: "bias" if match[1] == "1" else "weight", name)


def _reading(array: Any) -> str:
    import torch

    if not isinstance(array, torch.Tensor):
        return ""
    if array.is_quantized:
        return "torch.ao"
    maker = type(array).__module__.partition(".")[0]
    own = getattr(type(array), "dequantize", None) is not torch.Tensor.dequantize
    return (maker if maker == "torchao" else "dequantize") if own else ""


def _closed(array: Any) -> str:
    """The class of a tensor whose entries only its own library can get at; empty for others."""
    import torch

    kind = type(array)
    if not isinstance(array, torch.Tensor) or kind.__module__.partition(".")[0] == "torch":
        return ""
    opaque = getattr(kind, "__torch_dispatch__", None) not in (None, torch._C._disabled_torch_dispatch_impl)
    return f"is a {kind.__module__}.{kind.__name__}" if opaque else ""
