"""Files of AlphaQuant, written and read, and levels of EvoPress."""

from __future__ import annotations

import fnmatch
import json

import pytest
from exported_models import llama_plan
from made_plans import audit_of, row, rows_of
from typer.testing import CliRunner

from tailwise.cli.plan_commands import app
from tailwise.compression.export.exporter import export
from tailwise.compression.making.import_alphaquant import alphaquant_plan
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UnreadableError, UsageError

# AlphaQuant, as its code resolves a configuration


def resolve(document, module):
    found = dict(document["default"])
    for override in document["overrides"]:
        if fnmatch.fnmatch(module, override["pattern"]):
            found |= {name: value for name, value in override.items() if name != "pattern"}
    return found


@pytest.fixture
def mixed(audit) -> Plan:
    plan = plan_quantize(audit, QuantizeRequest(5.0, allocator="alpha"))
    formats = ("mxfp4", "mxfp8", "bf16", "mxfp4")  # of the four blocks
    return plan.replace(decisions=tuple(item.but(format=formats[item.block]) for item in plan))


def both(plan, tmp_path):
    config, expanded = export(plan, "alphaquant", tmp_path / "aq.json")
    assert expanded.name == "aq.plan.json"
    return json.loads(config.read_text()), json.loads(expanded.read_text())


def test_alphaquant_resolves_each_layer_to_its_format_and_skips_all_else(mixed, tmp_path):
    config, expanded = both(mixed, tmp_path)
    assert {item.format for item in mixed} == {"mxfp4", "mxfp8", "bf16"}
    for item in mixed:
        module = item.tensor.removesuffix(".weight")
        found = resolve(config, module)
        assert found["skip"] is (item.format == "bf16")
        assert (found["wq"], found["aq"], found["group_size"]) == (item.format, "bf16", 32)
        assert (module in expanded) is (item.format != "bf16")
    assert resolve(config, "lm_head")["skip"] is True
    assert resolve(config, "layers.11.mlp_up")["skip"] is True


def test_alphaquant_gets_alpha_hill_and_the_category(mixed, tmp_path):
    _, expanded = both(mixed, tmp_path)
    assert set(next(iter(expanded.values()))) == {"wq", "aq", "group_size", "alpha_hill", "category"}
    for layer, scheme in expanded.items():
        item = mixed[f"{layer}.weight"]
        assert (scheme["alpha_hill"], scheme["category"]) == (item.metrics["alpha"], item.role)


def test_another_exponent_is_not_called_alpha_hill(mixed, tmp_path):
    plan = mixed.replace(settings={**mixed.settings, "estimator": "peak"})
    assert all("alpha_hill" not in scheme for scheme in both(plan, tmp_path)[1].values())


def test_names_with_the_signs_of_globs_match_themselves_alone(tmp_path):
    plan = llama_plan("mxfp4")
    odd = plan.decisions[0].but(tensor="a[0].b*.weight")
    config, _ = both(plan.replace(decisions=(odd,)), tmp_path)
    assert resolve(config, "a[0].b*")["skip"] is False
    assert resolve(config, "a0.bc")["skip"] is True


@pytest.mark.parametrize(("name", "fields"), [
    ("mxfp6", {"wq": "mxfp6", "group_size": 32, "extra": {"format": "e2m3"}}),
    ("mxfp6-e3m2", {"wq": "mxfp6", "group_size": 32, "extra": {"format": "e3m2"}}),
    ("int4-g32", {"wq": "int4", "group_size": 32}),
    ("int8", {"wq": "int8", "group_size": -1}),
])  # fmt: skip
def test_schemes_of_alphaquant(tmp_path, name, fields):
    _, expanded = both(llama_plan(name), tmp_path)
    scheme = expanded["model.layers.1.mlp.up_proj"]
    assert {key: scheme[key] for key in fields} == fields


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_written_for_alphaquant_is_read_back(audit, mixed, tmp_path, which):
    paths = export(mixed, "alphaquant", tmp_path / "aq.json")
    back = alphaquant_plan(paths[which], audit)
    kept = [item for item in mixed if item.format != "bf16"]
    assert {item.tensor: item.format for item in back} == {item.tensor: item.format for item in kept}
    assert {item.tensor: item.metrics["alpha_hill"] for item in back} == {
        item.tensor: item.metrics["alpha"] for item in kept
    }
    assert [(item.shape, item.role, item.n_params) for item in back] == [
        (mixed[item.tensor].shape, mixed[item.tensor].role, mixed[item.tensor].n_params) for item in back]  # fmt: skip
    assert (back.kind, back.fingerprint, back.validate()) == ("quantize", audit.provenance.fingerprint, ())


