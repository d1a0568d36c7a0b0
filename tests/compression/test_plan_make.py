"""From an audit to a plan."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made_plans import audit_of, degenerate, model, row, rows_of

import tailwise as tw
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.candidates import TensorChoice, estimator_for
from tailwise.compression.plans.rank_correlation import block_means, depth_correlation
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import fit

ALLOCATORS = ["uniform", "depth", "alpha", "alpha-role", "entropy"]


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
def test_the_entries_hold_the_budget_to_a_millionth(audit, allocator, sparsity):
    plan = plan_prune(audit, Request(sparsity, allocator))
    assert plan.sparsity == pytest.approx(sparsity, abs=1e-6)
    assert plan.budget["achieved"] == pytest.approx(sparsity, abs=1e-6)
    assert all(0.0 <= decision.sparsity <= 0.99 for decision in plan)
    assert plan.validate() == ()


def test_embeddings_and_head_stay_out_unless_named(audit):
    assert {d.role for d in plan_prune(audit, Request(0.5))} == {"attn_q", "attn_v", "mlp_up", "mlp_down"}
    named = plan_prune(audit, Request(0.5, choice=TensorChoice(also=("embed", "lm_head"))))
    assert {"embed.weight", "lm_head.weight"} <= {d.tensor for d in named}


def test_norms_and_routers_and_adapters_stay_out():
    extra = [
        row("layers.0.norm", "norm", 0, (1, 64), status="NOT_A_MATRIX", kind=""),
        row("layers.0.gate", "router", 0, (8, 64)),
        row("layers.0.q.lora_A", "attn_q", 0, (8, 64), kind="lora"),
    ]
    plan = plan_prune(audit_of([*rows_of(), *extra]), Request(0.5))
    assert not {item.name + ".weight" for item in extra} & {d.tensor for d in plan}
    assert any("left as they are: embed, lm_head, router" in note or "router" in note for note in plan.notes)


def test_roles_and_layers_narrow_the_choice(audit):
    plan = plan_prune(audit, Request(0.5, choice=TensorChoice(roles=("attn_q",), layers=r"layers\.[12]\.")))
    assert [d.tensor for d in plan] == ["layers.1.attn_q.weight", "layers.2.attn_q.weight"]
    assert plan.settings["roles"] == ["attn_q"]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (TensorChoice(roles=("attn_x",)), "did you mean attn_v or attn_q"),
        (TensorChoice(layers="nothing"), "no tensor is left"),
        (TensorChoice(layers="("), "no regular expression"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(audit, choice, said):
    with pytest.raises(UsageError, match=said):
        plan_prune(audit, Request(0.5, choice=choice))


def test_fused_parts_share_one_decision_with_the_mean_weighted_by_parameters():
    parts = [
        row(f"layers.0.qkv#{part}", f"attn_{part}", 0, (size, 64), tensor="layers.0.qkv.weight",
            metrics={"alpha": alpha})
        for part, size, alpha in (("q", 64, 2.0), ("k", 32, 4.0), ("v", 32, None))
    ]  # fmt: skip
    plan = plan_prune(audit_of([*parts, row("layers.1.o", "attn_o", 1, (64, 64))]), Request(0.5, "alpha"))
    fused = plan["layers.0.qkv.weight"]
    assert (fused.matrix, fused.role, fused.n_params, fused.shape) == ("layers.0.qkv", "attn_qkv", 128 * 64, ())
    assert fused.metrics["alpha"] == pytest.approx((64 * 2.0 + 32 * 4.0) / 96, rel=1e-5)


def test_stacked_experts_share_one_decision():
    experts = [
        row(f"layers.0.experts.up#{index}", "expert_up", 0, (32, 64), kind="expert", tensor="layers.0.experts.up")
        for index in range(4)
    ]
    plan = plan_prune(audit_of([*experts, *rows_of()]), Request(0.5, "alpha"))
    assert plan["layers.0.experts.up"].n_params == 4 * 32 * 64


def test_a_matrix_made_of_several_tensors_is_left_alone_and_named():
    packed = row("layers.0.packed", "mlp_up", 0, (64, 64), tensors=("layers.0.codes", "layers.0.scales"))
    plan = plan_prune(audit_of([packed, *rows_of()]), Request(0.5))
    assert len(plan) == 16
    assert "left as they are, each made of several tensors: layers.0.packed" in plan.notes


@pytest.mark.parametrize("estimator", ["ks", "peak"])
def test_a_plan_says_how_many_exponents_it_has_not_and_how_many_are_not_trusted(estimator):
    noise = np.random.default_rng(0).standard_normal((2, 96, 72))
    left, _, right = np.linalg.svd(noise[0], full_matrices=False)
    tail = left * ((np.arange(72) + 0.5) / 72) ** -0.25 @ right
    weights = {"0.self_attn.q_proj": np.eye(96, 72), "0.mlp.up_proj": noise[1], "1.mlp.up_proj": tail}
    audit = tw.audit({f"model.layers.{name}.weight": W for name, W in weights.items()}, use_cache=False)
    notes = " ".join(plan_prune(audit, Request(0.5, "alpha", estimator=estimator)).notes)
    assert "α of 1 of 3 matrices is left out (a tail without spread): a neutral amount" in notes
    expected = {
        "ks": "α of 2 of 2 matrices (100%) is of their own fit, of which 1 not trusted and taken all the same",
        "peak": "α of 1 of 2 matrices (50%) is of their own fit; of 1 (50%) it is the median of their role",
    }
    assert expected[estimator] in notes
    assert "by role rather than" not in notes
    assert not any("their own fit" in note for note in plan_prune(audit, Request(0.5, "depth")).notes)


def test_a_degenerate_tail_gets_the_neutral_share_and_no_say():
    rows = rows_of()
    rows[0] = degenerate(replace(rows[0], metrics={**rows[0].metrics, "alpha": 1000.0}))
    plan = plan_prune(audit_of(rows), Request(0.5, "alpha", settings={"mapping": "matrix"}))
    others = [d.metrics["alpha"] for d in plan if d.tensor != "layers.0.attn_q.weight"]
    assert max(others) < 10
    assert plan["layers.0.attn_q.weight"].metrics["alpha"] is None
    assert "neutral share" in plan["layers.0.attn_q.weight"].reason


def test_alpha_is_fitted_anew_where_the_audit_used_another_estimator():
    audit = audit_of(rows_of(), estimator="ks")
    plan = plan_prune(audit, Request(0.5, "alpha"))
    expected = fit(audit["layers.0.attn_q"].spectrum, "peak", Recipe(estimator="peak")).alpha
    assert plan["layers.0.attn_q.weight"].metrics["alpha"] == pytest.approx(expected, rel=1e-5)
    assert plan.settings["estimator"] == "peak"


def test_windows_that_the_audit_has_not_are_asked_for():
    with pytest.raises(UsageError, match="needs windows"):
        plan_prune(model(), Request(0.5, "alpha", estimator="farms:mid"))


def test_a_vision_model_is_read_with_mid_and_a_language_model_with_peak(audit):
    vision = [row("patches", "patch_embed", None, (64, 48), kind="conv"), *rows_of()[:-2]]
    assert estimator_for(audit_of(vision)) == "mid"
    assert estimator_for(audit) == "peak"


def test_every_plan_notes_its_correlation_with_depth_and_the_sign(audit):
    for allocator in ALLOCATORS:
        for operator, sign in (("wanda", "high"), ("low_rank", "low")):
            notes = plan_prune(audit, Request(0.7, allocator, operator)).notes
            if allocator.startswith("alpha"):
                assert notes[0] == f"sign: {operator} compresses more where α is {sign}"
            elif allocator != "entropy":
                assert notes[0].startswith(f"sign: {allocator} reads neither α nor entropy")
            assert notes[1].startswith("against depth:")


def test_a_plan_by_entropy_says_what_it_reads_and_who_says_otherwise(audit):
    for operator, reverse, where, who in (
        ("wanda", False, "low", "manual (§3.3) prunes where it is high, as --reverse does"),
        ("wanda", True, "high", "as the singular-entropy manual (§3.3) has it"),
        ("low_rank", False, "high", "as the singular-entropy manual"),
        ("low_rank", True, "low", "the reverse of the singular-entropy manual"),
    ):
        settings = {"reverse": True} if reverse else {}
        notes = plan_prune(audit, Request(0.7, "entropy", operator, settings=settings)).notes
        assert notes[0].startswith(f"sign: {operator} compresses more where singular entropy is {where}, ")
        assert who in notes[0]


@pytest.mark.parametrize("allocator", ["alpha", "alpha-role", "entropy"])
def test_reverse_turns_the_order_of_the_amounts_round(audit, allocator):
    plain = plan_prune(audit, Request(0.5, allocator))
    turned = plan_prune(audit, Request(0.5, allocator, settings={"reverse": True}))
    assert turned.settings["reverse"] is True
    assert "reverse" not in plain.settings
    assert turned.sparsity == pytest.approx(plain.sparsity, abs=1e-6)
    both = np.array([[one.sparsity, other.sparsity] for one, other in zip(plain, turned, strict=True)])
    assert np.corrcoef(both.T)[0, 1] < -0.9


def test_a_linear_schedule_follows_depth_fully(audit):
    plan = plan_prune(audit, Request(0.7, "depth"))
    found = depth_correlation(plan)
    assert (found.rho, found.blocks) == (pytest.approx(1.0), 4)
    steps = np.diff(list(block_means(plan).values()))
    np.testing.assert_allclose(steps, plan.settings["beta"], atol=1e-8)
    backwards = plan_prune(audit, Request(0.7, "depth", settings={"beta": -0.02}))
    assert depth_correlation(backwards).rho == pytest.approx(-1.0)


def test_gains_that_are_not_to_be_expected_are_said(audit):
    assert any("below 60%" in note for note in plan_prune(audit, Request(0.5, "alpha")).notes)
    assert not any("below 60%" in note for note in plan_prune(audit, Request(0.6, "alpha")).notes)


def test_two_of_four_is_half_everywhere(audit):
    for sparsity in (None, 0.5):
        plan = plan_prune(audit, Request(sparsity, pattern="2:4"))
        assert {(d.sparsity, d.pattern) for d in plan} == {(0.5, "2:4")}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"sparsity": 0.7, "pattern": "2:4"}, "give pattern=N:4"),
        ({"pattern": "2:4", "allocator": "alpha"}, "nothing to choose"),
        ({"sparsity": 0.7, "pattern": "5:4"}, "keeps nothing, or everything"),
        ({"sparsity": 0.7, "pattern": "0:4"}, "keeps nothing, or everything"),
        ({"sparsity": 0.7, "pattern": "half"}, "no pattern 'half'"),
        ({"sparsity": 0.7, "pattern": "N:8", "operator": "low_rank"}, "low_rank has no pattern"),
        ({"sparsity": 0.7, "pattern": "N:8", "clamp": False}, "clamp=False"),
        ({"sparsity": 0.7, "operator": "wandas"}, "did you mean wanda"),
        ({"sparsity": 0.7, "allocator": "aplha"}, "did you mean alpha"),
        ({"sparsity": 70}, "70 % is 0.7"),
        ({}, "give sparsity"),
        ({"sparsity": 0.7, "settings": {"tau": 0.3}}, "uniform does not take tau"),
        ({"sparsity": 0.7, "allocator": "alpha", "settings": {"tau": 3.0}}, "tau is 3"),
        ({"sparsity": 0.7, "allocator": "alpha", "settings": {"mapping": "row"}}, "no mapping 'row'"),
        ({"sparsity": 0.7, "allocator": "depth", "settings": {"beta": float("nan")}}, "beta is nan"),
    ],
)
def test_a_request_that_cannot_be_is_refused(audit, how, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        plan_prune(audit, Request(**how))


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("sparsity", [0.4, 0.6, 0.73])
def test_a_mix_of_eighths_comes_as_near_to_the_budget_as_whole_numbers_allow(audit, allocator, sparsity):
    plan = plan_prune(audit, Request(sparsity, allocator, pattern="N:8"))
    for decision in plan:
        kept = 8 if decision.pattern == "unstructured" else int(decision.pattern.removesuffix(":8"))
        assert decision.sparsity == 1 - kept / 8
    # The smallest tensor, 2048 of 90112 parameters, moves the budget by 0.003 at each step.
    assert plan.sparsity == pytest.approx(sparsity, abs=0.0015)
    assert plan.budget["achieved"] == pytest.approx(plan.sparsity, abs=1e-8)


def test_a_tensor_whose_rows_are_no_multiple_of_the_group_is_left_alone():
    odd = row("layers.0.odd", "mlp_up", 0, (64, 63))
    plan = plan_prune(audit_of([odd, *rows_of()]), Request(0.5, pattern="N:8"))
    assert "layers.0.odd.weight" not in plan
    assert any("no multiple of 8" in note for note in plan.notes)


def test_ranks_keep_what_the_amount_leaves(audit):
    plan = plan_prune(audit, Request(0.6, "alpha-role", "low_rank"))
    for decision in plan:
        rows, cols = decision.shape
        assert decision.rank == pytest.approx((1 - decision.sparsity) * rows * cols / (rows + cols), abs=1.0)
        assert decision.rank >= 1
    kept = sum(d.rank * sum(d.shape) for d in plan)
    assert plan.budget["achieved"] == pytest.approx(1 - kept / plan.n_params, abs=1e-8)
    assert plan.budget["achieved"] == pytest.approx(0.6, abs=0.001)


def test_low_rank_leaves_convolutions_and_tensors_of_several_matrices_alone():
    extra = [
        row("layers.0.conv", "conv", 0, (64, 147), kind="conv"),
        *(row(f"layers.0.qkv#{part}", f"attn_{part}", 0, (64, 64), tensor="layers.0.qkv.weight") for part in "qkv"),
    ]
    plan = plan_prune(audit_of([*extra, *rows_of()]), Request(0.5, operator="low_rank"))
    assert len(plan) == 16
    assert any(note.startswith("left as they are, 2 tensors: low rank takes") for note in plan.notes)


def test_an_estimator_for_an_allocator_that_looks_at_no_alpha_is_refused(audit):
    with pytest.raises(UsageError, match="depth looks at no α"):
        plan_prune(audit, Request(0.5, "depth", estimator="mid"))


def test_what_structured_pruning_takes_goes_through_a_whole_block(audit):
    plan = plan_prune(audit, Request(0.6, "alpha", "structured", settings={"mapping": "matrix"}))
    for block in range(4):
        for family in ("attn", "mlp"):
            amounts = {d.sparsity for d in plan if d.block == block and d.role.startswith(family)}
            assert len(amounts) == 1
    assert plan.sparsity == pytest.approx(0.6, abs=1e-6)


def test_reasons_are_in_words(audit):
    reasons = {d.reason for d in plan_prune(audit, Request(0.7, "alpha"))}
    assert all(
        re.fullmatch(r"α \d\.\d+, the (highest|\d\w\w highest) of 4 blocks: prune (more|less)", r) for r in reasons
    )


def test_it_reads_a_real_audit_as_an_audit_with_that_estimator(pycode):
    from tailwise.audits.run import audit as make_audit

    which = {"layers": r"layers\.[01]\.", "metrics": ("alpha", "alpha_sigma", "ks_distance"), "workers": 1}
    ks, peak = (make_audit(pycode, estimator=name, **which) for name in ("ks", "peak"))
    first, second = (plan_prune(found, Request(0.7, "alpha")) for found in (ks, peak))
    assert {d.tensor: d.sparsity for d in first} == {d.tensor: d.sparsity for d in second}
    assert len(first) == 14


def test_a_fit_that_says_nothing_counts_as_the_median_of_its_role():
    sure = {"alpha_sigma": 0.2, "ks_distance": 0.01}
    rows = [replace(item, metrics={**item.metrics, **sure}) for item in rows_of(5)]
    place = next(at for at, item in enumerate(rows) if item.role == "mlp_up" and item.block == 2)
    wild = {**rows[place].metrics, "alpha": 18.0, "alpha_sigma": 5.7}  # a tail of nine values
    others = [item.metrics["alpha"] for item in rows if item.role == "mlp_up" and item.block != 2]
    rows[place] = replace(rows[place], metrics=wild)
    plan = plan_prune(audit_of(rows), Request(0.7, "alpha"))
    assert plan[f"{rows[place].name}.weight"].metrics["alpha"] == pytest.approx(float(np.median(others)), rel=1e-5)
    assert (
        "α of 19 of 20 matrices (95%) is of their own fit; of 1 (5%) it is the median of their role, as their tails "
        f"say nothing ({rows[place].name})" in plan.notes
    )


def test_a_plan_that_is_mostly_of_medians_says_that_it_is_by_role():
    rows = [replace(item, metrics={**item.metrics, "alpha_sigma": 0.2, "ks_distance": 0.01}) for item in rows_of(5)]
    wild = {"alpha": 18.0, "alpha_sigma": 5.7}
    rows = [replace(item, metrics={**item.metrics, **wild}) if item.block in (1, 2, 3) else item for item in rows]
    of_alpha = [note for note in plan_prune(audit_of(rows), Request(0.7, "alpha")).notes if "own fit" in note]
    assert len(of_alpha) == 1
    assert of_alpha[0].startswith(
        "α of 8 of 20 matrices (40%) is of their own fit; of 12 (60%) it is the median of their role, as their tails "
        "say nothing: this plan is by role rather than by layer ("
    )


def test_doubtful_fits_without_a_trusted_one_of_their_role_are_said_in_the_same_note():
    rows = [replace(item, metrics={**item.metrics, "alpha_sigma": 5.7, "ks_distance": 0.3}) for item in rows_of(5)]
    of_alpha = [note for note in plan_prune(audit_of(rows), Request(0.7, "alpha")).notes if "own fit" in note]
    assert of_alpha == [
        "α of 20 of 20 matrices (100%) is of their own fit, of which 20 not trusted and taken all the same, as "
        "published methods do"
    ]


def test_a_head_that_is_tied_is_its_embeddings_and_a_note_says_so():
    rows = [item for item in rows_of() if item.role != "lm_head"]
    for also in (("lm_head",), ("embed", "lm_head")):
        plan = plan_prune(audit_of(rows), Request(0.5, choice=TensorChoice(also=also)))
        assert "embed" in {item.role for item in plan}
        assert any("tied to embed" in note for note in plan.notes)
    head = plan_prune(audit_of(rows_of()), Request(0.5, choice=TensorChoice(also=("lm_head",))))
    assert not any("tied" in note for note in head.notes)


def test_planning_imports_no_torch():
    code = "import sys; import tailwise.compression.making.make; from tailwise.compression.choosing.amounts import " \
           "ALLOCATORS; list(ALLOCATORS); import tailwise.cli.plan_commands; " \
           "sys.exit('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
