"""The lowest format within bounds."""

from dataclasses import replace

import pytest

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading
from tailwise.audits.precision.verdict import Bound, sensitivities, variations, verdicts
from tailwise.core.errors import UsageError


def _study(*errors: dict[str, float]) -> PrecisionStudy:
    bits = {"int2": 2.1, "int4": 4.1, "nf4": 4.1, "int8": 8.1, "bf16": 16.0}
    layers = []
    for index, found in enumerate(errors):
        readings = {
            name: Reading(name, bits[name], relative_error=error, sqnr_db=None if error == 0 else 20.0)
            for name, error in found.items()
        }
        layers.append(LayerStudy(f"layers.{index}.mlp.up_proj", "mlp_up", index, 8, 8, 64, "BF16", readings=readings))
    return PrecisionStudy("m", tuple(errors[0]), {}, tuple(layers), {})


def test_the_lowest_format_within_the_bound_is_taken_and_says_why() -> None:
    found = verdicts(_study({"bf16": 0.0, "int8": 0.01, "int4": 0.1, "int2": 0.5}), [Bound("relative_error", 0.05)])
    assert (found[0].format, found[0].bits) == ("int8", 8.1)
    assert "int8 keeps relative_error 0.01" in found[0].reason
    assert "int4 has relative_error 0.1, not ≤ 0.05" in found[0].reason


def test_of_formats_with_equal_bits_the_better_one_is_taken() -> None:
    assert verdicts(_study({"int4": 0.1, "nf4": 0.08}), [Bound("relative_error", 0.2)])[0].format == "nf4"


def test_a_layer_that_no_format_serves_says_so() -> None:
    found = verdicts(_study({"int4": 0.1, "int2": 0.5}), [Bound("relative_error", 0.05)])
    assert found[0].format is None
    assert "none of 2 formats" in found[0].reason


def test_a_format_that_changes_nothing_keeps_any_bound() -> None:
    found = verdicts(_study({"bf16": 0.0}), [Bound("sqnr_db", 100.0), Bound("relative_error", 0.0)])
    assert found[0].format == "bf16"
    assert "sqnr_db ∞" in found[0].reason


def test_a_layer_is_sensitive_where_a_format_moves_its_alpha_by_more_than_was_allowed() -> None:
    study = _study({"int4": 0.1, "int2": 0.5}, {"int4": 0.1, "int2": 0.5})
    shifts = ({"int4": 0.01, "int2": -0.2}, {"int4": 0.01, "int2": 0.03})
    layers = tuple(
        replace(
            layer,
            readings={
                name: replace(reading, alpha=3.0 + own[name], alpha_shift=own[name])
                for name, reading in layer.readings.items()
            },
        )
        for layer, own in zip(study.layers, shifts, strict=True)
    )
    study = replace(study, layers=layers)
    first, second = variations(study, [Bound("relative_error", 0.1), Bound("alpha_shift", 0.05)])
    assert (first.sensitive, first.shift, first.format) == (True, -0.2, "int2")
    assert first.spread == pytest.approx(0.21)
    assert second.sensitive is False
    assert [item.sensitive for item in variations(study)] == [None, None]


def test_every_bound_must_hold() -> None:
    found = verdicts(_study({"bf16": 0.0, "int4": 0.01}), [Bound("relative_error", 0.1), Bound("sqnr_db", 30.0)])
    assert found[0].format == "bf16"


def test_a_measure_that_could_not_be_taken_keeps_no_bound() -> None:
    found = verdicts(_study({"int4": 0.01}), [Bound("alpha_shift", 0.1)])
    assert found[0].format is None
    assert "has no alpha_shift" in found[0].reason


@pytest.mark.parametrize(("text", "message"), [
    ("relative_error", "not a bound"), ("relativ_error=1", "relative_error"), ("sqnr_db=-3", "zero or more"),
    ("sqnr_db=1e", "not a number"), ("", "not a bound"),
])  # fmt: skip
def test_a_wrong_bound_is_one_message(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Bound.parse(text)


def test_bounds_are_read_in_any_spelling() -> None:
    assert Bound.parse("relative_error<=0.1") == Bound.parse(" relative_error = 1e-1 ") == Bound("relative_error", 0.1)
    assert Bound.parse("sqnr_db>=20").text == "sqnr_db ≥ 20"


def test_sensitivity_ranks_within_a_role() -> None:
    found = sensitivities(_study({"int4": 0.1, "bf16": 0.0}, {"int4": 0.3, "bf16": 0.0}, {"int4": 0.2, "bf16": 0.0}))
    assert [(item.layer, item.rank, item.of) for item in found] == [
        ("layers.1.mlp.up_proj", 1, 3), ("layers.2.mlp.up_proj", 2, 3), ("layers.0.mlp.up_proj", 3, 3),
    ]  # fmt: skip
    assert found[0].value == pytest.approx(0.3)


def test_a_format_that_makes_infinities_keeps_no_bound_on_counts() -> None:
    found = _study({"int8": 0.01})
    broken = Reading("int4", 4.1, status="NOT_FINITE", overflow=3)
    layer = replace(found.layers[0], readings={**found.layers[0].readings, "int4": broken})
    for bound in (Bound("underflow", 0.0), Bound("overflow", 10.0)):
        assert not bound.holds(broken)
        assert verdicts(replace(found, layers=(layer,)), [bound])[0].format == "int8"


def test_a_format_that_only_some_layers_feel_does_not_rank_them() -> None:
    # fp16 of bf16 weights loses a few subnormals of some layers: 1e-8 in a geometric mean outweighs every real error.
    found = sensitivities(_study({"bf16": 1e-8, "int4": 0.3}, {"bf16": 0.0, "int4": 0.1}))
    assert [item.layer for item in found] == ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]
    assert found[0].value == pytest.approx(0.3)


def test_no_sensitivity_without_a_format_that_every_layer_of_the_role_feels() -> None:
    assert sensitivities(_study({"int4": 0.3}, {"int4": 0.0})) == ()


@pytest.mark.parametrize("k", [2, 4, 50])
def test_a_tail_has_moved_by_the_error_of_alpha_as_loaded(k: int) -> None:
    sigma = (3.0 - 1) / k**0.5
    after = [3 + 2.1 * sigma, 3 + 1.9 * sigma]
    moved = [Reading("int4", 4.1, alpha=a, alpha_shift=a - 3, alpha_sigma=(a - 1) / k**0.5, k=k) for a in after]
    assert [reading.tail_moved for reading in moved] == [True, False]
