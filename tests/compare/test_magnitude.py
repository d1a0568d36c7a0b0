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
