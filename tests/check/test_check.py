"""Expectations against audits."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

import tailwise as tw
from tailwise.judging.gates.init import initial_expectations
from tailwise.judging.gates.parse import parse_expectations


def outcome(audit, text, **settings):
    (found,) = tw.check(audit, parse_expectations(text), **settings).outcomes
    return found


def test_bounds_hold_or_the_worst_layer_is_named_first(sound):
    assert outcome(sound, "expect = ['alpha in [1, 20]']").passed
    found = outcome(sound, "expect = ['stable_rank < 0']")
    assert found.status == "failed"
    values = [violation.value for violation in found.violations]
    assert values == sorted(values, reverse=True)
    assert found.looked == 8


def test_roles_and_patterns_select(sound):
    table = "[[expect]]\nmetric = 'stable_rank'\nmax = 0\n"
    assert outcome(sound, table + "roles = ['attn_q']").looked == 4
    assert outcome(sound, table + "layers = 'layers\\.2\\.'").looked == 2


def test_a_share_may_fail(sound):
    values = sorted(layer.alpha_hill for layer in sound)
    middle = (values[1] + values[2]) / 2
    text = f"[[expect]]\nmetric = 'alpha_hill'\nmin = {middle}\n"
    assert not outcome(sound, text).passed
    assert not outcome(sound, text + "allow = 0.2").passed
    assert outcome(sound, text + "allow = 0.25").passed


def test_what_could_not_be_looked_at_is_no_pass(sound):
    table = "[[expect]]\nmetric = 'alpha'\nmin = 1\n"
    lists = "expect = ['num_traps < 1']", "expect = ['summary.mean_num_traps < 1']"
    for text in (*lists, table + "layers = 'nothing'", table + "roles = ['lm_head']"):
        found = outcome(sound, text)
        assert found.status == "not_evaluated", text
        assert not found.passed


def test_roles_that_no_layer_has_are_said(sound):
    found = outcome(sound, "[[expect]]\nmetric = 'stable_rank'\nmin = 0\nroles = ['attn_q', 'lm_head']")
    assert found.passed
    assert found.message.endswith("no layer has the role lm_head")


def test_the_median_of_a_role_stands_for_it(sound):
    ranks = {role: [la.stable_rank for la in sound if la.row.role == role] for role in ("attn_q", "mlp_up")}
    bound = (max(ranks["attn_q"]) + median(ranks["attn_q"])) / 2
    assert not outcome(sound, f"expect = ['stable_rank < {bound}']").passed
    text = f"[[expect]]\nthat = 'median.stable_rank < {bound}'\nroles = ['attn_q']"
    found = outcome(sound, text)
    assert found.passed
    assert found.message.startswith("attn_q ")
    both = outcome(sound, "expect = ['median.stable_rank < 0']")
    assert [violation.message.split()[4] for violation in both.violations] == ["attn_q", "mlp_up"]
    assert outcome(sound, "[[expect]]\nmedian = 'stable_rank'\nmin = 0\nroles = ['attn_q']").looked == 4


@pytest.mark.parametrize(
    "text",
    ["that = 'no finding above warning'\nroles = ['attn_q']", "that = 'no finding'\nallow = 0.2",
     "that = 'summary.layers > 1'\nroles = ['attn_q']", "that = 'the layers of the baseline'\nlayers = 'x'",
     "that = 'median.alpha < 3'\nallow = 0.5", "that = 'alpha < 3 against base.audit'"],
)  # fmt: skip
def test_what_a_string_cannot_obey_is_refused(text):
    with pytest.raises(tw.UsageError, match=r"takes no|only a change has a baseline"):
        parse_expectations(f"[[expect]]\n{text}")


def test_a_string_obeys_roles_layers_and_allow(sound):
    table = "[[expect]]\nthat = 'stable_rank < 0'\n"
    assert outcome(sound, table + "roles = ['attn_q']").looked == 4
    assert outcome(sound, table + "layers = 'layers\\.2\\.'").looked == 2
    assert not outcome(sound, table + "allow = 0.99").passed


def changed_audit(audit, **changes):
    """The same rows but one, and its layer."""
    first, *rest = audit.rows
    layers = {layer.row.name: layer for layer in audit}
    if changes.get("gone"):
        layers.pop(first.name)
        return tw.Audit(list(rest), layers, audit.provenance)
    row = replace(first, **changes)
    layers[first.name] = replace(layers[first.name], row=row)
    return tw.Audit([row, *rest], layers, audit.provenance)


DELTA = "expect = ['|delta.stable_rank| < 100']"


def test_a_layer_that_is_missing_or_reshaped_fails_a_gate_on_change(sound):
    assert outcome(sound, DELTA, baseline=sound).passed
    for changes, said in (({"gone": True}, "is missing"), ({"rows": 100}, "so that its change is none")):
        found = outcome(changed_audit(sound, **changes), DELTA, baseline=sound)
        assert not found.passed
        assert [said in violation.message for violation in found.violations] == [True]
    assert outcome(sound, DELTA, baseline=changed_audit(sound, gone=True)).passed  # a new layer has no change


def test_a_layer_that_lost_its_value_fails_a_gate_on_change(sound):
    without = dict(sound.rows[0].metrics, stable_rank=None)
    found = outcome(changed_audit(sound, metrics=without), DELTA, baseline=sound)
    assert not found.passed
    assert "on one side alone (before" in found.violations[0].message


def test_broken_and_collapsed_layers_fail(sick):
    found = outcome(sick, "expect = ['alpha > 0']")
    assert {violation.layer for violation in found.violations} == {
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    }
    assert any("NOT_FINITE" in violation.message for violation in found.violations)


def test_changes_against_a_baseline(sound, lighter, folder):
    text = "expect = ['|delta.alpha_hill| < 0.01']"
    assert outcome(sound, text, baseline=sound).passed
    assert outcome(sound, text, baseline=folder / "sound.audit").passed
    assert not outcome(lighter, text, baseline=sound).passed
    assert outcome(lighter, "expect = ['delta.alpha_hill > 0']", baseline=sound).passed
    assert not outcome(sound, "expect = ['delta.alpha_hill > 0']", baseline=lighter).passed
    with pytest.raises(tw.UsageError, match="needs a baseline"):
        outcome(sound, text)


def test_a_baseline_in_a_file_is_relative_to_the_file(sound, folder, tmp_path):
    path = tmp_path / "e.toml"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.audit").write_bytes((folder / "sound.audit").read_bytes())
    path.write_text("baseline = 'deep/base.audit'\nexpect = ['|delta.alpha| <= 0']")
    assert tw.check(sound, path).passed
    path.write_text("baseline = 'none.audit'\nexpect = ['|delta.alpha| <= 0']")
    with pytest.raises(tw.UnreadableError, match="no such audit"):
        tw.check(sound, path)


@pytest.mark.parametrize("way", ["absolute", "above", "link", "links within", "not there"])
@pytest.mark.parametrize(
    "text",
    ["expect = ['delta.alpha < -99 against {}']", "baseline = '{}'\nexpect = ['delta.alpha < -99']",
     "[[expect]]\nstructure = 'same'\nbaseline = '{}'"],
)  # fmt: skip
def test_a_gate_opens_no_audit_outside_its_folder(sound, folder, tmp_path, way, text):
    private, gate = tmp_path / "private", tmp_path / "gate"
    sound.save(f"{private}/folder.audit/")
    sound.save(private / "base.audit")
    (gate / "of links").mkdir(parents=True)
    for part in (private / "folder.audit").iterdir():
        (gate / "of links" / part.name).symlink_to(part)
    (gate / "link.audit").symlink_to(private / "base.audit")
    named = {"absolute": private / "base.audit", "above": "../private/base.audit", "link": "link.audit",
             "links within": "of links", "not there": "../private/none.audit"}[way]  # fmt: skip
    (gate / "e.toml").write_text(text.format(named))
    with pytest.raises(tw.UnreadableError, match=r"outside the folder of the expectations") as told:
        tw.check(sound, gate / "e.toml")
    assert "--baseline" in told.value.fix
    if text.startswith("baseline"):
        assert not tw.check(sound, gate / "e.toml", baseline=private / "base.audit").passed


def test_a_delta_of_another_fit_could_not_look(sound, folder):
    other = tw.audit(folder / "sound.safetensors", estimator="mid", use_cache=False, baseline_replicas=2)
    assert outcome(other, "expect = ['|delta.alpha| < 9']", baseline=sound).status == "not_evaluated"


def test_structure(sound, sick):
    assert outcome(sound, "[[expect]]\nstructure = 'same'", baseline=sound).passed
    kept = {layer.row.name: layer for layer in sound if "layers.3" not in layer.row.name}
    partial = tw.Audit([layer.row for layer in kept.values()], kept, sound.provenance)
    found = outcome(partial, "expect = ['the layers of the baseline']", baseline=sound)
    assert len(found.violations) == 2
    assert not outcome(sick, "expect = ['the layers of the baseline']", baseline=sound).passed
    gone = kept | {"model.layers.3.mlp.up_proj": sound["model.layers.3.mlp.up_proj"]}
    lost = replace(sound["model.layers.3.self_attn.q_proj"].row, status="UNSUPPORTED", reason="packed", metrics={})
    small = tw.Audit([*(layer.row for layer in gone.values()), lost], gone, sound.provenance)
    (violation,) = outcome(small, "expect = ['the layers of the baseline']", baseline=sound).violations
    assert "UNSUPPORTED" in violation.message


def test_findings(sound, sick):
    assert not outcome(sick, "expect = ['no finding above info']").passed
    worst = tw.diagnose(sound).worst
    assert outcome(sound, f"[[expect]]\nfinding = '{worst or 'none'}'").passed
    codes = [finding.code for finding in tw.diagnose(sick).findings]
    assert outcome(sick, f"[[expect]]\nfinding = 'none'\nmute = {codes}").passed


@pytest.mark.parametrize("which", ["sound", "lighter", "sick"])
def test_a_baseline_meets_the_expectations_made_from_it(which, request):
    audit = request.getfixturevalue(which)
    read = parse_expectations(initial_expectations(audit))
    result = tw.check(audit, read, baseline=audit)
    failing = [item for item in result.outcomes if not item.passed]
    if which == "sick":
        # A layer without numbers fails whatever is expected of it.
        assert all("up_proj" in violation.layer for item in failing for violation in item.violations)
    else:
        assert not failing


def test_expectations_of_another_model_do_not_hold(sound, lighter):
    assert not tw.check(lighter, parse_expectations(initial_expectations(sound))).passed


def test_nothing_to_take_bounds_from():
    import numpy as np

    audit = tw.audit({"a": np.eye(20)}, use_cache=False, baseline_replicas=2)
    with pytest.raises(tw.UsageError, match="no layer"):
        initial_expectations(audit)
