"""Copies of the weights on the CPU, to be measured while the training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tailwise.training.cheap import stamp, to_host, unchanged

if TYPE_CHECKING:
    from tailwise.training.faults import Faults
    from tailwise.training.live import LiveModel, MatrixGroup, Tensors
    from tailwise.training.processes import Ranks


@dataclass
class Snapshot:
    """Weights as they were at one step."""

    step: int
    time: float
    parts: list[tuple[MatrixGroup, dict[str, torch.Tensor]]]  # this rank's groups, and their tensors on the CPU
    events: list[Any]  # of copies that are under way
    unchanged: tuple[str, ...]  # matrices that were not copied, since they are as they were
    left: int  # matrices that did not fit, whose turn comes next

    def wait(self) -> None:
        """Until every copy has arrived."""
        for event in self.events:
            event.synchronize()


class Camera:
    """Takes snapshots of at most `limit` bytes. What does not fit is taken first the next time."""

    def __init__(self, live: LiveModel, ranks: Ranks, faults: Faults, limit: int) -> None:
        self._live, self._ranks, self._faults, self._limit = live, ranks, faults, limit
        self._stamps: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self._turn: dict[tuple[str, ...], int] = {}  # snapshot in which each group was last taken
        self._count = 0

    @torch.no_grad()
    def take(self, tensors: Tensors, step: int, time: float) -> Snapshot:
        """Copy what changed. On a GPU the copies are enqueued behind the step, and ahead of the next one."""
        groups = [group for group in self._live.groups if not group.norms_alone]
        changed = [group for group in groups if not unchanged(group, tensors, self._stamps)]
        picked, left = self._picked(changed)
        self._count += 1
        parts, events = list[Any](), list[Any]()
        self._ranks.visit(picked, tensors, lambda g, whole: parts.append((g, _copied(whole, events))), self._faults)
        for group in picked:
            self._turn[group.tensors] = self._count
            self._stamps[group.tensors] = stamp(group, tensors)
        same = [group for group in groups if group not in changed]
        names = tuple(source.name for group in same for source in group.sources)
        return Snapshot(step, time, parts, events, names, sum(len(group.sources) for group in left))

    def forget(self) -> None:
        """Trust nothing of before: the model's tensors are others now."""
        self._stamps, self._turn = {}, {}

    def _picked(self, groups: list[MatrixGroup]) -> tuple[list[MatrixGroup], list[MatrixGroup]]:
        """The groups that were not taken for longest, as many as fit; at least one."""
        waiting = sorted(groups, key=lambda group: self._turn.get(group.tensors, 0))
        room, picked = self._limit * self._ranks.world if self._ranks.sharded else self._limit, list[Any]()
        for group in waiting:
            if picked and group.nbytes > room:
                break
            picked.append(group)
            room -= group.nbytes
        return picked, waiting[len(picked) :]


def _copied(tensors: Mapping[str, torch.Tensor], events: list[Any]) -> dict[str, torch.Tensor]:
    return {name: to_host(tensor, events) for name, tensor in tensors.items()}
