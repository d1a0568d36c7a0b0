"""The catalogue: every model is claimed by one worker at a time and finished once, also when workers die."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.recipe import Recipe
from tailwise.history.store import History
from tailwise.history.sweep.catalogue import MAX_ATTEMPTS, SUMMED, Catalogue
from tailwise.history.sweep.one_model import Lease
from tailwise.history.sweep.results import write_models
from tailwise.history.sweep.sql_tables import MODELS

FACTS = {**dict.fromkeys(SUMMED, 2), "values": {}}
GONE = 0.0  # seconds of a lease that has run out when it begins
LONG = 1000.0


@pytest.fixture
def catalogue(where):
    with Catalogue(where) as opened:
        opened.enroll("s", "out", {"estimator": "ks"}, ["a", "b", "c"])
        yield opened


def test_models_are_claimed_in_order_and_each_by_one(catalogue):
    claims = [catalogue.claim("s", f"w{i}", LONG) for i in range(4)]
    assert [claim and claim.model for claim in claims] == ["a", "b", "c", None]
    assert catalogue.finish(claims[0], FACTS)
    assert catalogue.fail(claims[1], "broken", "mend it") == "failed"
    assert catalogue.counts("s") == {"waiting": 0, "claimed": 1, "done": 1, "failed": 1}
    assert catalogue.totals("s") == dict.fromkeys(SUMMED, 2.0)
    entries = {entry.model: entry for entry in catalogue.entries("s")}
    assert (entries["b"].reason, entries["b"].remedy) == ("broken", "mend it")
    assert entries["a"].facts == FACTS


def test_a_lease_that_ran_out_is_taken_up_again_and_the_first_workers_word_no_longer_counts(catalogue):
    first = catalogue.claim("s", "dead", GONE)
    second = catalogue.claim("s", "alive", LONG)
    assert (first.model, second.model, second.attempt) == ("a", "a", 2)
    assert not catalogue.extend(first, LONG)
    assert not catalogue.finish(first, FACTS)
    assert catalogue.fail(first, "x", "y") is None
    assert catalogue.finish(second, FACTS)
    assert not catalogue.finish(second, FACTS)
    assert catalogue.counts("s")["done"] == 1


def test_a_model_that_kills_its_workers_fails_in_the_end_and_says_what_to_do(catalogue):
    for _ in range(MAX_ATTEMPTS):
        assert catalogue.claim("s", "w", GONE).model == "a"
    assert catalogue.claim("s", "w", LONG).model == "b"
    (entry,) = catalogue.troubles("s")
    assert (entry.model, entry.status) == ("a", "failed")
    assert "memory" in entry.remedy


def test_a_store_that_does_not_answer_is_tried_again_but_not_for_ever(catalogue):
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = catalogue.claim("s", "w", LONG)
        assert (claim.model, claim.attempt) == ("a", attempt)
        assert catalogue.fail(claim, "no answer", "wait", again_in=0.0) == (
            "waiting" if attempt < MAX_ATTEMPTS else "failed"
        )
    claim = catalogue.claim("s", "w", LONG)
    assert catalogue.fail(claim, "no answer", "wait", again_in=LONG) == "waiting"
    assert catalogue.claim("s", "w", LONG).model == "c"
    assert catalogue.claim("s", "w", LONG) is None


def test_what_is_released_waits_as_before(catalogue):
    claim = catalogue.claim("s", "w", LONG)
    catalogue.release(claim)
    again = catalogue.claim("s", "v", LONG)
    assert (again.model, again.attempt) == ("a", 1)
    assert not catalogue.extend(claim, LONG)


def test_failed_models_and_those_that_were_not_read_whole_are_retried(catalogue):
    one, two, three = (catalogue.claim("s", "w", LONG) for _ in range(3))
    catalogue.fail(one, "x", "")
    catalogue.finish(two, FACTS, reason="2 matrices could not be read")
    catalogue.finish(three, FACTS)
    assert catalogue.retry("s") == 2
    assert [catalogue.claim("s", "w", LONG).model for _ in range(2)] == ["a", "b"]


def test_a_sweep_grows_but_keeps_its_questions_and_its_folder(catalogue):
    assert catalogue.enroll("s", "out", {"estimator": "ks"}, ["c", "d", "d"]) == 1
    assert [entry.model for entry in catalogue.entries("s")] == ["a", "b", "c", "d"]
    with pytest.raises(UsageError, match=r"other settings \(estimator\)"):
        catalogue.enroll("s", "out", {"estimator": "top"}, ["e"])
    with pytest.raises(UsageError, match="writes to out"):
        catalogue.enroll("s", "elsewhere", {"estimator": "ks"}, ["e"])
    with pytest.raises(UsageError, match="holds the results of the sweep 's'"):
        catalogue.enroll("t", "out", {"estimator": "ks"}, ["e"])
    catalogue.enroll("t", "elsewhere", {"estimator": "top"}, ["a"])
    assert catalogue.sweeps() == ["s", "t"]
    with pytest.raises(UsageError, match="known: s, t"):
        catalogue.output("u")


def test_a_catalogue_and_a_history_share_a_database(where):
    with History(where) as history, Catalogue(where) as catalogue:
        catalogue.enroll("s", "out", {}, ["a"])
        assert history.runs() == []
    with Catalogue(where) as again:
        assert again.sweeps() == ["s"]


def test_a_catalogue_that_is_not_there_is_not_made_for_those_who_look(tmp_path):
    with pytest.raises(UnreadableError, match="no such store"):
        Catalogue(tmp_path / "nothing.db", create=False)


def test_many_workers_claim_every_model_once(where):
    models = [f"m{index}" for index in range(60)]
    with Catalogue(where) as catalogue:
        catalogue.enroll("s", "out", {}, models)
        start, taken = threading.Barrier(4), []

        def work(owner: str) -> None:
            start.wait()
            while (claim := catalogue.claim("s", owner, LONG)) is not None:
                taken.append(claim.model)
                assert catalogue.finish(claim, FACTS)

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, f"w{index}") for index in range(4)]:
                future.result()
        assert sorted(taken) == sorted(models)
        assert catalogue.counts("s")["done"] == len(models)


CLAIM = """
import sys
from tailwise.history.sweep.catalogue import Catalogue
catalogue = Catalogue({where!r})
print(catalogue.claim("s", "victim", 0.0).model, flush=True)
sys.stdin.readline()
"""


def test_a_killed_processs_model_is_taken_up_by_another(catalogue, where):
    victim = subprocess.Popen(
        [sys.executable, "-c", CLAIM.format(where=where)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout.readline() == "a\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert catalogue.claim("s", "other", LONG).model == "a"


def test_a_lease_is_extended_while_the_work_goes_on(catalogue):
    claim = catalogue.claim("s", "w", LONG)
    extended = threading.Event()
    extend = catalogue.extend

    def seen(*arguments):
        extended.set()
        return extend(*arguments)

    catalogue.extend = seen
    with Lease(catalogue, claim, 0.03) as lease:
        assert extended.wait(20)
    assert not lease.lost


def test_a_clock_that_is_set_back_leaves_no_model_claimed_for_years(tmp_path, monkeypatch):
    with Catalogue(tmp_path / "c.db") as catalogue:
        catalogue.enroll("s", "out", {"estimator": "ks"}, ["a", "b"])
        now = time.time()
        monkeypatch.setattr("tailwise.history.sweep.catalogue.time.time", lambda: now + 365 * 86_400)
        assert catalogue.claim("s", "wrong", LONG).model == "a"
        lost = catalogue.claim("s", "wrong", LONG)
        assert catalogue.fail(lost, "away", "wait", again_in=60.0) == "waiting"
        monkeypatch.setattr("tailwise.history.sweep.catalogue.time.time", lambda: now)
        assert [catalogue.claim("s", "right", LONG).model for _ in range(2)] == ["a", "b"]
        assert catalogue.claim("s", "right", LONG) is None  # and what is claimed now is held


@pytest.mark.parametrize(
    ("column", "value"),
    [("facts", "[1, 2]"), ("facts", "5"), ("facts", '{"matrices": "x"}'), ("facts", '{"values": 5}'),
     ("facts", '{"flops": {}}'), ("facts", '{"bytes": 1e300}'), ("attempts", 10**18)],
)  # fmt: skip
def test_what_no_sweep_has_written_is_a_row_that_says_so(tmp_path, column, value):
    with Catalogue(tmp_path / "catalogue.db") as catalogue:
        catalogue.enroll("s", "out", {}, ["a", "b"])
        for _ in range(2):
            assert catalogue.finish(catalogue.claim("s", "w", LONG), FACTS)
        with catalogue._engine.begin() as connection:
            connection.execute(MODELS.update().where(MODELS.c.model == "a").values(**{column: value}))
        file = write_models(catalogue.entries("s"), tmp_path, Recipe())
    one, two = pq.read_table(file).to_pylist()
    assert (one["model"], one["status"]) == ("a", "failed")
    assert "catalogue" in one["reason"]
    assert two["status"] == "done"
