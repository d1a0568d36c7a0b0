"""Where work items run when they do not run on threads of this process: the contract of an engine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

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

    @override
    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        return self.pool.submit(function, argument)

    @override
    def slots(self) -> int:
        """As told; else as the pool says; else one for each core here."""
        known = self.workers or getattr(self.pool, "_max_workers", None)
        return int(known) if known else os.cpu_count() or 1

    @override
    def fault(self, error: BaseException) -> Fault:
        return "connection" if isinstance(error, BrokenExecutor | CancelledError) else "task"