def read(tmp_path, audit, document):
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return alphaquant_plan(path, audit)


def test_the_last_pattern_wins_field_by_field(tmp_path, audit):
    plan = read(tmp_path, audit, {
        "default": {"wq": "mxfp8", "aq": "mxfp8", "group_size": 128},
        "overrides": [{"pattern": "layers.[012].*", "group_size": 64},
                      {"pattern": "layers.0.*", "wq": "int4"},
                      {"pattern": "layers.[01].attn_q", "wq": "int8"},
                      {"pattern": "*.attn_v", "skip": True},
                      {"pattern": "layers.2.attn_v", "skip": False},
                      {"pattern": "lm_head", "wq": "bf16"}],
    })  # fmt: skip
    found = {item.matrix: item.format for item in plan}
    assert found["layers.0.attn_q"] == "int8-g64"
    assert found["layers.1.attn_q"] == "int8-g64"
    assert found["layers.0.mlp_up"] == "int4-g64"
    assert found["layers.1.mlp_up"] == "mxfp8"
    assert found["lm_head"] == "bf16"
    assert "layers.1.attn_v" not in found
    assert found["layers.2.attn_v"] == "mxfp8"
    assert "embed" not in found
    assert plan["layers.0.attn_q.weight"].reason == "the override layers.[01].attn_q"
    assert any("activations in mxfp8" in note for note in plan.notes)
    assert any("group_size 128, 64 is not kept" in note for note in plan.notes)


@pytest.mark.parametrize(("document", "said"), [
    ({"default": {"wq": "mxfp8"}, "overrides": [{"pattern": "*.q_proj", "skip": True}]},
     r"no linear layer matches \*\.q_proj"),
    ({"layers.9.mlp_up": {"wq": "mxfp4"}}, r"no linear layer layers\.9\.mlp_up"),
    ({"default": {"wq": "int6", "group_size": 32}}, "schemes that tailwise has not: int6 of .* and 14 more"),
    ({"default": {"wq": "mxfp8", "skip": True}}, "quantizes nothing"),
    ({"default": 3}, "default is no object"),
    ({"overrides": [{"wq": "mxfp8"}]}, "no list of objects with a pattern"),
    ({"layers.0.mlp_up": 4}, "holds no scheme"),
    ("{", "is no JSON"),
    ("[]", "is no file of AlphaQuant"),
    ({"tailwise_plan": 1}, "is a plan of tailwise already"),
])  # fmt: skip
def test_wrong_files_are_told(tmp_path, audit, document, said):
    with pytest.raises(UsageError, match=said):
        read(tmp_path, audit, document)


def test_a_group_that_does_not_divide_the_inputs_is_read_and_refused_by_tools_that_take_whole_ones(tmp_path, audit):
    plan = read(tmp_path, audit, {"default": {"wq": "int4", "group_size": 48}})
    assert {decision.format for decision in plan} == {"int4-g48"}
    with pytest.raises(UsageError, match="groups of 48 do not divide the inputs"):
        export(plan, "compressed-tensors", tmp_path / "out.json")


def test_a_missing_file_is_unreadable(tmp_path, audit):
    with pytest.raises(UnreadableError, match="not readable"):
        alphaquant_plan(tmp_path / "none.json", audit)


