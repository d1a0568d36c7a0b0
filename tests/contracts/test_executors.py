"""However many workers there are, every item is done once, the table is the same, and nothing is left running."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.core.execution.executor import default_workers, map_unordered

RNG = np.random.default_rng(3)
MODEL = {f"layers.{i}.mlp.up_proj.weight": RNG.standard_t(3, (40 + 9 * i, 90 - 5 * i)) for i in range(8)}
MODEL["conv.weight"] = RNG.standard_normal((24, 10, 3, 3))
MODEL["broken.weight"] = np.full((30, 30), np.inf)


@pytest.mark.parametrize(
    "settings",
    [{"randomize": 2}, {"estimator": "farms", "farms_window": 24}, {"precision": "float32"}, {"conv": "pooled"}],
)
def test_the_audit_is_the_same_bit_for_bit_for_any_number_of_workers(settings):
    audits = [tw.audit(MODEL, use_cache=False, workers=workers, **settings) for workers in (1, 2, 5)]
    assert [audit.provenance.workers for audit in audits] == [1, 2, 5]
    tables = [audit.table(unmeasured=True).arrow.drop_columns(["seconds"]) for audit in audits]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    for layers in zip(*audits, strict=True):
        assert len({layer.spectrum.eigenvalues.tobytes() for layer in layers}) == 1
        assert len({b"".join(s.eigenvalues.tobytes() for s in layer.permuted) for layer in layers}) == 1
    assert len({audit.provenance.fingerprint for audit in audits}) == 1


@pytest.mark.parametrize("workers", [1, 2, 7, 30])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_every_item_is_done_once(workers, count):
    assert sorted(map_unordered(lambda item: item * item, range(count), workers)) == [i * i for i in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_items_start_in_the_order_given_and_no_more_at_once_than_there_are_workers(workers):
    started, running, most = [], set(), []
    lock = threading.Lock()

    def work(item):
        with lock:
            started.append(item)
            running.add(item)
            most.append(len(running))
        result = np.linalg.norm(np.ones((50, 50)) * item)
        with lock:
            running.discard(item)
        return result

    assert len(list(map_unordered(work, range(40), workers))) == 40
    assert max(most) <= workers
    assert all(abs(place - item) < workers for place, item in enumerate(started))


def test_two_workers_work_at_the_same_time():
    meeting = threading.Barrier(2, timeout=60)
    assert sorted(map_unordered(lambda item: (meeting.wait(), item)[1], range(4), 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_the_function_is_raised_and_no_further_item_starts(workers):
    started = []

    def work(item):
        started.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_unordered(work, range(100), workers))
    assert len(started) <= 3 + 2 * workers


def test_a_caller_that_stops_iterating_stops_the_rest_and_waits_for_what_is_under_way():
    stop, finished, before = threading.Event(), [], set(threading.enumerate())  # of monitors, say

    def work(item):
        finished.append(item)
        return item

    results = map_unordered(work, range(100), 2, stop=stop)
    next(results)
    results.close()
    assert stop.is_set()
    assert len(finished) <= 4
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("tailwise")]


def test_each_worker_runs_one_blas_thread_and_the_callers_setting_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(map_unordered(lambda _: torch.get_num_threads(), range(4), 2)) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_by_default_a_gpu_has_one_worker_and_a_cpu_one_for_each_core_of_this_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert default_workers("cpu") == 3
    assert default_workers("cuda") == default_workers("cuda:1") == 1
