"""What must hold of any comparison of two audits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

import tailwise as tw
from tailwise.judging.compare.significance import discoveries, z_scores
from tailwise.spectrum.power_law import fit_tail


def test_an_audit_against_itself_changes_nothing(before):
    found = tw.compare(before, before)
    assert found.identical
    assert all(layer.identical for layer in found.layers)
    for layer in found.layers:
        assert all(delta.change in (0.0, None) for delta in layer.deltas.values())
        assert not any(delta.significant for delta in layer.deltas.values())
    assert all(delta.change == 0 for delta in found.summary.values())
    assert found.roles == ()
    assert found.notes == ()


def test_comparing_the_other_way_round_turns_every_sign(before, after):
    there, back = tw.compare(before, after), tw.compare(after, before)
    returned = {layer.name: layer for layer in back.layers}
    for layer in there.layers:
        for name, delta in layer.deltas.items():
            other = returned[layer.name].deltas[name]
            assert (delta.before, delta.after) == (other.after, other.before)
            if delta.change is not None:
                assert delta.change == -other.change
            if delta.z is not None:
                assert delta.z == pytest.approx(-other.z, abs=1e-9)
            assert delta.significant == other.significant
    assert [change.p for change in there.roles] == [change.p for change in back.roles]


def test_a_planted_power_law_is_found_and_nothing_else(before, after, make):
    found = tw.compare(before, after)
    assert found.significant("alpha") == (make.planted,)
    assert found.significant("alpha_hill") == (make.planted,)
    delta = next(layer for layer in found.layers if layer.name == make.planted).deltas["alpha"]
    assert delta.change < -1
    assert delta.z < -4


@pytest.mark.parametrize("estimator", ["ks", "top"])
@pytest.mark.parametrize("entries", ["gaussian", "student"])
def test_reseeded_noise_is_called_changed_at_most_at_the_level(estimator, entries):
    """Under noise alone, a simulation of 20 layers may report anything in 5 % of the cases."""
    rng = np.random.default_rng(7)
    draw = rng.standard_normal if entries == "gaussian" else (lambda shape: rng.standard_t(4, shape))
    spectra = [np.linalg.svd(draw((96, 64)), compute_uv=False)[::-1] ** 2 for _ in range(160)]
    fits = [fit_tail(values, estimator) for values in spectra]

    def refit(i, k):
        tail = spectra[i][-k:]
        return 1 + k / np.log(tail / tail[0]).sum(), k

    def contrasts(i, j):
        k = min(fits[i].k, fits[j].k)
        return [((fits[i].alpha, fits[i].k), (fits[j].alpha, fits[j].k)), (refit(i, k), refit(j, k))]

    alarms = 0
    for _ in range(100):
        order = rng.permutation(160)
        z = z_scores([contrasts(i, j) for i, j in zip(order[:20], order[20:40], strict=True)])
        alarms += discoveries(z, 0.05).any()
    assert alarms <= 10


def test_the_searched_tail_alone_would_call_noise_changed():
    """Why two contrasts: σ of a searched fit leaves out the search."""
    rng = np.random.default_rng(8)
    fits = [
        fit_tail(np.linalg.svd(rng.standard_normal((96, 64)), compute_uv=False)[::-1] ** 2, "ks") for _ in range(80)
    ]
    alarms = 0
    for _ in range(50):
        order = rng.permutation(80)
        pairs = zip(order[:20], order[20:40], strict=True)
        z = z_scores([[((fits[i].alpha, fits[i].k), (fits[j].alpha, fits[j].k))] for i, j in pairs])
        alarms += discoveries(z, 0.05).any()
    assert alarms > 8


def test_z_of_pareto_samples_is_standard_normal():
    rng = np.random.default_rng(9)
    k = np.array([8, 40])
    fits = []
    for size in k:
        logs = rng.standard_exponential((4000, size))
        fits.append(1 + size / (logs - logs.min(axis=1, keepdims=True)).sum(axis=1))
    z = z_scores([[((a, 8), (b, 40))] for a, b in zip(*fits, strict=True)])
    assert np.mean(z) == pytest.approx(0, abs=0.06)
    assert np.std(z) == pytest.approx(1, abs=0.04)


def test_the_layers_of_a_role_are_tested_together(pair, make):
    weights = make.noise(1)
    shrunk = {name: value * (0.9 if "mlp" in name else 1.0) for name, value in weights.items()}
    found = tw.compare(make.audited(weights), make.audited(shrunk))
    changes = {(change.role, change.metric): change for change in found.roles}
    scale = changes["mlp_up", "log_spectral_norm"]
    moved = [layer.deltas["log_spectral_norm"].change for layer in found.layers if layer.role == "mlp_up"]
    assert scale.layers == 8
    assert scale.median_change == pytest.approx(2 * np.log10(0.9))
    assert scale.p == pytest.approx(wilcoxon(moved).pvalue)
    assert scale.significant
    assert not any(role == "attn_q" for role, _ in changes)
    assert all(change.p is None and change.significant is None for change in tw.compare(*pair).roles)


def test_renames_are_found_by_content_then_by_place(make):
    weights = make.noise(3, blocks=2)
    old = make.audited(weights)
    renamed = {name.replace("model.layers", "decoder.h"): value for name, value in weights.items()}
    found = tw.compare(old, make.audited(renamed))
    old_names = [name.removesuffix(".weight") for name in weights]
    assert set(found.renamed) == {(name, name.replace("model.layers", "decoder.h")) for name in old_names}
    assert all(layer.identical and layer.name != layer.name_before for layer in found.layers)
    assert not found.identical
    changed = {name: value + 1e-3 for name, value in renamed.items()}
    again = tw.compare(old, make.audited(changed))
    assert set(again.renamed) == set(found.renamed)
    assert (again.added, again.missing) == ((), ())


def test_a_prefix_is_seen_through_where_place_is_ambiguous(make):
    rng = np.random.default_rng(0)
    names = [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(3)]
    weights = {name: rng.standard_normal((32, 24)) for name in names}
    other = {f"base.{name}": value + rng.standard_normal((32, 24)) for name, value in weights.items()}
    found = tw.compare(make.audited(weights), make.audited(other))
    assert found.renamed == tuple((n.removesuffix(".weight"), f"base.{n}".removesuffix(".weight")) for n in names)


def test_ambiguous_layers_are_added_and_missing_not_guessed(make):
    rng = np.random.default_rng(0)
    one = {f"a{i}.weight": rng.standard_normal((32, 24)) for i in range(2)}
    two = {f"b{i}.weight": rng.standard_normal((32, 24)) for i in range(2)}
    found = tw.compare(make.audited(one), make.audited(two))
    assert found.renamed == ()
    assert set(found.missing) == {"a0", "a1"}
    assert set(found.added) == {"b0", "b1"}
    assert found.layers == ()


def test_added_missing_and_reshaped_are_said(make):
    weights = make.noise(4, blocks=2)
    other = dict(weights)
    gone = "model.layers.1.mlp.up_proj"
    del other[f"{gone}.weight"]
    other["model.layers.0.mlp.up_proj.weight"] = weights[f"{gone}.weight"][:80]
    other["lm_head.weight"] = np.random.default_rng(0).standard_normal((50, 64))
    found = tw.compare(make.audited(weights), make.audited(other))
    assert found.missing == (gone,)
    assert found.added == ("lm_head",)
    assert found.reshaped == (("model.layers.0.mlp.up_proj", "96×64", "80×64"),)
    assert not found.identical


def test_a_layer_that_turned_nan_is_a_note_not_a_missing_layer(make):
    weights = make.noise(4, blocks=1)
    broken = dict(weights)
    broken["model.layers.0.mlp.up_proj.weight"] = np.full((96, 64), np.nan)
    found = tw.compare(make.audited(weights), make.audited(broken))
    assert found.missing == ()
    assert any("NOT_FINITE" in note for note in found.notes)


@pytest.mark.parametrize("settings", [{"estimator": "mid"}, {"k_frac": 0.3}])
def test_another_fit_is_noted_and_nothing_is_called_significant(before, make, settings):
    other = make.audited(make.noise(2) | {f"{make.planted}.weight": make.heavy(5)}, **settings)
    found = tw.compare(before, other)
    metric = "alpha" if "estimator" in settings else "alpha_hill"
    assert all(layer.deltas[metric].significant is None for layer in found.layers)
    assert any(note.startswith(metric) for note in found.notes)


def test_degenerate_and_small_layers_claim_nothing(make):
    weights = make.noise(1, blocks=2)
    flat = weights | {"model.layers.0.mlp.up_proj.weight": np.eye(96, 64)}
    small = {"model.layers.9.mlp.up_proj.weight": np.random.default_rng(0).standard_normal((30, 20))}
    found = tw.compare(make.audited(weights | small), make.audited(flat | {k: v * v for k, v in small.items()}))
    by_name = {layer.name: layer for layer in found.layers}
    for name in ("model.layers.0.mlp.up_proj", "model.layers.9.mlp.up_proj"):
        assert by_name[name].deltas["alpha"].significant is None
    assert "mean_alpha" not in found.summary  # noise has no trusted fit
    assert found.summary["mean_alpha_all"].after is not None
    assert found.summary["mean_alpha_hill"].after < 10


def test_metrics_and_level_are_checked(before):
    found = tw.compare(before, before, metrics=["alpha", "stable_rank"])
    assert set(found.layers[0].deltas) == {"alpha", "stable_rank"}
    with pytest.raises(tw.UsageError, match="did you mean alpha"):
        tw.compare(before, before, metrics=["alpah"])
    with pytest.raises(tw.UsageError, match="false discovery rate"):
        tw.compare(before, before, level=2.0)


def test_a_comparison_is_plain_json(before, after):
    document = json.loads(json.dumps(tw.compare(before, after).to_json(), allow_nan=False))
    assert document["layers"][0]["deltas"]["alpha"]["before"] > 1
    assert {"added", "missing", "renamed", "reshaped", "summary", "roles", "level"} <= set(document)


def test_comparing_saved_audits_imports_no_torch(before, tmp_path):
    import subprocess
    import sys

    path = before.save(tmp_path / "a.audit")
    code = f"import sys, tailwise as tw; a = tw.Audit.load({str(path)!r}); tw.compare(a, a); tw.rank([a, a])"
    code += "\nassert 'torch' not in sys.modules and callable(tw.compare)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_what_was_not_measured_is_not_called_identical():
    rng = np.random.default_rng(0)
    W, broken = rng.standard_normal((32, 48)), np.full((32, 48), np.nan)
    some = tw.audit({"a": W, "b": broken}, use_cache=False, baseline_replicas=1)
    none = tw.audit({"b": broken}, use_cache=False, baseline_replicas=1)
    assert tw.compare(some, some).unmeasured == ("b",)
    assert not tw.compare(some, some).identical
    assert any("not compared" in note and "b" in note for note in tw.compare(some, some).notes)
    assert not tw.compare(none, none).identical
    whole = tw.audit({"a": W}, use_cache=False, baseline_replicas=1)
    assert tw.compare(whole, whole).identical


def test_two_readings_of_one_tensor_are_said():
    codes = torch.randn(32, 48).to(torch.float8_e4m3fn)
    scaled = tw.audit({"m.weight": codes, "m.weight_scale": torch.tensor(3.0)}, use_cache=False, baseline_replicas=1)
    plain = tw.audit({"m.weight": codes}, use_cache=False, baseline_replicas=1)
    assert any("read in two ways" in note and "fp8" in note for note in tw.compare(plain, scaled).notes)


def test_a_comparison_is_a_table_and_is_asked_by_name(before, after, make):
    found = tw.compare(before, after)
    table = found.table("stable_rank")
    sizes = [abs(change) for change in table["change"]]
    assert len(table) == len(found.layers)
    assert sizes == sorted(sizes, reverse=True)
    assert table["name"][0] == make.planted
    assert set(table["metric"]) == {"stable_rank"}
    assert len(found.table()) == sum(len(layer.deltas) for layer in found)
    layer = found[f"{make.planted}.weight"]
    assert layer.name == make.planted
    assert table["change"][0] == layer.deltas["stable_rank"].change
    assert len(repr(layer.deltas["stable_rank"])) < 60
    with pytest.raises(tw.UsageError, match=make.planted.replace(".", r"\.")):
        found[make.planted.replace("up_proj", "up_prj")]
    with pytest.raises(tw.UsageError, match="did you mean stable_rank"):
        found.table("stable_rnk")


def test_what_has_no_error_is_not_called_insignificant(before, after):
    found = tw.compare(before, after)
    with pytest.raises(tw.UsageError, match=r"stable_rank has no error[\s\S]*table\('stable_rank'\)"):
        found.significant("stable_rank")
    assert tw.compare(before, after, metrics="stable_rank").significant("alpha") == ()
