"""Spectra that need W itself: of its permuted entries, and of windows cut out of it. Both are seeded."""

from __future__ import annotations

import numpy as np
import torch

from tailwise.recipe import Precision
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.blocks import RowBlocks, gather
from tailwise.spectrum.spectrum import Spectrum, pool


def permuted_spectrum(
    matrix: RowBlocks, *, seed: int, replica: int, precision: Precision, device: str = "cpu"
) -> Spectrum:
    """The spectrum of W with its entries in random order: what is left when all correlations are gone."""
    weights = gather(matrix)
    generator = torch.Generator().manual_seed(_mix(seed, replica))
    order = torch.randperm(weights.numel(), generator=generator)
    # Gathering through an integer view works for every stored type, also those without indexing kernels.
    shuffled = _bits(weights).flatten()[order].view(weights.dtype).view(weights.shape)
    del order
    return solve(shuffled, precision=precision, device=device)


def window_spectrum(
    matrix: RowBlocks, *, seed: int, window: int, count: int, precision: Precision, device: str = "cpu"
) -> Spectrum:
    """The pooled spectrum of `count` square windows of W (FARMS: fixed-aspect-ratio sub-sampling, 2025).

    Windows of `window` × `window` (at most m × m) lie at seeded random places, so that every matrix is read at the
    same aspect ratio 1. The number of windows moves alpha; it belongs to the recipe.
    """
    weights = gather(matrix)
    side = min(window, matrix.rows, matrix.cols)
    rng = np.random.default_rng([_mix(seed, 0), matrix.rows, matrix.cols])
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


def _mix(seed: int, replica: int) -> int:
    return int(np.random.SeedSequence([seed, replica]).generate_state(1, np.uint64)[0] >> np.uint64(1))
