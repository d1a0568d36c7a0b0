"""Amounts that come in whole numbers: N of M, and ranks. Rounded so that the budget is met as nearly as they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.plans.budget import Vector

Whole = NDArray[np.int64]
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0  # its multiples, modulo 1, lie evenly however many are taken
_PATIENCE = 2.0  # seconds; the program is small, and each of its solutions is a fair rounding


def removed_of(amounts: Vector, sizes: Vector, group: int, places: Whole) -> Whole:
    """Entries removed of each `group`, (n,), 0 … group − 1."""
    return rounded(amounts * group, sizes, (0, group - 1), places)


def ranks_of(amounts: Vector, shapes: Sequence[tuple[int, ...]], places: Whole) -> Whole:
    """Rank r of A (rows × r) and B (r × cols), (n,), that keep (1 − s)·rows·cols parameters: at least 1.

    Shapes are (rows, cols), or (count, rows, cols) of a stack, whose matrices have one rank.
    """
    rows, cols = np.array([shape[-2:] for shape in shapes], dtype=np.float64).T
    counts = np.array([shape[0] if len(shape) == 3 else 1 for shape in shapes], dtype=np.float64)
    each = rows + cols
    most = np.maximum(1.0, np.floor(rows * cols / each))  # beyond it, the factors are larger than the matrix
    return rounded((1.0 - amounts) * rows * cols / each, each * counts, (np.ones_like(most), most), places)


def rounded(steps: Vector, units: Vector, limits: tuple[Vector | float, Vector | float], places: Whole) -> Whole:
    """Whole numbers beside `steps` (n,) whose Σ number·unit comes nearest to Σ step·unit.

    Each step goes to one of its two neighbours. How many of each unit go up is a small integer program that leaves
    the least over. Of one unit, those with the largest remainder go up; of equal remainders, evenly along `places`
    (the order along depth), so that rounding favours neither early nor late blocks.
    """
    least, most = limits
    inside = np.clip(steps, least, most)
    low = np.floor(inside + 1e-9)
    may_rise = low < most
    rest = np.clip(inside - low, 0.0, None)
    groups = {unit: np.flatnonzero((units == unit) & may_rise) for unit in np.unique(units[may_rise])}
    ups = _ups(groups, rest, float((steps - low) @ units))
    counts = low.astype(np.int64)
    for unit, members in groups.items():
        turn = np.argsort(np.argsort(places[members])) * _GOLDEN % 1.0
        order = members[np.lexsort((turn, -np.round(rest[members], 9)))]
        counts[order[: ups[unit]]] += 1
    return counts


def _ups(groups: Mapping[float, Whole], rest: Vector, goal: float) -> dict[float, int]:
    """Unit → how many go up: min |Σ unit·u − goal|, and among equals near to the sum of the remainders."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not groups:
        return {}
    units = np.array(list(groups))
    counts = np.array([len(members) for members in groups.values()], dtype=np.float64)
    natural = np.array([float(np.round(rest[members].sum())) for members in groups.values()])
    n, scale = len(units), float(units.max())
    weights, target = units / scale, goal / scale
    # Variables: u (n whole numbers), e (n) ≥ |u − natural|, and the deviation v ≥ |Σ w·u − target|.
    eye, zero, none = np.eye(n), np.zeros((n, 1)), np.zeros(n)
    lines = np.vstack([
        np.hstack([weights, none, -1.0]), np.hstack([weights, none, 1.0]),
        np.hstack([eye, -eye, zero]), np.hstack([eye, eye, zero]),
    ])  # fmt: skip
    infinite = np.full(n, np.inf)
    limits = LinearConstraint(
        lines, np.hstack([-np.inf, target, -infinite, natural]), np.hstack([target, np.inf, natural, infinite])
    )
    solved = milp(
        np.hstack([none, 1e-4 * weights / float(weights.sum()), 1.0]),
        constraints=limits,
        bounds=Bounds(0.0, np.hstack([counts, infinite, np.inf])),
        integrality=np.hstack([np.ones(n), np.zeros(n + 1)]),
        options={"time_limit": _PATIENCE},
    )
    chosen = natural if solved.x is None else np.round(solved.x[:n])
    return {unit: int(count) for unit, count in zip(groups, np.minimum(chosen, counts), strict=True)}
