"""Whatever workers and connections do, every item comes back once: measured, or given up with a reason."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError, Future

import pytest
import torch

from tailwise.core.execution.engine import Engine
from tailwise.core.execution.executor import one_thread
from tailwise.core.execution.spread import ATTEMPTS, Patience, SpreadWork, spread

SOON = Patience(silence=0.05, copy=0.01, retry=0.001)


class WorkerDied(Exception):
    pass


class Lost(Exception):
    pass


class Scripted(Engine):
    """Runs tasks at once; `script(items, times)` may raise, or return False for a task that never ends."""

    name = "scripted"

    def __init__(self, script, slots=2, comes_back=True):
        self._script, self._slots, self._comes_back = script, slots, comes_back
        self.started, self.tasks, self.recovered = Counter(), [], 0

    def submit(self, function, argument):
        self.tasks.append(argument)
        self.started.update(argument)
        future = Future()
        try:
            if self._script(argument, self.started) is not False:
                future.set_result(function(argument))
        except Exception as error:
            future.set_exception(error)
        return future

    def slots(self):
        return self._slots

    def fault(self, error):
        return {WorkerDied: "worker", Lost: "connection", CancelledError: "connection"}.get(type(error), "task")

    def recover(self, seconds):
        self.recovered += 1
        return self._comes_back


def squares(**changes):
    known = {
        "run": lambda items: [item * item for item in items],
        "pack": list,
        "give_up": lambda item, why: (item, why),
    }
    return SpreadWork(**{**known, **changes})


def results(engine, count=10, **changes):
    return list(spread(engine, squares(**changes), range(count), SOON))


def fine(items, times):
    return True


@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("slots", [1, 2, 9])
def test_every_item_is_done_once_in_tasks_of_any_size(count, most, slots):
    engine = Scripted(fine, slots)
    assert sorted(results(engine, count, most=most)) == [i * i for i in range(count)]
    assert set(engine.started.values()) <= {1}
    assert all(len(task) <= most for task in engine.tasks)
    assert [item for task in engine.tasks for item in task] == list(range(count))


def test_tasks_get_smaller_towards_the_end_so_that_workers_end_together():
    engine = Scripted(fine)
    results(engine, 64, most=50)
    sizes = [len(task) for task in engine.tasks]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert sizes[-1] == 1


def test_the_items_of_a_worker_that_died_are_done_again_each_alone():
    def script(items, times):
        if len(items) > 1 and 0 in items:
            raise WorkerDied

    engine = Scripted(script)
    assert sorted(results(engine, 32, most=4)) == [i * i for i in range(32)]
    lost = engine.tasks[0]
    assert len(lost) > 1
    assert all([item] in engine.tasks for item in lost)


def test_an_item_that_kills_its_workers_is_given_up_and_no_other():
    def script(items, times):
        if 3 in items:
            raise WorkerDied

    engine = Scripted(script)
    found = results(engine, 32, most=4)
    [(item, why)] = [result for result in found if isinstance(result, tuple)]
    assert item == 3
    assert "worker died" in why
    assert engine.started[3] == engine.attempts
    assert len(found) == 32


def test_what_was_under_way_when_the_connection_was_lost_is_started_again():
    def script(items, times):
        if 5 in items and times[5] == 1:
            raise Lost

    engine = Scripted(script)
    assert sorted(results(engine)) == [i * i for i in range(10)]
    assert engine.recovered == 1


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_engine_that_stays_lost_ends_with_the_rest_given_up(comes_back):
    def script(items, times):
        if items[0] >= 4:
            raise Lost("gone")

    engine = Scripted(script, comes_back=comes_back)
    found = results(engine)
    done = [item for item in found if not isinstance(item, tuple)]
    assert sorted(done + [item * item for item, _ in (r for r in found if isinstance(r, tuple))]) == [
        i * i for i in range(10)
    ]
    assert any("run it again" in r[1] for r in found if isinstance(r, tuple))


def test_an_error_of_the_task_itself_is_not_tried_again():
    def script(items, times):
        if 2 in items:
            raise ModuleNotFoundError("tailwise")

    engine = Scripted(script)
    found = results(engine)
    assert [r for r in found if isinstance(r, tuple)] == [
        (2, "the scripted engine could not run it: ModuleNotFoundError: tailwise")
    ]
    assert engine.started[2] == 1


def test_a_worker_with_another_version_does_nothing_and_says_so(monkeypatch):
    class Old(Scripted):
        def submit(self, function, argument):
            with monkeypatch.context() as patch:
                patch.setattr("tailwise.core.execution.spread.__version__", "0.0.9")
                return super().submit(function, argument)

    found = results(Old(fine), 2)
    assert sorted(item for item, _ in found) == [0, 1]
    assert all("the worker has tailwise 0.0.9, and" in why for _, why in found)


def test_one_thread_stays_until_the_last_of_a_process_is_done():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = one_thread(), one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_result_that_may_pass_is_tried_later_and_the_last_one_stands():
    engine = Scripted(fine)
    times = Counter()

    def run(items):
        times.update(items)
        return [(item, times[item]) for item in items]

    found = dict(results(engine, 6, run=run, again=lambda r: r[0] == 1 or (r[0] == 2 and r[1] < 2)))
    assert found == {0: 1, 1: ATTEMPTS, 2: 2, 3: 1, 4: 1, 5: 1}


def test_a_straggler_is_started_a_second_time_and_counts_once():
    engine = Scripted(lambda items, times: not (7 in items and times[7] == 1))
    assert sorted(results(engine)) == [i * i for i in range(10)]
    assert engine.started[7] == 2


def test_workers_that_never_answer_end_with_every_item_given_up():
    found = results(Scripted(lambda items, times: False))
    assert sorted(item for item, _ in found) == list(range(10))
    assert all("no worker answered" in why for _, why in found)


def test_without_any_worker_nothing_is_started_and_every_item_is_given_up():
    engine = Scripted(fine, slots=0)
    assert len(results(engine)) == 10
    assert engine.tasks == []


def test_a_caller_that_stops_cancels_what_has_not_started():
    pending = []

    class Lazy(Scripted):
        def submit(self, function, argument):
            future = super().submit(function, argument)
            if not future.done():
                pending.append(future)
            return future

    found = spread(Lazy(lambda items, times: 0 in items), squares(), range(10), SOON)
    next(found)
    found.close()
    assert pending
    assert all(future.cancelled() for future in pending)


@pytest.mark.parametrize("error", [WorkerDied, Lost, TypeError])
def test_a_task_that_cannot_even_be_started_is_treated_as_one_that_failed(error):
    class Refusing(Scripted):
        def submit(self, function, argument):
            if 4 in argument:
                raise error
            return super().submit(function, argument)

    found = results(Refusing(fine))
    assert len(found) == 10
    assert any(isinstance(result, tuple) and result[0] == 4 for result in found)
