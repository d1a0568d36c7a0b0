"""SARIF 2.1.0: one rule per expectation, one result per layer that fails it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailwise.judging.gates.expectation import CheckResult, ExpectationOutcome, Violation

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(result: CheckResult, *, version: str) -> str:
    """Layers are logical locations. The physical one is the expectation's line: code scanning services want a file."""
    driver = {"name": "tailwise", "semanticVersion": version, "version": version, "rules": list(_rules(result))}
    run = {
        "tool": {"driver": driver},
        "results": [item for index, outcome in enumerate(result.outcomes) for item in _results(index, outcome, result)],
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "exitCode": result.exit_code}],
        "properties": {"model": result.model, "verdict": result.verdict},
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rules(result: CheckResult) -> Iterator[dict[str, Any]]:
    for outcome in result.outcomes:
        yield {
            "id": outcome.id,
            "name": f"{outcome.expectation.kind.capitalize()}Expectation",
            "shortDescription": {"text": outcome.title},
            "fullDescription": {"text": outcome.expectation.text},
            "defaultConfiguration": {"level": "error"},
            "properties": {"kind": outcome.expectation.kind},
        }


def _results(index: int, outcome: ExpectationOutcome, result: CheckResult) -> Iterator[dict[str, Any]]:
    if outcome.passed:
        return
    for violation in outcome.violations or (Violation("", outcome.message),):
        yield {
            "ruleId": outcome.id,
            "ruleIndex": index,
            "level": "error" if outcome.status == "failed" else "warning",
            "message": {"text": violation.message},
            "locations": [_location(outcome, violation, result)],
            # A stable fingerprint keeps one finding one finding from run to run.
            "partialFingerprints": {"expectationAndLayer/v1": f"{outcome.expectation.text}|{violation.layer}"},
        }


def _location(outcome: ExpectationOutcome, violation: Violation, result: CheckResult) -> dict[str, Any]:
    region = {"startLine": max(1, outcome.expectation.line)}
    path = Path(result.source)
    address = path.as_uri() if path.is_absolute() else _quoted(path)
    where: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": address}, "region": region}}
    name = violation.layer or result.model
    kind = "member" if violation.layer else "module"
    where["logicalLocations"] = [
        {"name": name.rsplit(".", 1)[-1] if violation.layer else name, "fullyQualifiedName": name, "kind": kind}
    ]
    return where


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(path.as_posix())
