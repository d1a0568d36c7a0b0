"""From a plan to a better one by trial: amounts are moved between groups of tensors, and a move that helps is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan

#: First change of a group's sparsity, and the last before a level of groups is done with.
FIRST_STEP, LAST_STEP = 0.08, 0.015
DIGITS = 9

T = TypeVar("T")


@dataclass
class Refined:
    """Where a search has come to."""

    plan: Plan
    loss: float  # on the windows that it looked at
    tried: int = 0
    kept: int = 0


def refined(
    score: Callable[[Plan], float],
    start: Plan,
    *,
    over: Callable[[], bool],
    seed: int = 0,
    progress: Callable[[Refined], None] | None = None,
) -> Refined:
    """Descend from `start` until it is `over`, or until no move helps.

    `score` is the loss of a plan. A move raises or lowers one group and lets the others make up for it, so that the
    budget holds all along. Groups go from coarse to fine: blocks and roles, attention and MLP of each block, single
    tensors. Steps halve where no group of a level moves any more.
    """
    search = _Search(score, start, over, np.random.default_rng(seed), progress)
    for groups in levels(start.decisions):
        step = FIRST_STEP
        while step >= LAST_STEP and not search.over():
            if not search.sweep(groups, step):
                step /= 2
    return search.best


class _Search:
    def __init__(
        self,
        score: Callable[[Plan], float],
        start: Plan,
        over: Callable[[], bool],
        rng: np.random.Generator,
        progress: Callable[[Refined], None] | None,
    ) -> None:
        self._score, self._rng = score, rng
        self.over = over
        self._progress = progress
        self._sizes = np.array([item.n_params for item in start], dtype=np.float64)
        self._budget = Budget(start.sparsity)
        self.best = Refined(start, score(start))
        self._sign = dict[bytes, int]()

    def sweep(self, groups: Sequence[NDArray[np.int64]], step: float) -> bool:
        """Try every group once in random order; whether any moved."""
        moved = False
        for index in self._rng.permutation(len(groups)):
            group = groups[int(index)]
            first = self._sign.get(group.tobytes(), 1)
            for sign in (first, -first):
                if self.over():
                    return moved
                if self._step(group, sign * step):
                    self._sign[group.tobytes()] = sign
                    moved = True
                    break
        return moved

    def _step(self, group: NDArray[np.int64], change: float) -> bool:
        amounts = amounts_of(self.best.plan)
        wanted = amounts.copy()
        wanted[group] += change
        found = self._budget.shifted(wanted, self._sizes)
        if np.abs(found - amounts).max() < LAST_STEP / 4:
            return False
        plan = with_amounts(self.best.plan, found)
        loss = self._score(plan)
        self.best.tried += 1
        better = loss < self.best.loss
        if better:
            self.best.plan, self.best.loss = plan, loss
            self.best.kept += 1
        if self._progress is not None:
            self._progress(self.best)
        return better


def levels(decisions: Sequence[Decision]) -> list[list[NDArray[np.int64]]]:
    """Groups of decisions by index, from coarse to fine."""
    coarse = [*by_key(decisions, lambda item: item.block), *by_key(decisions, lambda item: item.role)]
    middle = by_key(decisions, lambda item: (item.block, item.role.partition("_")[0]))
    fine = [np.array([index]) for index in range(len(decisions))]
    return [[group for group in level if len(group) < len(decisions)] for level in (coarse, middle, fine)]


def by_key(items: Sequence[T], key: Callable[[T], object]) -> list[NDArray[np.int64]]:
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
