"""Experts that transformers stacks, each seen by itself: statistics, notes, trials, streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families.contract import made
from families.kinds import WINDOWS, loaded
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import ApplyOptions, apply
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.stage import StageOptions
from tailwise.compression.trying.trial import Looking, trial_of
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.losses import window_losses
from tailwise.models.walking.calibrate import block_scores
from tailwise.models.walking.experts import ExpertStack, separate_experts
from tailwise.models.walking.hosts import Streamed, load_host
from tailwise.models.walking.stored_names import places_in

LISTED, STACKED = "mixtral", "gpt_oss"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: made(name, tmp_path_factory.mktemp(name.replace(" ", "_"))) for name in (LISTED, STACKED)}


@pytest.mark.parametrize("name", [LISTED, STACKED, "llama4_text"])
def test_a_model_with_separated_experts_computes_what_it_did(models, name, tmp_path):
    found = models.get(name) or made(name, tmp_path)
    before = found.model(input_ids=WINDOWS).logits
    model = loaded(found.model, found.folder)
    parameters = {parameter for parameter, value in model.named_parameters() if value.ndim == 3}
    separate_experts(model, parameters if name != LISTED else ())
    stacks = [module for module in model.modules() if isinstance(module, ExpertStack)]
    assert len(stacks) == (0 if name == LISTED else 4)
    assert torch.allclose(model(input_ids=WINDOWS).logits, before, atol=1e-5)


@pytest.mark.parametrize("name", [LISTED, STACKED])
def test_blocks_are_streamed_and_every_matrix_has_its_place(models, name):
    found = models[name]
    with open_checkpoint(found.folder) as checkpoint:
        host = load_host(checkpoint, found.folder)
        assert isinstance(host.home, Streamed)
        assert {item.tensor for item in plan_prune(found.audited, Request(0.5))} <= set(host.places)


@pytest.mark.parametrize("name", [LISTED, STACKED])
def test_a_trial_is_the_writer(models, name, tmp_path):
    found = models[name]
    plan = plan_prune(found.audited, Request(0.5, "uniform", "wanda"))
    apply(plan, found.folder, tmp_path / "out", options=ApplyOptions(calibration=WINDOWS))
    written = window_losses(loaded(found.model, tmp_path / "out"), WINDOWS)
    model = loaded(found.model, found.folder)
    with open_checkpoint(found.folder) as checkpoint:
        places = places_in(model, checkpoint)
        stored = (dict(checkpoint.config), {item.tensor: torch.float32 for item in plan})
    trial, _ = trial_of(model, places, plan, Looking(WINDOWS), stored)
    assert np.allclose(trial.applied_losses(plan, WINDOWS, WINDOWS), written, atol=1e-5)
    dense = window_losses(found.model, WINDOWS)
    assert np.allclose(trial.dense_losses(WINDOWS), dense, atol=1e-5)
    assert not np.allclose(written, dense, atol=1e-3)


def test_every_expert_is_tried_by_itself(models, tmp_path):
    found = models[LISTED]
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(1, 60, 24 * 16))
    text = StageOptions(str(tmp_path / "ids.npy"), samples=4, window=24, search_windows=2)
    request = Request(0.5, operator="wanda")
    plan = planned(found.audited, request, allocator="sensitivity", text=text)
    amounts = {item.sparsity for item in plan if item.role.startswith("expert_")}
    assert len(amounts) > 1


def test_outliers_and_medians_take_experts_in(models):
    found = models[STACKED]
    scores = block_scores(found.folder, WINDOWS)
    assert set(scores.outlier_ratios) == set(scores.medians) == {0, 1}
    assert all(value > 0 for value in scores.medians.values())


@pytest.mark.parametrize("name", [LISTED, STACKED])
def test_an_expert_that_saw_few_tokens_or_none_is_said(models, name, tmp_path):
    found = models[name]
    plan = plan_prune(found.audited, Request(0.5, "uniform", "wanda"))
    done = apply(plan, found.folder, tmp_path / "out", options=ApplyOptions(calibration=WINDOWS[:1, :4]))
    assert any("experts saw few tokens, one only" in note and "give more text" in note for note in done.notes)
    done = apply(plan, found.folder, tmp_path / "one", options=ApplyOptions(calibration=WINDOWS[:1, :1]))
    assert any("no input reached it, so it was pruned by magnitude" in note for note in done.notes)


def test_low_rank_takes_experts_that_are_stored_one_by_one(models):
    plan = plan_prune(models[LISTED].audited, Request(0.5, "uniform", "low_rank"))
    assert {item.role for item in plan} >= {"expert_gate", "expert_up", "expert_down"}


@pytest.mark.parametrize("text", [False, True])
def test_low_rank_takes_each_matrix_of_a_stack_by_itself(models, text, tmp_path):
    found = models[STACKED]
    plan = plan_prune(found.audited, Request(0.5, "uniform", "low_rank"))
    stacks = [item for item in plan if item.role.startswith("expert_")]
    assert {item.shape for item in stacks} == {(3, 96, 32), (3, 32, 48)}
    given = {"calibration": WINDOWS} if text else {}
    done = apply(plan, found.folder, tmp_path / "out", options=ApplyOptions(**given))
    before, after = dict(found.model.named_parameters()), dict(loaded(found.model, tmp_path / "out").named_parameters())
    for item in stacks:
        for W, V in zip(before[item.tensor].double(), after[item.tensor].double(), strict=True):
            s = torch.linalg.svdvals(V)
            assert s[item.rank - 1] > 1e-3 * s[0] > 10 * s[item.rank]
            U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
            best = (U[:, : item.rank] * sigma[: item.rank]) @ Vh[: item.rank]
            assert torch.allclose(V, best, atol=1e-5) is not text  # with text, the best as its inputs see it
    saved = sum(
        item.n_params * (1 - item.rank * sum(item.shape[1:]) / (item.shape[1] * item.shape[2])) for item in stacks
    )
    reached = {item.tensor: item for item in done.tensors}
    assert abs(sum(reached[item.tensor].removed for item in stacks) - saved) < 1e-6 * saved
    assert abs(done.achieved - 0.5) < 0.05


def test_a_stack_is_not_stored_as_factors_and_told_before_any_work(models, tmp_path):
    found = models[STACKED]
    plan = plan_prune(found.audited, Request(0.5, "uniform", "low_rank"))
    with pytest.raises(UsageError, match="is a stack of experts, which transformers multiplies with as one tensor"):
        apply(plan, found.folder, tmp_path / "out", options=ApplyOptions(factored=True, calibration=WINDOWS))
    assert not (tmp_path / "out").exists()


def test_a_rank_that_no_matrix_of_a_stack_has_is_told(models, tmp_path):
    found = models[STACKED]
    plan = plan_prune(found.audited, Request(0.5, "uniform", "low_rank"))
    (tensor, *_) = (item.tensor for item in plan if item.role == "expert_down")
    for shape in ((3, 32, 48), ()):
        wrong = plan.replace(
            decisions=tuple(item.but(rank=33, shape=shape) if item.tensor == tensor else item for item in plan)
        )
        with pytest.raises(UsageError, match=r"rank is 33; it is a whole number from 1 to 32|a rank of 32 at most"):
            apply(wrong, found.folder, tmp_path / "out")


def test_structured_leaves_experts_alone_and_says_so(models):
    plan = plan_prune(models[LISTED].audited, Request(0.5, "uniform", "structured"))
    assert not any(item.role.startswith("expert_") for item in plan)
    assert any("heads are cut of attention, neurons of plain MLPs" in note for note in plan.notes)
