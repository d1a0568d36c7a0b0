"""Where something is done: one stored tensor, with its place in the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """One stored tensor. It can hold several matrices (fused query, key and value; stacked experts).

    Tensors that must agree are found by role and block: `fusing.fused`, and the groups of heads and neurons in
    `shrinking`.
    """

    tensor: str  # full name of the stored tensor
    matrix: str  # name of the matrix in the audit, without the part behind `#`
    role: str
    block: int | None
    n_params: int
    #: (rows, cols) where the tensor holds one matrix; empty where it holds several. Of a plan to quantize, (out, in)
    #: of the matrix that it is quantized as, or (count, out, in).
    shape: tuple[int, ...] = ()
