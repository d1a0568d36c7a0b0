"""Scalars of a run: logarithmic, smoothed, constant, and beside other runs."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tailwise.core.errors import UsageError
from tailwise.report.charts.timeline import Look, scalars_chart
from tailwise.report.theme import TOKENS

TABLE = pa.table({"step": [0, 10, 20, 30], "loss": [4.0, 2.0, 3.0, 1.0], "lr": [3e-4] * 4})


def spec(look: Look | None = None, beside=None, table=TABLE):
    return scalars_chart(table, [(20, "TW701", "warning")], TOKENS, look, beside).to_dict(validate=False)


def scale_of(part) -> dict:
    return part["layer"][0]["encoding"]["y"]["scale"]


def test_a_constant_learning_rate_stands_in_the_middle_with_its_value():
    scale = scale_of(spec()["vconcat"][1])
    assert scale["domain"] == pytest.approx([1.5e-4, 4.5e-4])
    axis = spec()["vconcat"][1]["layer"][0]["encoding"]["y"]["axis"]
    assert axis["format"] == ".3~g"


def test_the_loss_may_be_logarithmic_and_nothing_else():
    first, second = spec(Look(log=True))["vconcat"]
    assert scale_of(first)["type"] == "log"
    assert "type" not in scale_of(second)
    below = TABLE.set_column(1, "loss", [[1.0, -1.0, 0.5, 0.2]])
    assert "type" not in scale_of(spec(Look(log=True), table=below)["vconcat"][0])


def test_smoothing_is_an_exponential_mean_that_starts_at_the_first_value():
    rows = spec(Look(smooth=0.5))["datasets"]["loss"]
    assert [row["value"] for row in rows] == [4.0, 2.0, 3.0, 1.0]
    assert rows[0]["shown"] == 4.0
    assert rows[1]["shown"] == pytest.approx((0.5 * 4 + 1 * 2) / 1.5, rel=1e-3)
    assert [row["shown"] for row in spec()["datasets"]["loss"]] == [4.0, 2.0, 3.0, 1.0]
    with pytest.raises(UsageError, match="smoothing"):
        Look(smooth=1.0)


def test_other_runs_stand_beside_where_they_have_the_scalar():
    other = pa.table({"step": [0, 5], "loss": [5.0, 4.5]})
    sets = spec(beside={"other": other})["datasets"]
    assert {row["run"] for row in sets["loss"]} == {"", "other"}
    assert {row["run"] for row in sets["lr"]} == {""}


def test_each_chart_zooms_along_its_steps():
    made = spec()
    views = [view for param in made["params"] for view in param["views"]]
    assert len(made["params"]) == len(set(views)) == 2
    assert all(param["bind"] == "scales" and param["select"]["encodings"] == ["x"] for param in made["params"])