def test_experts_that_are_modules_are_found_and_stacked_ones_are_not(tmp_path):
    rows = [*rows_of(1), row("layers.0.experts.0.up", "expert_up", 0, (64, 64), kind="expert")]
    rows += [
        row(f"layers.0.stack#{n}", "expert_up", 0, (64, 64), kind="expert", tensor="layers.0.stack") for n in (0, 1)
    ]
    plan = read(tmp_path, audit_of(rows), {"default": {"wq": "mxfp4"}})
    assert "layers.0.experts.0.up.weight" in plan
    assert "layers.0.stack" not in plan


def test_the_command_imports_and_says_where(audit, tmp_path, mixed):
    config, _ = export(mixed, "alphaquant", tmp_path / "aq.json")
    audit.save(tmp_path / "a.audit")
    out = tmp_path / "plan.json"
    done = CliRunner().invoke(app, ["import", str(config), "--from", "alphaquant", "--audit", str(tmp_path / "a.audit"),
                                    "-o", str(out)])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert str(out) in done.output.replace("\n", "")
    assert {item.format for item in Plan.load(out)} == {"mxfp4", "mxfp8"}


# EvoPress


def levels(path):
    """As its loader reads them."""
    found = {}
    for line in path.read_text().split("\n"):
        layer, level = line.split(":")
        found[layer.strip(" ")] = int(level)
    return found


def test_levels_to_quantize_are_bits(tmp_path):
    plan = llama_plan("int2-g64", "int3-g64", "int4-g64", "bf16")
    path, notes = export(plan, "evopress", tmp_path / "levels.txt")
    found, facts = levels(path), json.loads(notes.read_text())
    assert found == {item.tensor.removesuffix(".weight"): int(item.format[3]) for item in plan if item.format != "bf16"}
    assert (facts["bitwidth_options"], facts["group_size"], facts["sym"]) == ([2, 3, 4], 64, True)
    assert len(facts["not_quantized"]) == 3 * 7


def test_levels_say_bits_alone(tmp_path):
    with pytest.raises(UsageError, match="differ in more: int3-g64, int4-asym-g32"):
        export(llama_plan("int3-g64", "int4-asym-g32"), "evopress", tmp_path / "levels.txt")


def test_levels_to_prune_keep_the_budget_and_come_within_half_a_step(audit, tmp_path):
    plan = plan_prune(audit, Request(0.7, "alpha", "sparsegpt"))
    path, notes = export(plan, "evopress", tmp_path / "levels.txt")
    found, facts = levels(path), json.loads(notes.read_text())
    assert sum(found.values()) == 0
    assert max(map(abs, found.values())) <= facts["num_levels"] == 8
    for layer, level in found.items():
        item = plan[f"{layer}.weight"]
        reached = facts["sparsity"] + level * facts["weights_diff"] / item.n_params
        assert facts["sparsity_of_layers"][layer] == pytest.approx(reached)
        assert abs(reached - item.sparsity) <= 1.0 * facts["weights_diff"] / item.n_params + 1e-9


def test_a_uniform_plan_has_level_zero_everywhere(audit, tmp_path):
    path, _ = export(plan_prune(audit, Request(0.5, "uniform", "sparsegpt")), "evopress", tmp_path / "levels.txt")
    assert set(levels(path).values()) == {0}


def test_levels_have_no_patterns(audit, tmp_path):
    plan = plan_prune(audit, Request(None, operator="wanda", pattern="2:4"))
    with pytest.raises(UsageError, match="without a pattern"):
        export(plan, "evopress", tmp_path / "levels.txt")


def test_a_name_that_would_be_several_lines_is_refused(audit, tmp_path):
    plan = plan_prune(audit, Request(0.5, "uniform", "sparsegpt"))
    odd = plan.replace(decisions=(plan.decisions[0].but(tensor="a\nb: 8\nlm_head.weight"), *plan.decisions[1:]))
    with pytest.raises(UsageError, match="cannot hold this name"):
        export(odd, "evopress", tmp_path / "levels.txt")
