"""What foretells a matrix's loss, blends of indicators, and the curve over τ."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tailwise.cli.main import app
from tailwise.compression.choosing.blend import INDICATORS
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.predictors import PREDICTORS, foretold
from tailwise.compression.trying.stage import StageOptions
from tailwise.compression.trying.tau_curve import tau_curve
from tailwise.core.errors import UsageError


def _text(tokens, **options) -> StageOptions:
    return StageOptions(tokens, window=32, **options)


def test_losses_are_measured_alone_and_among_others_and_held_against_every_number(audit, tokens):
    found = foretold(audit, Request(0.5, "alpha"), _text(tokens))
    assert tuple(found.losses) == ("alone at 50 %", "60 % among 50 %")
    assert all(len(losses) == 21 for losses in found.losses.values())
    assert {item.predictor for item in found.correlations} == set(PREDICTORS)
    for item in found.correlations:
        assert item.rho is None or -1 <= item.rho <= 1
        assert item.low is None or item.low <= item.rho <= item.high
    depth = found.of("depth", "alone at 50 %", "pooled")
    losses = found.losses["alone at 50 %"]
    blocks = {name: float(name.split(".")[2]) for name in losses}
    expected = _spearman([blocks[name] for name in losses], list(losses.values()))
    assert depth.rho == pytest.approx(expected, abs=0.03)  # ties are ranked alike
    assert found.answers
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["kind"] == "prune"


def _spearman(x, y) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def test_for_bits_one_tensor_gets_the_lowest_format_and_the_others_the_next(audit, tokens):
    found = foretold(audit, QuantizeRequest(4.0, formats=("int3-g16", "int2-g16")), _text(tokens))
    assert tuple(found.losses) == ("int2-g16, all else dense", "int2-g16, all else int3-g16")
    assert found.kind == "quantize"
    assert max(found.losses["int2-g16, all else dense"].values()) > 0
    with pytest.raises(UsageError, match="compared with nothing"):
        foretold(audit, QuantizeRequest(formats=("int3-g16",)), _text(tokens))


def test_predict_from_the_command_line(llama, tokens, tmp_path):
    np.save(tmp_path / "ids.npy", tokens)
    arguments = ["predict", str(llama), "--calibration", str(tmp_path / "ids.npy"), "--window", "32"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "x.csv")])
    assert done.exit_code == 0, done.output
    assert "within roles" in done.output
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["scope"] for row in rows} == {"pooled", "within roles"}
    done = CliRunner().invoke(app, ["predict", str(llama)])
    assert isinstance(done.exception, UsageError)
    assert "measured on text" in str(done.exception)


def test_a_blend_is_searched_on_text_and_says_its_weights(audit, tokens):
    plan = planned(audit, Request(0.5), allocator="blend", text=_text(tokens), clock=Clock(3))
    assert plan.allocator == "blend"
    assert set(plan.settings["weights"]) <= set(INDICATORS)
    assert plan.sparsity == pytest.approx(0.5, abs=1e-6)
    kept = [row for row in plan.tried if row["kept"]]
    assert len(kept) == 1
    assert kept[0]["search_loss"] == min(row["search_loss"] for row in plan.tried if row["allocator"] == "blend")
    assert any("than uniform" in note for note in plan.notes)


def test_a_blend_of_one_indicator_follows_it(audit):
    plan = plan_prune(audit, Request(0.5, "blend", settings={"weights": {"depth": 2.0}, "tau": 0.2}))
    by_block = {item.block: item.sparsity for item in plan}
    assert by_block[0] < by_block[1] < by_block[2]
    turned = plan_prune(audit, Request(0.5, "blend", settings={"weights": {"depth": -1.0}, "tau": 0.2}))
    by_block = {item.block: item.sparsity for item in turned}
    assert by_block[0] > by_block[1] > by_block[2]


@pytest.mark.parametrize(
    ("weights", "says"),
    [(None, "takes weights"), ({"alpha": 0.0}, "takes weights"), ({"sparkle": 1.0}, "sparkle"), ({"owl": 1.0}, "text")],
)
def test_a_blend_without_what_it_needs_is_one_message(audit, weights, says):
    settings = {} if weights is None else {"weights": weights}
    with pytest.raises(UsageError, match=says):
        plan_prune(audit, Request(0.5, "blend", settings=settings))


def test_the_curve_over_tau_begins_at_uniform(audit, tokens, tmp_path):
    found = tau_curve(audit, Request(0.5, "alpha"), _text(tokens), taus=(0.4, 0.2))
    assert [point.tau for point in found.points] == [0.0, 0.2, 0.4]
    first = found.points[0]
    assert (first.change, first.low) == (0.0, None)
    uniform = tau_curve(audit, Request(0.5, "alpha-role"), _text(tokens), taus=(0.3,)).points[0]
    assert first.loss == pytest.approx(uniform.loss)  # τ = 0 is the same for all
    for point in found.points[1:]:
        assert point.change == pytest.approx(point.loss - first.loss)
    assert found.best.loss == min(point.loss for point in found.points)
    with pytest.raises(UsageError, match="from 0"):
        tau_curve(audit, Request(0.5, "alpha"), _text(tokens), taus=(1.5,))


def test_the_curve_is_drawn_from_the_command_line(llama, tokens, tmp_path):
    np.save(tmp_path / "ids.npy", tokens)
    target = tmp_path / "tau.svg"
    done = CliRunner().invoke(app, [
        "plan", "tau", str(llama), "--calibration", str(tmp_path / "ids.npy"), "--window", "32", "--taus", "0.2",
        "--sparsity", "0.5", "--chart", str(target),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert 'fill="#ffffff"' in target.read_text(encoding="utf-8").lower()  # paper, not tokens of a page
