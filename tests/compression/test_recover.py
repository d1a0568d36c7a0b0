"""A pruned model trained for a while."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
import typer
from tiny_models import VOCABULARY, inputs_for, learnable, plan_for, saved
from typer.testing import CliRunner

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.recovery import train_loop
from tailwise.compression.recovery.recover import RecoverOptions, recover
from tailwise.compression.recovery.text_data import split_text
from tailwise.compression.recovery.train_loop import Course, Trainer
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import Documents

pytest.importorskip("transformers")

WINDOW = 16
FAST = {"window": WINDOW, "steps": 20, "lr": 1e-2, "batch": 4}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """In bfloat16 and several shards."""
    place = tmp_path_factory.mktemp("pruned")
    with quiet():
        folder = saved("llama", place / "dense", dtype=torch.bfloat16, max_shard_size="20KB")
        apply(plan_for(folder, sparsity=0.6), folder, place / "pruned")
    return place / "pruned"


@pytest.fixture(scope="module")
def masked(pruned, tmp_path_factory):
    return recover(pruned, learnable(WINDOW), tmp_path_factory.mktemp("masked") / "out", options=RecoverOptions(**FAST))


@pytest.fixture(scope="module")
def lora(pruned, tmp_path_factory):
    pytest.importorskip("peft")
    options = RecoverOptions(**FAST, method="lora", rank=4)
    return recover(pruned, learnable(WINDOW), tmp_path_factory.mktemp("lora") / "out", options=options)


@pytest.fixture(scope="module")
def merged(pruned, tmp_path_factory):
    pytest.importorskip("peft")
    options = RecoverOptions(**FAST, method="lora", rank=4, merge=True)
    return recover(pruned, learnable(WINDOW), tmp_path_factory.mktemp("merged") / "out", options=options)


def tensors_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}


def logits(folder, adapter=None):
    import transformers

    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if adapter is not None:
            import peft

            model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=inputs_for("llama")["input_ids"]).logits


# What comes out


@pytest.mark.parametrize("way", ["masked", "merged"])
def test_every_zero_stays_zero_and_names_and_dtypes_are_as_before(pruned, way, request):
    before, after = tensors_of(pruned), tensors_of(request.getfixturevalue(way).output)
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if value.ndim > 1:
            assert not after[name][value == 0].any()


@pytest.mark.parametrize("way", ["masked", "lora", "merged"])
def test_it_predicts_text_that_it_was_not_trained_on_better(way, request):
    found = request.getfixturevalue(way)
    assert found.after.perplexity < found.before.perplexity
    assert found.comparison.perplexity.verdict == "better"


def test_what_was_written_is_what_was_scored(masked):
    from tailwise.models.evaluation.loading import load_model
    from tailwise.models.evaluation.losses import window_losses

    split = split_text(learnable(WINDOW), None, WINDOW)
    again = window_losses(load_model(str(masked.output)).module, split.held_out)
    assert again == pytest.approx(np.array(masked.after.losses), abs=1e-6)


def test_masked_training_also_moves_norms_and_embeddings(pruned, masked):
    before, after = tensors_of(pruned), tensors_of(masked.output)
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_an_adapter_is_of_peft_and_belongs_to_the_pruned_model(pruned, lora):
    config = json.loads((lora.output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(pruned.resolve())
    assert config["r"] == 4
    assert set(config["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not torch.equal(logits(pruned), logits(pruned, lora.output))


def test_an_adapter_trained_behind_the_mask_loses_only_rounding_when_it_is_merged(merged):
    assert merged.unmerged is not None
    assert abs(merged.cost_of_merging) < 0.02


def test_merging_moves_the_layers_of_the_adapter_alone(pruned, merged):
    before, after = tensors_of(pruned), tensors_of(merged.output)
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {name for name in before if name.endswith("_proj.weight")}


def test_the_share_of_zeros_is_told_before_and_after(masked):
    assert masked.sparsity == pytest.approx((0.6, 0.6), abs=0.005)


def test_the_numbers_lie_beside_the_weights(masked):
    kept = json.loads((masked.output / "tailwise_recovery.json").read_text())
    assert kept["training"]["best_step"] == masked.training.best_step
    assert "perplexity on windows kept out" in (masked.output / "README.md").read_text()
    assert (masked.output / "tailwise_plan.json").is_file()


def test_the_same_seed_and_steps_give_the_same_bytes(pruned, masked, tmp_path):
    again = recover(pruned, learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))
    one, other = tensors_of(masked.output), tensors_of(again.output)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("kind", "how"), [("gpt2", {}), ("gpt2", {"method": "lora", "merge": True}), ("opt", {}), ("gemma3", {})]
)
def test_other_architectures_and_tied_embeddings_keep_their_zeros(tmp_path, kind, how):
    pytest.importorskip("peft")
    with quiet():
        folder = saved(kind, tmp_path / "dense")
        apply(plan_for(folder, sparsity=0.6), folder, tmp_path / "pruned")
    options = RecoverOptions(**{**FAST, "steps": 6}, **how)
    found = recover(tmp_path / "pruned", learnable(WINDOW), tmp_path / "out", options=options)
    before, after = tensors_of(tmp_path / "pruned"), tensors_of(tmp_path / "out")
    assert found.sparsity[1] == pytest.approx(found.sparsity[0], abs=1e-9)
    assert all(not after[name][value == 0].any() for name, value in before.items() if value.ndim > 1)
    if how:
        assert abs(found.cost_of_merging) < 1e-4


# The training


def test_the_best_state_is_kept_where_the_loss_goes_up_again(pruned):
    trainer = trainer_of(pruned)
    found = trainer.run(Course(30, 0.3, 4, WINDOW))
    from tailwise.models.evaluation.losses import window_losses

    assert found.best_loss == min(loss for _, loss in found.curve if math.isfinite(loss)) < found.start_loss
    assert float(window_losses(trainer.model, trainer.guard).mean()) == pytest.approx(found.best_loss, abs=1e-6)


def trainer_of(folder):
    from tailwise.models.evaluation.loading import load_model

    model = load_model(str(folder), dtype="float32").module
    split = split_text(learnable(WINDOW), None, WINDOW)
    return Trainer(model, dict(model.named_parameters()), {}, split.train, split.guard)


def test_a_rate_that_helps_nothing_is_told_and_nothing_is_written(masked, tmp_path):
    with pytest.raises(UsageError, match="no step made it better") as caught:
        recover(masked.output, learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**{**FAST, "lr": 1e6}))
    assert "lower --lr" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_training(pruned, monkeypatch):
    trainer = trainer_of(pruned)
    real, steps = Trainer._step, []

    def step(self, *given):
        steps.append(real(self, *given))
        return steps[-1] if len(steps) < 10 else math.nan

    monkeypatch.setattr(Trainer, "_step", step)
    found = trainer.run(Course(20, 1e-2, 4, WINDOW))
    assert found.ended == "the loss was not finite at step 10"
    assert 0 < found.best_step < 10


def test_it_ends_when_the_time_is_over(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop, "PATIENCE", 10**6)  # a machine that is free sees its best state within the time
    options = RecoverOptions(**{**FAST, "steps": 10**6}, seconds=1.0)
    found = recover(pruned, learnable(WINDOW), tmp_path / "out", options=options)
    assert found.training.ended == "the time was over"
    assert found.training.seconds < 5


def test_the_rate_goes_up_then_down_to_nothing():
    course = Course(100, 1.0, 1, 8)
    rates = [course.rate(done) for done in (0.0, 0.025, 0.05, 0.525, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


# The text


def letters(text, **_):
    many = [text] if isinstance(text, str) else text
    found = [[ord(letter) % VOCABULARY for letter in one] for one in many]
    return {"input_ids": found[0] if isinstance(text, str) else found}


def test_no_document_is_in_two_parts():
    texts = tuple(chr(200 + index) * 100 for index in range(90))
    split = split_text(Documents(texts), letters, WINDOW)
    parts = [set(part.flatten().tolist()) for part in (split.train, split.guard, split.held_out)]
    assert parts[0].isdisjoint(parts[1] | parts[2])
    assert parts[1].isdisjoint(parts[2])
    assert "documents are kept out" in split.notes[0]


def test_of_one_run_of_tokens_the_last_are_kept_out():
    split = split_text(np.arange(60 * WINDOW), None, WINDOW)
    whole = torch.cat([split.train, split.guard.flatten(), split.held_out.flatten()])
    assert torch.equal(whole, torch.arange(60 * WINDOW))
    assert "the last 6 of 60 windows are kept out" in split.notes[0]


# Wrong requests


def test_too_little_text_is_told(pruned, tmp_path):
    with pytest.raises(UsageError, match="fills 20 windows of 16 tokens; recovery takes 26"):
        recover(pruned, learnable(WINDOW, 20), tmp_path / "out", options=RecoverOptions(**FAST))


def test_a_model_that_is_not_pruned_is_only_fine_tuned_and_that_is_said(pruned, tmp_path):
    found = recover(pruned.with_name("dense"), learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))
    assert any("it is not pruned" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_model_that_is_not_causal_is_refused(tmp_path, kind):
    with quiet():
        folder = saved(kind, tmp_path / "model")
    with pytest.raises(UsageError, match=r"causal|later tokens|takes images"):
        recover(folder, learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))


def test_a_model_of_low_rank_is_not_given_a_full_one(pruned, tmp_path):
    folder = pruned.with_name("dense")
    apply(plan_for(folder, operator="low_rank"), folder, tmp_path / "low")
    with pytest.raises(UsageError, match="of low rank"):
        recover(tmp_path / "low", learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "magic"}, "no way to recover"),
        ({"merge": True}, "no adapter to merge"),
        ({"steps": 0}, "too little"),
        ({"lr": -1.0}, "no learning rate"),
        ({"seconds": 0.0}, "time budget"),
    ],
)
def test_a_wrong_request_is_told_before_anything_is_read(wrong, said):
    with pytest.raises(UsageError, match=said):
        RecoverOptions(**wrong)


def test_an_output_that_is_there_is_left_alone(pruned, tmp_path):
    shutil.copytree(pruned, tmp_path / "out")
    with pytest.raises(UsageError, match="is there already"):
        recover(pruned, learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))


def test_a_window_longer_than_the_model_is_told(pruned, tmp_path):
    with pytest.raises(UsageError, match="positions"):
        recover(
            pruned, np.tile(learnable(WINDOW), 9), tmp_path / "out", options=RecoverOptions(**{**FAST, "window": 128})
        )


def test_a_kill_leaves_nothing_behind(pruned, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST))
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command_prints_quality_before_and_after(pruned, tmp_path):
    from tailwise.cli.apply_commands import recover as command

    app = typer.Typer()
    app.command()(command)
    np.save(tmp_path / "ids.npy", learnable(WINDOW))
    given = [str(pruned), "--text", tmp_path / "ids.npy", "-o", tmp_path / "out", "--steps", 12, "--lr", "0.01",
             "--window", WINDOW]  # fmt: skip
    result = CliRunner().invoke(app, [str(item) for item in given])
    assert result.exit_code == 0, result.output
    assert "before" in result.output
    assert "nats a token" in result.output
    assert "kept out of the training" in result.output


@pytest.mark.parametrize(
    ("method", "why"), [("ia3", "rescales activations"), ("prefix-tuning", "in front of the input")]
)
def test_other_methods_of_peft_are_refused_with_the_reason(method, why):
    with pytest.raises(UsageError, match=why):
        RecoverOptions(method=method)
    with pytest.raises(UsageError, match="is no way to recover"):
        RecoverOptions(method="magic")
