"""Number formats in the words of compressed-tensors: what its configs and recipes say of a group of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailwise.number_formats.elements import Float8, Integer
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, LargestFloat32, Symmetric

#: Formats with 8-bit scales: name → (layout, strategy, group, type of the scales).
_SMALL_SCALES = {
    "nvfp4": ("nvfp4-pack-quantized", "tensor_group", 16, "torch.float8_e4m3fn"),
    "mxfp4": ("mxfp4-pack-quantized", "group", 32, "torch.uint8"),
    "mxfp6": ("mxfp6-pack-quantized", "group", 32, "torch.uint8"),
    "mxfp8": ("mxfp8-quantized", "group", 32, "torch.uint8"),
}


@dataclass(frozen=True)
class Scheme:
    """How compressed-tensors names a format."""

    layout: str  # how the codes lie in the file: `format` of a config group
    weights: Mapping[str, Any]  # the library's QuantizationArgs


def scheme_of(chosen: NumberFormat) -> Scheme | None:
    """The scheme whose weights are exactly those of a format; None where the library has none."""
    if chosen.name in _SMALL_SCALES:
        layout, strategy, entries, scales = _SMALL_SCALES[chosen.name]
        args = _args(int(chosen.element_bits), "float", strategy, entries)
        return Scheme(layout, {**args, "scale_dtype": scales, "zp_dtype": scales})
    if not isinstance(chosen, ScaledFormat):
        return None
    group = chosen.group_size
    strategy = str(chosen.shared) if group is None else "group"
    if isinstance(chosen.element, Integer) and isinstance(chosen.rule, Symmetric | Asymmetric):
        symmetric = isinstance(chosen.rule, Symmetric)
        return Scheme("pack-quantized", _args(chosen.element.bits, "int", strategy, group, symmetric=symmetric))
    e4m3 = isinstance(chosen.element, Float8) and chosen.element.dtype == "float8_e4m3fn"
    if e4m3 and isinstance(chosen.rule, LargestFloat32):
        return Scheme("naive-quantized", _args(8, "float", strategy, group))
    return None


def _args(bits: int, kind: str, strategy: str, group: int | None, *, symmetric: bool = True) -> dict[str, Any]:
    arguments = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "group_size": group}
    return {**arguments, "dynamic": False}
