"""From formats to better ones by trial: a group gets more or fewer bits, and others make up for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.choosing.formats import SLACKS, Choices, Levels
from tailwise.planning.refine import by_key

#: Noise, as a factor e^±x, on what is believed of the others that make up for a move: so that repeated moves differ.
_NOISE = 0.5
#: Rounds without any gain after which a search ends.
_PATIENCE = 3

Losses = NDArray[np.float64]


@dataclass
class Moved:
    """Where a search has come to."""

    levels: Levels
    loss: float  # on the windows that it looked at
    tried: int = 0
    kept: int = 0


def refined_formats(
    score: Callable[[Levels], float],
    start: Levels,
    problem: tuple[Choices, Losses],
    *,
    over: Callable[[], bool],
    seed: int = 0,
    progress: Callable[[Moved], None] | None = None,
) -> Moved:
    """Descend from `start` until it is `over`, or until rounds bring nothing.

    `score` is the loss of a choice of levels. A move raises or lowers the formats of some groups by one; then others
    give or take bits, those that are believed to lose least first, until the budget is used: `problem` holds the
    choices and what each group is believed to lose in each format, (groups, formats). Blocks and roles are moved
    first, then groups one by one, in random order.
    """
    choices, believed = problem
    rng = np.random.default_rng(seed)
    best = Moved(start.copy(), score(start))
    seen = {start.tobytes()}
    for sets in move_sets(choices):
        idle = 0
        while idle < _PATIENCE and not over():
            gained = False
            for index in rng.permutation(len(sets)):
                for step in rng.permutation([1, -1]):
                    if over():
                        return best
                    wanted = _moved(choices, best.levels, sets[int(index)], int(step))
                    noisy = believed * np.exp(rng.normal(0.0, _NOISE, believed.shape))
                    levels = None if wanted is None else balanced(choices, wanted, sets[int(index)], noisy)
                    if levels is None or levels.tobytes() in seen:
                        continue
                    seen.add(levels.tobytes())
                    gained = _try(score, best, levels) or gained
                    if progress is not None:
                        progress(best)
            idle = 0 if gained else idle + 1
    return best


def _try(score: Callable[[Levels], float], best: Moved, levels: Levels) -> bool:
    loss = score(levels)
    best.tried += 1
    if not loss < best.loss:
        return False
    best.levels, best.loss = levels, loss
    best.kept += 1
    return True


def move_sets(choices: Choices) -> list[list[NDArray[np.int64]]]:
    """Groups by index, from coarse to fine: those of a block, those of a role, and each alone."""
    groups = choices.groups
    coarse = [*by_key(groups, lambda group: group.block), *by_key(groups, lambda group: group.members[0].role)]
    fine = [np.array([index]) for index in range(len(groups))]
    return [[found for found in level if len(found) < len(groups)] for level in (coarse, fine)]


def _moved(choices: Choices, levels: Levels, chosen: NDArray[np.int64], step: int) -> Levels | None:
    """Levels with some groups one offered format higher or lower; None where none can move."""
    found = levels.copy()
    for index in chosen:
        found[index] = _next(choices, int(index), int(levels[index]), step)
    return None if np.array_equal(found, levels) else found


def _next(choices: Choices, group: int, level: int, step: int) -> int:
    offered = np.flatnonzero(np.isfinite(choices.bits[group]))
    place = int(np.searchsorted(offered, level)) + step
    return int(offered[place]) if 0 <= place < len(offered) else level


def balanced(choices: Choices, levels: Levels, fixed: Sequence[int] | NDArray[np.int64], believed: Losses) -> (
    Levels | None
):  # fmt: skip
    """Levels within the budget and near it; those of `fixed` stay. None where the others cannot make up for them.

    Bits are taken where the loss for each is believed to be least, and given where the gain is greatest.
    """
    found, held = levels.copy(), {int(index) for index in fixed}
    free = [index for index in range(len(found)) if index not in held]
    weight = choices.weight(found)
    while weight > choices.goal * (1 + 1e-12):
        steps = [(_price(choices, believed, index, found, -1), index) for index in free]
        steps = [item for item in steps if np.isfinite(item[0])]
        if not steps:
            return None
        _, index = min(steps)
        found[index] = _next(choices, index, int(found[index]), -1)
        weight = choices.weight(found)
    while True:
        room = choices.goal * (1 + 1e-12) - weight
        steps = [
            (_price(choices, believed, index, found, 1), index)
            for index in free
            if 0 < _cost(choices, index, found, 1) <= room
        ]
        if not steps:
            return found if weight >= choices.goal * (1 - SLACKS[2]) else None
        _, index = min(steps)
        found[index] = _next(choices, index, int(found[index]), 1)
        weight = choices.weight(found)


def _cost(choices: Choices, index: int, levels: Levels, step: int) -> float:
    level = int(levels[index])
    return float(choices.bits[index, _next(choices, index, level, step)] - choices.bits[index, level])


def _price(choices: Choices, believed: Losses, index: int, levels: Levels, step: int) -> float:
    """Change of the believed loss for each bit; +inf where there is no such step."""
    level = int(levels[index])
    other = _next(choices, index, level, step)
    if other == level:
        return np.inf
    change = float(believed[index, other] - believed[index, level])
    return change / abs(_cost(choices, index, levels, step)) if np.isfinite(change) else np.inf
