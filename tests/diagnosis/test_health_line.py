"""One word on a model, why, the worst layers and the next command."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_audits import NOISE, audit_of, changed, name

import tailwise as tw
from tailwise.judging.diagnosis.finding import Health


def health(rows, **options) -> Health:
    found = tw.diagnose(audit_of(rows, **options)).health
    assert found is not None
    return found


def test_a_model_in_which_nothing_is_found_is_healthy(rows):
    found = health(rows)
    assert (found.word, found.worst) == ("healthy", ())
    assert "24 matrices" in found.why
    assert found.next == "tailwise report AUDIT"


def test_what_is_only_noted_leaves_a_model_healthy(rows):
    found = health(changed(rows, name("attn_o", 3), detX_delta=-90.0))
    assert found.word == "healthy"
    assert "1 observation is only noted" in found.why


def test_a_warning_needs_a_look_and_names_the_layer(rows):
    odd = name("attn_o", 2)
    found = health(changed(rows, odd, **NOISE))
    assert found.word == "needs a look"
    assert found.why == f"1 of 24 matrices looks like noise ({odd})."
    assert [item.layer for item in found.worst] == [odd]
    assert "healthy" in found.worst[0].stands
    assert found.worst[0].reason.startswith("spectrum of noise: alpha_hill 9.50 ± 2.40 (noise of this shape")
    assert found.next_for("x.audit") == "tailwise diagnose x.audit --base BASE.audit"
    assert found.next_for("two words.audit") == "tailwise diagnose 'two words.audit' --base BASE.audit"


def test_an_error_or_warnings_on_most_matrices_are_unhealthy(rows):
    broken = {**rows, name("attn_q", 1): replace(rows[name("attn_q", 1)], status="NOT_FINITE", metrics={})}
    assert health(broken).word == "unhealthy"
    everything = rows
    for which in rows:
        everything = changed(everything, which, **NOISE)
    found = health(everything)
    assert found.word == "unhealthy"
    assert "as before training" in found.why
    assert len(found.worst) == 5
    traps = rows
    for which in list(rows)[:13]:
        traps = changed(traps, which, num_traps=9.0)
    assert health(traps).word == "unhealthy"


def test_too_few_eigenvalues_or_no_matrix_is_no_verdict(rows):
    small = {key: replace(row, rows=20, cols=30) for key, row in rows.items()}
    found = health(small)
    assert found.word == "no verdict"
    assert "0 of 24 matrices have the 50 eigenvalues" in found.why
    assert health({}).word == "no verdict"


def test_most_weights_in_an_unknown_packing_is_no_verdict(rows):
    packed = {key: replace(row, status="UNSUPPORTED", metrics={}) for key, row in list(rows.items())[:20]}
    assert health({**rows, **packed}).word == "no verdict"


def test_the_worst_are_errors_first_and_five_at_most(rows):
    sick = changed(rows, name("mlp_up", 4), stable_rank=1.02)
    for block in range(6):
        sick = changed(sick, name("attn_o", block), num_traps=5.0)
    found = health(sick)
    assert len(found.worst) == 5
    assert (found.worst[0].layer, found.worst[0].severity) == (name("mlp_up", 4), "error")


@pytest.mark.parametrize("flag", ["health", "atlas"])
def test_an_older_diagnosis_has_none_and_is_read(rows, flag):
    data = tw.diagnose(audit_of(rows)).to_json()
    del data[flag]
    from tailwise.judging.diagnosis.finding import Diagnosis

    assert Diagnosis.from_json(data).findings == ()


def test_evidence_is_a_table_of_one_row_for_each_number(rows):
    odd = name("attn_o", 2)
    diagnosis = tw.diagnose(audit_of(changed(rows, odd, **NOISE)))
    table = diagnosis.table()
    assert len(table) == sum(len(item.evidence) for item in diagnosis.findings)
    assert odd in table["layer"]
    assert table.column_names[:3] == ["code", "severity", "finding"]
    assert tw.diagnose(audit_of(rows)).table().column_names == table.column_names
