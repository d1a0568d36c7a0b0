"""Estimates by a gradient, descents along them, divergences, and how much a budget pays for."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tailwise.audits.run import audit as audit_model
from tailwise.compression.making.asked import asked_of
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.trying.descend import descended, descended_formats
from tailwise.compression.trying.estimate import estimated_losses
from tailwise.compression.trying.material import Text
from tailwise.compression.trying.pace import Pace, pace_of, sized
from tailwise.compression.trying.refine import Best
from tailwise.compression.trying.search_formats import levels_of_plan, variants_of, with_levels
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.models.evaluation.losses import logits_of
from tailwise.models.evaluation.sources import Documents

FORMATS = ("int2-channel", "int3-channel", "int4-channel", "int8-channel")


def _stage(audit, tokens, plan, **options):
    return stage_of(audit.model, plan, StageOptions(tokens, window=32, samples=8, **options))


def _pruned(audit, operator="magnitude"):
    return plan_prune(audit, Request(0.6, "uniform", operator))


def _rounded(audit):
    return plan_quantize(audit, QuantizeRequest(bits=3.5, formats=FORMATS))


def test_a_gradient_is_the_slope_of_the_objective(audit, tokens) -> None:
    for objective in ("loss", "kl"):
        plan = _pruned(audit)
        stage = _stage(audit, tokens, plan, objective=objective)
        base = stage.trial.losses(plan, stage.search)
        gradients = stage.trial.gradients(plan, stage.search)
        tensor = "model.layers.1.mlp.down_proj.weight"
        parameter, step = stage.trial.parameters[tensor], 1e-3
        direction = torch.sign(gradients[tensor])
        parameter.data.add_(step * direction)
        moved = stage.trial.material.scores(stage.trial.model, stage.search)
        values = moved.losses if objective == "loss" else moved.divergences
        expected = float((gradients[tensor] * direction).sum()) * step
        assert float(values.mean() - base.mean()) == pytest.approx(expected, rel=0.1)
        assert all(not item.requires_grad or item.grad is None for item in stage.trial.model.parameters())


@pytest.mark.parametrize("operator", ["magnitude", "wanda"])
def test_small_steps_are_foretold_in_their_order(stories, data, operator) -> None:
    text = (data / "text" / "tinystories_252_stories.txt").read_text(encoding="utf-8")
    around = plan_prune(audit_model(str(stories), estimator="peak"), Request(0.6, "uniform", operator))
    options = StageOptions(Documents((text,), "stories"), window=256, samples=8, search_windows=4)
    stage = stage_of(str(stories), around, options)
    variants = [
        Variant((index, sign), {index: item.but(sparsity=0.6 + 0.03 * sign)})
        for index, item in enumerate(around) for sign in (-1, 1)
    ]  # fmt: skip
    estimated = estimated_losses(stage.trial, around, stage.search, variants)
    measured = variant_losses(stage.trial, around, stage.search, variants)
    for sign in (-1, 1):
        keys = [key for key in measured if key[1] == sign]
        assert spearmanr([estimated[key] for key in keys], [measured[key] for key in keys])[0] > 0.8


def test_an_estimate_that_runs_out_of_time_says_less(audit, tokens) -> None:
    around = _rounded(audit)
    stage = _stage(audit, tokens, around)
    variants = variants_of(asked_of(audit, QuantizeRequest(bits=3.5, formats=FORMATS)).choices, around)
    ticks = count()
    found = estimated_losses(stage.trial, around, stage.search, variants, ends=lambda: next(ticks) >= 5)
    assert len(found) == 5


def test_a_descent_holds_the_budget_and_never_loses(audit, tokens) -> None:
    start = _pruned(audit)
    stage = _stage(audit, tokens, start)

    def score(plan) -> float:
        return float(stage.trial.losses(plan, stage.search).mean())

    def estimate(plan, variants):
        return estimated_losses(stage.trial, plan, stage.search, variants)

    best = Best(start, score(start))
    rounds = count()
    found = descended(score, estimate, best, over=lambda: next(rounds) > 12)
    assert found.kept > 0
    assert found.loss < score(start)
    assert found.loss == pytest.approx(score(found.state))
    assert found.state.sparsity == pytest.approx(0.6, abs=1e-6)


def test_a_descent_of_formats_holds_the_budget_and_never_loses(audit, tokens) -> None:
    request = QuantizeRequest(bits=3.5, formats=FORMATS)
    plan, choices = _rounded(audit), asked_of(audit, request).choices
    stage = _stage(audit, tokens, plan)

    def score(levels) -> float:
        return float(stage.trial.losses(with_levels(plan, choices, levels), stage.search).mean())

    def estimate(levels, moves):
        around = with_levels(plan, choices, levels)
        wanted = [item for item in variants_of(choices, around) if item.key in set(moves)]
        return estimated_losses(stage.trial, around, stage.search, wanted)

    start = levels_of_plan(choices, plan)
    rounds = count()
    found = descended_formats(score, estimate, Best(start, score(start)), choices, over=lambda: next(rounds) > 30)
    assert found.kept > 0
    assert found.loss < score(start)
    assert choices.weight(found.state) <= choices.goal * (1 + 1e-9)
    assert np.isfinite(choices.bits[np.arange(len(start)), found.state]).all()


def test_the_divergence_of_the_dense_model_is_nothing_and_grows_with_what_goes(audit, tokens) -> None:
    plan = _pruned(audit)
    stage = _stage(audit, tokens, plan, divergences=True)
    stage.trial.restore()
    dense = stage.trial.material.scores(stage.trial.model, stage.guard)
    assert dense.divergences == pytest.approx(0.0, abs=1e-5)
    less, more = (
        stage.trial.applied_scores(plan_prune(audit, Request(share)), stage.looked, stage.guard).divergences.mean()
        for share in (0.3, 0.6)
    )
    assert 0 < less < more


def test_the_divergence_is_the_whole_one_where_every_token_is_kept(audit, tokens) -> None:
    plan = _pruned(audit)
    stage = _stage(audit, tokens, plan, divergences=True)
    model, window = stage.trial.model, stage.guard[:1]
    stage.trial.restore()
    with torch.no_grad():
        dense = logits_of(model, window)[0, :-1].log_softmax(-1)
    found = stage.trial.applied_scores(plan, stage.looked, window).divergences
    stage.trial.losses(plan, window)
    with torch.no_grad():
        changed = logits_of(model, window)[0, :-1].log_softmax(-1)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean()
    assert found == pytest.approx(float(expected), rel=1e-3)  # the vocabulary has fewer tokens than are kept


def test_windows_of_which_nothing_is_remembered_have_no_divergence(audit, tokens) -> None:
    stage = _stage(audit, tokens, _pruned(audit))
    assert Text().scores(stage.trial.model, stage.guard).divergences is None


def test_inputs_are_measured_again_behind_a_plan(audit, tokens) -> None:
    plan = _pruned(audit, "wanda")
    stage = _stage(audit, tokens, plan)
    before = {tensor: seen.norms.clone() for tensor, seen in stage.trial.inputs.items()}
    stage.trial.look_again(plan, stage.looked)
    first, last = plan.decisions[0].tensor, "model.layers.2.mlp.down_proj.weight"
    assert torch.allclose(before[first], stage.trial.inputs[first].norms)  # nothing lies before the first layer
    assert not torch.allclose(before[last], stage.trial.inputs[last].norms)


def test_a_budget_pays_for_as_many_windows_as_its_time_allows() -> None:
    asked = StageOptions("text", samples=32, search_windows=8, guard_windows=24)
    for seconds in (1.0, 60.0, 600.0, 1e6):
        small, large = (sized(asked, Pace(one, one), seconds, looks=True) for one in (0.01, 10.0))
        for name, least in (("samples", 4), ("search_windows", 2), ("guard_windows", 6), ("judged_windows", 2)):
            most = asked.samples if name == "judged_windows" else getattr(asked, name)
            assert least <= getattr(large, name) <= getattr(small, name) <= most
        assert large.search_windows <= large.samples
    assert sized(asked, Pace(0.01, 0.01), 1e6, looks=False).judged_windows == 0
    rich = sized(asked, Pace(0.01, 0.01), 1e6, looks=True)
    assert (rich.samples, rich.search_windows, rich.guard_windows) == (32, 8, 24)
    assert sized(replace(asked, search_windows=1), Pace(9, 9), 1.0, looks=True).search_windows == 1


def test_bf16_is_taken_where_it_is_faster_and_close(monkeypatch, audit, tokens) -> None:
    stage = _stage(audit, tokens, _pruned(audit))
    monkeypatch.setattr("tailwise.compression.trying.pace._multiplies_bf16", lambda: True)

    def times(*spent):
        told = iter(np.cumsum([0.0, spent[0], 0.0, spent[1]]))
        return lambda: float(next(told))

    monkeypatch.setattr("tailwise.compression.trying.pace._CLOSE", 10.0)
    assert pace_of(stage.trial.model, stage.search[:1], times(3.0, 1.0)).passes is torch.bfloat16
    assert pace_of(stage.trial.model, stage.search[:1], times(3.0, 2.9)).passes is None
    monkeypatch.setattr("tailwise.compression.trying.pace._CLOSE", 0.0)
    assert pace_of(stage.trial.model, stage.search[:1], times(3.0, 1.0)) == Pace(3.0, 3.0)


def test_inputs_are_summed_and_tensors_changed_in_full_while_passes_are_narrow(audit, tokens) -> None:
    for plan in (_pruned(audit, "sparsegpt"), plan_quantize(audit, QuantizeRequest(bits=3.5, formats=FORMATS))):
        stage = _stage(audit, tokens, plan)
        exact = stage.trial.applied_losses(plan, stage.looked, stage.guard)
        wide = {tensor: seen.hessian for tensor, seen in stage.trial.inputs.items()}
        stage.trial.passes = torch.bfloat16
        assert stage.trial.applied_losses(plan, stage.looked, stage.guard) == pytest.approx(exact, rel=0.05)
        if wide:
            stage.trial.look_again(plan, stage.looked)
            assert all(seen.hessian.dtype == wide[tensor].dtype for tensor, seen in stage.trial.inputs.items())


def test_text_formats_of_ggml_are_tried_with_narrow_passes(audit, tokens) -> None:
    plan = plan_quantize(audit, QuantizeRequest(formats=("q4_0",)))
    stage = _stage(audit, tokens, plan)
    exact = stage.trial.losses(plan, stage.search)
    stage.trial.restore()
    narrow = _stage(audit, tokens, plan, passes=torch.bfloat16)
    assert narrow.trial.losses(plan, narrow.search) == pytest.approx(exact, rel=0.05)
    assert narrow.trial.applied_losses(plan, narrow.looked, narrow.guard) == pytest.approx(
        stage.trial.applied_losses(plan, stage.looked, stage.guard), rel=0.05
    )
