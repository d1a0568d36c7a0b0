"""Operators that look at the weights alone, on a cluster: each worker reads, changes and writes whole shards.

Shards lie in the draft's kept folder, which every worker must see, until all are there; a run that was killed goes on
with those that are missing. Each file appears whole under its name, so that a shard that is written twice does no harm.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft
from tailwise.checkpoints.writer import Change, OutputLayout, Shard, finish_checkpoint, tensors_of, write_shard
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import TailwiseError, UnreachableError, UnreadableError, UsageError
from tailwise.core.execution.executor import engine_of, one_thread
from tailwise.core.execution.spread import SpreadWork, patience_of, spread
from tailwise.core.recipe import RunOptions

Make = Callable[[Plan, Checkpoint, str], Change]  # plan, checkpoint, device → what takes the place of a tensor


@dataclass(frozen=True)
class ShardTask:
    """One shard for a worker."""

    shard: Shard
    checkpoint: Checkpoint  # of its tensors alone
    plan: Plan  # of its tensors alone
    make: Make  # picklable
    device: str
    target: Path


@dataclass(frozen=True)
class WrittenShard:
    """One shard as it came back."""

    name: str
    nbytes: int = 0  # of its file
    error: Exception | None = None


@dataclass(frozen=True)
class Shards:
    """A data-free change of a whole checkpoint."""

    plan: Plan
    checkpoint: Checkpoint
    layout: OutputLayout
    make: Make
    options: RunOptions
    progress: Callable[[int, int], None]

    def write(self, draft: Draft) -> tuple[tuple[str, ...], int]:
        """Write all files into the draft's folder. Notes, and how many shards an earlier run had finished."""
        folder = draft.kept / "shards"
        folder.mkdir(exist_ok=True)
        there = {path.name for path in folder.iterdir()}
        missing = [shard for shard in self.layout.shards if shard.name not in there]
        total = len(self.layout.shards)
        done = total - len(missing)
        resumed = done
        self.progress(done, total)
        for path in folder.glob(".*"):  # of workers that were killed
            path.unlink()
        with engine_of(self.options) as engine:
            work = SpreadWork(_run, self._pack(folder), _given_up, cost=_nbytes, again=_may_pass)
            for written in spread(engine, work, sorted(missing, key=_nbytes, reverse=True), patience_of(self.options)):
                _check(written, folder)
                done += 1
                self.progress(done, total)
        for shard in self.layout.shards:
            (folder / shard.name).rename(draft.folder / shard.name)
        return finish_checkpoint(self.layout, draft.folder), resumed

    def _pack(self, folder: Path) -> Callable[[Sequence[Shard]], ShardTask]:
        def pack(shards: Sequence[Shard]) -> ShardTask:
            (shard,) = shards
            names = {spec.name for spec in shard.specs}
            plan = self.plan.replace(decisions=tuple(item for item in self.plan if item.tensor in names))
            part = self.checkpoint.part(spec.name for spec in shard.specs)
            return ShardTask(shard, part, plan, self.make, self.options.device, folder.absolute() / shard.name)

        return pack


def check_alone(executor: Executor | str, why: str) -> None:
    """`UsageError` where an engine was asked for something that one process must do."""
    if executor != "local":
        raise UsageError(f"{why}, and cannot be spread over an executor", fix="leave --executor out")


def _nbytes(shard: Shard) -> float:
    return float(sum(spec.nbytes for spec in shard.specs))


def _run(task: ShardTask) -> tuple[WrittenShard]:
    """On a worker: read, change, write."""
    path = task.target.with_name(f".{task.target.name}-{uuid.uuid4().hex}")
    try:
        with one_thread():
            change = task.make(task.plan, task.checkpoint, task.device)
            write_shard(path, task.shard, lambda name: tensors_of(task.checkpoint, name, change))
        nbytes = path.stat().st_size
        path.replace(task.target)
    except (TailwiseError, OSError) as error:
        path.unlink(missing_ok=True)
        return (WrittenShard(task.shard.name, error=error),)
    return (WrittenShard(task.shard.name, nbytes),)


def _given_up(shard: Shard, why: str) -> WrittenShard:
    fix = "the same command goes on where it was"
    return WrittenShard(shard.name, error=UnreadableError(f"could not be written: {why}", where=shard.name, fix=fix))


def _may_pass(written: WrittenShard) -> bool:
    return isinstance(written.error, UnreachableError)


def _check(written: WrittenShard, folder: Path) -> None:
    if isinstance(written.error, FileNotFoundError):
        raise _not_shared(folder) from written.error
    if written.error is not None:
        raise written.error
    path = folder / written.name
    if not path.is_file() or os.path.getsize(path) != written.nbytes:  # noqa: PTH202 - one look
        raise _not_shared(folder)


def _not_shared(folder: Path) -> UsageError:
    fix = "choose an output on storage that every worker sees under the same path, or leave --executor out"
    return UsageError("what the workers write does not arrive here", where=folder, fix=fix)
