"""What is seen and what is concluded: spectra like noise, codes, first blocks, single zeros; words by severity."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from made_audits import NOISE, M, audit_of, changed, name
from rich.console import Console

import tailwise as tw
from tailwise.audits.audit import LayerRow
from tailwise.judging.diagnosis.finding import Finding
from tailwise.judging.diagnosis.noise import bulk_z
from tailwise.report import findings_view as reported
from tailwise.spectrum.marchenko_pastur import fit_bulk, gaussian_spectrum

ODD = name("attn_o", 2)


def every(rows, code: str, **options) -> list[Finding]:
    base = options.pop("base", None)
    return [item for item in tw.diagnose(audit_of(rows, **options), base=base).findings if item.code == code]


def shown(found) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(reported.terminal(found))
    return console.export_text()


def noisy(rows, *which: str):
    for one in which:
        rows = changed(rows, one, **NOISE)
    return rows


def test_titles_have_a_subject_and_a_count(rows):
    (one,) = every(noisy(rows, ODD), "TW201")
    assert one.title == "1 of 24 matrices looks like noise"
    assert one.pattern == "spectrum of noise"
    (two,) = every(noisy(rows, ODD, name("mlp_up", 4)), "TW201")
    assert two.title == "2 of 24 matrices look like noise"


def test_noise_alone_claims_no_cause_and_offers_no_surgery(rows):
    (found,) = every(noisy(rows, ODD), "TW201")
    text = " ".join((found.title, found.message, *found.causes, *found.remedies))
    assert found.functions == ()
    assert not any(word in text for word in ("not trained", "remove it", "reinitialize"))
    assert "--base" in found.remedies[0]


@pytest.mark.parametrize("earlier", ["base", "history"])
def test_a_base_or_a_history_tells_whether_it_was_moved(rows, earlier):
    now = noisy(rows, ODD)
    still = audit_of(now)
    other = audit_of({**now, ODD: replace(now[ODD], digest="elsewhere")})
    for before, unmoved in ((still, True), (other, False)):
        known = {"base": before} if earlier == "base" else {"history": [before]}
        (found,) = [item for item in tw.diagnose(audit_of(now), **known).findings if item.code == "TW201"]
        assert ("never moved" in found.title) == unmoved
        assert ("reinitialize_dead_layers" in found.functions) == unmoved
        assert ("training moved them" in found.message) != unmoved


def test_the_null_of_the_bulk_is_that_of_the_shape():
    """At 192 × 576 forty draws of noise stay below 0.02, and 0.033 is no noise."""
    row = LayerRow("v", "attn_v", 13, "dense", 192, 576, 1, "F32", "OK", metrics={"mp_distance": 0.033})
    assert bulk_z(row) > 4
    drawn = [gaussian_spectrum(192, 576, np.random.default_rng([1, seed])) for seed in range(40)]
    fits = [fit_bulk(item.eigenvalues, item.n, item.m) for item in drawn]
    z = [bulk_z(replace(row, metrics={"mp_distance": fit.ks_distance})) for fit in fits]
    assert max(z) < 4
    assert abs(np.mean(z)) < 0.5


@pytest.mark.parametrize(("rows_", "cols"), [(1024, 1024), (2048, 1024)])
def test_the_null_of_large_matrices_is_scaled_from_smaller_ones(rows_, cols):
    row = LayerRow("w", "mlp_up", 1, "dense", rows_, cols, 1, "F32", "OK")
    fits = [fit_bulk(gaussian_spectrum(rows_, cols, np.random.default_rng(seed)).eigenvalues, rows_, cols)
            for seed in range(6)]  # fmt: skip
    z = [bulk_z(replace(row, metrics={"mp_distance": fit.ks_distance})) for fit in fits]
    assert -2 < np.mean(z) < 2
    assert max(z) < 4


def test_a_pooler_and_a_role_that_is_left_as_noise_are_noted(rows):
    pooler = replace(rows[ODD], name="pooler.dense", role="pooler", block=None, metrics={**rows[ODD].metrics, **NOISE})
    (found,) = every({**rows, "pooler.dense": pooler}, "TW201")
    assert (found.severity, found.layers) == ("info", ("pooler.dense",))
    whole = [row.name for row in rows.values() if row.role == "attn_o"]
    (found,) = every(noisy(rows, *whole), "TW201")
    assert found.severity == "info"
    assert [item.severity for item in every(noisy({**rows, "pooler.dense": pooler}, ODD), "TW201")] == [
        "warning",
        "info",
    ]


def test_an_embedding_of_noise_is_a_warning(rows):
    embed = replace(rows[ODD], name="embed", role="embed", block=None, metrics={**rows[ODD].metrics, **NOISE})
    (found,) = every({**rows, "embed": embed}, "TW201")
    assert found.severity == "warning"


def test_codes_say_what_rounding_adds_and_hide_weak_directions(rows):
    coded = {key: replace(row, dtype="GGUF_Q4_1") for key, row in rows.items()}
    (found,) = every(noisy(coded, ODD), "TW201")
    assert "rounding adds about 0.44%" in found.evidence[0].says
    lost = changed(coded, ODD, rank_loss=30.0)
    assert [item.severity for item in every(lost, "TW603")] == ["info"]
    assert [item.severity for item in every(changed(rows, ODD, rank_loss=30.0), "TW603")] == ["warning"]


def test_the_first_block_may_differ_more_than_the_others(rows):
    first, middle = name("attn_o", 0), name("attn_o", 3)
    for which, step, hit in ((first, 1.2, False), (first, 2.0, True), (middle, 1.2, True)):
        assert bool(every(changed(rows, which, log_spectral_norm=1.0 + step), "TW401")) == hit


def test_one_row_of_zeros_is_noted_and_eight_are_a_warning(rows):
    for dead, severity in ((1, "info"), (8, "warning"), (M, "warning")):
        (found,) = every(rows, "TW602", dead={ODD: dead})
        assert found.severity == severity


def test_what_is_only_noted_asks_for_nothing(rows):
    found = tw.diagnose(audit_of(changed(rows, ODD, detX_delta=-90.0)))
    (note,) = found.findings
    assert note.noted
    text = shown(found)
    assert "remedies" not in text
    assert note.remedies[0] not in text
    assert reported.OTHER_SIGNS in reported.to_markdown([found])
    warned = tw.diagnose(audit_of(noisy(rows, ODD)))
    assert "remedies" in shown(warned)


def test_a_packing_that_is_not_known_says_nothing_of_the_model(rows):
    unknown = {**rows, ODD: replace(rows[ODD], status="UNSUPPORTED", reason="an unknown packing", metrics={})}
    assert [item.severity for item in every(unknown, "TW605")] == ["info"]
    failed = {**rows, ODD: replace(rows[ODD], status="FAILED", reason="out of memory", metrics={})}
    assert [item.severity for item in every(failed, "TW605")] == ["warning"]
