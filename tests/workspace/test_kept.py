"""What is kept: bounded in number and in bytes, and made once however many ask."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailwise.app.workspace.workspace import AuditMemory


def test_the_one_not_asked_for_longest_goes_first():
    kept = AuditMemory(most=2)
    for key in "ab":
        kept.get(key, lambda key=key: key)
    kept.get("a", lambda: "again")
    kept.get("c", lambda: "c")
    assert kept.get("a", lambda: "made anew") == "a"
    assert kept.get("b", lambda: "made anew") == "made anew"


def test_bytes_are_bounded_and_the_newest_stays():
    kept = AuditMemory(nbytes=100)
    kept.get("a", lambda: "a", 60)
    kept.get("b", lambda: "b", 60)
    assert kept.get("a", lambda: "made anew", 60) == "made anew"
    assert kept.get("huge", lambda: "huge", 1000) == "huge"
    assert kept.get("huge", lambda: "made anew", 1000) == "huge"
    kept.get("text", lambda: bytes(99))
    assert kept.get("huge", lambda: "made anew", 10) == "made anew"


def test_many_at_once_make_it_once():
    kept, made, together = AuditMemory(), [], threading.Barrier(8)

    def ask(_):
        together.wait(30)
        return kept.get("key", lambda: made.append(1) or len(made))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {1}
    assert made == [1]


def test_a_failure_is_not_kept():
    kept = AuditMemory()
    with pytest.raises(ZeroDivisionError):
        kept.get("key", lambda: 1 // 0)
    assert kept.get("key", lambda: 2) == 2


def test_one_thing_may_be_made_of_another():
    kept = AuditMemory()
    assert kept.get("outer", lambda: kept.get("inner", lambda: 1) + 1) == 2
