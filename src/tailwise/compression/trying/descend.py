"""From a plan to a better one along its gradient: every tensor moves at once, as far as the estimate held before."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.choosing.bit_formats import Choices, Levels
from tailwise.compression.plans.budget import MOST, Budget, Vector
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.refine import Best, amounts_of, balanced, neighbour, with_amounts
from tailwise.compression.trying.sensitivity import Variant

Estimate = Callable[[Plan, Sequence[Variant]], Mapping[Hashable, float]]
Matrix = NDArray[np.float64]

#: First radius of a move of sparsity, and what it stays within.
_RADIUS, _LEAST, _MOST = 0.05, 0.004, 0.15
#: First share of the weights whose format may change in one move, and the least.
_SHARE, _FEWEST = 0.3, 0.01
#: A radius grows where a tensor moves the same way twice, and shrinks where it turns back, as in RPROP.
_SAME, _TURNED = 1.2, 0.5
_FAILS = 3  # moves without a gain after which the descent ends
_PRICES = 60  # bisections of the price of a weight


def descended(
    score: Callable[[Plan], float],
    estimate: Estimate,
    start: Best[Plan],
    *,
    over: Callable[[], bool],
    progress: Callable[[Best[Plan]], None] | None = None,
) -> Best[Plan]:
    """Sparsities moved along the gradient until it is `over`, or until moves bring nothing.

    In a round each tensor is offered its radius more and less, at the estimated price; the cheapest choice within the
    budget is the direction. It is tried whole, and once more at the length where a parabola through the estimate and
    the trial is lowest. The lengths that helped set the radii of the next round.
    """
    best, fails = start, 0
    sizes = np.array([item.n_params for item in best.state], dtype=np.float64)
    budget = Budget(best.state.sparsity)
    radii, last = np.full(len(sizes), _RADIUS), np.zeros(len(sizes))
    while fails < _FAILS and not over():
        now, base = amounts_of(best.state), best.loss
        offered = np.clip(np.stack([now - radii, now, now + radii], axis=1), 0.0, MOST)
        prices = _prices(best.state, offered, estimate)
        wanted, foretold = _cheapest(offered, prices, sizes, budget)
        if not foretold < 0 or over():
            break
        length = _tried_along(best, score, (now, wanted - now), (sizes, budget), foretold)
        fails = 0 if best.loss < base else fails + 1
        signs = np.sign(wanted - now)
        turned = np.where(signs * last > 0, _SAME, np.where(signs * last < 0, _TURNED, 1.0))
        radii = np.clip(radii * turned * np.clip(1.3 * length, 0.4, 1.3), _LEAST, _MOST)
        last = signs if best.loss < base else last
        if progress is not None:
            progress(best)
    return best


def _prices(plan: Plan, offered: Matrix, estimate: Estimate) -> Matrix:
    """(n, 3): estimated change of the objective for less, as now, and more; +inf for what was not estimated."""
    variants = [
        Variant((index, column), {index: item.but(sparsity=round(float(offered[index, column]), 9))})
        for index, item in enumerate(plan)
        for column in (0, 2)
    ]
    found = estimate(plan, variants)
    prices = np.zeros(offered.shape)
    for index in range(len(prices)):
        for column in (0, 2):
            prices[index, column] = found.get((index, column), np.inf)
    return np.where(np.isnan(prices), np.inf, prices)


def _cheapest(offered: Matrix, prices: Matrix, sizes: Vector, budget: Budget) -> tuple[Vector, float]:
    """Amounts within the budget, and the sum of their prices: each tensor's best at one price of a weight."""
    taken, rows = offered * sizes[:, None], np.arange(len(sizes))
    goal = budget.sparsity * float(sizes.sum())
    known = np.isfinite(prices) & (taken != taken[:, 1:2])
    steps = np.abs(prices[known] / (taken - taken[:, 1:2])[known])
    low, high = -2.0 * float(steps.max(initial=1e-12)), 2.0 * float(steps.max(initial=1e-12))
    for _ in range(_PRICES):
        price = (low + high) / 2
        chosen = (prices - price * taken).argmin(axis=1)
        low, high = (low, price) if taken[rows, chosen].sum() > goal else (price, high)
    chosen = (prices - low * taken).argmin(axis=1)
    return budget.shifted(offered[rows, chosen], sizes), float(prices[rows, chosen].sum())


