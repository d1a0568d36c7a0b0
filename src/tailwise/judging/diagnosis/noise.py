"""Whether a matrix can be told from Gaussian noise of its shape."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import stats

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, value
from tailwise.spectrum.marchenko_pastur import fit_bulk, gaussian_spectrum, mean_and_sd
from tailwise.spectrum.spectrum import pool

#: What the judgement needs.
METRICS = ("alpha_hill", "alpha_hill_z", "singular_entropy_z", "num_spikes", "mp_distance")
#: Matrices of noise behind the null of the bulk's distance.
_DRAWS = 40
#: Above this short side the null is drawn here and scaled: eigenvalues of noise are rigid, so the distance falls as
#: 1/m.
_DRAWN = 512
_MOST_SLICES = 16


def bound_on_z(case: Case, row: LayerRow) -> float:
    """The z that has the chance of `noise_z` normal standard deviations.

    The baseline's mean and sd come from a few draws, so z follows Student's t, which is wide for large matrices.
    """
    # As `metrics.facts.gaussian_baseline` draws them.
    draws = max(2, round(case.draws * min(1.0, 1024 / min(row.rows, row.cols))))
    return _student(case.limit("noise_z"), draws)


@lru_cache(maxsize=64)
def _student(sds: float, draws: int) -> float:
    return float(stats.t.isf(stats.norm.sf(sds), draws - 1)) * math.sqrt(1 + 1 / draws)


def bulk_z(row: LayerRow) -> float:
    """`mp_distance` in standard deviations above that of noise of the matrix's shape, which is simulated."""
    mean, sd = _bulk_null(max(row.rows, row.cols), min(row.rows, row.cols), row.slices)
    return (value(row, "mp_distance") - mean) / sd if sd > 0 else 0.0


@lru_cache(maxsize=256)
def _bulk_null(n: int, m: int, slices: int) -> tuple[float, float]:
    """Mean and standard deviation of `mp_distance` of Gaussian n × m matrices."""
    scale = min(1.0, _DRAWN / m)
    tall, short = round(n * scale), round(m * scale)
    drawn, rng = min(slices, _MOST_SLICES), np.random.default_rng([7, tall, short])
    # Slices are independent, so their distance falls with their number as well.
    scale *= drawn / slices
    bulks = [
        fit_bulk(pool([gaussian_spectrum(tall, short, rng) for _ in range(drawn)]).eigenvalues, tall, short)
        for _ in range(_DRAWS)
    ]
    mean, sd = mean_and_sd(np.array([bulk.ks_distance for bulk in bulks if bulk is not None]))
    return mean * scale, sd * scale


def bulk_of_noise(case: Case, row: LayerRow) -> bool:
    """Whether a Marchenko-Pastur law fits the bulk as well as it fits that of noise of this shape."""
    return bulk_z(row) <= case.limit("noise_mp_z")


def order_known(case: Case, row: LayerRow) -> float | None:
    """How far rows and columns are from those of the same entries in random order; None in older audits."""
    spectrum = case.spectra.get(row.name)
    return None if spectrum is None else spectrum.order_z


def in_no_order(case: Case, row: LayerRow) -> bool:
    """Whether rows and columns are as even as those of the same entries in random order, and that was looked at."""
    order = order_known(case, row)
    return order is not None and order <= case.limit("order_z")


def noise_like(case: Case, row: LayerRow) -> bool:
    """Tail, evenness, spikes and bulk are all those of noise, and so are rows and columns where they were looked at."""
    found = case.known.get(("noise", row.name))
    if found is None:
        found = case.known["noise", row.name] = _noise_like(case, row)
    return bool(found)


def _noise_like(case: Case, row: LayerRow) -> bool:
    return (
        abs(value(row, "alpha_hill_z")) <= bound_on_z(case, row)
        and abs(value(row, "singular_entropy_z")) <= bound_on_z(case, row)
        and value(row, "num_spikes") <= case.limit("noise_spikes")
        and bulk_of_noise(case, row)
        and (order_known(case, row) is None or in_no_order(case, row))
    )


