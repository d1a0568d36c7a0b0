"""What one rank of a distributed run does: which matrices are its own, and what all ranks decide together."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.wrapped import is_sharded, whole
from tailwise.core.storage import json_of
from tailwise.training.live import MatrixGroup, Tensors

if TYPE_CHECKING:
    import torch


logger = logging.getLogger("tailwise.monitor")


class Faults:
    """What went wrong, by where."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def note(self, where: str, error: BaseException) -> None:
        """Count an error; the first of its kind is logged with its traceback."""
        text, count = self._seen.get(where, (f"{type(error).__name__}: {error}", 0))
        self._seen[where] = text, count + 1
        if not count:
            logger.error("the monitor failed at %s; the training goes on", where, exc_info=error)

    @property
    def texts(self) -> tuple[str, ...]:
        """One line of each kind."""
        return tuple(f"failed {count}× at {where}: {text}" for where, (text, count) in self._seen.items())


_PREFIX = "tailwise/monitor"
Take = Callable[[MatrixGroup, "dict[str, torch.Tensor]"], None]


class Ranks:
    """This process among those that train the model.

    Where the model is sharded, every rank takes part in every collective in the same order: `agree` first, which
    decides for all, then one gathering a group. Where each rank holds the whole model, only rank 0 measures.
    """

    def __init__(self, tensors: Tensors) -> None:
        import torch.distributed as dist

        active = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if active else (0, 1)
        self.sharded = self.world > 1 and any(is_sharded(tensor) for tensor in tensors.values())
        self._key = f"{_PREFIX}/{self._common()}" if self.sharded else _PREFIX
        self._sent = 0

    def _common(self) -> int:
        """A number that the ranks have in common, and no other monitor has. A collective.

        The name of the run will not do: it may be the time, which ranks do not read in the same second.
        """
        import torch
        import torch.distributed as dist

        number = torch.tensor([secrets.randbits(62)], device=self.device)
        dist.broadcast(number, src=0)
        return int(number)

    @property
    def measures(self) -> bool:
        """Whether this rank does anything."""
        return self.sharded or self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where tensors of a collective must lie."""
        import torch
        import torch.distributed as dist

        nccl = self.sharded and "nccl" in dist.get_backend()
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def owners(self, groups: Sequence[MatrixGroup]) -> dict[tuple[str, ...], int]:
        """Which rank measures each group: the costliest first, each to the rank with the least work."""
        if not self.sharded:
            return {group.tensors: self.rank for group in groups}
        load, owners = [0.0] * self.world, {}
        for group in sorted(groups, key=lambda group: (-group.flops, group.tensors)):
            rank = min(range(self.world), key=load.__getitem__)
            owners[group.tensors], load[rank] = rank, load[rank] + group.flops
        return owners

    def agree(self, *votes: bool, token: int = 0) -> tuple[bool, ...]:
        """Each vote, true where every rank's is; all false where their tokens differ. Waits for the other ranks.

        A token stands for what the ranks are about to gather: with stages of a pipeline it is not the same.
        """
        if not self.sharded:
            return votes
        import torch
        import torch.distributed as dist

        ballot = torch.tensor([*votes, token, -token], dtype=torch.int64, device=self.device)
        dist.all_reduce(ballot, op=dist.ReduceOp.MIN)
        *least, low, high = ballot.tolist()
        return tuple(bool(vote) and low == -high for vote in least)

    def _whole(self, group: MatrixGroup, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The tensors of a group, those in parts gathered: a collective, for which all ranks must call this."""
        return {name: whole(tensors[name].detach()) for name in group.tensors}

    def visit(self, groups: Sequence[MatrixGroup], tensors: Tensors, take: Take, faults: Faults) -> None:
        """Call `take` with each group that is this rank's own, and its tensors.

        What `take` raises is noted and ends nothing: the other ranks wait for this one at the next gathering.
        """
        owners = self.owners(groups)
        for group in groups:
            whole = self._whole(group, tensors)
            if owners[group.tensors] == self.rank:
                try:
                    take(group, whole)
                except Exception as error:
                    faults.note(f"reading {group.sources[0].name}", error)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.sharded:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def send(self, result: dict[str, Any]) -> None:
        """Leave a result for rank 0, without waiting for it."""
        _store().set(f"{self._key}/{self.rank}/{self._sent}", json.dumps(result))
        self._sent += 1

    def receive(self, rank: int, number: int) -> dict[str, Any] | None:
        """The result `number` that `rank` left, if it has."""
        key = f"{self._key}/{rank}/{number}"
        if not _store().check([key]):
            return None
        result: dict[str, Any] = json_of(_store().get(key))
        _store().delete_key(key)
        return result


def _store() -> Any:
    """The key-value store that the ranks met by: reading and writing it is no collective."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
