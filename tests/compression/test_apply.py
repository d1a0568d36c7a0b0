"""From a plan to a model on disk."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, inputs_for, plan_for, saved
from typer.testing import CliRunner

from tailwise.audits.run import audit
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying import apply as apply_module
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.carry_out import MASKS
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating import block_work
from tailwise.core.errors import UnreadableError, UsageError

pytest.importorskip("transformers")

WINDOWS = inputs_for("llama")["input_ids"]
OPTIONS = ApplyOptions(calibration=WINDOWS, batch=4)
CALIBRATED = ("wanda", "sparsegpt")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """In bfloat16 and several shards."""
    return saved("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, max_shard_size="20KB")


@pytest.fixture(scope="module")
def plans(llama):
    return {name: plan_for(llama, operator=name) for name in ("magnitude", "wanda", "sparsegpt", "low_rank")}


def tensors_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}


def logits(folder):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=WINDOWS).logits


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "tailwise-cache")


def edited(plan: Plan, **changes) -> Plan:
    """The plan with its first entry changed."""
    return replace(plan, decisions=(plan.decisions[0].but(**changes), *plan.decisions[1:]))


# What comes out


@pytest.mark.parametrize("operator", ["magnitude", "wanda", "sparsegpt"])
def test_the_plan_is_reached_and_all_else_is_as_before(llama, plans, tmp_path, operator):
    plan = plans[operator]
    done = apply(plan, llama, tmp_path / "out", options=None if operator == "magnitude" else OPTIONS)
    before, after = tensors_of(llama), tensors_of(tmp_path / "out")
    assert list(before) == list(after)
    assert done.achieved == pytest.approx(plan.sparsity, abs=1e-3)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if name in plan:
            assert float((after[name] == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
        else:
            assert torch.equal(after[name], value)


@pytest.mark.parametrize("operator", ["magnitude", "wanda"])
def test_the_output_loads_in_transformers_with_the_files_of_the_source(llama, plans, tmp_path, operator):
    apply(plans[operator], llama, tmp_path / "out", options=None if operator == "magnitude" else OPTIONS)
    assert torch.isfinite(logits(tmp_path / "out")).all()
    names = {path.name for path in llama.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"README.md", "tailwise_plan.json"}
    assert (tmp_path / "out" / "config.json").read_bytes() == (llama / "config.json").read_bytes()


def test_a_plan_may_be_given_by_its_path(llama, plans, tmp_path):
    plans["magnitude"].save(tmp_path / "plan.json")
    apply(tmp_path / "plan.json", llama, tmp_path / "by-path")
    apply(plans["magnitude"], llama, tmp_path / "as-it-is")
    one, other = tensors_of(tmp_path / "by-path"), tensors_of(tmp_path / "as-it-is")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_output_carries_its_plan(llama, plans, tmp_path):
    apply(plans["wanda"], llama, tmp_path / "out", options=OPTIONS)
    assert Plan.load(tmp_path / "out" / "tailwise_plan.json") == plans["wanda"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "pruned by wanda" in text
    assert all(f"`{decision.tensor}`" in text for decision in plans["wanda"])


def test_calibration_that_is_not_needed_is_noted(llama, plans, tmp_path):
    done = apply(plans["magnitude"], llama, tmp_path / "out", options=OPTIONS)
    assert done.notes == ("magnitude looks at no text: the calibration was not used",)


def test_masks_are_where_the_weights_are_not_zero(llama, plans, tmp_path):
    apply(plans["wanda"], llama, tmp_path / "out", options=replace(OPTIONS, save_masks=True))
    masks, after = load_file(tmp_path / "out" / MASKS), tensors_of(tmp_path / "out")
    assert set(masks) == {decision.tensor for decision in plans["wanda"]}
    assert all(torch.equal(mask, after[name] != 0) for name, mask in masks.items())


def test_calibrated_pruning_keeps_the_outputs_nearer(llama, plans, tmp_path):
    dense, lost = logits(llama), []
    for operator in ("sparsegpt", "magnitude"):
        apply(plans[operator], llama, tmp_path / operator, options=None if operator == "magnitude" else OPTIONS)
        lost.append(float((logits(tmp_path / operator) - dense).square().mean()))
    assert lost[0] < lost[1]


@pytest.mark.parametrize("pattern", ["2:4", "3:8"])
@pytest.mark.parametrize("operator", ["magnitude", "wanda", "sparsegpt"])
def test_each_group_along_the_inputs_holds_its_pattern(tmp_path, operator, pattern):
    folder = saved("gpt2", tmp_path / "gpt2")  # stored in × out: the groups run down the columns
    plan = plan_for(folder, operator=operator, pattern=pattern)
    given = None if operator == "magnitude" else replace(OPTIONS, calibration=inputs_for("gpt2")["input_ids"])
    apply(plan, folder, tmp_path / "out", options=given)
    kept, group = map(int, pattern.split(":"))
    after = tensors_of(tmp_path / "out")
    for decision in plan:
        groups = after[decision.tensor].T.reshape(-1, group)
        assert ((groups != 0).sum(dim=1) == kept).all()


def test_each_tensor_gets_its_own_amount(llama, plans, tmp_path):
    plan = edited(plans["magnitude"], sparsity=0.9)
    done = apply(plan, llama, tmp_path / "out")
    assert [round(item.achieved, 2) for item in done.tensors[:2]] == [0.9, 0.5]


def test_an_entry_of_nothing_leaves_its_tensor_alone(llama, plans, tmp_path):
    plan = edited(plans["sparsegpt"], sparsity=0.0)
    apply(plan, llama, tmp_path / "out", options=OPTIONS)
    name = plan.decisions[0].tensor
    assert torch.equal(tensors_of(llama)[name], tensors_of(tmp_path / "out")[name])


@pytest.mark.parametrize("options", [ApplyOptions(), OPTIONS], ids=["plain", "whitened"])
def test_low_rank_is_written_back_dense(llama, plans, tmp_path, options):
    done = apply(plans["low_rank"], llama, tmp_path / "out", options=options)
    after = tensors_of(tmp_path / "out")
    for decision, item in zip(plans["low_rank"], done.tensors, strict=True):
        sigma = torch.linalg.svdvals(after[decision.tensor].float())
        assert float(sigma[decision.rank :].norm() / sigma.norm()) < 2**-7  # what bfloat16 leaves
        assert item.rank == decision.rank


def test_whitened_low_rank_keeps_the_outputs_nearer(llama, plans, tmp_path):
    dense, lost = logits(llama), []
    for options in (OPTIONS, ApplyOptions()):
        apply(plans["low_rank"], llama, tmp_path / "out", options=replace(options, force=True))
        lost.append(float((logits(tmp_path / "out") - dense).square().mean()))
    assert lost[0] < lost[1]


@pytest.mark.parametrize("kind", ["vit", "convnext", "bert"])
@pytest.mark.parametrize("operator", ["magnitude", "wanda", "sparsegpt"])
def test_models_that_are_not_of_text_are_pruned_by_their_inputs(tmp_path, kind, operator):
    folder = saved(kind, tmp_path / "model")
    plan = plan_for(folder, operator=operator)
    done = apply(plan, folder, tmp_path / "out", options=ApplyOptions(calibration=inputs_for(kind)))
    assert done.achieved == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_gives_the_same_bytes(llama, plans, tmp_path):
    for name in ("one", "other"):
        apply(plans["sparsegpt"], llama, tmp_path / name, options=OPTIONS)
    one, other = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_real_model_is_pruned_by_a_real_text(pycode, data, tmp_path):
    plan = plan_for(pycode, sparsity=0.6, operator="wanda")
    given = ApplyOptions(calibration=str(data / "text" / "tinystories_252_stories.txt"), samples=4, window=64)
    done = apply(plan, pycode, tmp_path / "out", options=given)
    assert done.achieved == pytest.approx(0.6, abs=0.003)  # whole entries of rows of 256
    assert done.settings["samples"] == 4


# Killed and resumed


@pytest.mark.parametrize("operator", CALIBRATED)
def test_a_run_goes_on_at_the_block_where_it_was_killed(llama, plans, tmp_path, monkeypatch, operator):
    expected = tmp_path / "expected"
    apply(plans[operator], llama, expected, options=OPTIONS)
    real = block_work.BlockWork.visit

    def killed(self, block, found):
        if block.index == 2:
            raise KeyboardInterrupt
        real(self, block, found)

    monkeypatch.setattr(block_work.BlockWork, "visit", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(plans[operator], llama, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()
    visited = []
    monkeypatch.setattr(
        block_work.BlockWork,
        "visit",
        lambda self, block, found: (visited.append(block.index), real(self, block, found)),
    )
    done = apply(plans[operator], llama, tmp_path / "out", options=OPTIONS)
    assert (visited, done.resumed) == ([2], 2)
    one, other = tensors_of(expected), tensors_of(tmp_path / "out")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert left_in(tmp_path) == ["expected", "out"]


def test_another_plan_does_not_go_on_with_the_blocks_of_the_first(llama, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tailwise.compression.applying.carry_out.write_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(28, ""))
    )
    with pytest.raises(UnreadableError, match="could not write"):
        apply(plans["wanda"], llama, tmp_path / "out", options=OPTIONS)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert apply(plans["sparsegpt"], llama, tmp_path / "out", options=OPTIONS).resumed == 0


def test_a_full_disk_costs_no_finished_block(llama, plans, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tailwise.compression.applying.carry_out.write_checkpoint", full)
        with pytest.raises(UnreadableError, match="No space left"):
            apply(plans["wanda"], llama, tmp_path / "out", options=OPTIONS)
    assert apply(plans["wanda"], llama, tmp_path / "out", options=OPTIONS).resumed == 3


@pytest.mark.parametrize("change", ["config", "embedding"])
def test_a_model_that_was_changed_in_between_is_begun_anew(plans, tmp_path, monkeypatch, change):
    folder = saved("llama", tmp_path / "model", dtype=torch.bfloat16, max_shard_size="20KB")
    with monkeypatch.context() as patch:
        patch.setattr(
            "tailwise.compression.applying.carry_out.write_checkpoint",
            lambda *_: (_ for _ in ()).throw(OSError(28, "")),
        )
        with pytest.raises(UnreadableError, match="could not write"):
            apply(plans["wanda"], folder, tmp_path / "out", options=OPTIONS)
    if change == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    else:
        name = "model.embed_tokens.weight"
        shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
        tensors = load_file(shard)
        tensors[name] += 1
        save_file(tensors, shard, metadata={"format": "pt"})
    assert apply(plans["wanda"], folder, tmp_path / "out", options=replace(OPTIONS, force=True)).resumed == 0


def test_an_output_that_another_run_wrote_in_the_meantime_is_kept(llama, plans, tmp_path, monkeypatch):
    real = apply_module.check_plan

    def slow(*given, **how):
        shutil.copytree(llama, tmp_path / "out")
        real(*given, **how)

    monkeypatch.setattr(apply_module, "check_plan", slow)
    with pytest.raises(UsageError, match="is there already"):
        apply(plans["magnitude"], llama, tmp_path / "out")
    assert not (tmp_path / "out" / "tailwise_plan.json").exists()
    assert left_in(tmp_path) == ["out"]


# What cannot be


def test_a_plan_for_other_weights_takes_force(llama, plans, tmp_path):
    other = saved("llama", tmp_path / "other", dtype=torch.float16)
    with pytest.raises(UsageError, match="others than those"):
        apply(plans["magnitude"], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    apply(plans["magnitude"], other, tmp_path / "out", options=ApplyOptions(force=True))


@pytest.mark.parametrize("how", [{"layers": "mlp"}, {"roles": ("attn_q", "attn_o")}, {"min_evals": 20}])
def test_a_plan_of_an_audit_of_a_part_is_held_against_that_part(llama, tmp_path, how):
    plan = plan_prune(audit(llama, **how), Request(0.5))
    assert apply(plan, llama, tmp_path / "out").achieved == pytest.approx(0.5, abs=1e-3)
    other = saved("llama", tmp_path / "other", dtype=torch.float16)
    with pytest.raises(UsageError, match="others than those"):
        apply(plan, other, tmp_path / "none")


def test_a_matrix_that_was_not_measured_is_no_part_of_the_fingerprint(tmp_path):
    folder = saved("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert apply(plan_for(folder), folder, tmp_path / "out").achieved == pytest.approx(0.5, abs=1e-3)


def test_an_edited_note_of_what_was_audited_is_told(llama, plans, tmp_path):
    plan = plans["magnitude"].replace(settings={"audited": {"roles": 3}})
    with pytest.raises(UsageError, match="the setting audited is"):
        apply(plan, llama, tmp_path / "out")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(("])
def test_an_endless_pattern_of_what_was_audited_is_told(llama, plans, tmp_path, pattern):
    plan = plans["magnitude"].replace(settings={"audited": {"layers": pattern}})
    with pytest.raises(UsageError, match=r"(?s)pattern.*fewer repeats"):
        apply(plan, llama, tmp_path / "out")


def test_a_plan_for_another_model_is_an_error_even_with_force(plans, tmp_path):
    other = saved("gpt2", tmp_path / "gpt2")
    with pytest.raises(UsageError, match="there is no tensor"):
        apply(plans["magnitude"], other, tmp_path / "out", options=ApplyOptions(force=True))


def test_an_entry_that_matches_nothing_is_an_error_before_any_work(llama, plans, tmp_path):
    wrong = edited(plans["sparsegpt"], tensor="model.layers.0.mlp.gate.weight")
    with pytest.raises(UsageError, match=r"there is no tensor model.layers.0.mlp.gate.weight; did you mean"):
        apply(wrong, llama, tmp_path / "out", options=OPTIONS)
    assert not left_in(tmp_path)


def test_a_tensor_that_calibration_does_not_reach_is_an_error_before_any_work(tmp_path, llama):
    plan = plan_for(llama, operator="wanda", choice=_also_the_head())
    with pytest.raises(UsageError, match=r"does not reach lm_head.weight"):
        apply(plan, llama, tmp_path / "out", options=OPTIONS)
    assert not left_in(tmp_path)


def _also_the_head():
    from tailwise.compression.plans.candidates import TensorChoice

    return TensorChoice(also=("lm_head",))


@pytest.mark.parametrize("operator", CALIBRATED)
def test_no_calibration_is_one_error(llama, plans, tmp_path, operator):
    with pytest.raises(UsageError, match="no calibration text"):
        apply(plans[operator], llama, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "says"),
    [(torch.zeros(0, 24, dtype=torch.int64), "empty"), ({"input_ids": torch.zeros(0, 24)}, "empty"),
     (torch.full((2, 24), VOCABULARY), "not in the model's vocabulary"),
     (torch.zeros(2, 65, dtype=torch.int64), "64 positions"),
     (torch.zeros(30, dtype=torch.int64), "has 30 tokens")],
)  # fmt: skip
def test_calibration_that_cannot_be_is_one_error(llama, plans, tmp_path, given, says):
    with pytest.raises(UsageError, match=says):
        apply(plans["wanda"], llama, tmp_path / "out", options=ApplyOptions(calibration=given))
    assert not left_in(tmp_path)


def test_stacked_experts_of_a_class_that_is_not_known_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.models.walking.experts._kind_of", lambda module: None)
    folder = saved("mixtral", tmp_path / "model")
    with pytest.raises(UsageError, match="holds the experts of a block in one tensor"):
        apply(plan_for(folder, operator="wanda"), folder, tmp_path / "out", options=OPTIONS)


def test_text_for_a_model_that_is_not_causal_is_one_error(tmp_path):
    folder = saved("bert", tmp_path / "bert")
    plan = plan_for(folder, operator="wanda")
    with pytest.raises(UsageError, match="no causal language model"):
        apply(plan, folder, tmp_path / "out", options=ApplyOptions(calibration=WINDOWS))


def test_an_output_that_is_there_is_one_error(llama, plans, tmp_path):
    shutil.copytree(llama, tmp_path / "out")
    with pytest.raises(UsageError, match="is there already"):
        apply(plans["magnitude"], llama, tmp_path / "out")


def test_a_pattern_that_does_not_divide_the_inputs_is_one_error(llama, plans, tmp_path):
    wrong = edited(plans["magnitude"], pattern="3:7", sparsity=4 / 7)
    with pytest.raises(UsageError, match="which 3:7 does not divide"):
        apply(wrong, llama, tmp_path / "out")


@pytest.mark.parametrize("sparsity", [1.063, -0.1, None])
def test_a_sparsity_that_cannot_be_reached_is_one_error(llama, plans, tmp_path, sparsity):
    with pytest.raises(UsageError, match="the plan cannot be applied"):
        apply(edited(plans["magnitude"], sparsity=sparsity), llama, tmp_path / "out")


def test_weights_that_are_no_numbers_cannot_be_calibrated(tmp_path):
    folder = saved("llama", tmp_path / "model")
    plan = plan_for(folder, operator="sparsegpt")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    zeros = torch.zeros(2, 24, dtype=torch.int64)
    with pytest.raises(UnreadableError, match="not finite"):
        apply(plan, folder, tmp_path / "out", options=ApplyOptions(calibration=zeros, force=True))


def test_a_tensor_that_is_not_finite_is_named(tmp_path):
    folder = saved("llama", tmp_path / "model")
    plan = plan_for(folder).replace(fingerprint="")
    name = plan.decisions[0].tensor
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnreadableError, match=rf"{re.escape(name)}: it holds entries that are not finite"):
        apply(plan, folder, tmp_path / "out")


def test_a_device_that_is_not_there_is_one_error(llama, plans, tmp_path):
    with pytest.raises(UsageError, match="is not a device"):
        apply(plans["magnitude"], llama, tmp_path / "out", options=ApplyOptions(device="abacus"))


# The command


def command():
    from tailwise.cli.apply_commands import apply as run

    app = typer.Typer()
    app.command()(run)
    return app


def test_the_command_writes_the_model_and_reports_in_json(llama, plans, tmp_path):
    plans["magnitude"].save(tmp_path / "plan.json")
    found = CliRunner().invoke(
        command(), [str(tmp_path / "plan.json"), str(llama), "-o", str(tmp_path / "out"), "--json", "--save-masks"]
    )
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["achieved"] == pytest.approx(0.5, abs=1e-3)
    assert len(report["tensors"]) == len(plans["magnitude"])
    assert (tmp_path / "out" / MASKS).is_file()


def test_the_command_takes_token_files_for_calibration(llama, plans, tmp_path):
    plans["wanda"].save(tmp_path / "plan.yaml")
    (tmp_path / "ids.json").write_text(json.dumps([i % VOCABULARY for i in range(500)]))
    given = ["--calibration", str(tmp_path / "ids.json"), "--samples", "4", "--window", "32", "--seed", "3"]
    place = [str(tmp_path / "plan.yaml"), str(llama), "-o", str(tmp_path / "out")]
    found = CliRunner().invoke(command(), [*place, *given])
    assert found.exit_code == 0, found.output
    assert "requested: 50.0000%" in found.output
    assert "- seed: 3" in (tmp_path / "out" / "README.md").read_text()
