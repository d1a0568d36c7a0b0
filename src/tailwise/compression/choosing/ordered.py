"""Two neighbouring formats, and who gets the better one first: what `uniform`, `depth` and `alpha` share."""

from __future__ import annotations

import numpy as np

from tailwise.compression.choosing.bit_formats import SLACKS, Choices, Levels
from tailwise.compression.plans.budget import Vector

ONE_FORMAT = "one format holds the budget:"
NOTHING_LEFT = "nothing is left to order, so this is what uniform gives; --tau 0.3 spreads the bits around that format"
_GAP, _SECONDS = 1e-3, 2.0  # an order is kept, not a loss made small


def ordered(choices: Choices, turns: Vector) -> tuple[Levels, tuple[str, ...]]:
    """One format for all where it holds the budget to 0.1 %; else the two next to it, and a note on it.

    `turns` (groups,) in [0, 1]: who has the smallest gets the better of the two first. The knapsack then exchanges
    as few as it needs to meet the budget: what a group loses without the better format is its extra bits times
    2 − turn.
    """
    every = [choices.nearest(level) for level in range(len(choices.formats))]
    weights = [choices.weight(levels) for levels in every]
    within = [k for k, weight in enumerate(weights) if weight <= choices.goal * (1 + 1e-12)]
    low = within[-1] if within else 0
    last = low + 1 == len(every)
    if last or (within and weights[low] >= choices.goal * (1 - SLACKS[0])):
        return every[low], (f"{ONE_FORMAT} {choices.formats[low]}",)
    rows = np.arange(len(choices.groups))
    extra = choices.bits[rows, every[low + 1]] - choices.bits[rows, every[low]]
    losses = np.full(choices.bits.shape, np.inf)
    losses[rows, every[low]] = extra * (2.0 - turns)
    losses[rows, every[low + 1]] = 0.0
    names = f"{choices.formats[low]} and {choices.formats[low + 1]}"
    return choices.cheapest(losses, _GAP, _SECONDS).levels, (f"the two formats next to the budget: {names}",)


def decided(notes: tuple[str, ...]) -> tuple[str, ...]:
    """The notes, and that the order decided nothing where one format held the budget."""
    return (*notes, NOTHING_LEFT) if any(note.startswith(ONE_FORMAT) for note in notes) else notes


def by_share(choices: Choices, place: Vector, tau: float) -> tuple[Levels, tuple[str, ...]]:
    """Least Σ d·(bits − wanted)² within the budget. Wanted are 1 + τ times the mean where `place` (groups,) is 0, 1 − τ
    times it where it is 1.
    """
    share = 1.0 + tau * (1.0 - 2.0 * place)
    wanted = choices.goal * share / float((choices.sizes * share).sum())
    own = choices.bits / choices.sizes[:, None]
    offered = np.isfinite(own)
    losses = np.where(offered, choices.sizes[:, None] * (np.where(offered, own, 0.0) - wanted[:, None]) ** 2, np.inf)
    # What is wanted matters more here than the last hundredth of the budget, which one format may hold alone.
    chosen = choices.cheapest(losses, 1e-4, slacks=SLACKS[2:])
    return chosen.levels, (f"wanted: {wanted.min():.3g} to {wanted.max():.3g} bits",)


def ranks(values: Vector) -> Vector:
    """Ranks of the finite values on [0, 1], ties shared; ½ for NaN and for a single value."""
    from scipy.stats import rankdata

    places = np.full(len(values), 0.5)
    known = np.isfinite(values)
    if known.sum() > 1:
        places[known] = (rankdata(values[known]) - 1.0) / (known.sum() - 1.0)
    return places
