"""Each rule fires on its sign, names the layers, and is silent on a healthy audit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_audits import BLOCKS, HEALTHY, NOISE, ROLES, M, audit_of, changed, healthy_rows, name

import tailwise as tw
from tailwise.audits.rows import LayerRow
from tailwise.audits.single import esd
from tailwise.core.recipe import Recipe
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.finding import Diagnosis, Finding
from tailwise.judging.diagnosis.rule import RULES
from tailwise.spectrum.marchenko_pastur import gaussian_spectrum
from tailwise.spectrum.metrics.facts import Spectra, measure
from tailwise.spectrum.spectrum import Spectrum


def find(rows, code: str, **options) -> Finding | None:
    made = {key: options.pop(key) for key in ("spectra", "dead", "config") if key in options}
    found = tw.diagnose(audit_of(rows, **made), **options)
    assert code in found.looked, [item for item in found.not_looked if item.code == code]
    return next((item for item in found.findings if item.code == code), None)


def with_noise(rows, names):
    for which in names:
        rows = changed(rows, which, **NOISE)
    return rows


def test_a_healthy_audit_has_no_finding(rows):
    found = tw.diagnose(audit_of(rows))
    assert found.findings == ()
    assert found.not_looked == ()
    assert found.not_evaluated == ()
    assert set(found.looked) == set(RULES)


def test_depth_curse_needs_a_trend_and_a_light_end():
    rows = healthy_rows(8)
    for role in ROLES:
        for block in range(8):
            rows = changed(rows, name(role, block), alpha_hill=2.2 + 0.9 * block)
    found = find(rows, "TW101")
    assert found is not None
    assert found.layers[0].startswith("model.layers.7.")
    assert {layer.split(".")[2] for layer in found.layers} == {"3", "4", "5", "6", "7"}  # all that are light
    for row in list(rows.values()):
        rows = changed(rows, row.name, alpha_hill=2.2 + 0.2 * row.block)
    assert find(rows, "TW101") is None  # as strict a trend, and no layer is light-tailed


def test_depth_curse_is_found_where_only_the_last_blocks_are_almost_noise(rows):
    """Three blocks against three are a step, in which Kendall's test cannot be sure."""
    for role in ROLES:
        for block, hill in enumerate([2.1, 2.4, 2.0, 7.2, 6.8, 7.0]):
            rows = changed(rows, name(role, block), alpha_hill=hill, alpha_hill_z=5.0)
    found = find(rows, "TW101")
    assert found is not None
    assert {layer.split(".")[2] for layer in found.layers} == {"3", "4", "5"}
    for role in ROLES:  # the same step within the errors of alpha_hill is none
        for block in range(6):
            rows = changed(rows, name(role, block), alpha_hill_sigma=4.0)
    assert find(rows, "TW101") is None


def test_depth_curse_in_one_role_of_four_is_none():
    rows = healthy_rows(8)
    for block in range(8):
        rows = changed(rows, name("attn_q", block), alpha_hill=2.2 + 0.9 * block)
    assert find(rows, "TW101") is None


def test_layer_imbalance():
    rows = healthy_rows(8)
    for row in list(rows.values()):
        rows = changed(rows, row.name, singular_entropy=0.05 + 0.2 * (7 - row.block) ** 2 / 49)
    found = find(rows, "TW102")
    assert found is not None
    assert {layer.split(".")[2] for layer in found.layers} <= {"6", "7"}


def test_local_stagnation_names_the_one_layer(rows):
    which = name("mlp_up", 3)
    found = find(changed(rows, which, alpha_hill=6.5, alpha_hill_sigma=0.6, alpha_hill_z=8.0), "TW103")
    assert found is not None
    assert found.layers == (which,)
    assert "6.50 ± 0.60" in found.evidence[0].says
    assert "noise of this shape 9.70 ± 0.40" in found.evidence[0].says


def test_stagnation_within_the_error_of_alpha_is_none(rows):
    assert (
        find(changed(rows, name("mlp_up", 3), alpha_hill=6.5, alpha_hill_sigma=3.0, alpha_hill_z=8.0), "TW103") is None
    )


