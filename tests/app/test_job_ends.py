"""However a job or its server ends: nothing is lost, done twice, or put in another's place."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tailwise.app.jobs.job import Job
from tailwise.app.jobs.outputs import free_name, place, words_of
from tailwise.app.jobs.process import JobProcess
from tailwise.app.jobs.queue import Queue


class Immediate:
    """A process that writes, says what it is given to say, and ends."""

    def __init__(self, job, workers, *, writes=True, steps=(), before=lambda job: None, status=0):
        self.job, self.steps, self.before, self.status = job, steps, before, status
        if writes:
            Path(job.output).write_text(job.model)

    def follow(self, tell):
        for step in self.steps:
            tell(step)
        self.before(self.job)
        return self.status, "said"

    def stop(self):
        pass


def over(queue, count=1):
    seen = []
    for _ in range(200):
        seen = queue.wait(seen, 0.2)
        if sum(job.over for job in seen) == count:
            return seen
    raise AssertionError(seen)


@pytest.fixture
def run(tmp_path):
    """Run jobs in a queue of their own until all are over."""
    opened = []

    def do(names, **options):
        queue = Queue(tmp_path, start=lambda job, workers: Immediate(job, workers, **options))
        opened.append(queue)
        for name in names:
            queue.add(name, tmp_path / "audits" / "model.audit", {})
        queue.open()
        return queue, over(queue, len(names))

    yield do
    for queue in opened:
        queue.close()


def test_two_servers_with_one_state_run_a_job_once(tmp_path):
    first = Queue(tmp_path)
    job = first.add("a", tmp_path / "a.audit", {})
    second = Queue(tmp_path)
    assert second.jobs() == []
    second.add("b", tmp_path / "a.audit", {})
    assert [one.model for one in first.jobs()] == ["a"]
    first.close()
    assert Queue(tmp_path).get(job.id).state == "queued"  # the next server finds it
    second.close()


def test_what_a_second_server_left_is_taken_up_by_the_next(tmp_path):
    first, second = Queue(tmp_path), Queue(tmp_path)
    job = second.add("b", tmp_path / "b.audit", {})
    for queue in (first, second):
        queue.close()
    assert Queue(tmp_path).get(job.id).model == "b"


def test_a_server_that_only_shows_takes_nothing(tmp_path):
    working = Queue(tmp_path)
    job = working.add("a", tmp_path / "a.audit", {})
    working.close()
    idle = Queue(tmp_path, idle=True)
    assert idle.get(job.id).state == "queued"
    assert Queue(tmp_path).get(job.id).state == "queued"
    idle.close()


def test_a_state_where_no_file_can_be_locked_keeps_its_jobs(tmp_path, monkeypatch):
    from filelock import FileLock

    def refused(self, *arguments, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refused)
    queue = Queue(tmp_path)
    job = queue.add("a", tmp_path / "a.audit", {})
    queue.close()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
    assert Queue(tmp_path).get(job.id).state == "queued"


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path, run):
    def bring(job):
        (tmp_path / "audits").mkdir()
        (tmp_path / "audits" / "model.audit").write_text("brought")

    _, jobs = run(["a"], before=bring)
    assert (tmp_path / "audits" / "model.audit").read_text() == "brought"
    assert Path(jobs[0].output).read_text() == "a"
    assert Path(jobs[0].output).name == "model-2.audit"


def test_what_is_not_whole_is_not_among_the_audits(tmp_path, run):
    _, jobs = run(["a"], status=1)
    assert jobs[0].state == "failed"
    assert not (tmp_path / "audits").exists()


@pytest.mark.parametrize(
    "step",
    [
        {"done": "many", "total": None, "flops_done": "x", "flops_total": []},
        {"done": float("nan"), "total": float("inf"), "flops_done": float("nan"), "flops_total": float("nan")},
        {"done": 1, "total": 2, "flops_done": 9.0, "flops_total": 1.0},
    ],
)
def test_a_step_that_no_process_should_send_ends_nothing(run, step):
    _, jobs = run(["a", "b"], steps=[step])
    assert [job.state for job in jobs] == ["done", "done"]
    json.dumps([job.to_json() for job in jobs], allow_nan=False)


def test_what_cannot_be_put_in_its_place_fails_alone(tmp_path, run):
    (tmp_path / "audits").write_text("a file where the folder should be")
    _, jobs = run(["a", "b"])
    assert [job.state for job in jobs] == ["failed", "failed"]


def test_a_job_that_is_done_while_the_server_ends_is_done(tmp_path):
    reached, leave = threading.Event(), threading.Event()

    def wait(job):
        reached.set()
        leave.wait(20)

    queue = Queue(tmp_path, start=lambda job, workers: Immediate(job, workers, before=wait))
    job = queue.add("a", tmp_path / "a.audit", {})
    queue.open()
    assert reached.wait(20)
    ended = threading.Thread(target=queue.close)
    ended.start()
    leave.set()
    ended.join(20)
    assert Queue(tmp_path).get(job.id).state == "done"
    assert (tmp_path / "a.audit").exists()


def test_a_kill_between_the_word_and_the_deed_is_made_good(tmp_path):
    (tmp_path / "jobs").mkdir()
    left = Job("one", "a", str(tmp_path / "a.audit"), state="done", created=1.0, ended=2.0)
    (tmp_path / "jobs" / "one.json").write_text(json.dumps(left.to_json()))
    (tmp_path / "jobs" / ".one.audit").write_text("whole")
    Queue(tmp_path).close()
    assert (tmp_path / "a.audit").read_text() == "whole"
    Queue(tmp_path).close()
    assert len(list(tmp_path.glob("*.audit"))) == 1
    assert not (tmp_path / "jobs" / ".one.audit").exists()


def test_a_name_that_cannot_be_taken_leaves_the_file_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "written").write_text("whole")

    def refused(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="cross-device"):
        place(tmp_path / "written", tmp_path / "m.audit")
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_a_cancelled_job_leaves_no_file(tmp_path):
    reached, leave = threading.Event(), threading.Event()

    def wait(job):
        reached.set()
        leave.wait(20)

    queue = Queue(tmp_path, start=lambda job, workers: Immediate(job, workers, before=wait))
    job = queue.add("a", tmp_path / "a.audit", {})
    queue.open()
    assert reached.wait(20)
    queue.cancel(job.id)
    leave.set()
    queue.close()
    assert queue.get(job.id).state == "cancelled"
    assert not list(tmp_path.rglob("*.audit"))


STAND_IN = """
import os, sys, time
sys.argv[0] = "child"
import runpy
runpy.run_module = lambda *a, **k: (print("ready", flush=True), time.sleep(600))
from tailwise.app.jobs.child import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups are of POSIX systems")
def test_a_job_ends_when_its_server_is_killed():
    child = subprocess.Popen(
        [sys.executable, "-c", STAND_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with child:
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()  # as the system does for a server that is killed
        assert child.wait(30) == -9


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX systems")
def test_a_job_that_does_not_hear_is_ended(monkeypatch):
    from tailwise.app.jobs import process

    monkeypatch.setattr(process, "_PATIENCE", 0.01)
    monkeypatch.setattr(process, "arguments", lambda job, workers: [sys.executable, "-c", DEAF])
    running = JobProcess(Job("x", "m", "o.audit"), None)
    running.stop()
    status, _ = running.follow(lambda step: None)
    assert status in (-9, -15)
    running.stop()  # its number may be another's by now: nothing is signalled


def test_names_of_files_are_words_and_short():
    assert words_of("../../etc/ev il\n", "x") == "etc-ev-il"
    assert words_of("…", "x") == "x"
    assert len(words_of("模" * 300, "x").encode()) <= 160
    words_of("\ud800", "x").encode()


def test_a_free_name_is_taken_in_one_step(tmp_path):
    (tmp_path / "m.audit").write_text("first")
    (tmp_path / "written").write_text("second")
    assert free_name(tmp_path / "m.audit", {str(tmp_path / "m-2.audit")}).name == "m-3.audit"
    assert place(tmp_path / "written", tmp_path / "m.audit").name == "m-2.audit"
    assert (tmp_path / "m.audit").read_text() == "first"
    assert not (tmp_path / "written").exists()
