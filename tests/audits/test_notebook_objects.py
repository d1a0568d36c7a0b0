"""What a notebook shows: short lines, tables cut with a count, completion, a bar, frames with whole numbers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.bars import is_watched, listener

ROOMS = ("auditing", "comparing", "diagnosing", "gates", "plans", "precision", "runs", "scoring")
COUNT = 40
FAST = {"use_cache": False, "baseline_replicas": 1}
LONGEST = 700


def weights(seed, size=1.0):
    rng = np.random.default_rng(seed)
    names = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(COUNT))
    return {name: (size * rng.standard_normal((160, 128))).astype(np.float32) for name in names} | {
        "model.embed_tokens.weight": rng.standard_normal((200, 128)).astype(np.float32)
    }


@pytest.fixture(scope="module")
def audits():
    return [tw.audit(weights(seed), metrics=("alpha", "stable_rank", "num_spikes", "matrix_rank"), **FAST)
            for seed in (0, 1)]  # fmt: skip


@pytest.fixture(scope="module")
def objects(audits):
    one, other = audits
    plan = tw.plans.plan_prune(one, tw.plans.Request(sparsity=0.5, allocator="uniform"))
    gate = tw.gates.parse_expectations('expect = ["alpha < 2", "stable_rank > 1"]', "here")
    scores = tw.scoring.Scores("m", 12.5, (12.0, 13.0), (2.5,) * 300, 511, settings={"text": "x" * 5000})
    change = tw.scoring.ScoreChange("log perplexity", 2.0, 2.5, 0.5, (0.4, 0.6), 0.001, 300, "worse")
    return [
        one, one[0], one[0].row, one[0].spectrum, one.table(), one.provenance, one.weightwatcher(),
        tw.compare(one, other), tw.diagnose(one), tw.rank(audits), plan, plan[next(iter(plan)).tensor],
        tw.check(one, gate), gate, scores, tw.scoring.ScoreComparison(scores, scores, change),
        tw.precision.study(weights(0), ("bf16", "int4"), **FAST), tw.prepare(tw.open_checkpoint(weights(0))),
        tw.open_checkpoint(weights(0)), tw.Recipe(), tw.RunOptions(), tw.fit_tail(one[0].spectrum.eigenvalues),
        tw.runs.Point("r", 1, "full", 0.0, {name: {"alpha": 1.0} for name in weights(0)}),
        tw.runs.Alarm("r", 1, 0.0, "TW701", "error", "t", tuple(weights(0))), tw.Alarms(), tw.METRICS,
        tw.plans.QuantizeRequest(bits=5), tw.plans.ApplyOptions(), tw.table(audits),
    ]  # fmt: skip


def test_every_object_is_a_short_line(objects):
    for item in objects:
        text = repr(item)
        assert len(text) <= LONGEST, (type(item), len(text))
        assert "object at 0x" not in text, type(item)


def test_tables_of_a_notebook_are_cut_with_a_count(objects):
    shown = [item for item in objects if hasattr(item, "_repr_html_")]
    assert len(shown) >= 18
    for item in shown:
        page = item._repr_html_()
        assert page.count("<tr>") <= 22, type(item)
        assert len(page) < 30_000, type(item)
    for item in (objects[0], objects[4], objects[7], objects[10]):
        left = re.search(r"… and (\d+) more", item._repr_html_())
        assert left is not None
        assert int(left[1]) >= COUNT - 20


def test_names_in_a_page_are_text():
    audit = tw.audit({"<script>alert(1)</script>.weight": np.eye(60)}, **FAST)
    for item in (audit, audit[0], audit.table(), tw.compare(audit, audit)):
        assert "<script>" not in item._repr_html_()


def test_results_of_public_dataclasses_are_brief():
    """No public dataclass of results has the repr that dataclasses make, which lists every entry."""
    plain = {"Recipe", "RunOptions", "Spectrum", "Metric"}
    for room in ROOMS:
        for name in getattr(tw, room).__all__:
            item = getattr(getattr(tw, room), name)
            if inspect_is_result(item) and name not in plain:
                assert item.__repr__.__qualname__ != "__create_fn__.<locals>.__repr__", name


def inspect_is_result(item):
    if not (isinstance(item, type) and dataclasses.is_dataclass(item)):
        return False
    kinds = " ".join(str(one.type) for one in dataclasses.fields(item))
    grows = re.search(r"tuple\[[A-Z]\w+(?:, \.\.\.)|Mapping\[str, [A-Z]", kinds)  # as many entries as there are layers
    return bool(grows)


def test_metrics_and_names_are_completed(audits, objects):
    audit = audits[0]
    assert {"alpha", "stable_rank", "rows", "spectrum"} <= set(dir(audit[0]))
    assert audit._ipython_key_completions_() == [layer.name for layer in audit]
    assert "alpha" in audit.table()._ipython_key_completions_()
    assert objects[10]._ipython_key_completions_()[0] in weights(0)
    with pytest.raises(AttributeError, match="its metrics: alpha"):
        _ = audit[0].alhpa
    with pytest.raises(AttributeError, match="keeps spectra"):
        _ = audit[0].weights


def test_whole_numbers_are_whole_in_frames(audits):
    pandas = pytest.importorskip("pandas")
    frame = audits[0].table().to_pandas()
    assert frame["block"].dtype == pandas.Int64Dtype()
    assert frame["block"].isna().sum() == 1  # the embedding
    for name in ("rows", "cols", "n_params", "num_spikes", "matrix_rank"):
        assert frame[name].dtype.kind == "i" or frame[name].dtype == pandas.Int64Dtype(), name
    assert frame["alpha"].dtype == np.float64


def test_several_audits_are_one_table(audits, tmp_path):
    joined = tw.table({"run/checkpoint-100": audits[0], "run/checkpoint-200": audits[1]})
    assert joined.column_names[:3] == ["model", "step", "name"]
    assert set(joined["step"]) == {100, 200}
    assert len(joined) == 2 * (COUNT + 1)
    path = audits[0].save(tmp_path / "a.audit")
    assert tw.table([path, audits[1]], steps=[1, 2])["step"][0] == 1
    assert tw.table(audits)["step"] == [None] * len(joined)
    few = tw.audit(weights(0), metrics="alpha", **FAST)
    assert None in tw.table([few, audits[0]])["stable_rank"]
    with pytest.raises(tw.UsageError, match="1 steps for 2 audits"):
        tw.table(audits, steps=[1])


def bars(monkeypatch, shell, interactive):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False) if interactive else monkeypatch.delattr(
        sys, "ps1", raising=False
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return is_watched()


def test_a_bar_is_shown_where_somebody_watches(monkeypatch):
    assert bars(monkeypatch, object(), False)
    assert bars(monkeypatch, None, True)
    assert not bars(monkeypatch, None, False)


def test_progress_is_a_function_a_bar_or_nothing(capsys):
    steps = []
    tw.audit(weights(0), metrics="stable_rank", progress=steps.append, **FAST)
    assert [step.done for step in steps] == list(range(COUNT + 2))
    with listener(None, "work", lambda *_: ("", 0, 1)) as told:
        assert told is None
    with listener(True, "work", lambda what, done, total: (what, done, total)) as told:
        for done in range(5):
            told("layer", done, 4)
    tw.audit(weights(0), metrics="stable_rank", progress=False, **FAST)
    assert capsys.readouterr().out == ""


def test_the_mean_of_trusted_fits_can_be_made_from_the_table():
    rng = np.random.default_rng(3)
    left, _, right = np.linalg.svd(rng.standard_normal((96, 64)), full_matrices=False)
    weights = {"layers.0.up.weight": (left * np.arange(1, 65) ** -0.7) @ right,
               "layers.1.up.weight": rng.standard_normal((96, 64)), "layers.2.bias": np.ones(4)}  # fmt: skip
    audit = tw.audit(weights, use_cache=False)
    frame = audit.table().to_pandas()
    assert frame["trusted"].tolist() == [True, False]
    assert frame[frame.trusted].alpha.mean() == pytest.approx(audit.summary()["alpha"])
    assert audit.table(unmeasured=True)["trusted"] == [True, False, False]
    assert tw.table({"a": audit})["trusted"] == [True, False]
    tails = np.array([row.metrics["num_pl_spikes"] for row in audit.rows if row.measured])
    assert tw.table({"a": audit})["of_bulk"] == (tails > 32).tolist()
    assert "trusted" in audit._repr_html_()


def test_an_audit_without_a_trusted_fit_says_so_in_its_line():
    noise = np.random.default_rng(0)
    audit = tw.audit({"up.weight": noise.standard_normal((96, 64))}, use_cache=False)
    assert "0 of 1 fits trusted" in repr(audit)
    assert "mean" not in repr(audit)


def test_pandas_and_polars_take_a_table_as_it_is(audits):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    table = audits[0].table()
    frame = pd.DataFrame(table)
    assert list(frame.columns) == table.column_names
    assert frame.alpha.tolist() == table["alpha"]
    assert pl.DataFrame(table)["alpha"].to_list() == table["alpha"]
    assert "alpha" in table
    assert "alhpa" not in table


@pytest.mark.parametrize(
    ("take", "says"),
    [
        (lambda a: a.alpha, r"audit\['NAME'\].alpha"),
        (lambda a: a.layers, "iterate over it"),
        (lambda a: a.to_pandas(), r"audit.table\(\).to_pandas"),
        (lambda a: a.tabel(), "did you mean table"),
        (lambda a: a.table().head(), r"to_pandas\(\).head"),
        (lambda a: a.table().alpha, r"table\['alpha'\]"),
    ],
)
def test_names_that_people_try_are_answered(audits, take, says):
    with pytest.raises(AttributeError, match=says):
        take(audits[0])
    assert copy.copy(audits[0]).model == pickle.loads(pickle.dumps(audits[0])).model == audits[0].model
    assert len(copy.deepcopy(audits[0].table())) == len(audits[0].table())


def test_wrong_calls_say_what_to_give(audits):
    with pytest.raises(tw.UsageError, match="no chart is named"):
        audits[0].plot()
    with pytest.raises(tw.UsageError, match="a list of whole numbers"):
        tw.table(audits[:1], steps=["0"])


def test_whole_numbers_that_name_audits_are_their_steps(audits):
    joined = tw.table(dict(zip((10, 200), audits, strict=True)))
    assert list(dict.fromkeys(zip(joined["model"], joined["step"], strict=True))) == [("10", 10), ("200", 200)]


def test_a_misspelled_argument_and_a_name_of_another_library_are_answered(audits):
    with pytest.raises(TypeError, match="did you mean steps"):
        tw.table(audits, step=[1, 2])
    with pytest.raises(AttributeError, match=r"Audit\.load reads a saved audit"):
        tw.load  # noqa: B018
