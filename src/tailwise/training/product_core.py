"""A product of two factors by its r × r core: norms and changes of what an adapter adds, at the cost of its factors."""

from __future__ import annotations

import torch

#: A matrix left @ right by its factors, (rows × r) and (r × cols).
Factors = tuple[torch.Tensor, torch.Tensor]
#: Squarings of CᵀC: of r = 64 the norm is at most 2·10⁻⁵ too low, and that only where σ₁ and σ₂ nearly agree.
_SQUARINGS = 20
_TINY = 1e-300


def core(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """R₁R₂ᵀ, at most (r, r), where left = Q₁R₁ (rows × r) and rightᵀ = Q₂R₂ (cols × r), in float64.

    It has the singular values of left @ right, which is never formed, since Q₁ and Q₂ turn and no more (Golub & Van
    Loan 2013, §8.6).
    """
    first, second = (torch.linalg.qr(side.double(), mode="r").R for side in (left, right.T))
    inner: torch.Tensor = first @ second.T
    return inner


def spectral_norm(inner: torch.Tensor) -> torch.Tensor:
    """The largest singular value of a small matrix, shape (), without waiting for the device that it is on.

    σ² is the mean of the eigenvalues λ of M = CᵀC, each weighted by λ to the power of 2²⁰, which repeated squaring has.
    torch's own routines look at their error codes, for which a GPU is waited for.
    """
    size = torch.linalg.vector_norm(inner)
    scaled = inner / size.clamp_min(_TINY)
    gram = scaled.T @ scaled
    power = gram
    for _ in range(_SQUARINGS):
        power = power @ power
        power = power / torch.linalg.vector_norm(power).clamp_min(_TINY)
    weights = power.trace().clamp_min(_TINY)
    sigma: torch.Tensor = size * ((power * gram).sum() / weights).clamp_min(0.0).sqrt()
    return sigma


def squared_change(now: Factors, before: Factors) -> torch.Tensor:
    """‖L·R − L₀·R₀‖²_F, shape (): a product of rank 2r, of (L − L₀, L₀) and (R; R − R₀).

    The differences come first, so that a small step is not lost in the size of what it moves.
    """
    (left, right), (old_left, old_right) = ((a.double(), b.double()) for a, b in (now, before))
    wide = torch.cat([left - old_left, old_left], dim=1)
    high = torch.cat([right, right - old_right])
    squared: torch.Tensor = torch.linalg.vector_norm(core(wide, high)).square()
    return squared
