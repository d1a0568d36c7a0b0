"""Dask clusters of processes on the loopback, for tests that need to harm them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
#: What Dask and Ray leave open when they go down; nothing of tailwise's.
QUIET = (
    "ignore:unclosed:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A scheduler and worker processes without nannies: what is killed stays dead."""

    def __init__(self, workers: int = 2) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.scheduler: subprocess.Popen | None = None
        self.workers: list[subprocess.Popen] = []
        self.start(workers)

    def start(self, workers: int) -> None:
        self.scheduler = self._run("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        self.workers = [self.add_worker() for _ in range(workers)]
        self.wait(workers)

    def add_worker(self) -> subprocess.Popen:
        where = ("--host", "127.0.0.1", "--no-dashboard", "--nthreads", "1", "--no-nanny")
        return self._run("worker", f"tcp://{self.address}", *where)

    def wait(self, workers: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def heal(self, workers: int = 2) -> None:
        """As many live workers as at the start."""
        for process in self.workers:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        self.workers = [process for process in self.workers if process.poll() is None]
        self.workers += [self.add_worker() for _ in range(workers - len(self.workers))]
        self.wait(workers)

    def kill_workers(self, count: int) -> None:
        """kill -9, and wait until they are gone."""
        for process in self.workers[:count]:
            process.kill()
            process.wait()

    def restart(self, workers: int = 2) -> None:
        """Kill all of it and start it anew at the same address."""
        self.stop()
        self.start(workers)

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None and process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.workers, self.scheduler = [], None

    def _run(self, *arguments: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(SRC), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
