"""Plans to quantize that were tried before one is kept."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest
import torch

from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.asked import asked_of
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.bits import mean_bits, whole_model_words
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.layer_errors import error_tables
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.refine import Best, balanced, move_sets, refined_formats
from tailwise.compression.trying.search_formats import believed_losses, levels_of_plan, variants_of, with_levels
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.compression.trying.trial import Trial
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.loading import load_model
from tailwise.models.evaluation.losses import window_losses

FORMATS = ("int2-channel", "int3-channel", "int4-channel", "int8-channel")


def _request(bits: float | None = 3.5, **facts) -> QuantizeRequest:
    return QuantizeRequest(bits=bits, **{"formats": FORMATS, **facts})


def _text(tokens, **options) -> StageOptions:
    return StageOptions(tokens, window=32, samples=8, **options)


def _ticking(seconds: float) -> Clock:
    """Time that goes on by a hundredth of a second whenever it is asked for."""
    ticks = count()
    return Clock(seconds, lambda: next(ticks) / 100)


def _stage(audit, tokens, **facts):
    return stage_of(audit.model, plan_quantize(audit, _request(**facts)), _text(tokens))


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_a_judged_plan_is_what_applying_it_gives(llama, audit, tokens, tmp_path, operator) -> None:
    plan = plan_quantize(audit, _request(operator=operator, allocator="depth"))
    stage = _stage(audit, tokens, operator=operator)
    apply(plan, llama, tmp_path / "out", options=ApplyOptions(calibration=stage.looked))
    written = load_model(str(tmp_path / "out")).module
    before = {name: value.clone() for name, value in stage.trial.model.state_dict().items()}
    judged = stage.trial.applied_losses(plan, stage.looked, stage.guard)
    stage.trial.restore()
    assert judged == pytest.approx(window_losses(written, stage.guard), rel=1e-5)
    assert all(torch.equal(before[name], value) for name, value in stage.trial.model.state_dict().items())


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_what_is_kept_loses_least_on_windows_that_the_search_has_not_seen(audit, tokens, operator) -> None:
    # Between the formats: where one holds the budget, uniform, depth and α are one plan, which is tried once.
    plan = planned(audit, _request(4.0, operator=operator), text=_text(tokens), clock=_ticking(600))
    judged = [row for row in plan.tried if "guard_kl" in row]
    kept = [row for row in plan.tried if row["kept"]]
    assert len(kept) == 1
    assert kept[0]["guard_kl"] == min(row["guard_kl"] for row in judged)
    names = {row["allocator"] for row in plan.tried}
    assert {"uniform", "depth", "alpha", "alphaq", "distortion", "outputs", "sensitivity"} <= names
    assert plan.allocator == "auto"


def test_a_plan_by_auto_holds_its_budget_and_what_is_fused_and_survives_its_file(audit, tokens, tmp_path) -> None:
    plan = planned(audit, _request(), text=_text(tokens), clock=_ticking(3))
    assert plan.budget["achieved"] == pytest.approx(mean_bits(plan))
    assert plan.budget["requested"] == 3.5
    assert 3.5 * 0.97 <= mean_bits(plan) <= 3.5
    assert plan.validate() == ()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_with_one_format_there_is_nothing_to_search(audit, tokens) -> None:
    plan = planned(audit, _request(None, formats=("int4-channel",)), text=_text(tokens), clock=_ticking(3))
    assert {item.format for item in plan} == {"int4-channel"}
    assert [row["allocator"] for row in plan.tried] == ["uniform"]


def test_without_text_auto_is_uniform_and_says_so(audit) -> None:
    plan = planned(audit, _request())
    assert plan.allocator == "uniform"
    assert "no calibration text" in plan.notes[0]


@pytest.mark.parametrize("allocator", ["outputs", "sensitivity"])
def test_allocators_from_text_are_measured(audit, tokens, allocator) -> None:
    plan = planned(audit, _request(), allocator=allocator, text=_text(tokens))
    assert plan.allocator == allocator
    assert len({item.format for item in plan}) > 1
    assert mean_bits(plan) <= 3.5
    with pytest.raises(UsageError, match="measured on text"):
        planned(audit, _request(), allocator=allocator)


def test_errors_are_those_of_rounding_and_of_what_the_layers_then_give(audit, tokens) -> None:
    stage, plan = _stage(audit, tokens), plan_quantize(audit, _request())
    found = error_tables(stage, plan, FORMATS)
    assert found is not None
    tensor = "model.layers.1.mlp.down_proj.weight"
    layer = stage.trial.model.model.layers[1].mlp.down_proj
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _m, given, _out: inputs.append(given[0].detach()))
    with torch.no_grad():
        stage.trial.model(stage.looked)
    handle.remove()
    X, W = inputs[0].reshape(-1, inputs[0].shape[-1]).double(), layer.weight.detach().double()
    change = stage.trial.changed(plan[tensor].but(format="int3-channel"), None).double() - W
    key = (tensor, "int3-channel")
    assert found.weight[key] == pytest.approx(float(change.square().sum()), rel=1e-5)
    assert found.weight_relative[key] == pytest.approx(float(change.square().sum() / W.square().sum()), rel=1e-5)
    relative = float((X @ change.T).square().sum() / (X @ W.T).square().sum())
    assert found.output_relative[key] == pytest.approx(relative, rel=1e-4)
    assert len(found.output) == len(plan) * len(FORMATS)


def test_variants_change_one_group_and_no_more(audit) -> None:
    request = _request()
    plan, choices = plan_quantize(audit, request), asked_of(audit, request).choices
    variants = variants_of(choices, plan)
    assert len(variants) == len(choices.groups) * (len(FORMATS) - 1)
    for variant in variants:
        row, column = variant.key
        members = {item.tensor for item in choices.groups[row].members}
        assert {plan.decisions[index].tensor for index in variant.entries} == members
        assert {item.format for item in variant.entries.values()} == {choices.formats[column]}


def test_moves_stay_within_the_budget_and_lower_what_is_scored(audit) -> None:
    request = _request(3.0)
    choices = asked_of(audit, request).choices
    rng = np.random.default_rng(0)
    truth = np.sort(rng.uniform(0, 1, choices.bits.shape), axis=1)[:, ::-1]
    rows = np.arange(len(choices.groups))
    start = levels_of_plan(choices, plan_quantize(audit, request))
    scored: list[float] = []

    def score(levels) -> float:
        assert choices.weight(levels) <= choices.goal * (1 + 1e-9)
        scored.append(float(truth[rows, levels].sum()))
        return scored[-1]

    turns = iter(range(10_000))
    found = refined_formats(score, Best(start, score(start)), (choices, truth), over=lambda: next(turns) > 400)
    assert found.kept > 0
    assert found.loss == min(scored) < scored[0]
    assert float(truth[rows, found.state].sum()) == found.loss


def test_what_cannot_be_made_up_for_is_no_move(audit) -> None:
    choices = asked_of(audit, _request(2.6)).choices
    highest = np.full(len(choices.groups), len(FORMATS) - 1)
    assert balanced(choices, highest, range(len(highest)), np.zeros(choices.bits.shape)) is None
    assert all(len(group) < len(choices.groups) for level in move_sets(choices) for group in level)


def test_what_was_not_measured_counts_as_the_mean(audit) -> None:
    choices = asked_of(audit, _request()).choices
    table = {(item.tensor, "int2-channel"): 2.0 for group in choices.groups[1:] for item in group.members}
    found = believed_losses(choices, table)
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(found[1:, 0].mean())


def test_levels_and_formats_are_the_same_plan(audit) -> None:
    request = _request()
    plan, choices = plan_quantize(audit, request), asked_of(audit, request).choices
    assert with_levels(plan, choices, levels_of_plan(choices, plan)) == plan


def test_a_rise_of_perplexity_is_kept_and_a_smaller_one_takes_more_bits(audit, tokens) -> None:
    found = {}
    for rise in (0.02, 0.5):
        request = _request(None, rise=rise)
        for allocator in ("uniform", "auto"):
            plan = planned(audit, request, allocator=allocator, text=_text(tokens), clock=_ticking(2))
            assert plan.budget["rise"] <= rise
            assert plan.budget["requested_rise"] == pytest.approx(rise)
            found[rise, allocator] = mean_bits(plan)
    assert found[0.5, "uniform"] < found[0.02, "uniform"]
    assert found[0.5, "auto"] < found[0.02, "auto"]


def test_a_rise_that_no_format_keeps_is_one_message(audit, tokens, monkeypatch) -> None:
    request = _request(None, rise=0.01)
    monkeypatch.setattr(Trial, "dense_losses", lambda _self, windows: np.zeros(len(windows)))  # a model without fault
    with pytest.raises(UsageError, match="in none of"):
        planned(audit, request, allocator="uniform", text=_text(tokens))
    with pytest.raises(UsageError, match="measured on text"):
        planned(audit, request)


def test_the_command_tries_and_writes_the_table(call, llama, tokens, tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = ["plan", "quantize", str(llama), "--bits", "3.5", "--formats", ",".join(FORMATS),
                 "--calibration", str(tmp_path / "tokens.npy"), "--budget", "1s", "--window", "32", "--samples", "4",
                 "-o", str(tmp_path / "plan.json")]  # fmt: skip
    code, out, _ = call(*arguments)
    assert code == 0
    assert "passes in" in out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["allocator"] == "auto"
    assert written["tried"]


@pytest.mark.parametrize(("arguments", "said"), [
    (("--bits", "4", "--budget", "soon"), "not a time"), (("--bits", "4", "--allocator", "alphq"), "alphaq"),
    (("--perplexity-rise", "much"), "no rise"), (("--perplexity-rise", "2%", "--bits", "4"), "two budgets"),
    (("--perplexity-rise", "2%"), "measured on text"), (("--bits", "4", "--tau", "1.5", "--allocator", "alpha"), "tau"),
])  # fmt: skip
def test_a_wrong_option_is_one_message(call, llama, tmp_path, arguments, said) -> None:
    code, _, err = call("plan", "quantize", str(llama), "-o", str(tmp_path / "p.json"), *arguments)
    assert code == 2
    assert said in err
    assert not (tmp_path / "p.json").exists()


def test_two_plans_become_one(call, audit, tmp_path) -> None:
    from tailwise.compression.making.make import plan_prune
    from tailwise.compression.making.request import Request

    plan_prune(audit, Request(0.5)).save(tmp_path / "p.json")
    plan_quantize(audit, _request()).save(tmp_path / "q.json")
    paths = [str(tmp_path / name) for name in ("p.json", "q.json", "both.json")]
    code, out, _ = call("plan", "combine", paths[0], paths[1], "-o", paths[2])
    assert code == 0
    assert "requested 0.5" in out
    assert "requested 3.5" in out
    assert Plan.load(paths[2]).kind == "prune+quantize"
    code, _, err = call("plan", "combine", paths[1], paths[0], "-o", str(tmp_path / "no.json"))
    assert code == 2
    assert "first" in err


def test_a_short_budget_says_what_is_tried_and_how_much_is_enough(audit, tokens) -> None:
    said: list[str] = []
    plan = planned(audit, _request(), text=_text(tokens), clock=Clock(1e-6), say=lambda what, _: said.append(what))
    (told,) = (line for line in said if "budget" in line)
    assert "uniform and depth are tried" in told
    assert "--budget" not in told, "one figure in a run: the one that is known at its end"
    assert "trials" not in told
    (missed,) = (note for note in plan.notes if note.startswith("not tried for lack of time"))
    assert "give --budget" in missed
    assert any("more than the budget" in note for note in plan.notes)
    assert {"outputs", "distortion"} <= set(missed.replace(",", " ").replace(";", " ").split())
    assert not {"outputs", "distortion"} & {row["allocator"] for row in plan.tried}
    assert said.index("reading the model") < said.index(told), "loading is told while the time runs"


def test_errors_of_formats_end_with_their_share_of_the_time_and_say_how_far_they_are(audit, tokens) -> None:
    stage, plan = _stage(audit, tokens), plan_quantize(audit, _request())
    shares: list[float] = []
    whole = error_tables(stage, plan, FORMATS, progress=shares.append)
    assert whole is not None
    assert shares == sorted(shares)
    assert len(shares) == len(plan) * len(FORMATS)
    assert shares[-1] == pytest.approx(1.0)
    seen = len(shares)
    ended = error_tables(stage, plan, FORMATS, ends=lambda: len(shares) >= seen + 3, progress=shares.append)
    assert ended is None
    assert len(shares) == seen + 3


def test_the_direction_of_alpha_is_said_of_plans_by_alpha_alone(audit) -> None:
    for name, reads in (("uniform", False), ("depth", False), ("alpha", True)):
        plan = planned(audit, _request(), allocator=name)
        assert any(note.startswith("sign: ") for note in plan.notes) is reads, name


def test_the_whole_model_is_said_beside_the_planned_matrices(audit) -> None:
    plan = planned(audit, _request(), allocator="uniform")
    words = whole_model_words(plan)
    total, nbytes = plan.budget["model_parameters"], plan.budget["bytes"] + plan.budget["kept_bytes"]
    assert total > plan.n_params
    assert f"{8 * nbytes / total:.3f} bits per weight of {total:,} parameters" in words