@pytest.mark.parametrize("block", [0, BLOCKS - 1])
def test_stagnation_does_not_judge_the_ends(rows, block):
    assert find(changed(rows, name("mlp_up", block), alpha_hill=6.5, alpha_hill_z=8.0), "TW103") is None


def test_one_layer_of_noise_is_a_warning_and_all_are_an_error(rows):
    which = name("attn_o", 2)
    found = find(with_noise(rows, [which]), "TW201")
    assert found is not None
    assert (found.severity, found.layers) == ("warning", (which,))
    assert find(with_noise(rows, [which]), "TW103") is None  # TW201 says more
    everything = find(with_noise(rows, list(rows)), "TW201")
    assert everything is not None
    assert everything.severity == "error"
    assert len(everything.layers) == len(rows)


@pytest.mark.parametrize(
    "sign", [{"alpha_hill_z": 6.0}, {"singular_entropy_z": 9.0}, {"num_spikes": 4.0}, {"mp_distance": 0.2}]
)
def test_one_sign_of_training_is_enough_not_to_be_noise(rows, sign):
    assert find(changed(rows, name("attn_o", 2), **{**NOISE, **sign}), "TW201") is None


def test_global_under_training_is_not_said_of_noise(rows):
    light = {"alpha_hill": 8.5, "alpha_hill_z": 3.0, "singular_entropy": 0.06, "singular_entropy_z": 12.0}
    faint = rows
    for which in rows:
        faint = changed(faint, which, **light)
    found = find(faint, "TW202")
    assert found is not None
    assert found.severity == "error"
    assert find(with_noise(rows, list(rows)), "TW202") is None
    assert find(changed(rows, name("mlp_up", 1), **light), "TW202") is None


def test_under_training_needs_significance_and_a_good_fit(rows):
    which = name("mlp_down", 4)
    found = find(changed(rows, which, alpha=9.0, alpha_sigma=0.5), "TW203")
    assert found is not None
    assert found.layers == (which,)
    assert find(changed(rows, which, alpha=9.0, alpha_sigma=2.5), "TW203") is None
    assert find(changed(rows, which, alpha=9.0, alpha_sigma=0.5, ks_distance=0.2), "TW203") is None


def test_over_training_is_a_note_for_few_layers_and_a_warning_for_many(rows):
    low = {"alpha": 1.5, "alpha_sigma": 0.08}
    few = find(changed(rows, name("mlp_down", 4), **low), "TW204")
    assert few is not None
    assert few.severity == "info"
    many = rows
    for which in rows:
        many = changed(many, which, **low)
    found = find(many, "TW204")
    assert found is not None
    assert found.severity == "warning"


def test_over_training_may_have_a_long_tail_but_no_bad_fit(rows):
    low = {"alpha": 1.5, "alpha_sigma": 0.05, "num_pl_spikes": 0.8 * M}
    assert find(changed(rows, name("mlp_down", 4), **low), "TW204") is not None
    assert find(changed(rows, name("mlp_down", 4), **low, ks_distance=0.2), "TW204") is None


def test_correlation_traps(rows):
    which = name("mlp_down", 4)
    found = find(changed(rows, which, num_traps=5.0), "TW205")
    assert found is not None
    assert found.layers == (which,)


def test_rank_collapse_by_norm_or_by_stable_rank(rows):
    which = name("attn_q", 3)
    for sign in ({"log_spectral_norm": 3.0, "stable_rank": 4.0}, {"stable_rank": 1.3}):
        found = find(changed(rows, which, alpha_hill=1.3, **sign), "TW301")
        assert found is not None
        assert found.layers == (which,)
    assert find(changed(rows, which, alpha_hill=1.3), "TW301") is None
    assert find(changed(rows, which, alpha_hill=1.3, log_spectral_norm=3.0), "TW301") is None  # only multiplied
    assert find(changed(rows, which, log_spectral_norm=3.0), "TW301") is None


