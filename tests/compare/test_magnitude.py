"""How large a change is, beside what is known of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.judging.compare.size_of_change import KNOWN, scale
from tailwise.report.comparison_page import markdown

RNG = np.random.default_rng(0)
BASE = {f"layers.{i}.up.weight": RNG.standard_normal((64, 48)) for i in range(4)}


def compared(size):
    """The base and the same with noise of `size` times its norm."""
    after = {name: W + size * np.random.default_rng(1).standard_normal(W.shape) for name, W in BASE.items()}
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (BASE, after)]
    return tw.comparing.difference(*both, models=(BASE, after)).comparison


@pytest.mark.parametrize(
    ("size", "said"),
    [(1e-4, "less than one step"), (0.003, "between rounding to bf16"), (0.08, "within LoRA of GPT-3"),
     (0.5, "between rounding to int4"), (3.0, "these are two models")],
)  # fmt: skip
def test_a_change_is_placed_among_known_ones(size, said):
    found = compared(size)
    assert said in found.magnitude
    assert f"{size:.1g}"[:4] in found.magnitude or size != 0.5
    assert said in markdown(found)
    assert scale() in markdown(found)
    assert found.to_json()["magnitude"] == found.magnitude


def test_without_weights_nothing_is_said():
    audit = tw.audit(BASE, use_cache=False, baseline_replicas=1)
    found = tw.compare(audit, audit)
    assert found.magnitude == ""
    assert "for scale" not in markdown(found)


def test_the_known_changes_of_rounding_are_what_the_formats_give():
    W = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    for cause in ("bf16", "int8", "int4"):
        (known,) = [one for one in KNOWN if one.cause.startswith(f"rounding to {cause}")]
        values = tw.precision.parse_format(cause).quantize(W).values
        assert float((values - W).norm() / W.norm()) == pytest.approx(known.low, rel=0.03)


def test_the_known_changes_say_their_source_and_stand_in_order():
    assert all(one.source and one.low <= one.high for one in KNOWN)
    assert [one.low for one in KNOWN] == sorted(one.low for one in KNOWN)


def test_a_matrix_and_another_of_its_norm_are_the_root_of_two_apart():
    one, other = RNG.standard_normal((2, 400, 300))
    assert np.linalg.norm(one - other) / np.linalg.norm(one) == pytest.approx(KNOWN[-1].low, rel=0.02)


def test_how_far_the_weights_moved_is_said_first():
    found = compared(11.0)
    assert found.conclusion.startswith("The weights moved 11 times their own norm in the median and 11 times at most (")
    assert "as two unrelated models differ by 1.4: these are two models. " in found.conclusion
    assert markdown(found).splitlines()[2] == found.conclusion
    assert found.to_json()["conclusion"] == found.conclusion
    assert "--weights" not in markdown(found)


def test_one_layer_that_moved_so_far_is_counted():
    after = dict(BASE)
    after["layers.2.up.weight"] = 4 * RNG.standard_normal((64, 48))
    after["layers.1.up.weight"] = BASE["layers.1.up.weight"] * 1.01
    after["layers.0.up.weight"] = BASE["layers.0.up.weight"] * 1.01
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (BASE, after)]
    found = tw.comparing.difference(*both, models=(BASE, after)).comparison
    assert "1 of 3 moved at least as far as another, independent matrix" in found.magnitude


def test_without_weights_the_way_to_them_is_named():
    after = {name: 1.5 * W for name, W in BASE.items()}
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (BASE, after)]
    assert "compare BASE MODEL --weights` measures" in markdown(tw.compare(*both)).splitlines()[4]
    assert "--weights" not in markdown(tw.compare(both[0], both[0]))


def test_where_all_moved_alike_none_is_named_as_the_largest():
    found = compared(0.003)
    assert found.magnitude.startswith(
        "‖ΔW‖/‖W₀‖ is alike in every one of 4 matrices, 0.0029 to 0.003: between rounding"
    )
    assert "at most" not in found.magnitude


def test_the_weights_come_before_the_exponents_and_vectors_are_counted():
    vectors = {"layers.0.norm.weight": np.ones(48), "layers.1.norm.weight": np.ones(48), "step": np.array(3)}
    base = {**BASE, **vectors}
    after = {**base, "layers.2.up.weight": BASE["layers.2.up.weight"] * 1.1}
    after["layers.1.norm.weight"] = np.full(48, 1.5)
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (base, after)]
    found = tw.comparing.difference(*both, models=(base, after)).comparison
    assert "of 2 vectors (norms, biases) 1 changed, the most layers.1.norm.weight: ‖Δ‖/‖·‖ 0.5" in found.notes
    titles = [line for line in markdown(found).splitlines() if line.startswith("## ")]
    assert titles[:2] == ["## W − w₀ by role", "## W − w₀, the largest first"]
    assert "identical: layers.0.up, layers.1.up, layers.3.up" in markdown(found)
    same = tw.comparing.difference(both[0], both[0], models=(base, base)).comparison
    assert "of 2 vectors (norms, biases) none changed" in same.notes


def test_without_a_sure_change_few_layers_are_shown_and_what_is_not_trusted_is_marked():
    small = {f"layers.{i}.up.weight": RNG.standard_normal((64, 48)) for i in range(14)}
    after = {name: W * 1.001 for name, W in small.items()}
    found = tw.compare(*(tw.audit(model, use_cache=False, baseline_replicas=1) for model in (small, after)))
    said = markdown(found, rows=100)
    assert said.count("| layers.") == 10
    assert "no change of α is significant" in said
    assert "4 more layers, --rows 0 shows all" in said
    assert markdown(found).count("| layers.") == 14
    assert ("? a fit that is not trusted" in said) == any(not layer.trusted for layer in found.layers)


def test_a_few_that_moved_far_more_are_said_with_their_roles_and_blocks():
    rng = np.random.default_rng(3)
    base = {
        f"model.layers.{block}.{name}.weight": rng.standard_normal((64, 48))
        for block in range(6) for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    }  # fmt: skip

    def moved(name, W):
        far = any(f".{block}." in name for block in (2, 3)) and "self_attn" in name
        return W + (0.4 if far else 0.003) * rng.standard_normal(W.shape)

    after = {name: moved(name, W) for name, W in base.items()}
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (base, after)]
    said = tw.comparing.difference(*both, models=(base, after)).comparison.magnitude
    assert said.startswith("4 of 18 matrices moved far more than the others (attn_q and attn_o, blocks 2 to 3): ")
    assert "of the other 14 that changed it is 0.003 in the median, between rounding to bf16" in said


def test_several_that_moved_farther_than_unrelated_matrices_are_are_placed_too():
    base = {f"layers.{i}.up.weight": RNG.standard_normal((64, 48)) for i in range(6)}
    after = {name: W * 1.01 for name, W in base.items()}
    after |= {name: 4 * RNG.standard_normal((64, 48)) for name in list(base)[:2]}
    both = [tw.audit(model, use_cache=False, baseline_replicas=1) for model in (base, after)]
    said = tw.comparing.difference(*both, models=(base, after)).comparison.magnitude
    assert said.startswith("2 of 6 matrices moved far more than the others")
    assert "at least as far as another, independent matrix" in said