def _tried_along(
    best: Best[Plan],
    score: Callable[[Plan], float],
    line: tuple[Vector, Vector],
    kind: tuple[Vector, Budget],
    foretold: float,
) -> float:
    """The length at which it was best, at most 2; 0.3 where none helped."""
    (now, direction), (sizes, budget), start, base = line, kind, best.state, best.loss

    def at(length: float) -> Plan:
        return with_amounts(start, budget.shifted(now + length * direction, sizes))

    whole = at(1.0)
    helped = best.attempt(whole, score)
    tried = best.loss if helped else best.refused
    held = (tried - base) / foretold if np.isfinite(tried) else -np.inf
    lowest = float(np.clip(0.5 / (1.0 - held), 0.1, 2.0)) if held < 1 else 2.0
    if not 0.75 <= lowest <= 1.3 and best.attempt(at(lowest), score):
        return lowest
    return 1.0 if helped else 0.3


def descended_formats(
    score: Callable[[Levels], float],
    estimate: Callable[[Levels, Sequence[tuple[int, int]]], Mapping[Hashable, float]],
    start: Best[Levels],
    choices: Choices,
    *,
    over: Callable[[], bool],
    progress: Callable[[Best[Levels]], None] | None = None,
) -> Best[Levels]:
    """Formats moved along the gradient until it is `over`, or until moves bring nothing.

    In a round each group is offered the next format up and down, at the estimated price, and the cheapest choice within
    the budget is tried. Where it does not help, fewer weights may change; where it does, more.
    """
    best, share, fails = start, _SHARE, 0
    prices: Matrix | None = None
    tried = {best.state.tobytes()}
    while share >= _FEWEST and fails < 2 * _FAILS and not over():
        if prices is None:
            prices = _format_prices(best.state, estimate, choices)
        wanted = _moved_formats(best.state, prices, choices, share)
        if wanted is None or wanted.tobytes() in tried:
            share, fails = share / 2, fails + 1
            continue
        tried.add(wanted.tobytes())
        if over():
            break
        if best.attempt(wanted, score):
            share, fails, prices = min(0.5, share * 1.5), 0, None
        else:
            share, fails = share / 2, fails + 1
        if progress is not None:
            progress(best)
    return best


def _format_prices(
    levels: Levels,
    estimate: Callable[[Levels, Sequence[tuple[int, int]]], Mapping[Hashable, float]],
    choices: Choices,
) -> Matrix:
    """(groups, formats): estimated change of the objective; +inf but for the format now and its neighbours."""
    rows = range(len(levels))
    wanted = {(row, neighbour(choices, row, int(levels[row]), step)) for row in rows for step in (-1, 1)}
    moves = sorted((row, level) for row, level in wanted if level != levels[row])
    found = estimate(levels, moves)
    prices = np.full(choices.bits.shape, np.inf)
    prices[np.arange(len(levels)), levels] = 0.0
    for move in moves:
        prices[move] = found.get(move, np.inf)
    return np.where(np.isnan(prices), np.inf, prices)


def _moved_formats(levels: Levels, prices: Matrix, choices: Choices, share: float) -> Levels | None:
    """The cheapest levels of which at most about a share of the weights is new; None where that is as now."""
    rows, sizes = np.arange(len(levels)), choices.sizes
    toll, wanted = 0.0, None
    step = float(np.abs(prices[np.isfinite(prices)]).max(initial=0.0)) / float(sizes.mean())
    for turn in range(12):
        extra = np.full(prices.shape, 0.0)
        extra += toll * sizes[:, None]
        extra[rows, levels] = 0.0
        wanted = balanced(choices, _at_one_price(choices, prices + extra), (), prices + extra)
        if wanted is None:
            return None
        if float(sizes[wanted != levels].sum()) <= share * float(sizes.sum()):
            break
        toll = step * 2.0 ** (turn - 10)
    return None if wanted is None or np.array_equal(wanted, levels) else wanted


def _at_one_price(choices: Choices, prices: Matrix) -> Levels:
    """Each group's best level at one price of a bit, such that the budget holds."""
    offered = np.isfinite(choices.bits) & np.isfinite(prices)
    bits, costs = np.where(offered, choices.bits, 0.0), np.where(offered, prices, np.inf)
    rows = np.arange(len(costs))
    spans = [(np.ptp(cost[known]), np.ptp(bit[known])) for cost, bit, known in zip(costs, bits, offered, strict=True)]
    high = 2.0 * max((float(cost / max(bit, 1.0)) for cost, bit in spans), default=0.0) * len(choices.formats) + 1e-30
    low = 0.0
    for _ in range(_PRICES):
        price = (low + high) / 2
        chosen = (costs + price * bits).argmin(axis=1)
        low, high = (low, price) if bits[rows, chosen].sum() <= choices.goal else (price, high)
    found: Levels = (costs + high * bits).argmin(axis=1)
    return found
