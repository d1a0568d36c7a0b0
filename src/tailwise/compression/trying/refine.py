"""From a plan to a better one by trial: budget is moved between groups of tensors, and a move that helps is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.choosing.bit_formats import SLACKS, Choices, Levels
from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan

#: First change of a group's sparsity, and the last before a level of groups is done with.
FIRST_STEP, LAST_STEP = 0.08, 0.015
DIGITS = 9
#: Noise, as a factor e^±x, on what is believed of the others that make up for a move: so that repeated moves differ.
_NOISE = 0.5
#: Rounds of moves of formats without any gain after which a search ends.
_PATIENCE = 3

T = TypeVar("T")
X = TypeVar("X")
Losses = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass
class Best(Generic[X]):
    """Where a search has come to: a plan, or the levels of its groups."""

    state: X
    loss: float  # on the windows that it looked at
    tried: int = 0
    kept: int = 0
    refused: float = math.inf  # what the last that was not kept lost

    def attempt(self, state: X, score: Callable[[X], float]) -> bool:
        """Try another; it is kept where it loses less."""
        loss = score(state)
        self.tried += 1
        if not loss < self.loss:
            self.refused = loss
            return False
        self.state, self.loss = state, loss
        self.kept += 1
        return True


class Moves(Protocol[X]):
    """What there is to move, from coarse to fine, and how far."""

    @property
    def levels(self) -> Sequence[Sequence[Indices]]:
        """Groups of each level, by index."""

    def size(self, idle: int) -> float | None:
        """How far a move goes after `idle` rounds without a gain; None: the level is done with."""

    def idle_after(self, idle: int, *, gained: bool) -> int:
        """The rounds without a gain after one more."""

    def tries(self, best: Best[X], group: Indices, size: float) -> Iterator[X | None]:
        """States to try for one group, each made when it is asked for; None where there is none."""


def search(
    moves: Moves[X],
    best: Best[X],
    score: Callable[[X], float],
    ends: Callable[[], bool],
    rng: np.random.Generator,
    progress: Callable[[Best[X]], None] | None = None,
) -> Best[X]:
    """Descend from `best` until it `ends`, or until no move of any level helps: every group in turn, at random."""
    for groups in moves.levels:
        idle = 0
        while (size := moves.size(idle)) is not None and not ends():
            before = best.kept
            for index in rng.permutation(len(groups)):
                for state in moves.tries(best, groups[int(index)], size):
                    if ends():
                        return best
                    if state is None:
                        continue
                    best.attempt(state, score)
                    if progress is not None:
                        progress(best)
            idle = moves.idle_after(idle, gained=best.kept > before)
    return best


def refined(
    score: Callable[[Plan], float],
    start: Best[Plan],
    *,
    over: Callable[[], bool],
    seed: int = 0,
    progress: Callable[[Best[Plan]], None] | None = None,
) -> Best[Plan]:
    """Descend from `start` until it is `over`, or until no move helps.

    `score` is the loss of a plan. A move raises or lowers one group and lets the others make up for it, so that the
    budget holds all along. Groups go from coarse to fine: blocks and roles, attention and MLP of each block, single
    tensors. Steps halve where no group of a level moves any more.
    """
    return search(_Amounts(start.state), start, score, over, np.random.default_rng(seed), progress)


class _Amounts:
    """Sparsity of groups of tensors, a step up or down."""

    def __init__(self, start: Plan) -> None:
        self.levels = levels(start.decisions)
        self._sizes = np.array([item.n_params for item in start], dtype=np.float64)
        self._budget = Budget(start.sparsity)
        self._sign = dict[bytes, int]()  # that helped a group last

    def size(self, idle: int) -> float | None:
        """See `Moves`."""
        step = FIRST_STEP / 2.0**idle
        return step if step >= LAST_STEP else None

    def idle_after(self, idle: int, *, gained: bool) -> int:
        """See `Moves`."""
        return idle if gained else idle + 1

    def tries(self, best: Best[Plan], group: Indices, size: float) -> Iterator[Plan | None]:
        """See `Moves`. The other way is tried where the first did not help."""
        first, before = self._sign.get(group.tobytes(), 1), best.kept
        for sign in (first, -first):
            yield self._moved(best.state, group, sign * size)
            if best.kept > before:
                self._sign[group.tobytes()] = sign
                return

    def _moved(self, plan: Plan, group: Indices, change: float) -> Plan | None:
        amounts = amounts_of(plan)
        wanted = amounts.copy()
        wanted[group] += change
        shifted = self._budget.shifted(wanted, self._sizes)
        return None if np.abs(shifted - amounts).max() < LAST_STEP / 4 else with_amounts(plan, shifted)


def levels(decisions: Sequence[Decision]) -> list[list[Indices]]:
    """Groups of decisions by index, from coarse to fine."""
    coarse = [*by_key(decisions, lambda item: item.block), *by_key(decisions, lambda item: item.role)]
    middle = by_key(decisions, lambda item: (item.block, item.role.partition("_")[0]))
    fine = [np.array([index]) for index in range(len(decisions))]
    return [[group for group in level if len(group) < len(decisions)] for level in (coarse, middle, fine)]


def by_key(items: Sequence[T], key: Callable[[T], object]) -> list[Indices]:
    """Indices of the items with equal keys, in the order of their first."""
    groups: dict[object, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key(item), []).append(index)
    return [np.array(indices) for indices in groups.values()]


def amounts_of(plan: Plan) -> Vector:
    """Sparsity of each decision, (n,)."""
    return np.array([item.sparsity or 0.0 for item in plan], dtype=np.float64)


def with_amounts(plan: Plan, amounts: Vector) -> Plan:
    """The plan with other sparsities."""
    changed = tuple(item.but(sparsity=round(float(amount), DIGITS)) for item, amount in zip(plan, amounts, strict=True))
    return plan.replace(decisions=changed)


def refined_formats(
    score: Callable[[Levels], float],
    start: Best[Levels],
    problem: tuple[Choices, Losses],
    *,
    over: Callable[[], bool],
    seed: int = 0,
    progress: Callable[[Best[Levels]], None] | None = None,
) -> Best[Levels]:
    """Descend from `start` until it is `over`, or until rounds bring nothing.

    `score` is the loss of a choice of levels. A move raises or lowers the formats of some groups by one; then others
    give or take bits, those that are believed to lose least first, until the budget is used: `problem` holds the
    choices and what each group is believed to lose in each format, (groups, formats). Blocks and roles are moved
    first, then groups one by one, in random order.
    """
    rng = np.random.default_rng(seed)
    return search(_Formats(problem, start.state, rng), start, score, over, rng, progress)


class _Formats:
    """Formats of groups of tensors, one up or down."""

    def __init__(self, problem: tuple[Choices, Losses], start: Levels, rng: np.random.Generator) -> None:
        self._choices, self._believed = problem
        self.levels = move_sets(self._choices)
        self._rng, self._seen = rng, {start.tobytes()}

    def size(self, idle: int) -> float | None:
        """See `Moves`."""
        return 1.0 if idle < _PATIENCE else None

    def idle_after(self, idle: int, *, gained: bool) -> int:
        """See `Moves`."""
        return 0 if gained else idle + 1

    def tries(self, best: Best[Levels], group: Indices, size: float) -> Iterator[Levels | None]:
        """See `Moves`."""
        for step in self._rng.permutation([1, -1]):
            yield self._moved(best.state, group, round(size) * int(step))

    def _moved(self, state: Levels, group: Indices, step: int) -> Levels | None:
        wanted = _moved(self._choices, state, group, step)
        noisy = self._believed * np.exp(self._rng.normal(0.0, _NOISE, self._believed.shape))
        levels = None if wanted is None else balanced(self._choices, wanted, group, noisy)
        if levels is None or levels.tobytes() in self._seen:
            return None
        self._seen.add(levels.tobytes())
        return levels


def move_sets(choices: Choices) -> list[list[Indices]]:
    """Groups by index, from coarse to fine: those of a block, those of a role, and each alone."""
    groups = choices.groups
    coarse = [*by_key(groups, lambda group: group.block), *by_key(groups, lambda group: group.members[0].role)]
    fine = [np.array([index]) for index in range(len(groups))]
    return [[indices for indices in level if len(indices) < len(groups)] for level in (coarse, fine)]


def _moved(choices: Choices, levels: Levels, chosen: Indices, step: int) -> Levels | None:
    """Levels with some groups one offered format higher or lower; None where none can move."""
    moved = levels.copy()
    for index in chosen:
        moved[index] = neighbour(choices, int(index), int(levels[index]), step)
    return None if np.array_equal(moved, levels) else moved


def neighbour(choices: Choices, group: int, level: int, step: int) -> int:
    """The offered format so many steps up from a level; the level itself where there is none."""
    offered = np.flatnonzero(np.isfinite(choices.bits[group]))
    place = int(np.searchsorted(offered, level)) + step
    return int(offered[place]) if 0 <= place < len(offered) else level


def balanced(choices: Choices, levels: Levels, fixed: Sequence[int] | Indices, believed: Losses) -> (
    Levels | None
):  # fmt: skip
    """Levels within the budget and near it; those of `fixed` stay. None where the others cannot make up for them.

    Bits are taken where the loss for each is believed to be least, and given where the gain is greatest.
    """
    moved, held = levels.copy(), {int(index) for index in fixed}
    free = [index for index in range(len(moved)) if index not in held]
    weight = choices.weight(moved)
    while weight > choices.goal * (1 + 1e-12):
        steps = [(_price(choices, believed, index, moved, -1), index) for index in free]
        steps = [item for item in steps if np.isfinite(item[0])]
        if not steps:
            return None
        _, index = min(steps)
        moved[index] = neighbour(choices, index, int(moved[index]), -1)
        weight = choices.weight(moved)
    while True:
        room = choices.goal * (1 + 1e-12) - weight
        steps = [
            (_price(choices, believed, index, moved, 1), index)
            for index in free
            if 0 < _cost(choices, index, moved, 1) <= room
        ]
        if not steps:
            return moved if weight >= choices.goal * (1 - SLACKS[2]) else None
        _, index = min(steps)
        moved[index] = neighbour(choices, index, int(moved[index]), 1)
        weight = choices.weight(moved)


def _cost(choices: Choices, index: int, levels: Levels, step: int) -> float:
    level = int(levels[index])
    return float(choices.bits[index, neighbour(choices, index, level, step)] - choices.bits[index, level])


def _price(choices: Choices, believed: Losses, index: int, levels: Levels, step: int) -> float:
    """Change of the believed loss for each bit; +inf where there is no such step."""
    level = int(levels[index])
    other = neighbour(choices, index, level, step)
    if other == level:
        return np.inf
    change = float(believed[index, other] - believed[index, level])
    return change / abs(_cost(choices, index, levels, step)) if np.isfinite(change) else np.inf
