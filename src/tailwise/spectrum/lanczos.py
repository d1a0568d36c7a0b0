"""Spectral functions of a matrix from a few hundred products, each with an interval: stochastic Lanczos quadrature.

With A = WᵀW or WWᵀ (m × m, the short side) and unit vectors v, Golub-Kahan bidiagonalisation gives nodes θᵢ and
weights τᵢ with vᵀf(A)v ≈ Σ τᵢ f(θᵢ) (Golub & Meurant 2010; Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. 38:1075).
W is never squared, and one-sided reorthogonalisation is enough (Simon & Zha 2000, SIAM J. Sci. Comput. 21:2257).

The trace is that over an orthonormal Q near the leading directions, each of its columns a start of its own, and over
what is orthogonal to Q, by random probes (Hutch++: Meyer et al. 2021, SOSA). So no heavy tail is left to chance.

An interval is the sum of two parts: of chance, by the jackknife over the probes with Student's t, and of the
quadrature, by how far the value moves between two thirds of the steps and all of them. The second is a heuristic: it
holds where errors fall at least as fast as 1/steps², as they do for √λ at an edge at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields, check_least
from tailwise.spectrum.solvers.bidiagonal import (
    MatrixProducts,
    bidiagonalise,
    near_leading,
    nodes,
    operator_of,
    rounding,
    transposed,
    triangles,
)

Vector = NDArray[np.float64]
Probes = Literal["gaussian", "rademacher"]

#: Shares of the steps that show how far the quadrature is from its limit.
_SHARES = (2 / 3, 3 / 4, 5 / 6, 11 / 12)
#: Nodes of λ below this share of the largest are rounding.
_FLOOR = 1e-14


@dataclass(frozen=True)
class LanczosOptions:
    """How much work is done."""

    steps: int = 32  # nodes per start
    probes: int = 12  # random starts
    leading: int = 8  # columns of Q
    kind: Probes = "gaussian"
    level: float = 0.95  # of the intervals
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, seed=0)
        if self.steps < 3 or self.probes < 2 or self.leading < 1:
            raise UsageError(f"{self} is too little", fix="give steps ≥ 3, probes ≥ 2 and leading ≥ 1")
        if not 0.0 < self.level < 1.0:
            raise UsageError(f"level is {self.level}", fix="give a probability, e.g. 0.95")


@dataclass(frozen=True)
class Interval:
    """An estimate, and between which values the truth lies at the stated rate."""

    value: float
    low: float
    high: float

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """The interval of a monotone function of the value."""
        ends = function(self.low), function(self.high)
        return Interval(function(self.value), min(ends), max(ends))


@dataclass(frozen=True)
class Measure:
    """A discrete measure of total weight about m in place of the m eigenvalues."""

    nodes: Vector  # λ, ascending
    weights: Vector
    m: int

    def trace(self, function: Callable[[Vector], Vector]) -> float:
        """Σ f(λ)."""
        return float(self.weights @ function(self.nodes))


@dataclass(frozen=True, eq=False)
class LanczosEstimate:
    """What is known of the spectrum of one matrix. Every number comes as an `Interval`."""

    rows: int
    cols: int
    options: LanczosOptions
    squared: Interval  # ‖W‖²_F
    largest: Interval  # λ_max
    full: _Quadrature
    short: tuple[_Quadrature, ...]  # the same with fewer steps
    rounding: float  # relative, of the nodes

    @property
    def m(self) -> int:
        """The number of eigenvalues."""
        return min(self.rows, self.cols)

    def trace(self, function: Callable[[Vector], Vector]) -> Interval:
        """Σ f(λ) for a function of arrays of λ ≥ 0."""
        return self.statistic(lambda measure: measure.trace(function))

    def moment(self, power: float) -> Interval:
        """Σ λ^p, p > 0."""
        return self.trace(lambda nodes: nodes**power)

    def log_det(self, shift: float) -> Interval:
        """ln det(A + shift·I) = Σ ln(λ + shift), shift > 0."""
        return self.trace(lambda nodes: np.log(nodes + shift))

    def stable_rank(self) -> Interval:
        """Σλ / λ_max."""
        top, squared = self.largest, self.squared
        if top.value <= 0:
            return Interval(math.nan, math.nan, math.nan)
        return Interval(squared.value / top.value, squared.low / top.high, squared.high / top.low)

    def singular_entropy(self) -> Interval:
        """ln m + Σ p ln p with p = σ/Σσ, in nats."""
        return self.statistic(_singular_entropy)

    def effective_rank(self) -> Interval:
        """exp(−Σ p ln p) with p = σ/Σσ."""
        return self.singular_entropy().mapped(lambda value: self.m * math.exp(-value))

    def alpha_hill(self, k_frac: float = 0.1) -> Interval:
        """Hill's exponent of the k = max(⌊k_frac·m⌋, 2) largest λ, as the `top` estimator.

        The interval is of the estimate against the exact `top` value, not of the exponent of a population: that
        scatter, (α − 1)/√k, comes on top. It holds one rank more or less, since a smooth measure does not know the
        k-th eigenvalue any better, and is wide where k is small.
        """
        found, measure = self.statistic(partial(_hill, k_frac=k_frac)), self.full.measure()
        shift = max(abs(_hill(measure, k_frac, moved) - found.value) for moved in (-1.0, 1.0))
        return Interval(found.value, found.low - shift, found.high + shift)

    def density(self, at: Vector, width: float) -> tuple[Vector, Vector, Vector]:
        """Density of ln λ at the values `at` of ln λ, smoothed by a Gaussian of `width`: value, low, high."""
        found = [self.statistic(partial(_density, at=float(x), width=width)) for x in at]
        value, low, high = (np.array([getattr(item, end) for item in found]) for end in ("value", "low", "high"))
        return value, low, high

    def statistic(self, function: Callable[[Measure], float]) -> Interval:
        """Any smooth function of the measure."""
        value = function(self.full.measure())
        count = self.full.probes
        left_out = np.array([function(self.full.measure(without=probe)) for probe in range(count)])
        spread = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
        moved = max(abs(value - function(short.measure())) for short in self.short)
        rounded = abs(value - function(self.full.measure(stretch=1.0 + self.rounding)))
        half = _student(self.options.level, count - 1) * spread + moved + rounded
        return Interval(value, value - half, value + half)

    def metrics(self) -> dict[str, float]:
        """By the names of an audit, each with the ends of its interval as `<name>_low` and `<name>_high`.

        What has no finite interval is left out.
        """
        found = {
            "stable_rank": self.stable_rank(),
            "singular_entropy": self.singular_entropy(),
            "effective_rank": self.effective_rank(),
            "alpha_hill": self.alpha_hill(),
            "log_norm": self.squared.mapped(_log10),
            "log_spectral_norm": self.largest.mapped(_log10),
        }
        values: dict[str, float] = {}
        for name, interval in found.items():
            if all(map(math.isfinite, (interval.value, interval.low, interval.high))):
                values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return values


def estimate(
    matrix: torch.Tensor | MatrixProducts, options: LanczosOptions | None = None, **changes: Any
) -> LanczosEstimate:
    """Estimate the spectrum of a matrix (rows × cols), on the device where it lies.

    `options` or its fields by name. A half-precision matrix is read in float32. Raises `UsageError` for a matrix that
    is not finite.
    """
    chosen = options or LanczosOptions(**changes)
    operator = matrix if isinstance(matrix, MatrixProducts) else operator_of(matrix)
    with torch.no_grad():
        short_side = transposed(operator) if operator.rows < operator.cols else operator
        starts, sizes, count = _starts(short_side, chosen)
        diagonal, above, basis = bidiagonalise(short_side, starts, min(chosen.steps, short_side.cols))
        largest = _largest(short_side, diagonal, above, basis)
        exact = None if isinstance(matrix, MatrixProducts) else float(torch.linalg.vector_norm(matrix.double())) ** 2
    m, steps = short_side.cols, diagonal.shape[1]
    full, *short = (
        _Quadrature(*nodes(diagonal[:, :k], above[:, :k]), sizes, count, m)
        for k in (steps, *(max(1, round(share * steps)) for share in _SHARES))
    )
    none = Interval(math.nan, math.nan, math.nan)
    found = LanczosEstimate(
        operator.rows, operator.cols, chosen, none, largest, full, tuple(short), rounding(short_side)
    )  # fmt: skip
    return replace(found, squared=found.moment(1.0) if exact is None else Interval(exact, exact, exact))


@dataclass(frozen=True, eq=False)
class _Quadrature:
    nodes: Vector  # (starts, steps)
    weights: Vector  # (starts, steps), each row of sum 1
    sizes: Vector  # (probes,) squared norms of the probes outside Q; their mean is about m − leading
    leading: int
    m: int

    @property
    def probes(self) -> int:
        return len(self.sizes)

    def measure(self, without: int | None = None, stretch: float = 1.0) -> Measure:
        """Of the columns of Q, one each, and the mean over the probes but `without`; λ times `stretch`."""
        kept = [probe for probe in range(self.probes) if probe != without]
        scale = np.concatenate([np.ones(self.leading), self.sizes[kept] / len(kept)])
        rows = [*range(self.leading), *(self.leading + probe for probe in kept)]
        nodes, weights = self.nodes[rows].ravel(), (self.weights[rows] * scale[:, None]).ravel()
        order = np.argsort(nodes)
        return Measure(stretch * nodes[order], weights[order], self.m)


def _starts(operator: MatrixProducts, options: LanczosOptions) -> tuple[torch.Tensor, Vector, int]:
    """Unit starts (m × leading + probes), the squared norms of the probes outside Q, and the columns of Q."""
    m = operator.cols
    leading = min(options.leading, m - 1)
    generator = torch.Generator().manual_seed(options.seed)
    random = torch.randn(m, leading + options.probes, generator=generator, dtype=torch.float64)
    if options.kind == "rademacher":
        random = torch.where(random > 0, 1.0, -1.0)
    random = random.to(operator.device, operator.dtype)
    Q = near_leading(operator, random[:, :leading])
    probes = random[:, leading:]
    for _ in range(2):
        probes = probes - Q @ (Q.T @ probes)
    norms = torch.linalg.vector_norm(probes, dim=0)
    starts = torch.cat([Q, probes / norms.clamp_min(torch.finfo(norms.dtype).tiny)], dim=1)
    # A Gaussian direction is uniform on the sphere: its length is known and need not add to the scatter.
    sizes = np.full(options.probes, float(m - leading))
    if options.kind == "rademacher":
        sizes = norms.double().square().cpu().numpy()
    return starts, sizes, leading


def _largest(operator: MatrixProducts, diagonal: torch.Tensor, above: torch.Tensor, basis: torch.Tensor) -> Interval:
    """λ_max: the largest Ritz value, which is never above it, and its residual, by which it may be."""
    _, sigma, right = np.linalg.svd(triangles(diagonal, above))
    start = int(np.argmax(sigma[:, 0]))
    coefficients = torch.from_numpy(right[start, 0]).to(basis.device, basis.dtype)
    vector = (basis[start].T @ coefficients)[:, None]  # (m × 1)
    theta = float(sigma[start, 0]) ** 2
    residual = operator.adjoint(operator.forward(vector)) - theta * vector
    error = float(torch.linalg.vector_norm(residual.double()))
    error_of_rounding = rounding(operator) * theta
    return Interval(theta, max(theta - error_of_rounding, 0.0), theta + error + error_of_rounding)


def _singular_entropy(measure: Measure) -> float:
    sigma = np.sqrt(measure.nodes)
    total = float(measure.weights @ sigma)
    if total <= 0:
        return math.nan
    seen = measure.nodes > _FLOOR * measure.nodes[-1]
    return (
        math.log(measure.m)
        + float(measure.weights[seen] @ (sigma[seen] * np.log(sigma[seen]))) / total
        - math.log(total)
    )  # fmt: skip


def _above(measure: Measure, count: float) -> float:
    """The λ above which eigenvalues of total weight `count` lie, between nodes in ln λ."""
    floor = _FLOOR * float(measure.nodes[-1])
    logs = np.log(np.maximum(measure.nodes[::-1], max(floor, np.finfo(np.float64).tiny)))
    weights = measure.weights[::-1]
    ranks = np.cumsum(weights) - weights / 2  # of each node, from the largest
    return float(np.exp(np.interp(count, ranks, logs)))


def _hill(measure: Measure, k_frac: float, moved: float = 0.0) -> float:
    k = max(int(k_frac * measure.m), 2)
    # The k-th largest of the eigenvalues itself is the reference: half of its weight lies above it.
    reference = _above(measure, k - 0.5 + moved)
    if reference <= 2 * _FLOOR * float(measure.nodes[-1]):
        return math.nan  # the k-th largest is nothing but rounding
    over = measure.nodes > reference
    logs = float(measure.weights[over] @ np.log(measure.nodes[over] / reference)) if reference > 0 else 0.0
    return 1.0 + k / logs if logs > 0 else math.nan


def _density(measure: Measure, at: float, width: float) -> float:
    kept = measure.nodes > _FLOOR * measure.nodes[-1]
    z = (np.log(measure.nodes[kept]) - at) / width
    return float(measure.weights[kept] @ np.exp(-(z**2) / 2)) / (measure.m * width * math.sqrt(2 * math.pi))


def _student(level: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
