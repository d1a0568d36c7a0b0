"""The queue: order, limits, cancelling, and what a kill leaves."""

import json
import threading
from pathlib import Path

import pytest

import tailwise as tw
from tailwise.app.jobs.job import Job
from tailwise.app.jobs.process import arguments, environment
from tailwise.app.jobs.queue import Queue
from tailwise.app.jobs.start import Wish, start


class Scripted:
    """A process that ends when it is told to."""

    def __init__(self, job, workers):
        self.job, self.workers = job, workers
        self.ended, self.stopped = threading.Event(), False
        self.status = 0

    def follow(self, tell):
        tell({"done": 1, "total": 4, "flops_done": 1.0, "flops_total": 4.0, "matrix": "a"})
        self.ended.wait(20)
        return self.status, "said"

    def stop(self):
        self.stopped = True
        self.status = -15
        self.ended.set()


@pytest.fixture
def started():
    return []


@pytest.fixture
def queue(tmp_path, started):
    ready = threading.Semaphore(0)

    def begin(job, workers):
        started.append(Scripted(job, workers))
        ready.release()
        return started[-1]

    opened = Queue(tmp_path, longest=3, start=begin)
    opened.ready = ready
    opened.open()
    yield opened
    opened.close()


def until(queue, test):
    seen = queue.jobs()
    for _ in range(900):  # a patience, which a loaded machine needs
        if test(queue.jobs()):
            return queue.jobs()
        seen = queue.wait(seen, 0.2)
    raise AssertionError([job.to_json() for job in queue.jobs()])


def test_jobs_run_one_after_the_other(queue, started, tmp_path):
    first = queue.add("a", tmp_path / "a.audit", {})
    queue.add("b", tmp_path / "b.audit", {})
    assert queue.ready.acquire(timeout=20)
    until(queue, lambda jobs: any(job.share == 0.25 for job in jobs))
    assert [one.job.model for one in started] == ["a"]
    Path(started[0].job.output).touch()
    started[0].ended.set()
    assert queue.ready.acquire(timeout=20)
    assert queue.get(first.id).state == "done"
    started[1].ended.set()
    jobs = until(queue, lambda jobs: all(job.over for job in jobs))
    assert {job.model: job.state for job in jobs} == {"a": "done", "b": "failed"}  # it left no file
    assert "said" in next(job.message for job in jobs if job.model == "b")


def test_a_running_job_is_cancelled(queue, started, tmp_path):
    job = queue.add("a", tmp_path / "a.audit", {})
    assert queue.ready.acquire(timeout=20)
    assert queue.cancel(job.id).state == "cancelled"
    until(queue, lambda jobs: started[0].stopped)
    assert queue.get(job.id).state == "cancelled"


def test_the_same_and_too_many_are_refused(queue, tmp_path):
    for name in "abc":
        queue.add(name, tmp_path / f"{name}.audit", {})
    with pytest.raises(tw.UsageError, match="full"):
        queue.add("d", tmp_path / "d.audit", {})
    queue.cancel(next(job.id for job in queue.jobs() if job.model == "c"))
    with pytest.raises(tw.UsageError, match="already"):
        queue.add("b", tmp_path / "b.audit", {})


def test_what_a_killed_server_ran_is_run_again(tmp_path):
    (tmp_path / "jobs").mkdir()
    left = Job("one", "a", str(tmp_path / "a.audit"), state="running", created=1.0)
    (tmp_path / "jobs" / "one.json").write_text(json.dumps(left.to_json()))
    (tmp_path / "jobs" / "bad.json").write_text("{")
    found = Queue(tmp_path).get("one")
    assert (found.state, found.restarts) == ("queued", 1)


def test_a_job_that_takes_servers_down_ends(tmp_path):
    (tmp_path / "jobs").mkdir()
    left = Job("one", "a", "a.audit", state="running", created=1.0, restarts=5)
    (tmp_path / "jobs" / "one.json").write_text(json.dumps(left.to_json()))
    assert Queue(tmp_path).get("one").state == "failed"


def test_a_server_that_ends_puts_its_job_back(tmp_path, started):
    ready = threading.Event()

    def begin(job, workers):
        started.append(Scripted(job, workers))
        ready.set()
        return started[-1]

    queue = Queue(tmp_path, start=begin)
    queue.open()
    job = queue.add("a", tmp_path / "a.audit", {})
    assert ready.wait(20)
    queue.close()
    assert Queue(tmp_path).get(job.id).state == "queued"


def test_what_a_user_types_is_never_an_option():
    words = arguments(Job("x", "--device=evil", "o.audit", {"base": "--help"}), 2)
    assert words[-2:] == ["--", "--device=evil"]
    assert "--base=--help" in words


def test_a_job_sees_no_secret_of_the_server(monkeypatch):
    monkeypatch.setenv("TAILWISE_TOKEN", "secret")
    monkeypatch.setenv("TAILWISE_ASSISTANT_KEY", "secret")
    assert "secret" not in environment().values()
    assert environment()["TAILWISE_NO_PICKLE"] == "1"


@pytest.mark.parametrize(
    "model",
    [
        "/etc/passwd",
        "../x",
        "s3://bucket/x",
        "http://127.0.0.1/x",
        "file:///etc",
        "org/../x",
        "a b/c",
        "x\0y",
        "hf://a/b/../../c",
    ],
)
def test_only_roots_and_the_hub_are_audited(app, model):
    with pytest.raises(tw.UsageError):
        start(app.state.context, Wish(model=model))


def test_ids_of_the_hub_are_taken(app):
    job = start(app.state.context, Wish(model="org/name@main"))
    assert job.model == "hf://org/name@main"


def test_starting_is_slowed(app):
    context = app.state.context
    refused = []
    for number in range(30):
        try:
            start(context, Wish(model=f"org/name{number}"))
        except tw.UsageError as error:
            refused.append(error.what)
    assert "too many audits were started within a minute" in refused


def test_a_real_audit_from_wish_to_page(client, folder, app):
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "model").mkdir()
    rng = np.random.default_rng(0)
    save_file({"layers.0.mlp.up_proj.weight": rng.standard_normal((64, 64))}, folder / "model" / "model.safetensors")
    assert client.post("/api/jobs", json={"model": "model"}).status_code == 201
    jobs = until(app.state.context.queue, lambda jobs: all(job.over for job in jobs))
    assert [job.state for job in jobs] == ["done"], jobs
    titles = {one["title"]: one for one in client.get("/api/models").json()}
    assert titles["model"]["layers"] == 1


def test_a_pickle_is_refused(client, folder, app):
    import torch

    torch.save({"w": torch.randn(64, 64)}, folder / "model.pt")
    assert client.post("/api/jobs", json={"model": "model.pt"}).status_code == 201
    jobs = until(app.state.context.queue, lambda jobs: all(job.over for job in jobs))
    assert jobs[0].state == "failed"
    assert "pickle" in jobs[0].message


def test_a_clock_that_is_set_back_changes_no_order(queue, started, monkeypatch):
    from tailwise.app.jobs import queue as module

    times = iter([1e9, 9e8, 8e8])
    monkeypatch.setattr(module.time, "time", lambda: next(times, 7e8))
    for name in "abc":
        queue.add(name, queue._folder / f"{name}.audit", {})
    for name in "abc":
        assert queue.ready.acquire(timeout=20)
        assert started[-1].job.model == name
        started[-1].ended.set()
