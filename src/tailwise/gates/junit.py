"""JUnit XML: one test case per expectation, as continuous integration shows them."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from tailwise.gates.expectation import CheckResult, Outcome

#: Characters that XML 1.0 cannot hold, whatever the escaping.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(result: CheckResult) -> str:
    """A failed expectation is a failure; one that could not be looked at is an error."""
    failed = sum(outcome.status == "failed" for outcome in result.outcomes)
    blind = sum(outcome.status == "could_not_look" for outcome in result.outcomes)
    counts = {"tests": str(len(result.outcomes)), "failures": str(failed), "errors": str(blind)}
    root = ET.Element("testsuites", {"name": "tailwise check", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _plain(result.model), "skipped": "0", **counts})
    for outcome in result.outcomes:
        _case(suite, outcome, result)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ['<?xml version="1.0" encoding="UTF-8"?>\n', "\n"]
    )


def _case(suite: ET.Element, outcome: Outcome, result: CheckResult) -> None:
    facts = {"classname": f"tailwise.{outcome.expectation.kind}", "name": _plain(f"{outcome.id}: {outcome.title}")}
    where = {"file": _plain(result.source), "line": str(outcome.expectation.line)}
    case = ET.SubElement(suite, "testcase", {**facts, **where, "time": "0"})
    if outcome.passed:
        return
    kind = "failure" if outcome.status == "failed" else "error"
    child = ET.SubElement(case, kind, {"message": _plain(outcome.message), "type": outcome.status})
    child.text = _plain("\n".join(violation.message for violation in outcome.violations) or outcome.message)


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
