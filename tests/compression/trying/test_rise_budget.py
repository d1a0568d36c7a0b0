"""The search for the fewest bits within a rise of perplexity keeps its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.trying import rise
from tailwise.compression.trying.clock import Clock

SPAN = (2.0, 8.0)


@dataclass
class MadePlan:
    """A plan of so many bits, which adds 1/bits² nats on the search text, and a bit more on any other."""

    bits: float
    budget: dict = field(default_factory=dict)
    notes: tuple = ()

    def replace(self, **changes):
        return MadePlan(self.bits, **{"budget": self.budget, "notes": self.notes, **changes})


@dataclass
class Court:
    """What a search is given, on a clock that each pass moves on."""

    each: float  # seconds a pass
    worse: float = 0.0  # nats that text it has not seen adds
    seconds: float = 100.0
    passes: int = 0

    def __post_init__(self):
        self.now = 0.0
        self.clock = Clock(self.seconds, lambda: self.now)
        trial = SimpleNamespace(dense_losses=lambda windows: np.zeros(8), applied_losses=self.applied,
                                restore=lambda: None)  # fmt: skip
        self.stage = SimpleNamespace(trial=trial, search=None, guard=None, looked=None)

    def _pass(self):
        self.now, self.passes = self.now + self.each, self.passes + 1

    def score(self, plan):
        self._pass()
        return np.full(8, plan.bits**-2)

    def applied(self, plan, *_):
        self._pass()
        return np.full(8, plan.bits**-2 + (self.worse if plan.bits < SPAN[1] else 0.0))

    def tell(self, _):
        pass


@pytest.fixture(autouse=True)
def _span(monkeypatch):
    monkeypatch.setattr(rise, "ends", lambda *_: SPAN)


def found(court):
    request = QuantizeRequest(bits=None, rise=0.05)

    def make(asked):
        return MadePlan(asked.bits)

    return rise.plan_within_rise(None, request, court, (make, make))


def test_with_time_the_fewest_bits_are_found():
    plan = found(Court(each=0.1))
    assert plan.bits == pytest.approx(np.log(1.05) ** -0.5, rel=0.02)
    assert plan.budget["rise"] <= 0.05


@pytest.mark.parametrize("each", [3.0, 6.0, 12.0])
def test_passes_that_are_dear_are_fewer_and_the_limit_is_kept(each):
    court = Court(each=each)
    plan = found(court)
    assert court.now <= 1.15 * court.seconds
    assert plan.budget["rise"] <= 0.05


def test_where_the_time_is_over_and_the_limit_broken_it_gets_all_bits():
    court = Court(each=9.0, worse=0.03)
    plan = found(court)
    assert court.now <= 1.15 * court.seconds
    assert plan.bits == SPAN[1]
