"""One audit as a process of its own: `tailwise audit … --progress json`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tailwise.app.jobs.job import Job
from tailwise.core.errors import MALFORMED
from tailwise.core.storage import json_of

_LAST_LINES = 12
_PATIENCE = 3.0  # seconds between being asked to end and being ended
#: Variables that a job needs; secrets of the server are not among them.
_PASSED = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "TAILWISE_CACHE", "XDG_CACHE_HOME", "HF_HOME",
           "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
           "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS", "SYSTEMROOT", "LD_LIBRARY_PATH")  # fmt: skip


def arguments(job: Job, workers: int | None) -> list[str]:
    """The command line of a job. What a user typed stands behind `--`, where nothing is read as an option."""
    options = job.options
    chosen = ["-o", job.output, "--progress", "json", "--rows", "1"]
    if workers is not None:
        chosen += ["--workers", str(workers)]
    if options.get("randomize"):
        chosen.append("--randomize")
    if options.get("bootstrap"):
        chosen += ["--bootstrap", str(int(options["bootstrap"]))]
    if options.get("estimator"):
        chosen += ["--estimator", str(options["estimator"])]
    if options.get("base"):
        chosen += [f"--base={options['base']}"]
    # -P: without it, `-m` looks for modules in the folder that the server was started in, among people's models.
    return [sys.executable, "-P", "-m", "tailwise.app.jobs.child", "audit", *chosen, "--", job.model]


def environment() -> dict[str, str]:
    """Of a job: it refuses pickles, and prints as text."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return passed | {"TAILWISE_NO_PICKLE": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", "COLUMNS": "200"}


class JobProcess:
    """A job whose process runs."""

    def __init__(self, job: Job, workers: int | None) -> None:
        self.process = subprocess.Popen(
            arguments(job, workers), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment(), text=True, encoding="utf-8", errors="replace", process_group=0,
            preexec_fn=_humble if os.name == "posix" else None,  # noqa: PLW1509 - it calls nothing but nice
        )  # fmt: skip

    def follow(self, tell: Callable[[Mapping[str, Any]], None]) -> tuple[int, str]:
        """Call `tell` with every step, and give the exit status with the last lines of what was said."""
        lines: list[str] = []
        if self.process.stderr is not None:
            with self.process.stderr:
                for line in self.process.stderr:
                    step = _step(line)
                    if step is None:
                        lines = [*lines, line.rstrip()][-_LAST_LINES:]
                    else:
                        tell(step)
        status = self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return status, "\n".join(line for line in lines if line)

    def stop(self) -> None:
        """End the process and all that it started. Its spectra are kept."""
        self._signal(signal.SIGTERM)
        # What is deep in a computation, or waits for a disk, may not hear that.
        later = threading.Timer(_PATIENCE, self._signal, [getattr(signal, "SIGKILL", signal.SIGTERM)])
        later.daemon = True
        later.start()

    def _signal(self, number: int) -> None:
        if self.process.returncode is not None:  # its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError):
            if os.name == "posix":
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()


def _humble() -> None:
    # Readers come first. Not in a session of its own, which Linux would give a share of the machine like the server's.
    os.nice(10)


def _step(line: str) -> Mapping[str, Any] | None:
    if not line.startswith('{"progress"'):
        return None
    try:
        progress = json_of(line)["progress"]
    except MALFORMED:
        return None
    return progress if isinstance(progress, dict) else None
