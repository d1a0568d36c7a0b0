"""One audit as a process of its own: `python -m tailwise audit … --progress json`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tailwise.app.jobs.job import Job

_LAST_LINES = 12
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
    return [sys.executable, "-m", "tailwise", "audit", *chosen, "--", job.model]


def environment() -> dict[str, str]:
    """Of a job: it refuses pickles, and prints as text."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return passed | {"TAILWISE_NO_PICKLE": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", "COLUMNS": "200"}


class Running:
    """A job whose process runs."""

    def __init__(self, job: Job, workers: int | None) -> None:
        self.process = subprocess.Popen(
            arguments(job, workers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment(), text=True, encoding="utf-8", errors="replace", process_group=0,
            preexec_fn=_humble if os.name == "posix" else None,  # noqa: PLW1509 - it calls nothing but nice
        )  # fmt: skip

    def follow(self, tell: Callable[[Mapping[str, Any]], None]) -> tuple[int, str]:
        """Call `tell` with every step, and give the exit status with the last lines of what was said."""
        said: list[str] = []
        if self.process.stderr is not None:
            with self.process.stderr:
                for line in self.process.stderr:
                    step = _step(line)
                    if step is None:
                        said = [*said, line.rstrip()][-_LAST_LINES:]
                    else:
                        tell(step)
        return self.process.wait(), "\n".join(line for line in said if line)

    def stop(self) -> None:
        """End the process and all that it started. Its spectra are kept."""
        try:
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGTERM)
            else:
                self.process.terminate()
        except ProcessLookupError:
            pass


def _humble() -> None:
    # Readers come first. Not in a session of its own, which Linux would give a share of the machine like the server's.
    os.nice(10)


def _step(line: str) -> Mapping[str, Any] | None:
    if not line.startswith('{"progress"'):
        return None
    try:
        found = json.loads(line)["progress"]
    except (ValueError, KeyError):
        return None
    return found if isinstance(found, dict) else None
