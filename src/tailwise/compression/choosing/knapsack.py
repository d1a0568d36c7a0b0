"""Multiple-choice knapsack: one level for each item, least loss within a budget. For pruning and quantization alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tailwise.core.errors import UsageError

_STEPS = 100  # of the bisection for the price of the budget
_CORE = 4000  # levels that the exact solver is given at once, at most, before it is told to take its time

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Knapsack:
    """What to solve: `losses` and `weights` are (n, k), item by level; +inf in `losses` forbids a level.

    Σ weights of the chosen levels is at most `budget`, and at least `budget · (1 − slack)`: plans of one budget are
    compared with each other, so a budget is to be used. For pruning a weight is what is kept, d·(1 − s); for
    quantization it is bits, d·b. Items that must agree (fused groups) are one item with summed losses and weights.
    """

    losses: Matrix
    weights: Matrix
    budget: float
    slack: float = 1e-3
    seconds: float = 8.0  # then the best so far is taken, with its bound
    gap: float = 1e-6  # between loss and bound, relative, at which the search ends


@dataclass(frozen=True)
class Chosen:
    """The solution."""

    levels: NDArray[np.int64]  # (n,), column of each item
    loss: float
    weight: float
    bound: float  # no solution has a smaller loss
    exact: bool  # loss and bound agree to the gap


def solve(problem: Knapsack) -> Chosen:
    """The least Σ loss with one level for each item within the budget.

    The price of the budget (the Lagrange multiplier) is found first: it gives a bound, and a solution that is off
    by one item or so. Levels that the bound rules out are dropped, and what is left, a small core, is solved exactly
    by `scipy.optimize.milp`. Raises `UsageError` where the budget cannot be met, with what can be.
    """
    losses, weights = _checked(problem)
    low = problem.budget * (1.0 - problem.slack)
    cap = problem.budget * (1.0 + 1e-12)
    lightest = np.where(np.isfinite(losses), weights, np.inf).min(axis=1).sum()
    heaviest = np.where(np.isfinite(losses), weights, -np.inf).max(axis=1).sum()
    if lightest > cap or heaviest < low:
        raise UsageError(
            f"a budget of {problem.budget:g} cannot be met", fix=f"reachable: {lightest:g} to {heaviest:g}"
        )
    ends = time.monotonic() + problem.seconds
    price, bound = _price(losses, weights, problem.budget, low)
    start = _repaired(losses, weights, (low, cap), price)
    if start is not None and _loss(losses, start) - bound <= problem.gap * abs(_loss(losses, start)):
        return _chosen(problem, start, bound)
    levels, proven = _core(problem, price, start, ends)
    if levels is None:
        raise UsageError(
            f"no choice of levels weighs between {low:g} and {problem.budget:g}", fix="allow more slack, or more levels"
        )
    return _chosen(problem, levels, max(bound, proven))


def solve_near(problem: Knapsack, slacks: Sequence[float]) -> Chosen:
    """As `solve`, with the first of `slacks`, ascending, that any choice of levels meets.

    Few items and coarse levels cannot come near to every budget.
    """
    for slack in slacks[:-1]:
        try:
            return solve(replace(problem, slack=slack))
        except UsageError:
            continue
    return solve(replace(problem, slack=slacks[-1]))


def _checked(problem: Knapsack) -> tuple[Matrix, Matrix]:
    losses, weights = np.asarray(problem.losses, dtype=np.float64), np.asarray(problem.weights, dtype=np.float64)
    if losses.ndim != 2 or losses.shape != weights.shape or losses.size == 0:
        raise UsageError(
            f"losses {losses.shape} and weights {weights.shape} are not tables (items, levels) of one shape"
        )
    if np.isnan(losses).any() or np.isneginf(losses).any() or not np.isfinite(weights).all() or (weights < 0).any():
        raise UsageError("losses are numbers, or +inf for a level that is not allowed; weights are numbers ≥ 0")
    if not np.isfinite(losses).any(axis=1).all():
        raise UsageError(f"item {int(np.argmin(np.isfinite(losses).any(axis=1)))} has no level that is allowed")
    return losses, weights


def _price(losses: Matrix, weights: Matrix, budget: float, low: float) -> tuple[float, float]:
    """The multiplier λ of the budget and the best bound: min Σ(loss + λ·weight) − λ·budget.

    λ < 0 where the budget must be used up although less of it would lose less; then the lower end binds.
    """
    scale = float(np.ptp(losses[np.isfinite(losses)])) / max(float(np.ptp(weights, axis=1).max()), 1e-300) + 1e-300

    def at(price: float) -> tuple[float, float]:
        cost = losses + price * weights
        pick = cost.argmin(axis=1)
        rows = np.arange(len(losses))
        edge = budget if price >= 0 else low
        return float(weights[rows, pick].sum()), float(cost[rows, pick].sum()) - price * edge

    free_weight, free_value = at(0.0)
    if low <= free_weight <= budget:
        return 0.0, free_value
    sign, target = (1.0, budget) if free_weight > budget else (-1.0, low)
    inner, outer = 0.0, sign * scale
    for _ in range(200):
        weight, _ = at(outer)
        if (weight - target) * sign <= 0:
            break
        inner, outer = outer, outer * 4
    best, best_price = free_value, 0.0
    for _ in range(_STEPS):
        middle = (inner + outer) / 2
        weight, value = at(middle)
        if value > best:
            best, best_price = value, middle
        if (weight - target) * sign > 0:
            inner = middle
        else:
            outer = middle
    weight, value = at(outer)
    return (outer, value) if value >= best else (best_price, best)


def _repaired(losses: Matrix, weights: Matrix, limits: tuple[float, float], price: float) -> NDArray[np.int64] | None:
    """The choice at this price, brought into the limits by the cheapest swaps; None where that fails."""
    low, high = limits
    levels: NDArray[np.int64] = (losses + price * weights).argmin(axis=1)
    rows = np.arange(len(losses))
    cost = losses + price * weights
    for _ in range(200):
        weight = float(weights[rows, levels].sum())
        if low <= weight <= high:
            return levels
        change = weights - weights[rows, levels][:, None]
        regret = cost - cost[rows, levels][:, None]
        room = (low - weight, high - weight)  # a swap in here ends it
        ends = (change >= room[0]) & (change <= room[1]) & np.isfinite(regret)
        toward = (change < 0 if weight > high else change > 0) & np.isfinite(regret)
        overshoots = change < room[0] if weight > high else change > room[1]
        usable = ends if ends.any() else toward & ~overshoots
        if not usable.any():
            return None
        place = int(np.where(usable, regret, np.inf).argmin())
        levels = levels.copy()
        levels[place // losses.shape[1]] = place % losses.shape[1]
    return None


def _core(
    problem: Knapsack, price: float, start: NDArray[np.int64] | None, ends: float
) -> tuple[NDArray[np.int64] | None, float]:
    """The exact solution over the levels that the bound does not rule out, and the bound that was proven."""
    losses, weights = problem.losses, problem.weights
    cost = losses + price * weights
    regret = cost - cost.min(axis=1, keepdims=True)  # what a level costs the bound, (n, k)
    edge = problem.budget if price >= 0 else problem.budget * (1.0 - problem.slack)
    bound = float(cost.min(axis=1).sum()) - price * edge
    finite = np.isfinite(regret)
    if start is None:
        fitting = finite
    else:
        gap = _loss(losses, start) - bound
        fitting = finite & (regret <= gap * (1.0 + 1e-9) + 1e-300)
        fitting[np.arange(len(losses)), start] = True
        if int(fitting.sum() - len(losses)) > _CORE:
            # The true gap is far below this one: look at the cheapest levels first, for a better start.
            few = fitting & (
                regret <= np.partition(regret[fitting], len(losses) + _CORE // 2)[len(losses) + _CORE // 2]
            )
            few[np.arange(len(losses)), start] = True
            better, _ = _milp(problem, few, max(1.0, (ends - time.monotonic()) / 2))
            if better is not None and _loss(losses, better) < _loss(losses, start):
                start = better
                fitting = finite & (regret <= (_loss(losses, start) - bound) * (1.0 + 1e-9) + 1e-300)
                fitting[np.arange(len(losses)), start] = True
    chosen, proven = _milp(problem, fitting, max(1.0, ends - time.monotonic()))
    if start is not None and (chosen is None or _loss(losses, start) <= _loss(losses, chosen)):
        return start, min(proven, _loss(losses, start))
    return chosen, proven


def _milp(problem: Knapsack, allowed: NDArray[np.bool_], seconds: float) -> tuple[NDArray[np.int64] | None, float]:
    """Levels by integer programming over the kept ones, and its bound (−inf where it has none)."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    counts = allowed.sum(axis=1)
    open_items = np.flatnonzero(counts > 1)
    levels = allowed.argmax(axis=1)
    rows = np.arange(len(levels))
    closed = np.ones(len(levels), dtype=bool)
    closed[open_items] = False
    base_loss = float(problem.losses[rows[closed], levels[closed]].sum())
    base_weight = float(problem.weights[rows[closed], levels[closed]].sum())
    if len(open_items) == 0:
        fits = problem.budget * (1.0 - problem.slack) <= base_weight <= problem.budget * (1.0 + 1e-12)
        return (levels, base_loss) if fits else (None, -np.inf)
    items, columns = np.nonzero(allowed[open_items])
    costs, loads = problem.losses[open_items[items], columns], problem.weights[open_items[items], columns]
    unit, scale = float(loads.max()) or 1.0, float(np.abs(costs).max()) or 1.0
    one = csr_array((np.ones(len(items)), (items, np.arange(len(items)))), shape=(len(open_items), len(items)))
    limits = (problem.budget * (1.0 - problem.slack) - base_weight, problem.budget * (1.0 + 1e-12) - base_weight)
    solved = milp(
        costs / scale,
        constraints=[
            LinearConstraint(one, 1.0, 1.0),
            LinearConstraint((loads / unit)[None, :], limits[0] / unit, limits[1] / unit),
        ],
        integrality=np.ones(len(items)),
        bounds=Bounds(0.0, 1.0),
        options={"time_limit": seconds, "mip_rel_gap": problem.gap},
    )
    proven = -np.inf if solved.mip_dual_bound is None else float(solved.mip_dual_bound) * scale + base_loss
    if solved.x is None:
        return None, -np.inf
    chosen = solved.x > 0.5
    levels = levels.copy()
    levels[open_items[items[chosen]]] = columns[chosen]
    return levels, proven


def _loss(losses: Matrix, levels: NDArray[np.int64]) -> float:
    return float(losses[np.arange(len(losses)), levels].sum())


def _chosen(problem: Knapsack, levels: NDArray[np.int64], bound: float) -> Chosen:
    rows = np.arange(len(levels))
    loss, weight = float(problem.losses[rows, levels].sum()), float(problem.weights[rows, levels].sum())
    return Chosen(levels, loss, weight, min(bound, loss), loss - bound <= problem.gap * abs(loss) * (1 + 1e-6) + 1e-12)
