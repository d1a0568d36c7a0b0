"""Dask distributed as an engine: a cluster that is there already, or worker processes of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from typing_extensions import override

from tailwise.core.errors import UnreachableError, UsageError
from tailwise.core.execution.engine import Engine, Fault
from tailwise.core.optional import how_to_get

#: Seconds that the first connection may take.
_CONNECT = 30.0
#: Seconds between two attempts to reach a scheduler that went away.
_AGAIN = 1.0


class DaskEngine(Engine):
    """Tasks on the workers of a Dask scheduler, `host:port`; without one, on as many processes as there are cores."""

    name = "dask"
    attempts = 2  # Dask has moved a task to several workers by then

    def __init__(self, address: str, workers: int | None) -> None:
        distributed = _distributed()
        self._address, self._workers = address, workers
        self._cluster: Any = None
        if not address:
            # On the loopback: nothing is to listen where others could connect.
            with _unprofiled():
                self._cluster = distributed.LocalCluster(
                    n_workers=workers or _cores(), threads_per_worker=1, host="127.0.0.1", dashboard_address=None
                )
        self._client = self._connected(_CONNECT)
        if self._client is None:
            raise UnreachableError(
                "the Dask scheduler cannot be reached", where=address, fix="check the address, and that it is running"
            )
        self._pool = self._client.get_executor(pure=False)

    @override
    def submit(self, function: Callable[[Any], Any], argument: Any) -> Future[Any]:
        future: Future[Any] = self._pool.submit(function, argument)
        return future

    @override
    def slots(self) -> int:
        if self._client.status != "running":
            return 0
        try:
            slots = sum(int(threads) for threads in self._client.nthreads().values())
        except (OSError, ValueError):
            return 0
        return min(slots, self._workers) if self._workers else slots

    @override
    def fault(self, error: BaseException) -> Fault:
        distributed = _distributed()
        if isinstance(error, distributed.KilledWorker):
            return "worker"
        lost = (CancelledError, distributed.CancelledError, distributed.comm.CommClosedError)
        if isinstance(error, lost) or self._client.status != "running":
            return "connection"
        return "task"

    @override
    def recover(self, seconds: float) -> bool:
        """The client's own attempts come first; then a new one is made."""
        end = time.monotonic() + seconds
        while self._client.status == "connecting" and time.monotonic() < end:
            time.sleep(_AGAIN / 10)
        if self._client.status == "running":
            return True
        self._client.close()
        while time.monotonic() < end:
            connected = self._connected(min(_CONNECT, max(end - time.monotonic(), _AGAIN)))
            if connected is not None:
                self._client, self._pool = connected, connected.get_executor(pure=False)
                return True
            time.sleep(_AGAIN)
        return False

    @override
    def close(self) -> None:
        """A cluster that was there already stays."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _connected(self, seconds: float) -> Any:
        distributed = _distributed()
        try:
            return distributed.Client(self._cluster or self._address, timeout=seconds, set_as_default=False)
        except (OSError, TimeoutError):
            return None


def _unprofiled() -> Any:
    """Workers that are not sampled a hundred times a second, which takes their time from the solver."""
    import dask.config

    return dask.config.set({"distributed.worker.profile.enabled": False})


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise UsageError("the dask executor takes Dask", fix=how_to_get("dask")) from error
    return distributed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