@pytest.mark.parametrize("width", [128, 512, 4096])
@pytest.mark.parametrize("times", [10.0, 1e4])
def test_one_giant_direction_is_rank_collapse_at_any_width(width, times):
    """One logarithm in a sum over m/10: alpha_hill stays above 2 or 3 and does not show it."""
    noise = gaussian_spectrum(width, width, np.random.default_rng(0)).eigenvalues
    rows = {}
    for block in range(5):
        which = f"model.layers.{block}.mlp.up_proj"
        values = noise * (1 + 0.02 * block)
        if block == 2:
            values = np.r_[values[:-1], values[-1] * times**2]
        spectrum = Spectrum(values, width, width)
        metrics = measure(Spectra(spectrum), Recipe(metrics=("alpha_hill", "stable_rank", "log_spectral_norm")))
        rows[which] = LayerRow(which, "mlp_up", block, "dense", width, width, 1, "F32", "OK", metrics=metrics)
    found = find(rows, "TW301")
    assert found is not None
    assert found.layers == ("model.layers.2.mlp.up_proj",)
    assert "alpha_hill" in found.evidence[0].says


def test_an_exact_rank_one_matrix_is_rank_collapse_and_has_no_dead_rows(tmp_path):
    """Constants and outer products: no row is zero, and the tail has no exponent rather than the flat tail's 10."""
    numbers = torch.arange(1.0, 129.0)
    state = {"constant.weight": torch.full((128, 128), 0.02), "outer.weight": torch.outer(numbers, numbers)}
    dead = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    dead[5:9] = 0
    assert [esd(one).zero_vectors for one in (dead, dead.T, dead[:, :100], dead[:100])] == [4, 4, 0, 4]
    audit = tw.audit({**state, "dead.weight": dead}, cache_dir=tmp_path, workers=1)
    audit.save(tmp_path / "x.audit")
    again = tw.audit({**state, "dead.weight": dead}, cache_dir=tmp_path, workers=1)  # out of the cache
    for one in (audit, tw.Audit.load(tmp_path / "x.audit"), again):
        found = {item.code: item for item in tw.diagnose(one).findings}
        assert set(found["TW301"].layers) == {"constant", "outer"}
        assert set(found["TW603"].layers) == {"constant", "outer"}
        assert "no row is zero" in found["TW603"].evidence[0].says
        assert found["TW602"].layers == ("dead",)
        assert "4 of 128 directions" in found["TW602"].evidence[0].says
        assert one["constant"].row.metrics["alpha_hill"] is None
        assert "1 eigenvalue above zero" in one["constant"].row.reason


def alone(role: str, **metrics: float) -> LayerRow:
    """A matrix without peers."""
    return LayerRow(role, role, None, "dense", 512, 128, 1, "F32", "OK", metrics={**HEALTHY, **metrics})


def test_a_strong_mean_direction_of_a_head_is_no_collapse(rows):
    head = alone("lm_head", stable_rank=1.04, alpha_hill=1.7)
    assert find({**rows, "lm_head": head}, "TW301") is None
    pooler = alone("pooler", stable_rank=1.04)
    found = find({**rows, "pooler": pooler}, "TW301")
    assert found is not None
    assert found.layers == ("pooler",)


def test_an_old_audit_does_not_say_whether_rows_are_dead(rows):
    which = name("attn_q", 1)
    found = tw.diagnose(audit_of(rows, dead={which: None}))
    (left,) = found.not_evaluated
    assert (left.code, left.layers) == ("TW602", (which,))
    assert Diagnosis.from_json(found.to_json()) == found
    blind = tw.diagnose(audit_of(rows, dead=dict.fromkeys(rows)))
    assert "TW602" in [item.code for item in blind.not_looked]


def test_a_head_is_held_against_noise_and_its_softmax_is_named(rows):
    """σᵢ ∝ i^−2.5, the main case of the singular-entropy manual."""
    sigma = np.arange(1, 129.0) ** -2.5
    shares = sigma / sigma.sum()
    entropy = float(np.log(128) + np.sum(shares * np.log(shares)))
    sick = {"singular_entropy": entropy, "stable_rank": float((sigma**2).sum())}
    for role, softmax in (("lm_head", True), ("embed", False), ("classifier", True), ("projector", False)):
        found = find({**rows, role: alone(role, **sick)}, "TW302")
        assert found is not None
        assert found.layers == (role,)
        assert found.causes[0].startswith("softmax bottleneck") == softmax
        assert "≤ 20%" in found.evidence[0].says
    tied = find({**rows, "embed": alone("embed", **sick)}, "TW302", config={"tie_word_embeddings": True})
    assert tied is not None
    assert tied.causes[0].startswith("softmax bottleneck")
    assert find({**rows, "lm_head": alone("lm_head", singular_entropy=0.6, stable_rank=1.5)}, "TW302") is None


