"""A model that is pruned, scored and made whole again."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.refine import Best, levels, refined, with_amounts
from tailwise.compression.trying.sensitivity import levels_of, measured_losses
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.loading import load_model
from tailwise.models.evaluation.losses import window_losses


def _stage(llama, audit, tokens, operator="magnitude", **options):
    plan = plan_prune(audit, Request(0.6, "uniform", operator))
    return stage_of(str(llama), plan, StageOptions(tokens, window=32, **options))


def _plan(audit, allocator="depth", operator="magnitude", sparsity=0.6):
    return plan_prune(audit, Request(sparsity, allocator, operator))


def test_a_trial_is_what_applying_the_plan_gives(llama, audit, tokens, tmp_path) -> None:
    stage, plan = _stage(llama, audit, tokens), _plan(audit)
    apply(plan, llama, tmp_path / "out")
    written = load_model(str(tmp_path / "out")).module
    assert stage.trial.losses(plan, stage.search) == pytest.approx(window_losses(written, stage.search), rel=1e-6)


@pytest.mark.parametrize("operator", ["wanda", "sparsegpt"])
def test_a_judged_plan_is_what_applying_it_gives(llama, audit, tokens, tmp_path, operator) -> None:
    stage, plan = _stage(llama, audit, tokens, operator, samples=8), _plan(audit, operator=operator)
    apply(plan, llama, tmp_path / "out", options=ApplyOptions(calibration=stage.looked))
    written = load_model(str(tmp_path / "out")).module
    before = {name: value.clone() for name, value in stage.trial.model.state_dict().items()}
    judged = stage.trial.applied_losses(plan, stage.looked, stage.guard)
    assert judged == pytest.approx(window_losses(written, stage.guard), rel=1e-4)
    assert all(torch.equal(before[name], value) for name, value in stage.trial.model.state_dict().items())


@pytest.mark.parametrize("operator", ["magnitude", "wanda", "sparsegpt"])
def test_after_trials_the_weights_are_the_dense_ones(llama, audit, tokens, operator) -> None:
    stage = _stage(llama, audit, tokens, operator)
    before = {name: value.clone() for name, value in stage.trial.model.state_dict().items()}
    stage.trial.losses(_plan(audit, operator=operator), stage.search)
    changed = stage.trial.model.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in changed.items())
    stage.trial.restore()
    assert all(torch.equal(before[name], value) for name, value in stage.trial.model.state_dict().items())


def test_a_trial_does_not_depend_on_the_ones_before(llama, audit, tokens) -> None:
    stage, plan = _stage(llama, audit, tokens), _plan(audit)
    first = stage.trial.losses(plan, stage.search)
    stage.trial.losses(_plan(audit, "uniform", sparsity=0.9), stage.search)
    assert np.array_equal(stage.trial.losses(plan, stage.search), first)


def test_windows_of_the_last_choice_take_part_in_nothing_else(llama, audit, tokens) -> None:
    stage = _stage(llama, audit, tokens)
    search, guard = ({tuple(window.tolist()) for window in part} for part in (stage.search, stage.guard))
    assert search
    assert guard
    assert not search & guard


def test_too_little_text_is_one_message(llama, audit, tokens) -> None:
    with pytest.raises(UsageError, match="fills 3 windows"):
        _stage(llama, audit, tokens[:100])


def test_a_window_beyond_the_models_positions_is_one_message(llama, audit, tokens) -> None:
    with pytest.raises(UsageError, match="64 positions"):
        stage_of(str(llama), _plan(audit), StageOptions(tokens, window=128))


def test_measured_losses_are_differences_to_the_plan_around(llama, audit, tokens) -> None:
    stage, around = _stage(llama, audit, tokens), _plan(audit, "uniform")
    found = measured_losses(stage.trial, around, stage.search, levels=(0.3, 0.6, 0.9))
    assert set(found) == {(item.tensor, level) for item in around for level in (0.3, 0.6, 0.9)}
    assert all(found[item.tensor, 0.6] == 0 for item in around)
    first = around.decisions[0]
    amounts = np.array([0.6] * len(around))
    amounts[0] = 0.9
    expected = stage.trial.losses(with_amounts(around, amounts), stage.search).mean()
    base = stage.trial.losses(around, stage.search).mean()
    assert found[first.tensor, 0.9] == pytest.approx(expected - base)


def test_levels_stay_within_what_a_plan_may_ask() -> None:
    assert levels_of(0.9) == (0.6, 0.75, 0.9, 0.99)
    assert levels_of(0.1) == (0.0, 0.1, 0.2, 0.3)


def test_a_search_holds_the_budget_and_never_loses(llama, audit, tokens) -> None:
    stage, start = _stage(llama, audit, tokens), _plan(audit, "uniform")
    ticks = iter(range(10_000))

    def score(plan) -> float:
        return float(stage.trial.losses(plan, stage.search).mean())

    found = refined(score, Best(start, score(start)), over=lambda: next(ticks) > 60)
    assert found.state.sparsity == pytest.approx(0.6, abs=1e-6)
    assert found.kept > 0
    assert found.loss < stage.trial.losses(start, stage.search).mean()
    assert found.loss == pytest.approx(stage.trial.losses(found.state, stage.search).mean())
    assert all(0 <= item.sparsity <= 0.99 for item in found.state)


def test_groups_go_from_coarse_to_fine_and_miss_nothing(audit) -> None:
    decisions = _plan(audit).decisions
    coarse, middle, fine = levels(decisions)
    assert len(coarse) == 3 + 7
    assert len(middle) == 3 * 2
    assert [list(group) for group in fine] == [[index] for index in range(len(decisions))]


@pytest.mark.parametrize("operator", ["magnitude", "sparsegpt"])
def test_a_change_in_a_late_block_is_scored_from_there_with_the_same_losses(llama, audit, tokens, operator) -> None:
    stage, around = _stage(llama, audit, tokens, operator), _plan(audit, "uniform", operator)
    changed = [item.but(sparsity=0.8) if item.block == 2 and item.role == "mlp_up" else item for item in around]
    plan = around.replace(decisions=tuple(changed))
    expected = stage.trial.losses(plan, stage.search)
    stage.trial.settle(around, stage.search)
    calls = _calls_of(stage.trial.model.model.layers)
    assert np.array_equal(stage.trial.losses(plan, stage.search), expected)
    assert calls[:2] == [0, 0]
    assert calls[2] > 0
    assert np.array_equal(stage.trial.losses(around, stage.search[:2]), stage.trial.losses(around, stage.search)[:2])


def _calls_of(blocks) -> list[int]:
    calls = [0] * len(blocks)

    def count(index):
        def hook(*_given) -> None:
            calls[index] += 1

        return hook

    for index, block in enumerate(blocks):
        block.mlp.register_forward_hook(count(index))
    return calls


def test_of_states_that_would_take_too_much_some_are_kept(llama, audit, tokens, monkeypatch) -> None:
    stage, around = _stage(llama, audit, tokens), _plan(audit, "uniform")
    width = stage.trial.model.config.hidden_size
    of_a_block = stage.search.numel() * width * 4
    monkeypatch.setattr(stage.trial._prefix, "_most", 2 * of_a_block)
    plans = []
    for block in (1, 2):
        changed = [item.but(sparsity=0.8) if item.block == block else item for item in around]
        plans.append(around.replace(decisions=tuple(changed)))
    expected = [stage.trial.losses(plan, stage.search) for plan in plans]
    stage.trial.settle(around, stage.search)
    assert list(stage.trial._prefix._kept) == [1]
    calls = _calls_of(stage.trial.model.model.layers)
    assert np.array_equal(stage.trial.losses(plans[1], stage.search), expected[1])
    assert calls[:2] == [0, 0]
    assert np.array_equal(stage.trial.losses(plans[0], stage.search), expected[0])
    assert calls[0] > 0


def test_states_that_would_take_too_much_are_not_kept(llama, audit, tokens, monkeypatch) -> None:
    monkeypatch.setattr("tailwise.compression.trying.prefix.MOST_STATES", 1000)
    stage, around = _stage(llama, audit, tokens), _plan(audit, "uniform")
    expected = stage.trial.losses(around, stage.search)
    assert np.array_equal(stage.trial.settle(around, stage.search), expected)
    found = measured_losses(stage.trial, around, stage.search, levels=(0.6, 0.9))
    assert all(np.isfinite(value) for value in found.values())


def test_what_apply_would_not_reach_is_told_before_the_search(llama, audit, tokens) -> None:
    plan = plan_prune(audit, Request(0.6, "uniform", "wanda", choice=TensorChoice(also=("lm_head",))))
    with pytest.raises(UsageError, match=r"does not reach lm_head\.weight"):
        stage_of(str(llama), plan, StageOptions(tokens, window=32))


def _ticking(seconds: float, each: float) -> Clock:
    """Time that goes on by `each` whenever it is asked for."""
    ticks = count()
    return Clock(seconds, lambda: each * next(ticks))


@pytest.mark.parametrize(("each", "taken"), [(1.0, "wanda"), (1e-6, "sparsegpt")])
def test_trials_take_the_lighter_operator_where_treating_takes_the_time(llama, audit, tokens, each, taken) -> None:
    plan, options = _plan(audit, operator="sparsegpt"), StageOptions(tokens, window=32, samples=8)
    stage = stage_of(str(llama), plan, options, _ticking(100.0, each))
    assert stage.trial.how.operator.name == taken
    assert stage.options.lighter == (taken == "wanda")
    assert any("trials took wanda" in note for note in stage.notes) == (taken == "wanda")


@pytest.mark.parametrize(("operator", "lighter"), [("sparsegpt", "wanda"), ("gptq", "rtn")])
def test_plans_are_judged_by_their_own_operator_whatever_trials_took(llama, audit, tokens, operator, lighter) -> None:
    formats = ("int3-channel", "int4-channel")
    plan = (
        _plan(audit, operator="sparsegpt")
        if operator == "sparsegpt"
        else plan_quantize(audit, QuantizeRequest(bits=3.5, formats=formats, operator="gptq"))
    )
    whole, light = (
        stage_of(str(llama), plan, StageOptions(tokens, window=32, samples=8, lighter=wanted))
        for wanted in (False, True)
    )
    assert (whole.trial.how.operator.name, light.trial.how.operator.name) == (operator, lighter)
    judged = [stage.trial.applied_losses(plan, stage.looked, stage.guard) for stage in (whole, light)]
    assert judged[1] == pytest.approx(judged[0], rel=1e-6)
    other = plan.replace(operator=lighter) if operator == "gptq" else _plan(audit, operator=lighter)
    own = stage_of(str(llama), other, StageOptions(tokens, window=32, samples=8))
    assert light.trial.losses(plan, light.search) == pytest.approx(own.trial.losses(other, own.search), rel=1e-5)
