"""Convolution kernels to matrices: the three matricisations of DEFINITIONS §1, and what is a kernel at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from tailwise.checkpoints.fused import Part
from tailwise.checkpoints.views import TensorView, whole

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import TensorSpec

#: Names that say what the module is, and names that both kinds of convolution have.
_SAYS_TRANSPOSED = re.compile(
    r"conv\w*_?transpose|transposed?_?conv|deconv|conv_?tr(?:\.|_|$)|conv_t\d|(?:^|[._])tconv", re.IGNORECASE
)
_COULD_BE = re.compile(r"upsampl|conv_?up|up_?conv|(?:^|\.)ups?\.\d", re.IGNORECASE)
_SAYS_KERNEL = re.compile(r"conv|kernel|patch_embed|depthwise|stem", re.IGNORECASE)
_SAYS_MATRIX = re.compile(r"linear|expert|proj|moe|dense|fc\d?$", re.IGNORECASE)
#: A kernel along one axis is seldom longer, a matrix seldom narrower.
_LONG_KERNEL = 32
_OPEN = "a transposed convolution would look the same; taken as an ordinary one"


@dataclass(frozen=True)
class Kernel:
    """How a kernel is stored: (out, in/groups, k…), or transposed (in, out/groups, k…)."""

    transposed: bool
    groups: int = 1  # of a transposed one; of others they do not matter to the matrix
    note: str = ""


def kernel_of(spec: TensorSpec, kind: str | None, tensors: Mapping[str, TensorSpec]) -> Kernel:
    """What a kernel is: by the module's class, else by the length of the bias, else by a name that says so."""
    module = spec.name.removesuffix(".weight")
    bias = tensors.get(f"{module}.bias")
    count = bias.shape[0] if bias is not None and len(bias.shape) == 1 else 0
    first, second = spec.shape[:2]
    groups = count // second if second and count % second == 0 else 0
    if kind is not None:
        transposed = "ConvTranspose" in kind or "TransposedConv" in kind
        return Kernel(transposed, max(groups, 1) if transposed else 1)
    says = _SAYS_TRANSPOSED.search(module) is not None
    if count and count != first and groups and first % groups == 0:
        return Kernel(True, groups)
    if count == first and (count != second or not says):
        unclear = count == second and _COULD_BE.search(module) is not None
        return Kernel(False, note=_OPEN if unclear else "")
    if says:
        return Kernel(True)
    return Kernel(False, note=_OPEN if _COULD_BE.search(module) else "")


def says_kernel(name: str) -> bool:
    """Whether a name says that the tensor is a kernel."""
    return _SAYS_KERNEL.search(name) is not None


def is_stack(spec: TensorSpec, kind: str | None, tensors: Mapping[str, TensorSpec]) -> tuple[bool, str]:
    """Whether three axes are a stack of matrices rather than a kernel along one axis, and what to say of it."""
    _, second, last = spec.shape
    module, _, leaf = spec.name.rpartition(".")
    if "Conv" in (kind or "") and leaf in ("weight", "kernel"):
        return False, ""
    if kind == "Bilinear":
        return True, ""
    bias = tensors.get(f"{module}.bias" if leaf == "weight" else f"{spec.name}_bias")
    if min(second, last) < 8 or (kind is None and says_kernel(spec.name)):
        return False, ""
    if kind is None and leaf == "weight" and bias is not None:
        return len(bias.shape) == 2, ""
    if kind is None and leaf == "weight" and last < _LONG_KERNEL and not _SAYS_MATRIX.search(module):
        return False, ""
    return True, "" if kind else "three axes under a name that is not known: taken as a stack of matrices"


def split_conv(spec: TensorSpec, role: str, mode: str, kernel: Kernel) -> list[Part]:
    """A kernel (out, in/groups, k…) as `flatten`: out × in·k; `slices`, `pooled`: one out × in per position.

    Transposed kernels are stored (in, out/groups, k…) and are permuted to have out first, group by group.
    """
    flat = _flat(spec, kernel)
    reading = "transposed_kernel" if kernel.transposed else "kernel"
    if mode == "flatten":
        return [Part("", role, "conv", (flat,), kernel.note, reading=reading)]
    positions = list(product(*(range(k) for k in spec.shape[2:])))
    count = prod(spec.shape[2:])
    # Row-major, a kernel position is the fastest axis: column c·count + p is input c at position p.
    views = [
        TensorView(spec.name, flat.shape, flat.rows, (p, flat.shape[1], count), flat.permute, flat.unfold)
        for p in range(count)
    ]
    if mode == "pooled":
        return [Part("", role, "conv", tuple(views), kernel.note, reading=reading)]
    names = [f"[{','.join(map(str, position))}]" for position in positions]
    return [
        Part(name, role, "conv", (view,), kernel.note, reading=reading) for name, view in zip(names, views, strict=True)
    ]


def _flat(spec: TensorSpec, kernel: Kernel) -> TensorView:
    if not kernel.transposed:
        return whole(spec.name, spec.shape)
    if kernel.groups == 1:
        return whole(spec.name, spec.shape, (1, 0, *range(2, len(spec.shape))))
    first, second, *rest = spec.shape
    g = kernel.groups
    inputs, size = first // g, prod(rest)
    rows, cols = g * second, inputs * size
    # (g, in/g, out/g, k…) → (g, out/g, in/g, k…), read as out × in/g·k.
    return TensorView(
        spec.name,
        (rows, cols),
        ((0, rows),),
        (0, cols, 1),
        (0, 2, 1, *range(3, len(spec.shape) + 1)),
        (g, inputs, second, *rest),
    )
