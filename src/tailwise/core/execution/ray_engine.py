"""Ray as an engine: a cluster that is there already, or worker processes of this machine. It schedules GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from typing_extensions import override

from tailwise.core.errors import UnreachableError, UsageError
from tailwise.core.execution.engine import Engine, Fault
from tailwise.core.optional import how_to_get


class RayEngine(Engine):
    """Tasks on the nodes of a Ray cluster; without an address, on the one that runs here or a new one.

    `num_gpus` is what one task takes of the GPUs, and may be a fraction; Ray then shows it its GPU as `cuda:0`.
    """

    name = "ray"

    def __init__(self, address: str, workers: int | None, num_gpus: float) -> None:
        ray = _ray()
        self._workers, self._gpus = workers, num_gpus
        self._owns = not ray.is_initialized()
        if self._owns:
            _start(address, workers)
        # A task that is lost with its worker comes back here, where it is told apart from its neighbours.
        options = {"num_cpus": 1, "num_gpus": num_gpus, "max_retries": 0}
        self._task = ray.remote(**options)(_call)

    @override
    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        future: Future[Any] = self._task.remote(function, argument).future()
        return future

    @override
    def slots(self) -> int:
        there = _ray().cluster_resources()
        cores = int(there.get("CPU", 0))
        if self._gpus > 0:
            cores = min(cores, int(there.get("GPU", 0) / self._gpus + 1e-6))
        return min(cores, self._workers) if self._workers else cores

    @override
    def fault(self, error: BaseException) -> Fault:
        known = _ray().exceptions
        worker = (
            known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError, known.LocalRayletDiedError,
            known.ObjectLostError, known.TaskUnschedulableError,
        )  # fmt: skip
        return "worker" if isinstance(error, worker) else "task"

    @override
    def close(self) -> None:
        """A Ray that was started before stays."""
        if self._owns:
            _ray().shutdown()


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


def _start(address: str, workers: int | None) -> None:
    ray = _ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    known = os.environ.get("RAY_ADDRESS")
    where = f"ray://{address}" if address else known
    try:
        if address:
            ray.init(address=where, **quiet)
        else:
            # The size of a cluster that is there already is not ours to say.
            ray.init(include_dashboard=False, num_cpus=None if known else workers, **quiet)
    except (ConnectionError, TimeoutError) as error:
        fix = "check the address, that it is running, and RAY_AUTH_TOKEN where it asks for one"
        why = f"{type(error).__name__}: {error.__cause__ or error}"[:300]
        raise UnreachableError(f"the Ray cluster cannot be reached ({why})", where=where, fix=fix) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("the ray executor takes Ray", fix=how_to_get("ray")) from error
    return ray