def test_a_layer_that_saturation_cannot_judge_is_named(rows):
    small = replace(alone("lm_head"), rows=30, cols=40)
    position = alone("pos_embed", singular_entropy=3.0, stable_rank=1.2)
    found = tw.diagnose(audit_of({**rows, "lm_head": small, "pos_embed": position}))
    left = {item.layers: item.reason for item in found.not_evaluated if item.code == "TW302"}
    assert "50 eigenvalues" in left["lm_head",]
    assert "by design" in left["pos_embed",]
    assert "TW302" not in [item.code for item in found.findings]


def test_saturation_against_the_role(rows):
    which = name("attn_o", 5)
    found = find(changed(rows, which, singular_entropy=1.2, stable_rank=2.0), "TW302")
    assert found is not None
    assert found.layers == (which,)
    assert find(changed(rows, which, singular_entropy=1.2), "TW302") is None


def test_saturation_over_time(rows):
    steps = []
    for step in range(7):
        now = rows
        for which in rows:
            now = changed(now, which, singular_entropy=0.1 + 0.15 * step, stable_rank=20.0 - 3 * step)
        steps.append(audit_of(now))
    found = tw.diagnose(steps[-1], history=steps[:-1])
    (finding,) = [item for item in found.findings if item.code == "TW302"]
    assert len(finding.layers) == len(rows)
    assert "from 20.0" in finding.evidence[0].says
    assert "TW302" not in [item.code for item in tw.diagnose(steps[0], history=steps[1:]).findings]


def test_saturation_over_time_counts_what_began_with_one_strong_direction(rows):
    """A stable rank below 2 cannot halve: the rising entropy is enough."""
    steps = []
    for step in range(7):
        head = alone("lm_head", singular_entropy=0.3 + 0.15 * step, stable_rank=1.6 + 0.01 * (step % 2))
        steps.append(audit_of({**rows, "lm_head": head}))
    found = tw.diagnose(steps[-1], history=steps[:-1])
    (finding,) = [item for item in found.findings if item.code == "TW302"]
    assert finding.layers == ("lm_head",)
    new = tw.diagnose(steps[-1], history=[audit_of(rows)] * 6)
    assert [(item.code, item.layers) for item in new.not_evaluated] == [("TW302", ("lm_head",))]


def test_isotropy_excludes_what_is_noise_altogether(rows):
    which = name("mlp_up", 2)
    found = find(changed(rows, which, singular_entropy=0.052, singular_entropy_z=2.0), "TW303")
    assert found is not None
    assert found.layers == (which,)
    assert "99.8%" in found.evidence[0].says
    assert find(with_noise(rows, [which]), "TW303") is None


def test_a_scaled_layer_is_named_and_its_neighbours_are_not(rows):
    which = name("attn_o", 3)
    found = find(changed(rows, which, log_spectral_norm=3.0), "TW401")
    assert found is not None
    assert found.layers == (which,)


def test_a_smooth_rise_of_scale_is_no_jump(rows):
    for row in list(rows.values()):
        rows = changed(rows, row.name, log_spectral_norm=1.5 * row.block)
    assert find(rows, "TW401") is None


def test_criticality_is_a_note(rows):
    found = find(changed(rows, name("attn_o", 3), detX_delta=-90.0), "TW402")
    assert found is not None
    assert found.severity == "info"


def test_no_verdict_is_said(rows):
    which = name("attn_q", 1)
    assert find(changed(rows, which, ks_distance=0.3), "TW501").layers == (which,)
    assert find(changed(rows, which, num_pl_spikes=100.0), "TW502").layers == (which,)


