"""From a plan of number formats to a model on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import inputs_for, quantize, saved

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying import carry_out
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating import journal
from tailwise.compression.treating.shared_scales import shared_reaches
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.number_formats.formats import parse_format

pytest.importorskip("transformers")

WINDOWS = inputs_for("llama")["input_ids"]
FREE, OPTIONS = ApplyOptions(), ApplyOptions(calibration=WINDOWS, batch=4)
FORMATS = ("int3-g16", "int4-asym-g16", "nvfp4", "int8")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """In bfloat16 and several shards."""
    return saved("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, max_shard_size="20KB")


def plan_for(folder: Path, **request) -> Plan:
    from tailwise.audits.run import audit

    given = {"bits": 5.5, "formats": FORMATS, "allocator": "alphaq", **request}
    return plan_quantize(audit(folder), QuantizeRequest(**given))


@pytest.fixture(scope="module")
def plans(llama) -> dict[str, Plan]:
    rtn = plan_for(llama)
    return {"rtn": rtn, "gptq": rtn.replace(operator="gptq")}


def options_of(operator: str) -> ApplyOptions:
    return FREE if operator == "rtn" else OPTIONS


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}


def logits(folder: Path) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=WINDOWS).logits


def edited(plan: Plan, **changes) -> Plan:
    """The plan with its first entry changed."""
    return plan.replace(decisions=(plan.decisions[0].but(**changes), *plan.decisions[1:]))


# What comes out


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_the_planned_tensors_change_and_all_else_is_as_before(llama, plans, tmp_path, operator):
    plan = plans[operator]
    done = quantize(plan, llama, tmp_path / "out", options_of(operator))
    before, after = tensors_of(llama), tensors_of(tmp_path / "out")
    assert list(before) == list(after)
    assert done.achieved == pytest.approx(plan.budget["achieved"]) == pytest.approx(done.requested)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value) == (name not in plan)


def test_to_nearest_writes_what_the_formats_give(llama, plans, tmp_path):
    quantize(plans["rtn"], llama, tmp_path / "out", FREE)
    before, after = tensors_of(llama), tensors_of(tmp_path / "out")
    shared = shared_reaches(plans["rtn"], lambda name: before[name][None])
    for decision in plans["rtn"]:
        reach = next(iter(shared.get(decision.tensor, ())), None)
        expected = parse_format(decision.format).quantize(before[decision.tensor], reach).values
        assert torch.equal(after[decision.tensor], expected.to(torch.bfloat16))


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_a_group_holds_no_more_values_than_its_codes(llama, tmp_path, operator):
    plan = plan_for(llama, bits=None, formats=("int2-g16",), allocator="uniform", operator=operator)
    quantize(plan, llama, tmp_path / "out", options_of(operator))
    for decision in plan:
        groups = tensors_of(tmp_path / "out")[decision.tensor].reshape(-1, 16)
        assert max(len(group.unique()) for group in groups) <= 4


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_a_last_group_that_is_shorter_is_written_and_not_packed(llama, tmp_path, operator):
    plan = plan_for(llama, bits=None, formats=("int4-g24",), allocator="uniform", operator=operator)
    assert any("the last group of a row is shorter" in note for note in plan.notes)
    quantize(plan, llama, tmp_path / "out", options_of(operator))
    for decision in plan:
        W = tensors_of(tmp_path / "out")[decision.tensor]
        groups = [group for row in W for group in row.split(24)]
        assert max(len(group.unique()) for group in groups) <= 16
    with pytest.raises(UsageError, match=r"groups of 24 \(int4-g24\) do not divide"):
        quantize(plan, llama, tmp_path / "packed", replace(options_of(operator), packed="compressed-tensors"))


def test_rounding_again_to_mx_changes_nothing(llama, tmp_path):
    plan = plan_for(llama, bits=14.0, formats=("mxfp8", "bf16"), allocator="uniform", operator="gptq")
    quantize(plan, llama, tmp_path / "out", OPTIONS)
    for decision in plan:
        W = tensors_of(tmp_path / "out")[decision.tensor]
        assert torch.equal(parse_format(decision.format).quantize(W).values.to(W.dtype), W)


def test_gptq_keeps_the_outputs_nearer_than_to_nearest(llama, tmp_path):
    lost = {}
    plan = plan_for(llama, bits=None, formats=("int3-g16",), allocator="uniform")
    for operator in ("rtn", "gptq"):
        quantize(plan.replace(operator=operator), llama, tmp_path / operator, options_of(operator))
        lost[operator] = float((logits(tmp_path / operator) - logits(llama)).square().mean())
    assert lost["gptq"] < lost["rtn"]


def test_the_order_of_columns_is_that_of_the_plan(llama, plans, tmp_path):
    turned = plans["gptq"].replace(settings={**plans["gptq"].settings, "act_order": True})
    quantize(plans["gptq"], llama, tmp_path / "a", OPTIONS)
    done = quantize(turned, llama, tmp_path / "b", OPTIONS)
    first = plans["gptq"].decisions[0].tensor
    assert not torch.equal(tensors_of(tmp_path / "a")[first], tensors_of(tmp_path / "b")[first])
    assert done.settings["act_order"] is True


def test_conv1d_has_its_groups_along_the_inputs(tmp_path):
    folder = saved("gpt2", tmp_path / "gpt2")  # stored in × out: the groups run down the columns
    for operator in ("rtn", "gptq"):
        plan = plan_for(folder, bits=None, formats=("int3-g32",), allocator="uniform", operator=operator)
        quantize(plan, folder, tmp_path / operator, options_of(operator))
        for decision in plan:
            groups = tensors_of(tmp_path / operator)[decision.tensor].T.reshape(-1, 32)
            assert max(len(group.unique()) for group in groups) <= 8


def test_images_calibrate_convolutions_too(tmp_path):
    folder = saved("convnext", tmp_path / "convnext")
    plan = plan_for(folder, bits=None, formats=("int8",), allocator="uniform", operator="gptq")
    plan = plan.replace(decisions=tuple(d for d in plan if ".stages." in d.tensor))
    done = quantize(plan, folder, tmp_path / "out", replace(OPTIONS, calibration=inputs_for("convnext")))
    assert len(done.tensors) == len(plan)


def test_the_output_carries_its_plan_and_says_that_it_is_as_large_as_before(llama, plans, tmp_path):
    done = quantize(plans["gptq"], llama, tmp_path / "out", OPTIONS)
    assert Plan.load(tmp_path / "out" / "tailwise_plan.json") == plans["gptq"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "quantized by gptq" in text
    assert "as large as before" in text
    assert all(f"`{decision.tensor}`" in text for decision in plans["gptq"])
    assert done.to_json()["unit"] == "bits per weight"
    assert torch.isfinite(logits(tmp_path / "out")).all()


def test_calibration_that_is_not_needed_is_noted(llama, plans, tmp_path):
    done = quantize(plans["rtn"], llama, tmp_path / "out", OPTIONS)
    assert done.notes == ("rtn looks at no text: the calibration was not used",)


def test_progress_is_told(llama, plans, tmp_path):
    said: list[tuple[str, int, int]] = []
    quantize(plans["gptq"], llama, tmp_path / "out", OPTIONS, lambda *step: said.append(step))
    assert ("quantizing blocks", 3, 3) in said
    assert "writing tensors" in [what for what, *_ in said]
    assert said[-1][0] == "reading back what was written"
    assert said[-1][1] == said[-1][2]


# What goes wrong


def test_a_run_that_was_killed_goes_on_where_it_was(llama, plans, tmp_path, monkeypatch):
    quantize(plans["gptq"], llama, tmp_path / "whole", OPTIONS)
    keep, count = journal.Journal.keep, []

    def dies(self, *given):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(1)
        keep(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "keep", dies)
        with pytest.raises(KeyboardInterrupt):
            quantize(plans["gptq"], llama, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
    done = quantize(plans["gptq"], llama, tmp_path / "out", OPTIONS)
    assert done.resumed == 2
    whole, after = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert all(torch.equal(after[name], value) for name, value in whole.items())


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_values_that_are_off_their_grid_are_an_error_and_leave_nothing(llama, plans, tmp_path, monkeypatch, operator):
    write = carry_out.write_checkpoint
    monkeypatch.setattr(
        carry_out, "write_checkpoint",
        lambda layout, checkpoint, target, change: write(layout, checkpoint, target, lambda name: None),
    )  # fmt: skip
    with pytest.raises(UnreadableError, match="holds values that"):
        quantize(plans[operator], llama, tmp_path / "out", options_of(operator))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor": "model.layers.0.mlp.down_proj.wight"}, "did you mean"),
        ({"n_params": 5}, "parameters, not 5"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_work(llama, plans, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        quantize(edited(plans["rtn"], **changes), llama, tmp_path / "out", FREE)
    assert list(tmp_path.glob(".out*")) == []


def test_other_weights_are_refused_unless_forced(llama, plans, tmp_path):
    other = plans["rtn"].replace(fingerprint="0" * 64)
    with pytest.raises(UsageError, match="weights are others"):
        quantize(other, llama, tmp_path / "out", FREE)
    assert quantize(other, llama, tmp_path / "out", replace(FREE, force=True)).tensors


def test_what_gptq_needs_and_does_not_reach_is_said(llama, plans, tmp_path):
    with pytest.raises(UsageError, match="no calibration text"):
        quantize(plans["gptq"], llama, tmp_path / "out", FREE)
    from tailwise.compression.plans.candidates import TensorChoice

    head = plan_for(llama, formats=("int8",), bits=None, allocator="uniform", choice=TensorChoice(also=("lm_head",)))
    with pytest.raises(UsageError, match=r"does not reach lm_head\.weight"):
        quantize(head.replace(operator="gptq"), llama, tmp_path / "out", OPTIONS)


def test_there_are_no_masks(llama, plans, tmp_path):
    with pytest.raises(UsageError, match="no masks"):
        quantize(plans["rtn"], llama, tmp_path / "out", replace(FREE, save_masks=True))


def test_weights_that_are_not_finite_name_their_tensor(tmp_path):
    from tiny_models import built

    folder = saved("llama", tmp_path / "llama")
    plan = plan_for(folder, allocator="uniform")
    model = built("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"layers\.0\.mlp\.up_proj\.weight: cannot quantize NaN"):
        quantize(plan, folder, tmp_path / "out", replace(FREE, force=True))


def test_relative_errors_are_those_of_the_written_file(llama, plans, tmp_path):
    done = quantize(plans["rtn"], llama, tmp_path / "out", FREE)
    before, after = tensors_of(llama), tensors_of(tmp_path / "out")
    for item in done.tensors:
        old, new = before[item.tensor].double(), after[item.tensor].double()
        assert item.relative_error == pytest.approx(float((new - old).norm() / old.norm()))
    assert done.in_bits


def test_the_example_model_in_bits(pycode, tmp_path):
    plan = plan_for(pycode, bits=4.5, formats=("mxfp4", "mxfp8", "bf16"))
    done = quantize(plan, pycode, tmp_path / "out", FREE)
    assert done.achieved == pytest.approx(4.5, rel=2e-3)
    assert done.achieved <= 4.5


def test_the_command_says_what_it_looked_at_and_names_its_numbers(llama, plans, tmp_path, command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    (tmp_path / "ids.json").write_text(json.dumps(WINDOWS.flatten().tolist()))
    plans["gptq"].save(tmp_path / "plan.json")
    code, out, err = command_line("apply", tmp_path / "plan.json", llama, "-o", tmp_path / "out", "--calibration",
                                  tmp_path / "ids.json", "--samples", 6, "--window", 8)  # fmt: skip
    assert code == 0
    assert "calibrating by 6 windows of 8 tokens" in err
    assert "gptq looked at 6 windows of 8 tokens of " in out
    assert "‖ΔW‖ / ‖W‖" in out
    assert "whole model: " in out
    assert "nearer" not in out
