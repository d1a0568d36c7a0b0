"""One number of one tensor, for a notebook or a training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.recipe import Precision
from tailwise.core.validation import checked
from tailwise.spectrum.metrics import norms_ranks as ranks
from tailwise.spectrum.power_law import TailOptions, fit_tail
from tailwise.spectrum.solve import NotFiniteError, OutOfRangeError, solve
from tailwise.spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Weights = torch.Tensor | NDArray[np.generic] | Spectrum


@checked
def esd(weights: Weights, *, precision: Precision = "float64", device: str | None = None) -> Spectrum:
    """All eigenvalues of one weight tensor.

    A tensor of more than two axes is read as (first axis) × (the rest), as a convolution is. The computation runs
    where a torch tensor lies unless `device` says otherwise. Raises `UsageError` for fewer than two axes, an empty
    tensor, or NaN and Inf.

    >>> import numpy as np, tailwise as tw
    >>> tw.esd(np.diag([3.0, 2.0, 1.0])).eigenvalues
    array([1., 4., 9.])
    """
    if isinstance(weights, Spectrum):
        return weights
    import torch

    from tailwise.checkpoints.formats.memory import MemoryCheckpoint

    if precision not in ("float64", "float32"):
        raise UsageError(f"precision is {precision!r}", fix="choose float64 or float32")
    tensor = MemoryCheckpoint.of_arrays(weights).read("weight")
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise UsageError(f"a tensor of shape {tuple(tensor.shape)} is not a matrix", fix="give at least two axes")
    if tensor.is_complex():
        raise UsageError("a complex tensor has no real spectrum", fix="pass its real part or its modulus")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    where = checked_device(device or str(tensor.device))
    try:
        return solve(tensor.flatten(1), precision=precision, device=where)
    except (NotFiniteError, OutOfRangeError) as error:
        raise UsageError(str(error), fix="repair the tensor first") from error


@checked
def alpha_hill(weights: Weights, tail_fraction: float = 0.1, **solver: Any) -> float:
    """Hill's exponent 1 + k/Σ ln(λᵢ/λ_ref) over the k = max(⌊f·m⌋, 2) largest eigenvalues (the `top` estimator).

    10.0 where the tail has no spread, as the HT-SR alpha manual has it.

    >>> import numpy as np, tailwise as tw
    >>> weights = np.random.default_rng(0).standard_normal((200, 100))
    >>> round(tw.alpha_hill(weights), 2)
    9.44
    """
    if not 0.0 < tail_fraction <= 1.0:
        raise UsageError(f"tail_fraction is {tail_fraction}", fix="give a fraction in (0, 1], e.g. 0.1")
    values = esd(weights, **solver).eigenvalues
    return fit_tail(values, "top", TailOptions(k_frac=tail_fraction)).alpha


@checked
def singular_entropy(weights: Weights, **solver: Any) -> float:
    """ln r + Σ p ln p with p = σ/Σσ and r = m, in nats: 0 is flat, high is collapsed; NaN for a zero matrix.

    >>> import numpy as np, tailwise as tw
    >>> flat, steep = np.eye(50), np.diag(0.5 ** np.arange(50))
    >>> round(tw.singular_entropy(flat), 6), tw.singular_entropy(steep) > 2
    (0.0, True)
    """
    return ranks.singular_entropy(esd(weights, **solver))


@checked
def stable_rank(weights: Weights, **solver: Any) -> float:
    """Σλ / λ_max; NaN for a zero matrix.

    >>> import numpy as np, tailwise as tw
    >>> tw.stable_rank(np.eye(50)), tw.stable_rank(np.ones((50, 50)))
    (50.0, 1.0)
    """
    return ranks.stable_rank(esd(weights, **solver))