def test_no_power_law_is_claimed_where_another_law_is_likelier(rows):
    which = name("attn_q", 1)
    low = {"alpha": 1.5, "alpha_sigma": 0.05}
    likelier = {"vuong_lognormal": -3.0, "vuong_lognormal_p": 0.003}
    found = find(changed(rows, which, **low, **likelier), "TW501")
    assert found is not None
    assert "lognormal likelier (Vuong -3.0 sd, p 0.003)" in found.evidence[0].says
    assert find(changed(rows, which, **low), "TW204") is not None
    assert find(changed(rows, which, **low, **likelier), "TW204") is None
    unsure = {"vuong_lognormal": -1.0, "vuong_lognormal_p": 0.3}
    assert find(changed(rows, which, **low, **unsure), "TW501") is None
    truncated = {"vuong_truncated": -5.0, "vuong_truncated_p": 1e-6}
    assert find(changed(rows, which, **low, **truncated), "TW501") is None


def test_not_finite_and_not_measured(rows):
    bad, lost = name("attn_q", 1), name("attn_o", 1)
    rows = {
        **rows,
        bad: replace(rows[bad], status="NOT_FINITE", reason="1 NaN at (3, 5)", metrics={}),
        lost: replace(rows[lost], status="FAILED", reason="out of memory", metrics={}),
    }
    found = {item.code: item for item in tw.diagnose(audit_of(rows)).findings}
    assert found["TW601"].layers == (bad,)
    assert "(3, 5)" in found["TW601"].evidence[0].says
    assert found["TW605"].layers == (lost,)


def test_rows_of_zeros_are_dead_and_rounding_is_rank_loss(rows):
    dead, lost = name("attn_q", 1), name("attn_o", 1)
    values = np.linspace(1.0, 10.0, M)
    spectra = {dead: np.r_[np.zeros(4), values[4:]], lost: np.r_[np.full(7, 1e-30), values[7:]]}
    rows = changed(changed(rows, dead, rank_loss=4.0), lost, rank_loss=7.0)
    found = find(rows, "TW602", spectra=spectra, dead={dead: 4})
    assert found is not None
    assert found.layers == (dead,)
    assert "4 of 128 directions are taken by rows of zeros" in found.evidence[0].says
    found = find(rows, "TW603", spectra=spectra, dead={dead: 4})
    assert found is not None
    assert found.layers == (lost,)


def test_an_adapter_is_of_low_rank_by_design(rows):
    which = name("attn_q", 1)
    values = np.r_[np.zeros(120), np.linspace(1.0, 10.0, M - 120)]
    rows = changed(rows, which, rank_loss=120.0)
    rows = {**rows, which: replace(rows[which], kind="lora")}
    assert find(rows, "TW602", spectra={which: values}) is None
    assert find(rows, "TW603", spectra={which: values}) is None
    assert find(rows, "TW602", spectra={which: np.zeros(M)}, dead={which: M}) is not None


def test_rounding_of_the_stored_type_hides_a_collapsed_head(rows):
    which = name("attn_q", 1)
    values = np.r_[np.full(31, 1e-15), np.linspace(1.0, 10.0, M - 31)]
    found = find(changed(rows, which, rank_loss=31.0), "TW603", spectra={which: values})
    assert found is not None
    assert "31 directions of 128" in found.evidence[0].says


def test_duplicates_go_by_content_and_leave_out_zero_matrices(rows):
    one, two = name("mlp_up", 2), name("mlp_up", 3)
    same = {**rows, two: replace(rows[two], digest=rows[one].digest)}
    found = find(same, "TW604")
    assert found is not None
    assert set(found.layers) == {one, two}
    zero = {which: np.zeros(M) for which in (one, two)}
    assert find(same, "TW604", spectra=zero) is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_no_rule_counts_on_a_number_that_may_be_missing(rows, value):
    for metric in HEALTHY:
        for chosen in (list(rows)[5:6], list(rows)):
            lacking = dict(rows)
            for which in chosen:
                lacking.update(changed(lacking, which, **{metric: value}))
            diagnose(audit_of(lacking)).to_json()  # whatever it says, it says it
