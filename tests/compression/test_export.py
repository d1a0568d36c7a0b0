"""Plans for other tools."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tailwise.cli.plan_commands import app
from tailwise.compression.export.exporter import EXPORTERS, export
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.core.errors import UsageError


def modifiers(path):
    (stage,) = (value for name, value in yaml.safe_load(path.read_text()).items() if name.endswith("_stage"))
    assert all(name.endswith("_modifiers") for name in stage)
    return [next(iter(group.items())) for group in stage.values()]


@pytest.mark.parametrize(
    ("operator", "name"), [("wanda", "WandaPruningModifier"), ("sparsegpt", "SparseGPTModifier")]
)  # fmt: skip
def test_every_layer_has_one_modifier_with_its_sparsity(audit, tmp_path, operator, name):
    plan = plan_prune(audit, Request(0.7, "alpha", operator))
    (path,) = export(plan, "llmcompressor", tmp_path / "recipe.yaml")
    found = modifiers(path)
    assert {kind for kind, _ in found} == {name}
    for decision in plan:
        module = decision.tensor.removesuffix(".weight")
        holds = [given for _, given in found
                 if any(re.match(target.removeprefix("re:"), module) for target in given["targets"])]  # fmt: skip
        assert [given["sparsity"] for given in holds] == [decision.sparsity]


def test_layers_of_one_amount_share_a_modifier(audit, tmp_path):
    (path,) = export(plan_prune(audit, Request(0.5, "uniform", "wanda")), "llmcompressor", tmp_path / "r.yml")
    ((_, given),) = modifiers(path)
    assert (len(given["targets"]), given["mask_structure"]) == (16, "0:0")


def test_targets_name_one_module_each(audit, tmp_path):
    (path,) = export(plan_prune(audit, Request(0.5, "uniform", "wanda")), "llmcompressor", tmp_path / "r.yaml")
    ((_, given),) = modifiers(path)
    target = next(text for text in given["targets"] if "1" in text and "mlp_up" in text).removeprefix("re:")
    assert re.match(target, "layers.1.mlp_up")
    assert not re.match(target, "layers.11.mlp_up")
    assert not re.match(target, "layers.1.mlp_upper")


def test_patterns_turn_from_kept_to_removed(audit, tmp_path):
    plan = plan_prune(audit, Request(0.7, "alpha", "wanda", pattern="N:8"))
    (path,) = export(plan, "llmcompressor", tmp_path / "r.yaml")
    for _, given in modifiers(path):
        removed, group = map(int, given["mask_structure"].split(":"))
        assert removed / group == pytest.approx(given["sparsity"])


def test_entries_of_nothing_are_left_out_and_a_plan_of_nothing_is_refused(audit, tmp_path):
    plan = plan_prune(audit, Request(0.5, "uniform", "wanda"))
    some = replace(plan, decisions=(plan.decisions[0].but(sparsity=0.0), *plan.decisions[1:]))
    (path,) = export(some, "llmcompressor", tmp_path / "r.yaml")
    assert len(modifiers(path)[0][1]["targets"]) == 15
    none = replace(plan, decisions=tuple(item.but(sparsity=0.0) for item in plan))
    with pytest.raises(UsageError, match="takes nothing away"):
        export(none, "llmcompressor", tmp_path / "r.yaml")


@pytest.mark.parametrize("operator", ["magnitude", "low_rank", "structured"])
def test_operators_that_llmcompressor_has_not_are_refused(audit, tmp_path, operator):
    with pytest.raises(UsageError, match=f"no one-shot modifier for {operator}"):
        export(plan_prune(audit, Request(0.5, operator=operator)), "llmcompressor", tmp_path / "r.yaml")


def test_tensors_that_are_no_linear_layers_are_named_together(audit, tmp_path):
    plan = plan_prune(audit, Request(0.5, "uniform", "wanda"))
    stacked = tuple(item.but(tensor=f"{item.matrix}.stack", shape=()) for item in plan.decisions[:5])
    with pytest.raises(UsageError, match=r"these are none: layers\.0\.attn_q\.stack, .* and 2 more"):
        export(plan.replace(decisions=(*stacked, *plan.decisions[5:])), "llmcompressor", tmp_path / "r.yaml")


def test_ratios_are_block_by_block_in_the_order_of_the_model(plan, tmp_path):
    array, names = export(plan, "alphapruning", tmp_path / "ratios.npy")
    values, facts = np.load(array), json.loads(names.read_text())
    assert values.shape == (len(plan),)
    assert facts["layers"][:4] == [f"layers.0.{role}" for role in ("attn_q", "attn_v", "mlp_up", "mlp_down")]
    assert [plan[f"{name}.weight"].sparsity for name in facts["layers"]] == values.tolist()
    assert values @ np.array([plan[f"{name}.weight"].n_params for name in facts["layers"]]) / plan.n_params == (
        pytest.approx(0.7, abs=1e-6)
    )


def test_ratios_have_no_patterns(audit, tmp_path):
    plan = plan_prune(audit, Request(None, operator="wanda", pattern="2:4"))
    with pytest.raises(UsageError, match="unstructured"):
        export(plan, "alphapruning", tmp_path / "r.npy")


def test_wrong_suffixes_formats_and_kinds_are_told(plan, tmp_path):
    with pytest.raises(UsageError, match=r"not written to \.txt"):
        export(plan, "llmcompressor", tmp_path / "r.txt")
    with pytest.raises(UsageError, match="no export format named 'llmcompresor'"):
        export(plan, "llmcompresor", tmp_path / "r.yaml")
    quantized = plan.replace(kind="quantize", operator="rtn", decisions=tuple(item.but(format="int4") for item in plan))
    with pytest.raises(UsageError, match="takes plans to prune"):
        export(quantized, "alphapruning", tmp_path / "r.npy")
    with pytest.raises(UsageError, match="takes plans to quantize"):
        export(plan, "torchao", tmp_path / "r.json")


def test_every_exporter_says_what_it_writes_and_for_whom():
    assert {"llmcompressor", "alphapruning"} <= set(EXPORTERS)
    assert all(item.summary.endswith(".") or item.summary for _, item in EXPORTERS.items())
    assert all(item.source for _, item in EXPORTERS.items())


def test_the_command_writes_and_says_where(plan, tmp_path):
    path = plan.save(tmp_path / "plan.json")
    done = CliRunner().invoke(app, ["export", str(path), "--to", "llmcompressor", "-o", str(tmp_path / "recipe.yaml")])
    assert done.exit_code == 0
    assert str(tmp_path / "recipe.yaml") in done.output.replace("\n", "")
    assert modifiers(tmp_path / "recipe.yaml")
