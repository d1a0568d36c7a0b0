"""JUnit XML: one test case per expectation, as continuous integration shows them."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from tailwise.judging.gates.expectation import CheckResult, ExpectationOutcome

#: Characters that XML 1.0 cannot hold, whatever the escaping.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(result: CheckResult) -> str:
    """A failed expectation is a failure; one that could not be looked at is an error."""
    failed = sum(outcome.status == "failed" for outcome in result.outcomes)
    blind = sum(outcome.status == "not_evaluated" for outcome in result.outcomes)
    counts = {"tests": str(len(result.outcomes)), "failures": str(failed), "errors": str(blind)}
    root = ET.Element("testsuites", {"name": "tailwise check", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _plain(result.model), "skipped": "0", **counts})
    for outcome in result.outcomes:
        _case(suite, outcome, result)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ['<?xml version="1.0" encoding="UTF-8"?>\n', "\n"]
    )


def _case(suite: ET.Element, outcome: ExpectationOutcome, result: CheckResult) -> None:
    attributes = {"classname": f"tailwise.{outcome.expectation.kind}", "name": _plain(f"{outcome.id}: {outcome.title}")}
    case = ET.SubElement(suite, "testcase", {**attributes, "time": "0"})
    if outcome.passed:
        return
    kind = "failure" if outcome.status == "failed" else "error"
    child = ET.SubElement(case, kind, {"message": _plain(outcome.message), "type": outcome.status})
    messages = [violation.message for violation in outcome.violations] or [outcome.message]
    # Jenkins's schema has no place for a file on a test case.
    child.text = _plain("\n".join([*messages, f"at {result.source}:{outcome.expectation.line}"]))


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
