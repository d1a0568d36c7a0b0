"""The queue: jobs on disk, one at a time, in the order of asking."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from tailwise.app.jobs.job import Job
from tailwise.app.jobs.outputs import free_name, place
from tailwise.app.jobs.process import JobProcess
from tailwise.core.atomic import write_whole
from tailwise.core.errors import MALFORMED, TailwiseError, UsageError, unknown_name
from tailwise.core.locks import let_go, take
from tailwise.core.typed import is_finite

_log = logging.getLogger(__name__)

_KEPT = 200  # ended jobs that are remembered
_MOST_RESTARTS = 5  # a model that takes the machine down must not do so for ever

Start = Callable[[Job, int | None], JobProcess]


class Queue:
    """Runs jobs one after the other in a thread.

    Every job is a file below `folder`, and so is what it writes, until it is whole. A server that is killed finds the
    job again: what ran is run again, and takes the spectra that are in the cache already from there.
    """

    def __init__(
        self, folder: Path, *, longest: int = 20, workers: int | None = None, start: Start = JobProcess,
        idle: bool = False,
    ) -> None:  # fmt: skip
        """Take up what is below `folder`; a queue that stays `idle` shows it, and leaves it to a server that works."""
        self._claim = None if idle else FolderClaim(folder)
        self._folder = folder / "jobs" if self._claim is None else self._claim.folder
        self._longest, self._workers, self._start = longest, workers, start
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._running: tuple[str, JobProcess] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        with self._changed:
            self._read()

    # Asking

    def add(self, model: str, output: Path, options: Mapping[str, Any]) -> Job:
        """Put a job at the end. `UsageError` where the queue is full or the same thing waits already."""
        with self._changed:
            waiting = [job for job in self._jobs.values() if not job.over]
            if len(waiting) >= self._longest:
                raise UsageError("the queue is full", fix="wait for an audit to end, or cancel one")
            for job in waiting:
                if job.model == model and dict(job.options) == dict(options):
                    raise UsageError(f"{model} is in the queue already", fix="wait for it, or cancel it")
            taken = {job.output for job in waiting}
            output = free_name(output, taken)
            # The order of asking, also where the clock was set back.
            latest = max((one.created for one in self._jobs.values()), default=0.0)
            created = max(time.time(), math.nextafter(latest, math.inf))
            job = Job(secrets.token_hex(6), model, str(output), dict(options), created=created)
            self._put(job)
        return job

    def cancel(self, name: str) -> Job:
        """End a job that waits or runs."""
        with self._changed:
            job = self.get(name)
            if job.over:
                return job
            job = replace(job, state="cancelled", ended=time.time(), message="Cancelled. What was computed is kept.")
            self._put(job)
            if self._running is not None and self._running[0] == name:
                self._running[1].stop()
        return job

    def get(self, name: str) -> Job:
        """The job of that name. `UsageError` otherwise."""
        with self._changed:
            if name not in self._jobs:
                raise unknown_name("job", name, self._jobs)
            return self._jobs[name]

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: -job.created)

    def wait(self, seen: list[Job], seconds: float) -> list[Job]:
        """All jobs, as soon as they differ from those `seen`, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.jobs() != seen, seconds)
            return self.jobs()

    # Working

    def open(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._work, name="tailwise-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop: what runs is ended, and begins again with the next server."""
        with self._changed:
            self._closed = True
            if self._running is not None:
                self._running[1].stop()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._claim is not None:
            self._claim.release()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                job = self._next()
                if self._closed or job is None:
                    return
                job = replace(job, state="running")
                try:
                    running = self._start(replace(job, output=str(self._aside(job))), self._workers)
                except OSError as error:
                    self._put(replace(job, state="failed", ended=time.time(), message=str(error)))
                    continue
                self._running = (job.id, running)
                self._put(job)
            status, last_words = running.follow(partial(self._step, job.id))
            with self._changed:
                self._running = None
                try:
                    self._end(self._jobs[job.id], status, last_words)
                except OSError as error:  # one job must not end all that come after it
                    self._put(replace(self._jobs[job.id], state="failed", ended=time.time(), message=str(error)))

    def _next(self) -> Job | None:
        waiting = [job for job in self._jobs.values() if job.state == "queued"]
        return min(waiting, key=lambda job: job.created, default=None)

    def _step(self, name: str, step: Mapping[str, Any]) -> None:
        total = _number(step, "flops_total")
        share = min(1.0, _number(step, "flops_done") / total) if total > 0 else 0.0
        with self._changed:
            job = self._jobs[name]
            if job.over:
                return
            self._jobs[name] = replace(
                job, done=int(_number(step, "done")), total=int(_number(step, "total")), share=share,
                matrix=str(step.get("matrix") or ""),
            )  # fmt: skip
            self._changed.notify_all()

    def _end(self, job: Job, status: int, last_words: str) -> None:
        aside = self._aside(job)
        if job.over:  # cancelled meanwhile
            aside.unlink(missing_ok=True)
        elif status in (0, 3) and aside.exists():
            note = "" if status == 0 else "Some matrices could not be measured: the table says why."
            self._keep(replace(job, state="done", ended=time.time(), share=1.0, message=note))
        elif self._closed:
            self._put(replace(job, state="queued"))
        else:
            aside.unlink(missing_ok=True)
            message = last_words or f"The process ended with {status}."
            self._put(replace(job, state="failed", ended=time.time(), message=message[-2000:]))

    def _aside(self, job: Job) -> Path:
        """Where a job writes: not among the audits, which others may bring under the same name meanwhile.

        Its name begins with a dot, with which nothing is shown even where the state lies below a root.
        """
        return self._folder / f".{job.id}.audit"

    def _keep(self, job: Job) -> None:
        # Said before it is done: whoever finds the two at odds puts the file in its place.
        self._put(job)
        self._put(replace(job, output=str(place(self._aside(job), Path(job.output)))))

    # Remembering

    def _put(self, job: Job) -> None:
        self._jobs[job.id] = job
        try:
            write_whole(self._folder / f"{job.id}.json", json.dumps(job.to_json(), ensure_ascii=False).encode())
        except TailwiseError as error:
            _log.warning("the job %s is not kept: %s", job.id, error)
        ended = sorted((one for one in self._jobs.values() if one.over), key=lambda one: one.ended or 0.0)
        for old in ended[: max(0, len(ended) - _KEPT)]:
            del self._jobs[old.id]
            with contextlib.suppress(OSError):
                (self._folder / f"{old.id}.json").unlink(missing_ok=True)
        self._changed.notify_all()

    def _read(self) -> None:
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []:
            try:
                job = Job.from_text(path.read_text(encoding="utf-8"))
            except (*MALFORMED, OSError) as error:
                _log.warning("%s is no job: %s", path, error)
                continue
            if job.state == "running" and self._claim is not None:  # a server died under it
                job = replace(job, state="queued", restarts=job.restarts + 1)
                if job.restarts > _MOST_RESTARTS:
                    message = f"The server ended {job.restarts} times while this ran."
                    job = replace(job, state="failed", ended=time.time(), message=message)
            self._jobs[job.id] = job
            if (
                job.state == "done" and self._claim is not None and self._aside(job).exists()
            ):  # and before it had put the file in its place
                with contextlib.suppress(OSError):  # the next start may have room for it
                    self._keep(job)


def _number(step: Mapping[str, Any], key: str) -> float:
    """A number of a step, which comes as text from another process."""
    value = step.get(key)
    return float(value) if is_finite(value) else 0.0


_SERVERS = 100


class FolderClaim:
    """A folder for jobs that no other server works on, as long as this one lives.

    The models of a sweep have a lease each, since workers on many machines share them and one may die unseen. The jobs
    of a server are its own: the system lets go of the lock at the moment that it dies, so none has to run out first.
    """

    def __init__(self, folder: Path) -> None:
        """Take `jobs`, or `jobs-2` and so on where servers that run have those."""
        self.folder, self._release = folder / "jobs", None
        for candidate in _folders(folder):
            lock = _locked(candidate)
            if lock is not None:
                self.folder, self._release = candidate, weakref.finalize(self, let_go, lock)
                self._adopt(folder)
                return

    def _adopt(self, folder: Path) -> None:
        """Take what servers left that are gone."""
        for other in _folders(folder):
            lock = _locked(other) if other != self.folder and other.is_dir() else None
            if lock is None:
                continue
            with contextlib.suppress(OSError):
                for pattern in ("*.audit", "*.json"):  # in this order: a job without its file is one that wrote none
                    for path in other.glob(pattern):
                        path.replace(self.folder / path.name)
            let_go(lock)

    def release(self) -> None:
        """Leave it to the next server."""
        if self._release is not None:
            self._release()


def _folders(folder: Path) -> list[Path]:
    return [folder / ("jobs" if number == 1 else f"jobs-{number}") for number in range(1, _SERVERS)]


def _locked(folder: Path) -> BaseFileLock | None:
    # Its descriptor is not inherited by what this process starts: an orphan must not hold it.
    lock = FileLock(folder / ".lock", mode=0o600, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        take(lock)
    except OSError:  # another server has it, or the disk is full or may not be written: the queue is not kept at all
        return None
    return lock
