"""Plans that were tried before one is kept."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned, seconds_of
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.errors import UsageError


def _text(tokens, **options) -> StageOptions:
    return StageOptions(tokens, window=32, **options)


def _ticking(seconds: float) -> Clock:
    """Time that goes on by a hundredth of a second whenever it is asked for."""
    ticks = count()
    return Clock(seconds, lambda: next(ticks) / 100)


def test_what_is_kept_loses_least_on_windows_that_the_search_has_not_seen(audit, tokens) -> None:
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=_ticking(30))
    judged = [row for row in plan.tried if "guard_kl" in row]
    kept = [row for row in plan.tried if row["kept"]]
    assert len(kept) == 1
    assert kept[0]["guard_kl"] == min(row["guard_kl"] for row in judged)
    assert plan.tried[0]["allocator"] == "uniform"
    assert "guard_loss" in plan.tried[0]
    assert {"depth", "owl", "dlp", "alpha", "alpha-role", "search"} <= {row["allocator"] for row in plan.tried}


def test_a_plan_by_auto_holds_its_budget_and_survives_its_file(audit, tokens, tmp_path) -> None:
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=Clock(2))
    assert plan.allocator == "auto"
    assert plan.sparsity == pytest.approx(0.6, abs=1e-6)
    assert plan.budget["achieved"] == pytest.approx(plan.sparsity, abs=1e-6)
    assert plan.validate() == ()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_uniform_and_depth_are_tried_and_judged_however_short_the_time(audit, tokens) -> None:
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=Clock(1e-6))
    assert [row["allocator"] for row in plan.tried] == ["uniform", "depth"]
    assert all("guard_loss" in row for row in plan.tried)
    (missed,) = (note for note in plan.notes if note.startswith("not tried for lack of time"))
    assert "owl" in missed


def test_every_family_is_tried_once_before_any_is_tried_again(audit, tokens) -> None:
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=_ticking(60))
    known = [
        (row["allocator"], row.get("mapping", ""))
        for row in plan.tried if row["allocator"] not in ("search", "sensitivity") and "from" not in row
    ]  # fmt: skip
    families = list(dict.fromkeys(known))
    # Depth by default comes first whatever the time, so that its other settings stand where its family does.
    assert known[: len(families)] in (families, [*families[:3], ("depth", ""), *families[3:-1]])
    assert {"uniform", "depth", "owl", "dlp", "alpha", "alpha-role", "entropy"} == {name for name, _ in known}
    assert not any(note.startswith("not tried") for note in plan.notes)


def test_plans_that_are_equal_are_tried_once(audit, tokens) -> None:
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=_ticking(60))
    losses = [row["search_kl"] for row in plan.tried if row["allocator"] not in ("search",)]
    assert len(set(losses)) == len(losses)


def test_what_is_made_small_can_be_the_loss_or_the_divergence(audit, tokens) -> None:
    by_kl, by_loss = (
        planned(audit, Request(0.6), text=_text(tokens, objective=objective), clock=_ticking(20))
        for objective in ("kl", "loss")
    )
    for plan, name, judged in ((by_kl, "search_kl", "guard_kl"), (by_loss, "search_loss", "guard_loss")):
        assert all(name in row for row in plan.tried)
        rows = [row for row in plan.tried if judged in row]
        assert min(rows, key=lambda row: row[judged])["kept"]
    assert all({"guard_kl", "guard_loss"} <= set(row) for row in by_loss.tried if "guard_loss" in row)


@pytest.mark.parametrize(
    ("pattern", "operator"), [("N:8", "magnitude"), ("N:8", "wanda"), ("unstructured", "low_rank")]
)
def test_what_cannot_be_refined_is_chosen_among_the_known_ways(audit, tokens, pattern, operator) -> None:
    plan = planned(audit, Request(0.5, operator=operator, pattern=pattern), text=_text(tokens), clock=Clock(2))
    assert "search" not in {row["allocator"] for row in plan.tried}
    assert sum(row["kept"] for row in plan.tried) == 1
    assert plan.budget["achieved"] == pytest.approx(0.5, abs=0.05)


def test_without_text_auto_is_uniform_and_says_so(audit) -> None:
    plan = planned(audit, Request(0.6))
    assert {item.sparsity for item in plan} == {0.6}
    assert "no calibration text" in plan.notes[0]


@pytest.mark.parametrize("allocator", ["owl", "dlp", "lsa", "sensitivity"])
def test_allocators_from_text_are_measured(audit, tokens, allocator) -> None:
    plan = planned(audit, Request(0.6), allocator=allocator, text=_text(tokens, samples=4, search_windows=2))
    assert plan.allocator == allocator
    assert len({item.sparsity for item in plan}) > 1
    assert plan.sparsity == pytest.approx(0.6, abs=1e-6)


def test_an_audit_of_a_model_that_is_gone_is_one_message(audit, tokens) -> None:
    from tailwise.audits.audit import Audit

    moved = Audit(list(audit.rows), {layer.row.name: layer for layer in audit},
                  replace(audit.provenance, model="/nowhere/model"))  # fmt: skip
    with pytest.raises(Exception, match="/nowhere/model"):
        planned(moved, Request(0.6), text=_text(tokens))


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("90s", 90), ("1.5h", 5400), ("20", 20), (" 2 m ", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 days", "0s"])
def test_a_wrong_time_is_one_message(text: str) -> None:
    with pytest.raises(UsageError):
        seconds_of(text)


def test_auto_beats_uniform_on_held_out_text(stories, data) -> None:
    from tailwise.audits.run import audit as audit_model
    from tailwise.compression.trying.stage import stage_of
    from tailwise.models.evaluation.loading import load_tokenizer
    from tailwise.models.evaluation.sources import Documents
    from tailwise.models.evaluation.tokens import tokens_of, windows_of

    text = (data / "text" / "tinystories_252_stories.txt").read_text(encoding="utf-8")
    parts = [part.strip() for part in text.split("<|endoftext|>") if part.strip()]
    calibration, held_out = (Documents(tuple(half), "stories") for half in (parts[:120], parts[160:]))
    found = audit_model(str(stories), estimator="peak")
    options = StageOptions(calibration, window=256, samples=8, search_windows=4, guard_windows=8)
    plan = planned(found, Request(0.7), text=options, clock=Clock(4))
    windows = windows_of(tokens_of(held_out, load_tokenizer(stories)), 256, 12)
    uniform = planned(found, Request(0.7), allocator="uniform")
    stage = stage_of(str(stories), uniform, options)
    difference = stage.trial.losses(plan, windows) - stage.trial.losses(uniform, windows)
    assert difference.mean() < -0.05
    assert np.mean(difference < 0) > 0.7


def test_the_command_tries_and_writes_the_table(call, llama, tokens, tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = ["plan", "prune", str(llama), "--sparsity", "0.6", "--calibration", str(tmp_path / "tokens.npy"),
                 "--budget", "1s", "--window", "32", "--samples", "4", "-o", str(tmp_path / "plan.json")]  # fmt: skip
    code, out, _ = call(*arguments)
    assert code == 0
    assert "passes in" in out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["allocator"] == "auto"
    assert written["tried"]


@pytest.mark.parametrize(("arguments", "said"), [
    (("--budget", "soon"), "not a time"), (("--allocator", "oul"), "owl"),
    (("--window", "32", "--calibration", "/no/such/file"), "such"),
])  # fmt: skip
def test_a_wrong_option_is_one_message(call, llama, tmp_path, arguments, said) -> None:
    code, _, err = call("plan", "prune", str(llama), "--sparsity", "0.6", "-o", str(tmp_path / "p.json"), *arguments)
    assert code in (2, 3)
    assert said in err
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("after", ["depth", "search:"])
def test_an_interruption_ends_the_search_with_the_best_so_far(audit, tokens, after, signal_name) -> None:
    said = []

    def interrupting(what: str, _done: float) -> None:
        said.append(what)
        if what.startswith(after) and not any(line.startswith("interrupted") for line in said):
            os.kill(os.getpid(), getattr(signal, signal_name))

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    plan = planned(audit, Request(0.6), text=_text(tokens), clock=_ticking(3000), say=interrupting)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert any(note.startswith("the search was interrupted") for note in plan.notes)
    assert len([what for what in said if what.startswith("judging")]) <= 2  # uniform, and the best
    (kept,) = (row for row in plan.tried if row["kept"])
    assert kept["guard_kl"] == min(row["guard_kl"] for row in plan.tried if "guard_kl" in row)
    assert plan.budget["achieved"] == pytest.approx(0.6, abs=1e-6)


def test_a_second_interruption_ends_it_without_a_plan(audit, tokens) -> None:
    def interrupting(what: str, _done: float) -> None:
        if what.startswith(("depth", "judging depth")):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        planned(audit, Request(0.6), text=_text(tokens), clock=_ticking(3000), say=interrupting)


@pytest.mark.parametrize(("operator", "quicker"), [("sparsegpt", "wanda"), ("magnitude", None)])
def test_a_budget_that_is_far_too_short_names_what_is_quicker_before_anything_is_tried(
    audit, tokens, operator, quicker
) -> None:
    said = []
    planned(
        audit,
        Request(0.6, operator=operator),
        text=_text(tokens),
        clock=_ticking(0.05),
        say=lambda what, share: said.append((what, share)),
    )
    places = [place for place, (what, share) in enumerate(said) if share == 0 and "too short" in what]
    assert len(places) == 1
    line = said[places[0]][0]
    assert "Without any trial: --allocator uniform or depth" in line
    assert (f"--operator {quicker}" in line) == (quicker is not None) or (quicker is None and "--operator" not in line)
    assert not any(what.startswith("uniform: ") for what, _ in said[: places[0]])
    assert all(share <= 0.5 for _, share in said[: places[0]]), "nothing is done before the first trial"
