"""Medians over time are of trusted fits alone, of audits and of a monitor's points, and say how many were left out."""

from __future__ import annotations

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.errors import UsageError
from tailwise.history.doubted import left_out_words, trusted_alone
from tailwise.history.point import ESTIMATOR, Point
from tailwise.history.store import History
from tailwise.spectrum.trust import doubt_of_tail, largest_distance, poor_tails

LAYERS = [f"layers.{block}.mlp.up_proj" for block in range(4)]
GOOD = {"alpha": 3.0, "num_pl_spikes": 40.0, "ks_distance": 0.05, "matrix_rank": 64.0, "rank_loss": 0.0}
SHORT, FAR, SMALL = {"num_pl_spikes": 6.0}, {"ks_distance": 0.4}, {"matrix_rank": 30.0, "rank_loss": 2.0}


def point(step: int, *changes: dict[str, float], notes: tuple[str, ...] = ()) -> Point:
    layers = {name: {**GOOD, **change, "alpha": 3.0 + index * 10} for index, (name, change) in
              enumerate(zip(LAYERS, changes, strict=True))}  # fmt: skip
    return Point("r", step, "full", 1.0, layers, {}, notes)


@pytest.fixture
def history(tmp_path):
    with History(tmp_path / "h.db") as opened:
        yield opened


def test_points_are_judged_by_the_tail_the_distance_and_the_eigenvalues(history):
    history.add_point(point(1, {}, SHORT, FAR, SMALL))
    history.add_point(point(2, {}, {}, {}, {}))
    found, lost, fits = trusted_alone(history, "r", history.series("r", ["alpha"]))
    assert (lost, fits) == (3, 8)
    assert found["alpha"].to_pylist() == [3.0, None, None, None, 3.0, 13.0, 23.0, 33.0]
    assert left_out_words(lost, fits) == "3 of 8 fits of alpha are not trusted, and left out of the medians"
    assert left_out_words(0, fits) == ""


def test_an_estimator_that_takes_a_fixed_tail_is_not_judged_by_its_distance(history):
    history.add_point(point(1, {}, SHORT, FAR, {}, notes=(f"{ESTIMATOR}top",)))
    assert history.estimator("r") == "top"
    found, lost, _ = trusted_alone(history, "r", history.series("r", ["alpha"]))
    assert found["alpha"].to_pylist() == [3.0, None, 23.0, 33.0]
    assert lost == 1


def test_points_that_hold_nothing_of_the_fit_and_other_metrics_stay_as_they_are(history):
    layers = {name: {"alpha": 3.0, "stable_rank": 5.0} for name in LAYERS}
    history.add_point(Point("r", 1, "full", 1.0, layers, {}))
    assert history.estimator("r") == "ks"
    for metric in ("alpha", "stable_rank"):
        series = history.series("r", [metric])
        found, lost, _ = trusted_alone(history, "r", series)
        assert (found[metric].to_pylist(), lost) == (series[metric].to_pylist(), 0)


def test_audits_and_points_of_one_run_are_judged_each_by_its_own(history):
    rng = np.random.default_rng(0)
    noise = {f"{name}.weight": rng.standard_normal((96, 64)) for name in LAYERS}
    history.add_audit(tw.audit(noise, use_cache=False), "r", 5)
    history.add_point(point(5, {}, SHORT, {}, {}))
    found, lost, fits = trusted_alone(history, "r", history.series("r", ["alpha"]))
    pairs = zip(found["cadence"].to_pylist(), found["alpha"].to_pylist(), strict=True)
    kept = [pair for pair in pairs if pair[1] is not None]
    assert kept == [("full", 3.0), ("full", 23.0), ("full", 33.0)]
    assert (lost, fits) == (5, 8)


def test_many_tails_are_judged_as_one_is():
    rng = np.random.default_rng(0)
    tails = np.concatenate([rng.integers(1, 3000, 200).astype(float), [np.nan]])
    distances = np.array([largest_distance(k) if k == k else 0.1 for k in tails]) * rng.choice([0.5, 0.99, 1.01], 201)
    distances[:20] = np.nan
    each = [
        bool(doubt_of_tail(k, None if d != d else d, searched=True))
        for k, d in zip(tails[:-1], distances, strict=False)
    ]
    assert poor_tails(tails, distances).tolist() == [*each, False]


def test_the_chart_says_how_many_and_where_none_is_left(history):
    pytest.importorskip("altair")
    from tailwise.report.charts.timeline import series_chart
    from tailwise.report.theme import TOKENS

    history.add_point(point(1, {}, SHORT, {}, {}))
    found, lost, fits = trusted_alone(history, "r", history.series("r", ["alpha"]))
    spec = series_chart(found, "alpha", [], TOKENS, (lost, fits)).to_dict(validate=False)
    assert " ".join(spec["title"]["text"]) == left_out_words(lost, fits)
    assert spec["datasets"]["series"][0]["layers"] == 3
    assert "title" not in series_chart(found, "alpha", [], TOKENS).to_dict(validate=False)
    with pytest.raises(UsageError, match="0 of 1 fits trusted"):
        series_chart(found.slice(1, 1), "alpha", [], TOKENS, (1, 1))
