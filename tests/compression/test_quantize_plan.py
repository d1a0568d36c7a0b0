"""From an audit to a plan of number formats."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import typer
from made_plans import audit_of, row, rows_of
from typer.testing import CliRunner

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading
from tailwise.cli.plan_made import bytes_of, quantize
from tailwise.compression.choosing.alphaq import sensitivities
from tailwise.compression.choosing.bit_formats import ASSIGNERS, Choices, FormatGroup, FormatSettings
from tailwise.compression.making.bit_budget import header_bytes
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.bits import bits_of, depth_words, formats_words, mean_bits, shape_of, whole_model_words
from tailwise.compression.plans.candidates import Candidate, TensorChoice
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.report.plan_view import diff_grid, plan_grid

ALLOCATORS = ["uniform", "depth", "ends", "alpha", "alphaq"]
MX = ("mxfp4", "mxfp8", "bf16")


@pytest.fixture(scope="module")
def plan(audit) -> Plan:
    return plan_quantize(audit, QuantizeRequest(5.0, allocator="alphaq"))


def moe(blocks: int = 2, experts: int = 3):
    roles = {"gate_proj": "expert_gate", "up_proj": "expert_up", "down_proj": "expert_down"}
    return [
        row(f"layers.{block}.mlp.experts.{number}.{part}", role, block, (64, 64), kind="expert",
            metrics={"alpha": 2.0 + number + block})
        for block in range(blocks) for number in range(experts) for part, role in roles.items()
    ]  # fmt: skip


# What comes out


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("bits", [4.25, 4.6, 5.0, 8.25, 11.0])
def test_the_entries_keep_the_budget_and_come_near_to_it(audit, allocator, bits):
    plan = plan_quantize(audit, QuantizeRequest(bits, allocator=allocator))
    assert plan.kind == "quantize"
    assert bits * 0.98 <= plan.budget["achieved"] <= bits * (1 + 1e-9)
    assert plan.budget["achieved"] == pytest.approx(mean_bits(plan))
    assert plan.validate() == ()
    assert all(decision.reason for decision in plan)


def test_bits_are_weighted_by_parameters_and_count_scales_and_zero_points(audit):
    plan = plan_quantize(audit, QuantizeRequest(6.0, formats=("int4-asym-g32", "int8"), allocator="alphaq"))
    total = sum(d.n_params * parse_format(d.format).bits_per_weight(*d.shape) for d in plan)
    assert plan.budget["achieved"] == pytest.approx(total / plan.n_params)
    assert plan.budget["bytes"] == round(total / 8)
    assert parse_format("int4-asym-g32").bits_per_weight(64, 64) == 4 + 20 / 32


def test_one_format_that_holds_the_budget_is_taken_for_all(audit):
    plan = plan_quantize(audit, QuantizeRequest(8.25))
    assert {decision.format for decision in plan} == {"mxfp8"}
    assert "one format holds the budget: mxfp8" in plan.notes


@pytest.mark.parametrize("allocator", ["alpha", "depth"])
def test_where_one_format_holds_the_budget_the_order_decides_nothing_and_tau_spreads(audit, allocator):
    plan = plan_quantize(audit, QuantizeRequest(8.25, allocator=allocator))
    uniform = plan_quantize(audit, QuantizeRequest(8.25))
    assert [d.format for d in plan] == [d.format for d in uniform]
    assert any("this is what uniform gives; --tau 0.3 spreads" in note for note in plan.notes)
    assert not any("the two formats next to" in note or "ranked across roles" in note for note in plan.notes)
    spread = plan_quantize(audit, QuantizeRequest(8.25, allocator=allocator, settings={"tau": 0.5}))
    assert len({d.format for d in spread}) > 1
    assert spread.budget["achieved"] <= 8.25


def test_one_format_alone_needs_no_budget(audit):
    plan = plan_quantize(audit, QuantizeRequest(formats=("int4-g32",)))
    assert {decision.format for decision in plan} == {"int4-g32"}
    assert plan.budget["requested"] == plan.budget["achieved"] == 4.5


def test_a_budget_that_tensors_and_formats_cannot_come_near_to_is_told(audit):
    plan = plan_quantize(audit, QuantizeRequest(4.3, choice=TensorChoice(layers=r"layers\.0\.")))
    assert any("requested 4.3 bits, achieved 4.25" in note for note in plan.notes)


def test_bytes_are_of_the_whole_model(audit):
    kept = sum(item.n_params * 4 for item in audit.rows if item.role in ("embed", "lm_head"))
    planned = 90_112 * 5 // 8
    headers = header_bytes(audit, [d.tensor for d in plan_quantize(audit, QuantizeRequest(5.0))])
    assert headers > 18 * 90
    plan = plan_quantize(audit, QuantizeRequest(bytes=kept + planned + headers))
    assert plan.budget["requested"] == pytest.approx(5.0)
    assert plan.budget["bytes"] + plan.budget["kept_bytes"] + headers <= kept + planned + headers


def test_the_head_and_embeddings_stay_unless_named(audit):
    assert {d.role for d in plan_quantize(audit, QuantizeRequest(5.0))} == {"attn_q", "attn_v", "mlp_up", "mlp_down"}
    named = plan_quantize(audit, QuantizeRequest(5.0, choice=TensorChoice(also=("lm_head",))))
    assert "lm_head.weight" in named


# What must be alike


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_query_and_value_and_gate_and_up_have_one_format(allocator):
    rows = rows_of()
    for block in range(4):
        rows.append(row(f"layers.{block}.mlp_gate", "mlp_gate", block, (128, 64)))
    plan = plan_quantize(audit_of(rows), QuantizeRequest(5.5, allocator=allocator))
    for block in range(4):
        formats = {d.role: d.format for d in plan if d.block == block}
        assert formats["attn_q"] == formats["attn_v"]
        assert formats["mlp_gate"] == formats["mlp_up"]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_the_experts_of_a_block_have_one_format(allocator):
    plan = plan_quantize(audit_of([*moe(), *rows_of()]), QuantizeRequest(5.5, allocator=allocator))
    for block in range(2):
        assert len({d.format for d in plan if d.block == block and d.role.startswith("expert")}) == 1


def test_experts_may_differ_where_asked_and_an_expert_may_not():
    request = QuantizeRequest(
        allocator="alpha", estimator="peak", per_expert=True, settings={"mxfp4_ratio": 0.34, "bf16_ratio": 0.34}
    )
    plan = plan_quantize(audit_of(moe(blocks=1)), request)
    by_expert = {number: {d.format for d in plan if f".experts.{number}." in d.tensor} for number in range(3)}
    assert all(len(found) == 1 for found in by_expert.values())
    assert len(set.union(*by_expert.values())) > 1
    assert plan.validate() == ()


def test_stacked_experts_are_several_matrices_of_one_tensor():
    stacked = [
        row(f"layers.0.experts.up[{index}]", "expert_up", 0, (32, 64), kind="expert", tensor="layers.0.experts.up")
        for index in range(4)
    ]
    plan = plan_quantize(audit_of([*stacked, *rows_of()]), QuantizeRequest(5.0))
    assert plan["layers.0.experts.up"].shape == (4, 32, 64)


def test_a_last_group_that_is_shorter_counts_its_own_scale_and_is_noted():
    odd = row("layers.0.mlp_odd", "mlp_down", 0, (64, 100))
    plan = plan_quantize(audit_of([odd, *rows_of()]), QuantizeRequest(formats=("mxfp4",)))
    assert plan["layers.0.mlp_odd.weight"].format == "mxfp4"
    assert bits_of(plan["layers.0.mlp_odd.weight"]) == 4 + 8 * 4 / 100
    assert any("mxfp4: the last group of a row is shorter in 1 tensor (layers.0.mlp_odd" in note for note in plan.notes)
    assert plan.validate() == ()


def test_fused_parts_are_one_matrix_and_conv1d_has_its_inputs_on_the_rows():
    parts = tuple((64, 32, 1) for _ in range(3))
    fused = Candidate("h.0.attn.c_attn.weight", "h.0.attn.c_attn", "attn_qkv", 0, 3 * 64 * 32, {}, parts)
    assert shape_of(fused, {}) == (192, 32)
    assert shape_of(fused, {"model_type": "gpt2"}) == (96, 64)
    kernel = Candidate("conv.weight", "conv", "conv", 0, 8 * 3 * 9, {}, ((8, 3, 9),), "conv")
    assert shape_of(kernel, {}) == (8, 27)


# The published ways


def choices(alphas, variances, sizes, formats, mean) -> Choices:
    groups = tuple(
        FormatGroup(f"t{index}", (Candidate(f"t{index}", f"t{index}", "mlp_up", index, size,
                                      {"alpha": alpha, "variance": variance}),))
        for index, (alpha, variance, size) in enumerate(zip(alphas, variances, sizes, strict=True))
    )  # fmt: skip
    parsed = [parse_format(name) for name in formats]
    element = np.array([item.element_bits for item in parsed])
    bits = np.outer(sizes, element).astype(float)
    return Choices(groups, tuple(formats), element, bits, None if mean is None else mean * sum(sizes))


def test_alphaq_by_hand():
    """(median α/α_l)^γ · Var · 2^(−2b), b in {2, 3, 4, 8}, three equal tensors at 3 mean bits: all 27 choices tried."""
    given = choices([2.0, 4.0, 8.0], [1.0, 2.0, 1.0], [100, 100, 100], ("int2", "int3", "int4", "int8"), 3.0)
    assert sensitivities(given, 1.0) == pytest.approx([2.0, 2.0, 0.5])
    assert sensitivities(given, 0.0) == pytest.approx([1.0, 2.0, 1.0])
    assert sensitivities(given, 2.0) == pytest.approx([4.0, 2.0, 0.25])
    bits = [2, 3, 4, 8]
    for gamma in (0.0, 1.0, 2.0):
        weights = sensitivities(given, gamma)
        best = min(
            sum(w * 2.0 ** (-2 * b) for w, b in zip(weights, chosen, strict=True))
            for chosen in product(bits, repeat=3)
            if sum(chosen) <= 9
        )
        levels = ASSIGNERS["alphaq"](given, FormatSettings(gamma=gamma)).levels
        loss = sum(w * 2.0 ** (-2 * bits[level]) for w, level in zip(weights, levels, strict=True))
        assert loss == pytest.approx(best)
    assert ASSIGNERS["alphaq"](given, FormatSettings(gamma=2.0)).levels.tolist() == [2, 1, 0]


def test_the_variance_is_the_mean_eigenvalue_over_the_long_side(audit):
    plan = plan_quantize(audit, QuantizeRequest(5.0, allocator="alphaq"))
    decision = plan["layers.0.attn_q.weight"]
    square = float(audit[decision.matrix].spectrum.eigenvalues.sum())
    assert decision.metrics["variance"] == pytest.approx(square / decision.n_params, rel=1e-5)


def test_alphaquant_by_hand():
    """Ten tensors, α = 1 … 10: thresholds are quantiles, α ≥ 7.3 for the top 30 %, α ≤ 1.9 for the lowest 10 %."""
    given = choices(range(1, 11), [1.0] * 10, [10] * 10, MX, None)
    found = ASSIGNERS["alpha"](given, FormatSettings(mxfp4_ratio=0.3, bf16_ratio=0.1))
    assert found.levels.tolist() == [2, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert "α ≥ 7.3: mxfp4" in found.notes
    alone = ASSIGNERS["alpha"](given, FormatSettings(mxfp4_ratio=0.3))
    assert alone.levels.tolist() == [1] * 7 + [0] * 3


def test_with_tau_bits_are_shares_of_the_budget_that_fall_as_alpha_rises():
    sizes, alphas = [1024, 2048, 1024, 4096], [6.0, 2.0, 3.0, 4.0]
    items = [
        Candidate(f"{k}.weight", str(k), "mlp_up", k, size, metrics={"alpha": alpha})
        for k, (size, alpha) in enumerate(zip(sizes, alphas, strict=True))
    ]
    levels = np.arange(1.0, 9.0)
    bits = np.array(sizes, dtype=float)[:, None] * levels[None, :]
    groups = tuple(FormatGroup(item.tensor, (item,)) for item in items)
    given = Choices(groups, tuple(f"int{k:.0f}" for k in levels), levels, bits, 4.0 * sum(sizes))
    share = 1 + 0.5 * (1 - 2 * (np.array(alphas) - 2.0) / 4.0)
    wanted = 4.0 * sum(sizes) * share / (np.array(sizes) * share).sum()
    found = ASSIGNERS["alpha"](given, FormatSettings(tau=0.5))
    assert np.abs(levels[found.levels] - wanted).max() <= 1.0
    assert given.weight(found.levels) == pytest.approx(given.goal, rel=0.03)
    assert given.weight(found.levels) <= given.goal
    order = np.argsort(alphas)
    assert (np.diff(found.levels[order]) <= 0).all()
    assert found.settings == {"tau": 0.5}
    assert len(set(ASSIGNERS["alpha"](given, FormatSettings(tau=0.0)).levels)) == 1


def test_alpha_is_fitted_by_the_estimator_of_alphaquant(audit):
    plan = plan_quantize(audit, QuantizeRequest(5.0, allocator="alpha"))
    assert plan.settings["estimator"] == "top_outside"
    assert any("across roles" in note for note in plan.notes)


def study_of(audit, errors) -> PrecisionStudy:
    layers = tuple(
        LayerStudy(item.name, item.role, item.block, item.rows, item.cols, item.n_params, "F32", readings={
            name: Reading(name, 4.0, relative_error=error(item)) for name, error in errors.items()
        })
        for item in audit.rows if item.measured
    )  # fmt: skip
    return PrecisionStudy("a/model", tuple(errors), {}, layers, {})


def test_distortion_spares_what_the_study_found_hurt_most(audit):
    def hurt(item) -> float:
        return 0.9 if item.block == 2 else 0.1

    study = study_of(audit, {"mxfp4": hurt, "mxfp8": lambda _: 0.01, "bf16": lambda _: 0.001})
    for relative in (False, True):
        request = QuantizeRequest(5.25, formats=MX[:2], allocator="distortion", study=study, relative=relative)
        plan = plan_quantize(audit, request)
        assert {d.block for d in plan if d.format == "mxfp8"} == {2}
    with pytest.raises(UsageError, match="the study has no nf4"):
        plan_quantize(audit, replace(request, formats=("nf4", "mxfp8"), bits=6.0))
    with pytest.raises(UsageError, match="the study does not hold"):
        plan_quantize(
            audit,
            replace(request, study=replace(study, layers=tuple(item for item in study.layers if item.block != 0))),
        )


def test_measured_losses_decide(audit):
    losses = {(item.tensors[0], name): (5.0 if item.block == 1 else 1.0) * cost
              for item in audit.rows for name, cost in (("mxfp4", 1.0), ("mxfp8", 0.1))}  # fmt: skip
    request = QuantizeRequest(5.25, formats=MX[:2], allocator="sensitivity", settings={"losses": losses})
    assert {d.block for d in plan_quantize(audit, request) if d.format == "mxfp8"} == {1}


# What is asked and cannot be


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"bits": 3.0}, r"3 bits per weight; the nearest has 4\.25"),
        ({"bits": 20.0}, r"20 bits per weight; the nearest has 16"),
        ({"bytes": 1000}, "what the plan leaves as it is takes"),
    ],
)
def test_a_budget_that_no_choice_meets_names_the_nearest(audit, request_, said):
    with pytest.raises(UsageError, match=said):
        plan_quantize(audit, QuantizeRequest(**request_))


def test_a_size_that_no_choice_meets_is_answered_in_bytes_with_what_would(audit):
    whole = plan_quantize(audit, QuantizeRequest(formats=("int4",))).budget
    size = whole["bytes"] + whole["kept_bytes"]
    with pytest.raises(UsageError) as told:
        plan_quantize(audit, QuantizeRequest(bytes=round(0.96 * size), formats=("int4", "int8")))
    assert plan_quantize(audit, QuantizeRequest(bytes=round(0.96 * size), formats=("int2", "int4", "int8")))
    assert "bits per weight" not in str(told.value)
    assert "at least" in str(told.value)
    assert "kB" in str(told.value) or "MB" in str(told.value)
    assert "add int2 to" in str(told.value)
    found = re.search(r"also='(\S+)' comes down to about ([\d.]+) kB", str(told.value))
    assert found is not None
    least = QuantizeRequest(formats=("int4",), choice=TensorChoice(also=tuple(found[1].split(","))))
    with_it = plan_quantize(audit, least).budget
    assert float(found[2]) == pytest.approx((with_it["bytes"] + with_it["kept_bytes"]) / 1000, rel=0.1)  # and headers


def test_bits_that_no_choice_meets_name_a_format_that_does(audit):
    for bits, formats, named in ((4.0, ("mxfp4", "mxfp8"), "int3"), (9.0, ("q4_0", "q8_0"), "fp16")):
        with pytest.raises(UsageError, match=f"add {named} to"):
            plan_quantize(audit, QuantizeRequest(bits=bits, formats=formats))
        assert plan_quantize(audit, QuantizeRequest(bits=bits, formats=(*formats, named)))


def test_a_type_that_another_stands_in_for_is_shown_and_counted_as_what_the_file_holds(audit):
    plan = plan_quantize(audit, QuantizeRequest(formats=("q4_k",)))
    shown = {cell for line in plan_grid(plan).lines for cell in line}
    assert ("q5_0" in shown) == any(decision.shape[-1] % 256 for decision in plan)
    assert "q5_0" in shown
    with pytest.raises(UsageError, match=r"in \d+ of \d+ tensors, .* q4_k counts as q5_0"):
        plan_quantize(audit, QuantizeRequest(bits=4.5, formats=("q4_k", "q6_k")))


def test_tensors_and_bytes_of_each_type_are_said_and_what_stands_in(audit):
    plan = plan_quantize(audit, QuantizeRequest(formats=("q4_k",)))
    mixed = plan.replace(decisions=tuple(item.but(format="q8_0") if not i else item for i, item in enumerate(plan)))
    words = formats_words(mixed)
    assert "q8_0 1, " in words
    assert "q5_0 (for q4_k) " in words
    assert sum(int(many) for many in re.findall(r" (\d+), [\d.]+ (?:bytes|[kM]B)", words)) == len(plan)
    assert formats_words(plan_quantize(audit, QuantizeRequest(formats=("int4",)))) == ""


def test_a_budget_of_bytes_is_beside_the_bytes_of_the_file(audit):
    kept = sum(item.n_params * 4 for item in audit.rows if item.role in ("embed", "lm_head"))
    plan = plan_quantize(audit, QuantizeRequest(bytes=kept + 80_000))
    words, budget = whole_model_words(plan), plan.budget
    file = re.search(r"a file of at most ([\d.]+) kB", words)
    assert file is not None
    whole = budget["bytes"] + budget["kept_bytes"] + budget["header_bytes"]
    assert float(file[1]) == pytest.approx(whole / 1000, rel=1e-3)
    assert whole <= kept + 80_000


def test_depth_is_said_where_it_explains_more_than_chance_or_many_tensors_differ(audit):
    rows = plan_quantize(audit, QuantizeRequest(formats=("int4",)))
    first = rows.decisions[0]
    one = rows.replace(decisions=(first.but(format="int8"), *rows.decisions[1:]))
    assert 1 / len(one) <= 0.1
    assert "Spearman" not in depth_words(one)
    blocks = sorted({item.block for item in rows})
    half = rows.replace(decisions=tuple(
        item.but(format="int8") if item.block < blocks[len(blocks) // 2] else item for item in rows))  # fmt: skip
    assert "later blocks get fewer bits" in depth_words(half)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "how many bits"),
        ({"bits": 4.5, "bytes": 10}, "two budgets"),
        ({"bits": math.nan}, "cannot be met"),
        ({"bits": -1.0}, "cannot be met"),
        ({"bits": 4.5, "formats": ()}, "no format to choose from"),
        ({"bits": 4.5, "formats": ("mxfp5",)}, "no number format named"),
        ({"bits": 4.5, "allocator": "alphaqq"}, "did you mean alphaq"),
        ({"bits": 4.5, "operator": "gptqq"}, "did you mean gptq"),
        ({"bits": 4.5, "act_order": True}, "no order of columns"),
        ({"bits": 4.5, "estimator": "peak"}, "looks at no α"),
        ({"bits": 4.5, "settings": {"gamma": 2.0}}, "does not take gamma"),
        ({"bits": 4.5, "allocator": "alphaq", "settings": {"gamma": math.inf}}, "gamma is inf"),
        ({"bits": 4.5, "allocator": "alpha", "settings": {"mxfp4_ratio": 0.3}}, "ratios say how many bits"),
        ({"allocator": "alpha", "settings": {"mxfp4_ratio": 0.7, "bf16_ratio": 0.7}}, "more than all tensors"),
        ({"allocator": "alpha", "settings": {"mxfp4_ratio": 0.3, "tau": 0.3}}, "two ways"),
        ({"bits": 4.5, "rise": 0.1}, "two budgets"),
        ({"bits": 4.5, "relative": True}, "reads no study"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_a_model_is_read(wrong, said):
    with pytest.raises(UsageError, match=said):
        QuantizeRequest(**wrong)


def test_ratios_take_three_formats(audit):
    request = QuantizeRequest(formats=("mxfp4", "bf16"), allocator="alpha", settings={"mxfp4_ratio": 0.3})
    with pytest.raises(UsageError, match="among three formats"):
        plan_quantize(audit, request)


def test_a_model_that_is_quantized_already_is_refused():
    packed = [replace(item, tensors=(f"{item.name}.codes", f"{item.name}.scales")) for item in rows_of()[:16]]
    with pytest.raises(UsageError, match="its weights are quantized"):
        plan_quantize(audit_of([*packed, *rows_of()[16:]]), QuantizeRequest(4.5))


# Files, checks, differences


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_plan_comes_back_from_its_file(plan, tmp_path, suffix):
    found = Plan.load(plan.save(tmp_path / f"p.{suffix}"))
    assert found.decisions == plan.decisions
    assert found.budget == plan.budget


def edited(plan: Plan, index: int, **changes) -> Plan:
    decisions = list(plan.decisions)
    decisions[index] = decisions[index].but(**changes)
    return plan.replace(decisions=tuple(decisions))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "mxfp5"}, "no number format named 'mxfp5'"),
        ({"format": None}, "has no format"),
        ({"sparsity": 0.5}, "has a sparsity"),
        ({"shape": (64, "x")}, "shape is"),
    ],
)
def test_a_wrong_edit_is_refused(plan, changes, said):
    with pytest.raises(UsageError, match=said):
        edited(plan, 0, **changes).validate()


def test_an_edit_that_parts_what_servers_fuse_or_changes_the_bits_is_noticed(plan):
    other = "bf16" if plan.decisions[0].format != "bf16" else "mxfp4"
    warnings = edited(plan, 0, format=other).validate()
    assert any("layers.0 (attention inputs)" in line and "one format" in line for line in warnings)
    assert any("bits per weight and no longer" in line for line in warnings)


def test_the_difference_of_two_plans_is_in_bits(audit, plan):
    other = plan_quantize(audit, QuantizeRequest(8.25))
    found = plan.diff(other)
    assert (found.unit, found.after) == ("bits per weight", pytest.approx(8.25))
    assert found.moved == sum(d.n_params for d in plan if d.format != "mxfp8")
    assert {change.field for change in found.changed} == {"format"}
    assert diff_grid(found).lines
    assert plan.diff(plan).same


def test_the_table_shows_a_format_or_mean_bits(plan):
    grid = plan_grid(plan)
    cells = {cell for line in grid.lines for cell in line[1:-1]}
    assert "mxfp4" in cells
    assert any(cell.endswith(" bits") for cell in cells)
    assert grid.lines[-1][-2] == f"{mean_bits(plan):.3f} bits"


def test_an_entry_without_a_shape_counts_the_bits_of_its_elements(plan):
    assert bits_of(plan.decisions[0].but(format="int4", shape=())) == 4.0


def test_planning_needs_no_torch():
    make = "tailwise.compression.making.make"
    code = f"import sys, {make} as m; m.ASSIGNERS['alphaq']; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# The command


@pytest.fixture
def run(tmp_path, monkeypatch, audit):
    """Call the command in a folder that holds `a.audit`: (exit code, stdout)."""
    monkeypatch.chdir(tmp_path)
    audit.save(tmp_path / "a.audit")
    app = typer.Typer()
    app.command()(quantize)

    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(item) for item in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.exit_code, result.stdout

    return call


def test_the_command_writes_the_plan(run, tmp_path):
    code, out = run("a.audit", "--bits", 5, "--allocator", "alphaq", "--gamma", 2, "-o", "p.json")
    assert code == 0
    assert "mxfp4" in out
    found = Plan.load(tmp_path / "p.json")
    assert (found.kind, found.settings["gamma"]) == ("quantize", 2.0)


def test_the_command_prints_json_alone(run):
    _, out = run("a.audit", "--mxfp4-ratio", 0.3, "--bf16-ratio", 0.1, "--allocator", "alpha", "--json")
    assert json.loads(out)["settings"]["mxfp4_ratio"] == 0.3


def test_a_dry_run_writes_nothing(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    run("a.audit", "--bits", 5, "--operator", "gptq", "--act-order", "--dry-run")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_reads_a_study(run, tmp_path, audit):
    study_of(audit, {name: lambda _: 0.1 for name in MX}).save(tmp_path / "s.json")
    code, out = run("a.audit", "--bits", 5, "--allocator", "distortion", "--study", "s.json", "--dry-run")
    assert (code, "distortion" in out) == (0, True)


@pytest.mark.parametrize(("text", "size"), [("900", 900), ("1.5KB", 1500), ("2 MiB", 2**21), ("3g", 3 * 10**9)])
def test_sizes_have_units(text, size):
    assert bytes_of(text) == size


def test_what_is_no_size_is_refused():
    with pytest.raises(UsageError, match="is no size"):
        bytes_of("many")
