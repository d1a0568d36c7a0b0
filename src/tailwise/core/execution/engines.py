"""Engines by name, opened for as long as work goes on: Dask, Ray, or an executor that was given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from tailwise.core.errors import UsageError
from tailwise.core.execution.engine import Engine, Given
from tailwise.core.recipe import RunOptions

_NAME = re.compile(r"local|(dask|ray)(://\S+:\d+)?")


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
