"""Forecasts: what is counted, what is shared, how a sample stands for the whole."""

from __future__ import annotations

import pytest

import tailwise as tw
from tailwise.audits import cost
from tailwise.audits.cache import Cache
from tailwise.audits.prepare import Selection, prepare
from tailwise.history.sweep import forecast as module
from tailwise.history.sweep.forecast import forecast
from tailwise.history.sweep.one_model import flops

RATES = cost.Rates([64, 128], [1e9, 2e9], [5e8, 1e9], [1e-3, 2e-3], [0.1, 0.2], 1e9, 0.01)


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch):
    monkeypatch.setattr(module, "rates", lambda *_: RATES)


def of(models, recipe=None, **options):
    return forecast(models, recipe or tw.Recipe(), tw.RunOptions(workers=2, **options), Selection(), price=0.1)


def test_a_forecast_adds_up_what_the_rates_say(make):
    model = str(make("a"))
    found = of([model])
    sources = prepare(tw.open_checkpoint(model)).sources
    each = [RATES.seconds(source) for source in sources]
    noise = sum(RATES.seconds_of_shape(source) for source in sources)
    assert (found.models, found.sampled, found.cost.matrices, found.cost.known) == (1, 1, 3, 0)
    assert found.cost.bytes == sum(source.nbytes for source in sources)
    assert found.cost.flops == sum(source.flops for source in sources)
    assert found.cost.core_seconds == pytest.approx(sum(each) + noise)
    assert found.cost.wall_seconds == pytest.approx(max(sum(each) / 2, *each) + noise / 2)
    assert found.dollars == pytest.approx(found.cost.wall_seconds * 2 / 3600 * 0.1)
    assert found.spread == 0.0


def test_rates_are_interpolated_over_the_logarithm_of_the_size():
    assert RATES._at(64, RATES.product) == pytest.approx(1e9)
    assert RATES._at(64 * 2**0.5, RATES.product) == pytest.approx(2**0.5 * 1e9)
    assert RATES._at(4096, RATES.product) == pytest.approx(2e9)


def test_permutations_are_solved_as_well(make):
    model = str(make("a"))
    once, twice = of([model]), of([model], tw.Recipe(randomize=1))
    assert twice.cost.flops == 2 * once.cost.flops
    assert twice.cost.core_seconds > once.cost.core_seconds


def test_what_is_known_and_what_models_share_costs_nothing(make):
    model = make("a")
    (model.parent / "link").symlink_to(model)  # another name for the same bytes
    assert of([str(model), str(model.parent / "link")]).cost.known == 3
    tw.audit(str(model))
    found = of([str(model)])
    assert (found.cost.matrices, found.cost.known, found.cost.core_seconds) == (3, 3, 0.0)


def test_a_long_list_is_sampled_at_even_distances(make, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2)
    models = [str(make(f"m{index}", index)) for index in range(6)]
    looked = []
    opened = module.open_checkpoint
    monkeypatch.setattr(module, "open_checkpoint", lambda model: looked.append(model) or opened(model))
    found = of(models)
    assert looked == [models[1], models[4]]
    assert (found.models, found.sampled, found.cost.matrices) == (6, 2, 18)


def test_the_spread_of_a_sample_is_that_of_a_mean_without_putting_back():
    assert module._spread([1.0, 3.0], 2, 100) == pytest.approx(1.96 * (2 / 2 * 0.98) ** 0.5 / 2)
    assert module._spread([1.0, 3.0], 2, 2) == 0.0


def test_a_model_that_cannot_be_read_is_counted_and_stops_nothing(make, tmp_path):
    found = of([str(make("a")), str(tmp_path / "nothing")])
    assert [model for model, _ in found.unreadable] == [str(tmp_path / "nothing")]
    assert found.cost.matrices == 3
    assert of([str(tmp_path / "nothing")]).dollars == 0.0


def test_work_is_counted_alike_before_and_after(make):
    sources = prepare(tw.open_checkpoint(str(make("a")))).sources
    assert [flops(s.rows, s.cols, len(s.views)) for s in sources] == [s.flops for s in sources]


def test_rates_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_SIZES", (64, 128))
    found = cost.rates(100, tw.Recipe(baseline_replicas=2), "cpu", Cache(tmp_path))
    assert found.sizes == [64, 128]
    assert all(
        value > 0 for values in (found.product, found.reduction, found.metrics, found.baseline) for value in values
    )
    assert found.matrix > 0
    monkeypatch.setattr(cost, "_on_one_thread", lambda _: pytest.fail("they were measured already"))
    assert cost.rates(60, tw.Recipe(baseline_replicas=2), "cpu", Cache(tmp_path)).sizes == [64]
    assert cost.rates(100, tw.Recipe(baseline_replicas=2), "cpu", Cache(tmp_path)) == found
