"""Map a function over independent items on threads that each run one BLAS thread, or on an engine by its name.

Whole matrices go to single-threaded workers: two threads inside one product run slower than two products side by
side. torch releases the interpreter lock in its kernels, so threads suffice and share the page cache and memory.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from tailwise.core.errors import UsageError
from tailwise.core.execution.engine import Engine, Given
from tailwise.core.recipe import RunOptions

if TYPE_CHECKING:
    import torch


Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers(device: str) -> int:
    """One worker per core this process may use; one on a GPU."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_unordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    stop: threading.Event | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> Iterator[Result]:
    """Results as they come. Items start in the order given; at most `workers` are under way at once.

    When the caller stops iterating, or is interrupted, no further item starts, `stop` is set and what is under way is
    waited for. An exception of `function` is raised here. A `pool` that is given is used, and left open.
    """
    import torch

    threads_before = torch.get_num_threads()
    waiting = iter(items)
    running: set[Future[Result]] = set()
    own = ThreadPoolExecutor(workers, thread_name_prefix="tailwise") if pool is None else nullcontext(pool)
    with own as threads:
        try:
            for item in waiting:
                running.add(threads.submit(_alone, function, item))
                if len(running) >= workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            if stop is not None:
                stop.set()
            for future in running:
                future.cancel()
            torch.set_num_threads(threads_before)


def _alone(function: Callable[[Item], Result], item: Item) -> Result:
    import torch

    torch.set_num_threads(1)
    return function(item)


_MINE = threading.local()


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """Work of this thread on a stream of its own; on the CPU nothing."""
    if not device.startswith("cuda"):
        yield
        return
    import torch

    with torch.cuda.stream(_stream(torch.device(device))):
        yield


def _stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    streams: dict[torch.device, torch.cuda.Stream] = _MINE.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def checked_device(device: str) -> str:
    """`device`, if torch knows it and it is there; `UsageError` otherwise."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device", fix="use cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", fix="use --device cpu")
    return device


class HeldSetting:
    """A setting of the process that several change for a while, and that the last of them gives back."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._within: list[int] = []  # for each that is within, what is to be given back

    @contextmanager
    def at(self, value: int, read: Callable[[], int], write: Callable[[int], object]) -> Iterator[None]:
        """Hold it at `value` while the block runs."""
        with self._guard:
            self._within.append(self._within[0] if self._within else read())
            write(value)
        try:
            yield
        finally:
            with self._guard:
                before = self._within.pop()
                if not self._within:
                    write(before)


_TORCH_THREADS = HeldSetting()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's kernels on the calling thread alone; the setting comes back when nobody is within any more.

    The setting is partly the process's: given back while another task is under way, it would change how that one adds.
    """
    import torch

    with _TORCH_THREADS.at(1, torch.get_num_threads, torch.set_num_threads):
        yield


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