def learned(case: Case, *metrics: str) -> list[LayerRow]:
    """The rows with these metrics that are not noise."""
    return [row for row in case.judged(*METRICS, *metrics) if not noise_like(case, row)]


def alone_in_noise(case: Case, row: LayerRow, tested: list[LayerRow]) -> bool:
    """Whether noise is odd for this matrix: a block's, with peers that are not, or one that every model trains.

    A pooler may be unused, and a role of which most are noise is one that this model leaves so (recurrent weights).
    By their spectra alone, small dense matrices of healthy models overlap with noise, as do single dense layers outside
    the blocks; where rows and columns are in no order either, a small one must only be alone with it in its role.
    """
    small = row.role != "conv" and min(row.rows, row.cols) * row.slices < case.limit("noise_min_evals")
    ordered = order_known(case, row) is not None
    if small and not ordered:
        alike = _grouped(case, tested, "shape")[row.role, row.rows, row.cols]
        near = _near(case, (row.role, row.rows, row.cols), alike)
        return len(alike) >= case.limit("min_peers") and near <= (not _far_from_noise(case, row))
    if row.role in _ALWAYS_TRAINED:
        return True
    if row.role in _OFTEN_UNUSED or _common_in_health(case, row):
        return False
    peers = _grouped(case, tested, "role")[(row.role,)]
    # Outside the blocks, a single dense layer may be one that nothing uses; of several in a role, one is odd.
    if not (ordered or row.block is not None or (row.role != "other" and len(peers) >= case.limit("min_peers"))):
        return False
    noisy = _noisy(case, row.role, peers) - noise_like(case, row)
    return noisy == 0 if small else 2 * noisy <= len(peers) - 1


def _noisy(case: Case, role: str, peers: list[LayerRow]) -> int:
    key = ("noisy", role, len(peers))
    if key not in case.known:
        case.known[key] = sum(noise_like(case, one) for one in peers)
    return case.known[key]  # type: ignore[return-value]


def _near(case: Case, shape: tuple[object, ...], alike: list[LayerRow]) -> int:
    """How many of a role and shape are not far from noise."""
    key = ("near", shape, len(alike))
    if key not in case.known:
        case.known[key] = sum(not _far_from_noise(case, one) for one in alike)
    return case.known[key]  # type: ignore[return-value]


def _grouped(case: Case, tested: list[LayerRow], by: str) -> dict[tuple[object, ...], list[LayerRow]]:
    """The tested matrices of a role, or of a role and shape; grouped once for all of them."""
    key = ("grouped", by, len(tested))
    if key not in case.known:
        groups: dict[tuple[object, ...], list[LayerRow]] = {}
        for row in tested:
            name = (row.role,) if by == "role" else (row.role, row.rows, row.cols)
            groups.setdefault(name, []).append(row)
        case.known[key] = groups
    return case.known[key]  # type: ignore[return-value]


def _common_in_health(case: Case, row: LayerRow) -> bool:
    """Whether healthy models have such noise in this role: a fifth of five or more."""
    found = None if case.atlas is None else case.atlas.models_with(row, "noise")
    return found is not None and found[0] >= case.limit("noise_in_atlas") * found[1]


def noise_in_health(case: Case, row: LayerRow) -> str:
    """`; 0 of 6 healthy models have noise in attn_v`; "" where too few are known."""
    found = None if case.atlas is None else case.atlas.models_with(row, "noise")
    return "" if found is None else f"; {found[0]} of {found[1]} healthy models have noise in {row.role} of this size"


def _far_from_noise(case: Case, row: LayerRow) -> bool:
    bound = bound_on_z(case, row)
    return value(row, "alpha_hill_z") > bound and abs(value(row, "singular_entropy_z")) >= 2 * bound


#: Roles that no model leaves as they were, and roles that many models do not use.
_ALWAYS_TRAINED = ("embed", "lm_head", "classifier")
_OFTEN_UNUSED = ("pooler",)
