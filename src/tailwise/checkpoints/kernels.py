"""Convolution kernels to matrices: the three matricisations of DEFINITIONS §1."""

from __future__ import annotations

import re
from itertools import product
from math import prod

from tailwise.checkpoints.fused import Part
from tailwise.checkpoints.views import View, whole

_TRANSPOSED = re.compile(r"conv_?transpose|deconv|upsampl|conv_?up|up_?conv|tconv|(?:^|\.)ups?\.\d", re.IGNORECASE)


def is_transposed(module: str, kind: str | None) -> bool:
    """Whether the kernel is stored (in, out, k…). `kind`: the module's class; without it the name decides."""
    return kind.startswith("ConvTranspose") if kind is not None else bool(_TRANSPOSED.search(module))


def split_conv(tensor: str, shape: tuple[int, ...], role: str, mode: str, *, transposed: bool) -> list[Part]:
    """A kernel (out, in/groups, k…) as `flatten`: out × in·k; `slices`, `pooled`: one out × in per position.

    Transposed kernels are stored (in, out/groups, k…) and are permuted to have out first.
    """
    axes = (1, 0, *range(2, len(shape))) if transposed else None
    flat = whole(tensor, shape, axes)
    if mode == "flatten":
        return [Part("", role, "conv", (flat,))]
    positions = list(product(*(range(k) for k in shape[2:])))
    count = prod(shape[2:])
    # Row-major, a kernel position is the fastest axis: column c·count + p is input c at position p.
    views = [View(tensor, flat.shape, flat.rows, (p, flat.shape[1], count), axes) for p in range(count)]
    if mode == "pooled":
        return [Part("", role, "conv", tuple(views))]
    names = [f"[{','.join(map(str, position))}]" for position in positions]
    return [Part(name, role, "conv", (view,)) for name, view in zip(names, views, strict=True)]
