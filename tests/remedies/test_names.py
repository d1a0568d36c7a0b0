"""That every name of a remedy leads to a function, and that naming one costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tailwise as tw
from tailwise.judging.diagnosis.finding import Diagnosis, Finding
from tailwise.judging.diagnosis.rule import RULES
from tailwise.training.alarm_rule import ALARM_RULES


@pytest.mark.parametrize("name", tw.remedies.__all__)
def test_every_name_leads_to_something_that_says_what_it_does(name):
    assert getattr(tw.remedies, name).__doc__
    assert name in dir(tw.remedies)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'cure'"):
        _ = tw.remedies.cure


@pytest.mark.parametrize("registry", [RULES, ALARM_RULES])
def test_rules_name_functions_that_exist(registry):
    for _, rule in registry.items():
        assert set(rule.functions) <= set(tw.remedies.__all__)
    assert any(rule.functions for _, rule in registry.items())


def test_a_finding_names_functions_and_older_files_without_them_are_read():
    rule = RULES["TW103"]
    finding = Finding("TW103", "t", "info", "m", (), (), (), (), (), "theory", rule.functions)
    data = Diagnosis("m", (finding,)).to_json()
    assert Diagnosis.from_json(data).findings[0].functions == ("layerwise_learning_rates", "AdaptiveClip")
    del data["findings"][0]["functions"]
    assert Diagnosis.from_json(data).findings[0].functions == ()


def test_names_and_alarms_need_no_torch():
    code = "import sys, tailwise as tw\ntw.remedies.__all__\nimport tailwise.training.alarms as a\na.Alarms()\n"
    code += "import tailwise.training.alarm_sinks\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
