"""Training data from easy to hard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from tailwise.core.errors import UsageError


class CurriculumSampler(Sampler[int]):
    """Draws examples by chance from the easiest so far, and from all of them in the end.

    `difficulty` has a number for each example: a column of yours, `token_rarity`, or `loss_difficulty`. At the t-th of
    `ramp` draws the easiest c(t) of the examples are in the draw, all with one chance:

        c(t) = min(1, (t·(1 − c₀ᵖ)/ramp + c₀ᵖ)^(1/p))

    with c₀ = `start` and p = `power` (1 is linear; 2, the paper's, adds examples slower and slower). After that it is
    a random sampler with replacement.

    Parameters
    ----------
    ramp
        Draws until all examples are in, over all epochs and shards; three epochs unless given.
    shard
        (rank, number of ranks): each rank takes its own part of the same draws, as many as every other, or the ranks
        would wait for each other at the end of an epoch.

    Source: Platanios et al. 2019, Competence-based Curriculum Learning for Neural Machine Translation,
    arXiv:1903.09848, eq. 7.
    """

    def __init__(
        self, difficulty: Sequence[float] | torch.Tensor, *, ramp: int | None = None, start: float = 0.01,
        power: float = 2.0, seed: int = 0, shard: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        scores = torch.as_tensor(difficulty, dtype=torch.float64)
        if scores.ndim != 1 or not len(scores) or bool(scores.isnan().any()):
            raise UsageError("the difficulties are not one number for each example", fix="give a list without NaN")
        if not 0 < start <= 1 or power <= 0 or not 0 <= shard[0] < shard[1]:
            raise UsageError(f"start {start}, power {power}, shard {shard}", fix="give 0 < start ≤ 1, power > 0, and "
                             "a rank below the number of ranks")  # fmt: skip
        # Stable, so that equal difficulties keep their order and a seed gives the same draws everywhere.
        self.order: list[int] = torch.sort(scores, stable=True).indices.tolist()
        self.ramp = ramp if ramp is not None else 3 * len(scores)
        self.start, self.power, self.seed, self.shard = start, power, seed, shard
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """Draws of this shard in an epoch."""
        return math.ceil(len(self.order) / self.shard[1])

    def __iter__(self) -> Iterator[int]:
        """The rest of this epoch's draws; the next call gives the next epoch's."""
        total, (rank, ranks) = len(self.order), self.shard
        draws = len(self) * ranks
        chances = torch.rand(draws, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for draw in range(rank + self.position * ranks, draws, ranks):
            reach = max(1, math.ceil(self.competence(self.epoch * draws + draw) * total))
            self.position += 1
            yield self.order[int(chances[draw] * reach)]
        self.epoch, self.position = self.epoch + 1, 0

    def competence(self, drawn: int) -> float:
        """c(t): the share of the examples, the easiest, that are in the draw after so many."""
        if drawn >= self.ramp:
            return 1.0
        low = float(self.start**self.power)
        return float(min(1.0, (drawn * (1 - low) / self.ramp + low) ** (1 / self.power)))

    def state_dict(self) -> dict[str, Any]:
        """Where it stands. A loader that fetches ahead has drawn more than the loop has seen."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, in the middle of an epoch too."""
        self.epoch, self.position, self.seed = int(state["epoch"]), int(state["position"]), int(state["seed"])
