"""Lines of progress where stderr is no terminal."""

from __future__ import annotations

import io
import threading

import pytest

from tailwise.cli import progress_bar as progress
from tailwise.cli.progress_bar import NowAndThen, clock_words, counted, now_and_then


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (200, "3:20 min"), (7500, "2:05 h")]
)
def test_times_are_words(seconds, words):
    assert clock_words(seconds) == words


def test_a_line_says_how_much_of_what_and_how_long_still(time):
    told = NowAndThen(time)
    assert told.line() == "  0 % after 0 s: starting"
    told("windows", 0.25)
    time.now = 60.0
    assert told.line() == " 25 % after 1:00 min, about 3:00 min left: windows"
    told("windows", 1.0)
    assert told.line() == "100 % after 1:00 min: windows"


def test_a_few_things_that_take_alike_long_tell_of_the_others():
    now = [0.0]
    told = NowAndThen(lambda: now[0], "loading")
    now[0] = 60.0
    told.count("windows", 1, 100)
    assert "left" not in told.line()
    for done in (2, 3, 4):
        now[0] += 2.0
        told.count("windows", done, 100)
    assert told.line() == "  4 % after 1:06 min, about 3:12 min left: windows"


def test_no_time_is_estimated_before_enough_is_done(time):
    told = NowAndThen(time, "loading tuned and base")
    time.now = 30.0
    assert told.line() == "  0 % after 30 s: loading tuned and base"
    told("windows", 0.05)
    assert told.line() == "  5 % after 30 s: windows"


def test_another_thing_has_a_time_of_its_own(time):
    told = NowAndThen(time)
    told("one", 1.0)
    time.now = 100.0
    told("other", 0.1)
    time.now = 110.0
    assert told.line() == " 10 % after 10 s, about 1:30 min left: other"


class Heard(io.StringIO):
    """A stream that tells when a line came."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.came.set()
        return written


def test_lines_come_also_while_nothing_moves(monkeypatch):
    heard = Heard()
    monkeypatch.setattr(progress.sys, "stderr", heard)
    with now_and_then(quiet=False, every=0.001) as told:
        told("one long thing", 0.0)
        heard.came.clear()
        assert heard.came.wait(60)
    assert "tailwise:   0 % after" in heard.getvalue()
    assert "one long thing" in heard.getvalue()


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    heard = Heard()
    monkeypatch.setattr(progress.sys, "stderr", heard)
    with now_and_then(quiet=True, every=0.0) as told:
        told("x", 0.5)
    assert heard.getvalue() == ""


def test_what_is_counted_is_told_by_its_last_part(monkeypatch):
    told = []
    monkeypatch.setattr(NowAndThen, "__call__", lambda _, what, share: told.append((what, share)))
    with counted(progress.last_part) as show:
        show("/models/dense", 3, 12)
        show("nothing", 0, 0)
    assert told == [("dense, 3 of 12", 0.25), ("nothing, 0 of 0", 1.0)]
