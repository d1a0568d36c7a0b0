"""Spectra that need W itself: of its permuted entries, and of windows cut out of it. Both are seeded."""

from __future__ import annotations

import numpy as np
import torch

from tailwise.core.recipe import Precision
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import RowBlocks, gather
from tailwise.spectrum.spectrum import Spectrum, pool

#: Permuted spectra are noise: float32 errors below this share of the median λ vanish beside their scatter.
NOISE_TOLERANCE = 1e-3


def permuted_spectrum(matrix: RowBlocks, *, seed: int, replica: int, device: str = "cpu") -> Spectrum:
    """The spectrum of W with its entries in random order: what is left when all correlations are gone.

    Computed in float32, since one permutation differs from the next by far more than that; in float64 where a few
    huge entries would drown the rest.
    """
    weights = gather(matrix)
    # Shuffled as integers, in a copy: it works for every stored type and needs no index array.
    bits = _bits(weights).cpu().numpy().flatten()
    np.random.default_rng([seed, replica]).shuffle(bits)
    shuffled = torch.from_numpy(bits).view(weights.dtype).view(weights.shape)
    fast = solve(shuffled, precision="float32", device=device)
    if fast.error_bound <= NOISE_TOLERANCE * float(np.median(fast.eigenvalues)):
        return fast
    return solve(shuffled, precision="float64", device=device)


def window_spectrum(
    matrix: RowBlocks, *, seed: int, window: int, count: int, precision: Precision, device: str = "cpu"
) -> Spectrum:
    """The pooled spectrum of `count` square windows of W (FARMS: fixed-aspect-ratio sub-sampling, 2025).

    Windows of `window` × `window` (at most m × m) lie at seeded random places, so that every matrix is read at the
    same aspect ratio 1. The number of windows moves alpha; it belongs to the recipe.
    """
    weights = gather(matrix)
    side = min(window, matrix.rows, matrix.cols)
    rng = np.random.default_rng([seed, matrix.rows, matrix.cols])
    tops = rng.integers(0, matrix.rows - side + 1, size=count)
    lefts = rng.integers(0, matrix.cols - side + 1, size=count)
    return pool(
        [
            solve(weights[top : top + side, left : left + side], precision=precision, device=device)
            for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
        ]
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(kind)
