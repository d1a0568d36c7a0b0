"""Plans that are tried by workers come to what they come to here, and a plan is made of them all the same."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count
from multiprocessing import get_context

import pytest

from inline import Inline
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.errors import UnreadableError, UsageError


@pytest.fixture
def text(tokens):
    return StageOptions(tokens, window=32, executor=Inline(), workers=2)


def here(text):
    return replace(text, executor="local")


@pytest.mark.parametrize("operator", ["magnitude", "wanda"])
def test_sensitivity_measured_by_workers_is_the_one_measured_here(audit, text, operator):
    request = Request(0.6, operator=operator)
    there = planned(audit, request, allocator="sensitivity", text=text)
    assert text.executor.sent
    found = planned(audit, request, allocator="sensitivity", text=here(text))
    for a, b in zip(there, found, strict=True):
        assert a.sparsity == pytest.approx(b.sparsity, abs=1e-9)


def test_formats_measured_by_workers_are_those_measured_here(audit, text):
    request = QuantizeRequest(bits=4.5, formats=("int3-g16", "int4-g16", "int8"), operator="rtn")
    there = planned(audit, request, allocator="sensitivity", text=text)
    found = planned(audit, request, allocator="sensitivity", text=here(text))
    assert [item.format for item in there] == [item.format for item in found]


def test_auto_tries_every_family_side_by_side_and_keeps_what_loses_least(audit, text):
    plan = planned(audit, Request(0.6), text=text, clock=Clock(5))
    tried = {row["allocator"] for row in plan.tried}
    assert {"uniform", "depth", "owl", "dlp", "alpha", "alpha-role", "entropy"} <= tried
    judged = [row for row in plan.tried if "guard_kl" in row]
    [kept] = [row for row in plan.tried if row["kept"]]
    assert kept["guard_kl"] == min(row["guard_kl"] for row in judged)
    losses = {repr(sorted(row.items(), key=str)): row["search_kl"] for row in plan.tried}
    assert len(losses) == len(plan.tried)


def test_the_losses_of_the_same_settings_are_the_same_there_and_here(audit, text):
    def losses(how):
        ticks = count()  # a pass takes as long there and here, however busy the machine is, and sizes the windows
        plan = planned(audit, Request(0.6), text=how, clock=Clock(20, lambda: next(ticks) / 100))
        return {(r["allocator"], r.get("beta")): r["search_kl"] for r in plan.tried if r["allocator"] == "depth"}

    there, found = losses(text), losses(here(text))
    assert found
    for key, loss in found.items():
        assert there[key] == pytest.approx(loss, abs=1e-6)


def test_auto_of_formats_holds_its_budget_on_an_engine(audit, text):
    request = QuantizeRequest(bits=4.5, formats=("int3-g16", "int4-g16", "int8"), operator="rtn")
    plan = planned(audit, request, text=text, clock=Clock(3))
    assert plan.allocator == "auto"
    assert plan.budget["achieved"] <= 4.5 + 1e-6


def test_worker_processes_set_the_stage_up_themselves(audit, tokens):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        text = StageOptions(tokens, window=32, executor=pool)
        there = planned(audit, Request(0.6), allocator="sensitivity", text=text)
    found = planned(audit, Request(0.6), allocator="sensitivity", text=StageOptions(tokens, window=32))
    for a, b in zip(there, found, strict=True):
        assert a.sparsity == pytest.approx(b.sparsity, abs=1e-6)


def test_a_trial_that_cannot_be_had_is_an_error_that_says_why(audit, text):
    def harm(number):
        if number == 2:
            raise OSError("no space left")

    with pytest.raises(UnreadableError, match=r"could not be tried: .*no space left"):
        planned(audit, Request(0.6), allocator="sensitivity", text=replace(text, executor=Inline(harm)))


def test_an_unknown_engine_is_refused(audit, text):
    with pytest.raises(UsageError, match="there is no executor"):
        planned(audit, Request(0.6), allocator="sensitivity", text=replace(text, executor="spark"))
