"""Where work items run when they do not run on threads of this process: the contract, and engines by name."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tailwise.core.errors import UsageError
from tailwise.core.recipe import RunOptions

_NAME = re.compile(r"local|(dask|ray)(://\S+:\d+)?")

#: What an error of a task means: of the task itself, of the worker that had it, or of the connection to all of them.
Fault = Literal["task", "worker", "connection"]


class Engine(ABC):
    """Processes, perhaps on other machines, that take tasks: a picklable function of one picklable argument."""

    name: str
    attempts: int = 3  # times that an item is started whose workers die

    @abstractmethod
    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        """Start a task as soon as there is room for it."""

    @abstractmethod
    def slots(self) -> int:
        """How many tasks can run at once now; 0 where no worker is there."""

    @abstractmethod
    def fault(self, error: BaseException) -> Fault:
        """What an error that a task's future carries, or that `submit` raised, says."""

    def recover(self, seconds: float) -> bool:  # noqa: ARG002 - a hook
        """After a fault of the connection: whether tasks can be started again, tried for so many seconds."""
        return False

    def close(self) -> None:  # noqa: B027 - an engine that was given belongs to its giver
        """Let go of what was opened."""


@dataclass
class Given(Engine):
    """Any `concurrent.futures.Executor`. It is left open: it belongs to who made it."""

    pool: Executor
    workers: int | None = None
    name: str = "executor"

    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        """See `Engine`."""
        return self.pool.submit(function, argument)

    def slots(self) -> int:
        """See `Engine`. As told; else as the pool says; else one for each core here."""
        known = self.workers or getattr(self.pool, "_max_workers", None)
        return int(known) if known else os.cpu_count() or 1

    def fault(self, error: BaseException) -> Fault:
        """See `Engine`."""
        return "connection" if isinstance(error, BrokenExecutor | CancelledError) else "task"


def is_near(executor: Executor | str) -> bool:
    """Whether work stays on threads of this process, and so sees its memory."""
    return executor == "local" or isinstance(executor, ThreadPoolExecutor)


@contextmanager
def engine_of(options: RunOptions) -> Iterator[Engine]:
    """The engine that the options name, closed at the end. `UsageError` where there is none of that name."""
    engine = _opened(options)
    try:
        yield engine
    finally:
        engine.close()


def check_executor(executor: Executor | str) -> None:
    """`UsageError` where `executor` is no executor, no engine's name, or an address without its port."""
    if isinstance(executor, Executor) or (isinstance(executor, str) and _NAME.fullmatch(executor)):
        return
    raise UsageError(
        f"there is no executor {executor!r}",
        fix="choose local, dask, dask://scheduler:8786, ray or ray://head:10001, or give a concurrent.futures.Executor",
    )


def _scheme(executor: str) -> str:
    return executor.partition("://")[0]


def _opened(options: RunOptions) -> Engine:
    executor = options.executor
    check_executor(executor)
    if isinstance(executor, Executor):
        return Given(executor, options.workers)
    if _scheme(executor) == "dask":
        from tailwise.core.execution.dask_engine import DaskEngine

        return DaskEngine(executor.partition("://")[2], options.workers)
    if executor == "local":
        raise AssertionError("threads of this process are no engine")
    from tailwise.core.execution.ray_engine import RayEngine

    share = options.num_gpus if options.num_gpus is not None else float(options.device != "cpu")
    return RayEngine(executor.partition("://")[2], options.workers, share)
