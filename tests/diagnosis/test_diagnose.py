"""The verb and its contract: muting, thresholds, what is not evaluated, and JSON."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
from made_audits import NOISE, audit_of, changed, healthy_rows, name

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis
from tailwise.judging.diagnosis.rule import RULES, Cannot, RuleHit, rule
from tailwise.judging.thresholds import DEFAULTS, of_rule, resolved
from tailwise.spectrum.metrics.metric import METRICS
from tailwise.training.alarm_rule import ALARM_RULES

SICK = (name("attn_q", 2), name("mlp_up", 3))


@pytest.fixture
def sick() -> Audit:
    """Two matrices of noise, one of another scale, one with a bad fit."""
    rows = healthy_rows()
    for which in SICK:
        rows = changed(rows, which, **NOISE)
    rows = changed(rows, name("attn_o", 3), log_spectral_norm=3.0)
    return audit_of(changed(rows, name("attn_o", 4), ks_distance=0.4))


def codes(found: Diagnosis) -> list[str]:
    return [item.code for item in found.findings]


def test_the_worst_comes_first(sick):
    found = tw.diagnose(sick)
    order = [SEVERITIES.index(item.severity) for item in found.findings]
    assert order == sorted(order, reverse=True)
    assert found.worst == "warning"
    assert {item.code for item in found.of(SICK[0])} == {"TW201", "TW501"}


def test_a_diagnosis_is_the_same_every_time(sick):
    assert tw.diagnose(sick) == tw.diagnose(sick)


def test_json_round_trip(sick):
    found = tw.diagnose(sick, mute=["TW5xx"])
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Diagnosis.from_json(json.loads(text)) == found


@pytest.mark.parametrize(("mute", "gone"), [("TW201", {"TW201"}), ("tw5xx", {"TW501"}), ("TW4XX", {"TW401"})])
def test_muting_a_code_or_a_family(sick, mute, gone):
    before, after = tw.diagnose(sick), tw.diagnose(sick, mute=[mute])
    assert set(codes(before)) - set(codes(after)) == gone
    assert after.muted == (mute,)
    assert not gone & {*after.looked, *(item.code for item in after.not_looked)}


def test_muting_a_rule_for_some_layers(sick):
    found = tw.diagnose(sick, mute=[r"TW201:layers\.2\."])
    (finding,) = [item for item in found.findings if item.code == "TW201"]
    assert finding.layers == (SICK[1],)
    assert "TW201" not in codes(tw.diagnose(sick, mute=["TW201:attn,mlp|self_attn|mlp"]))


@pytest.mark.parametrize(("mute", "says"), [("TW210", "mean TW20"), ("TW9xx", "TW9xx"), ("TW201:(", "expression")])
def test_a_wrong_muting_is_a_usage_error(sick, mute, says):
    with pytest.raises(tw.UsageError, match=says):
        tw.diagnose(sick, mute=[mute])


def test_thresholds_from_a_mapping_and_from_toml(sick, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("# looser\nscale_jump = 5\nnoise_z = 0.1\n")
    for given in (path, str(path), {"scale_jump": 5.0, "noise_z": 0.1}):
        found = tw.diagnose(sick, thresholds=given)
        assert not {"TW401", "TW201"} & set(codes(found))
        assert found.thresholds["scale_jump"] == 5.0
        assert found.thresholds["peer_z"] == DEFAULTS["peer_z"].value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nois_z = 3", "noise_z"),
        ("noise_z = 'a'", "give a number"),
        ("noise_z =", "not TOML"),
        ("noise_z = true", "number"),
        ("noise_z = inf", "is inf"),
        (f"noise_z = 1{'0' * 400}", r"mine\.toml: the threshold noise_z is 10{99}… \(401 signs\)"),
    ],
)
def test_a_wrong_threshold_file_is_a_usage_error(tmp_path, text, says):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(tw.UsageError, match=says):
        resolved(path)


def test_a_missing_threshold_file_is_unreadable(tmp_path):
    with pytest.raises(tw.UnreadableError):
        resolved(tmp_path / "none.toml")


@pytest.mark.parametrize("code", [code for code, item in RULES.items() if item.needs])
def test_a_rule_without_its_metrics_could_not_look(rows, code):
    needs = RULES[code].needs
    kept = {
        which: replace(row, metrics={key: number for key, number in row.metrics.items() if key not in needs})
        for which, row in rows.items()
    }
    (blind,) = [item for item in tw.diagnose(audit_of(kept)).not_looked if item.code == code]
    assert needs[0] in blind.reason
    if code == "TW205":
        assert "--randomize" in blind.reason


@pytest.mark.parametrize("code", [code for code, item in RULES.items() if item.estimator])
def test_another_estimator_is_not_judged_by_these_bounds(rows, code):
    found = tw.diagnose(audit_of(rows, recipe={"estimator": "mid"}))
    (blind,) = [item for item in found.not_looked if item.code == code]
    assert "--estimator ks" in blind.reason


@pytest.mark.parametrize("code", [code for code, item in RULES.items() if item.needs and item.family != "health"])
def test_small_matrices_are_not_judged(rows, code):
    small = {which: replace(row, rows=32) for which, row in rows.items()}
    case = Case.of(audit_of({}), resolved())
    verdict = RULES[code].judge(replace(case, rows=tuple(small.values())))
    assert isinstance(verdict, Cannot)


def test_degenerate_tails_are_not_judged(rows):
    which = name("attn_q", 3)
    rows = changed(rows, which, alpha_hill=10.0)
    degenerate = replace(rows[which], degenerate=("alpha", "alpha_hill"), status="DEGENERATE")
    assert "TW103" not in codes(tw.diagnose(audit_of({**rows, which: degenerate})))


def test_an_empty_audit_can_be_diagnosed():
    found = tw.diagnose(audit_of({}))
    assert found.findings == ()
    assert {item.code for item in found.not_looked} == {code for code, item in RULES.items() if item.needs}


def test_rules_say_everything_and_need_metrics_that_exist():
    assert len(RULES.items()) >= 14
    for code, item in RULES.items():
        assert item.code == code
        assert item.title
        assert item.summary
        assert all((item.causes, item.remedies, item.references))
        assert set(item.needs) <= set(METRICS)


class Recorded(dict):
    """Remembers which thresholds were asked for."""

    def __init__(self, values) -> None:
        super().__init__(values)
        self.asked = set()

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("code", list(RULES))
def test_a_rule_uses_the_thresholds_that_the_table_says(sick, code):
    limits = Recorded(resolved())
    RULES[code].judge(Case.of(sick, limits))
    assert limits.asked <= {item.name for item in of_rule(code)}


def test_every_threshold_belongs_to_a_rule_that_names_it():
    limits = resolved(rules=RULES)
    used = {name for code, item in RULES.items() for name in limits if f'"{name}"' in inspect.getsource(_module(item))}
    assert set(limits) - used <= {
        "min_evals",
        "min_blocks",
        "min_peers",
        *(n for n in DEFAULTS if n.startswith("noise_")),
    }
    assert all(code in {*RULES, *ALARM_RULES} for item in DEFAULTS.values() for code in item.rules)


def _module(item):
    return inspect.getmodule(item.judge)


def test_a_third_party_adds_a_rule(rows):
    @rule(
        "XY101", title="too tidy", severity="info", strength="heuristic", causes=["c"], remedies=["r"], references=["s"]
    )
    def too_tidy(case):
        """Fires always."""
        return RuleHit(f"{len(case.measured)} matrices", ())

    try:
        found = tw.diagnose(audit_of(rows))
        assert [(item.code, item.message) for item in found.findings] == [("XY101", "24 matrices")]
    finally:
        RULES._items.pop("XY101")


def test_a_code_that_is_none_is_refused():
    with pytest.raises(TypeError, match="TW101"):
        rule("Tw1", title="", severity="info", strength="theory", causes=[], remedies=[], references=[])


@pytest.mark.parametrize(
    "numbers", [{"singular_entropy_baseline": 1e5}, {"alpha_sigma": 0.0, "alpha": 1.2}, {"alpha_hill_baseline": 0.0}]
)
def test_numbers_that_no_matrix_has_cost_a_rule_and_not_the_diagnosis(rows, numbers):
    found = tw.diagnose(
        audit_of({which: replace(row, metrics={**row.metrics, **numbers}) for which, row in rows.items()})
    )
    blind = [item for item in found.not_looked if "none that a matrix can have" in item.reason]
    assert blind
    assert len(found.looked) > len(blind)
