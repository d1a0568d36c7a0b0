"""Expectations from TOML.

Each element of `expect` is a table or a string:

    "alpha in [2, 6]"   "alpha_hill < 4"   "median.alpha in [2, 4]"   "summary.mean_alpha in (2, 5)"
    "delta.alpha < 0.5 against baseline"   "|delta.log_norm| <= 0.1 against base.audit"
    "no finding above warning"   "no finding"   "the layers of the baseline"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.checkpoints.roles import ROLES
from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.harmless import pattern_from_file, shortened
from tailwise.core.layer_patterns import LONGEST_PATTERN
from tailwise.core.shown import Brief
from tailwise.core.storage import read_text, toml_of
from tailwise.core.typed import is_finite
from tailwise.core.validation import checked
from tailwise.judging.compare.summary import SUMMARIES
from tailwise.judging.diagnosis.finding import SEVERITIES
from tailwise.judging.gates.expectation import Bounds, Expectation
from tailwise.spectrum.metrics.metric import METRICS

_SUBJECTS = ("that", "metric", "median", "delta", "summary", "finding", "structure")
_COMMON = ("name", "baseline", "roles", "layers", "allow")
_KEYS = {
    "that": _COMMON, "metric": (*_COMMON, "min", "max"), "delta": (*_COMMON, "min", "max", "max_abs"),
    "median": ("name", "roles", "layers", "min", "max"), "summary": ("name", "min", "max"),
    "finding": ("name", "mute"), "structure": ("name", "baseline"),
}  # fmt: skip
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"  # with one way to match: a file may hold a million digits
_SUBJECT = re.compile(r"(?P<bar>\|\s*)?(?:(?P<kind>delta|summary|median)\.)?(?P<name>\w+)\s*(?(bar)\|)\s*(?P<rest>.*)")
_INTERVAL = re.compile(rf"in\s*([\[(])\s*({_NUMBER})\s*,\s*({_NUMBER})\s*([\])])")
_LIMIT = re.compile(rf"(<=|>=|<|>|≤|≥)\s*({_NUMBER})")
_FINDING = re.compile(r"no findings?(?:\s+above\s+(\w+))?")


@dataclass(frozen=True, repr=False)
class Expectations(Brief):
    """A file of expectations."""

    source: str
    items: tuple[Expectation, ...]
    baseline: str | None = None  # of every delta that names none


@checked
def read_expectations(path: str | Path) -> Expectations:
    """Read a TOML file. `UsageError` with the line for what is wrong in it, `UnreadableError` where there is none."""
    source = Path(path)
    try:
        text = read_text(source)
    except (OSError, UnicodeDecodeError) as error:
        fix = "write one with `tailwise check --init AUDIT -o expectations.toml`"
        raise UnreadableError(f"the expectations could not be read ({error})", where=source, fix=fix) from error
    return parse_expectations(text, str(source))


@checked
def parse_expectations(text: str, source: str = "expectations") -> Expectations:
    """The same from a string. Relative baselines are relative to the file's folder."""
    try:
        document = toml_of(text)
    except ValueError as error:
        raise UsageError(f"is not valid TOML: {error}", where=source) from error
    for key in document:
        if key not in ("expect", "baseline"):
            raise UsageError(f"there is no key {key!r} at the top", where=source, fix="it has `baseline` and `expect`")
    elements = document.get("expect", [])
    if not isinstance(elements, list) or not elements:
        raise UsageError(
            "it expects nothing", where=source, fix='add [[expect]] tables, or expect = ["alpha in [2, 6]"]'
        )
    lines = _lines(text, elements)
    items = tuple(_TomlReader(source, line).read(element) for element, line in zip(elements, lines, strict=True))
    baseline = document.get("baseline")
    if baseline is not None and not isinstance(baseline, str):
        raise UsageError("baseline is no path", where=source)
    return Expectations(source, items, baseline)


def _lines(text: str, elements: Sequence[Any]) -> list[int]:
    """The line of each element: tomllib does not say."""
    numbered = list(enumerate(text.splitlines(), 1))
    heads = iter([number for number, line in numbered if re.match(r"\s*\[\[\s*expect\s*\]\]", line)])
    if any(re.match(r"\s*\[\[\s*expect\s*\]\]", line) for _, line in numbered):
        return [next(heads, 1) for _ in elements]
    numbers, at = [], 1
    for element in elements:
        words = next(iter(element.values()), "") if isinstance(element, dict) else element
        at = next((number for number, line in numbered if number >= at and str(words) in line), at)
        numbers.append(at)
    return numbers


class _TomlReader:
    """One element of `expect`, with where it stands for messages."""

    def __init__(self, source: str, line: int) -> None:
        self._where, self._line = f"{source}, line {line}", line

    def read(self, element: Any) -> Expectation:
        if isinstance(element, str):
            return self._short(element, {})
        if not isinstance(element, dict):
            raise self._error(f"{element!r} is neither a table nor a string")
        kinds = [key for key in _SUBJECTS if key in element]
        if len(kinds) != 1:
            named = ", ".join(kinds) or "none of them"
            raise self._error(f"an expectation has one of {', '.join(_SUBJECTS)}; here are {named}")
        for key in element:
            if key != kinds[0] and key not in _KEYS[kinds[0]]:
                raise self._located(unknown_name("key", key, _KEYS[kinds[0]]))
        if kinds[0] == "that":
            return self._short(self._string(element, "that"), element)
        return getattr(self, f"_{kinds[0]}")(element)  # type: ignore[no-any-return]

    def _metric(self, element: Mapping[str, Any]) -> Expectation:
        name = self._known(self._string(element, "metric"), METRICS, "metric")
        return Expectation("metric", name, self._bounds(element), **self._common(element))

    def _median(self, element: Mapping[str, Any]) -> Expectation:
        name = self._known(self._string(element, "median"), METRICS, "metric")
        return Expectation("median", name, self._bounds(element), **self._common(element))

    def _delta(self, element: Mapping[str, Any]) -> Expectation:
        name = self._known(self._string(element, "delta"), METRICS, "metric")
        if "max_abs" in element:
            if "min" in element or "max" in element:
                raise self._error("max_abs stands alone, without min and max")
            bounds = Bounds(None, self._float(element, "max_abs"))
            return Expectation("delta", name, bounds, absolute=True, **self._common(element))
        return Expectation("delta", name, self._bounds(element), **self._common(element))

    def _summary(self, element: Mapping[str, Any]) -> Expectation:
        name = self._known(self._string(element, "summary"), SUMMARIES, "summary")
        return Expectation("summary", name, self._bounds(element), **self._common(element))

    def _finding(self, element: Mapping[str, Any]) -> Expectation:
        severity = self._string(element, "finding")
        known = self._known(severity, ("none", *SEVERITIES), "severity")
        mute = self._strings(element, "mute")
        for item in mute:
            self._check_pattern(item.partition(":")[2])
        allowed = None if known == "none" else next(item for item in SEVERITIES if item == known)
        return Expectation("finding", severity=allowed, mute=mute, **self._common(element))

    def _structure(self, element: Mapping[str, Any]) -> Expectation:
        self._known(self._string(element, "structure"), ("same",), "structure")
        return Expectation("layers", **self._common(element))

    def _short(self, text: str, element: Mapping[str, Any]) -> Expectation:
        body, _, against = (part.strip() for part in text.partition(" against "))
        common = self._common(element)
        if against not in ("", "baseline"):
            common["baseline"] = against
        if about := _FINDING.fullmatch(body):
            self._only(text, element, against, _KEYS["finding"])
            return self._finding({"finding": about[1] or "none", **{k: v for k, v in element.items() if k == "name"}})
        if body in ("the layers of the baseline", "same layers"):
            self._only(text, element, "", _KEYS["structure"])
            return Expectation("layers", **common)
        match = _SUBJECT.fullmatch(body)
        bounds = None if match is None else self._limits(match["rest"])
        if match is None or bounds is None:
            fix = 'write it as "alpha in [2, 6]", "|delta.alpha| < 0.5 against baseline" or "no finding above warning"'
            raise self._error(f"{shortened(text, 1000)!r} is not understood", fix)
        kind = match["kind"] or "metric"
        if match["bar"] and kind != "delta":
            raise self._error(f"{text!r}: only a change has a size", "write |delta.alpha|, or leave the bars out")
        self._only(text, element, "" if kind == "delta" else against, _KEYS[kind])
        name = self._known(match["name"], SUMMARIES if kind == "summary" else METRICS, "metric")
        return Expectation(kind, name, bounds, absolute=bool(match["bar"]), **common)  # type: ignore[arg-type]

    def _only(self, text: str, element: Mapping[str, Any], against: str, takes: Sequence[str]) -> None:
        """What an expectation cannot obey is an error, and never ignored."""
        wrong = [key for key in element if key not in ("that", *takes)]
        if wrong:
            raise self._error(f"{text!r} takes no {' and no '.join(wrong)}", "leave it out")
        if against:
            raise self._error(f"{text!r}: only a change has a baseline", 'write "delta.… against …", or leave it out')

    def _limits(self, text: str) -> Bounds | None:
        if match := _INTERVAL.fullmatch(text):
            low, high = self._number(match[2]), self._number(match[3])
            return self._ordered(Bounds(low, high, match[1] == "(", match[4] == ")"))
        if match := _LIMIT.fullmatch(text):
            value, open_end = self._number(match[2]), match[1] in "<>"
            return (
                Bounds(high=value, high_open=open_end)
                if match[1] in ("<", "<=", "≤")
                else Bounds(low=value, low_open=open_end)
            )
        return None

    def _number(self, text: str) -> float:
        """A bound that is written as text: `1e999` is infinite, bounds nothing, and no report can hold it."""
        return self._float({"a bound": float(text)}, "a bound")

    def _bounds(self, element: Mapping[str, Any]) -> Bounds:
        low = self._float(element, "min") if "min" in element else None
        high = self._float(element, "max") if "max" in element else None
        if low is None and high is None:
            raise self._error("there is no bound", "give min, max or both")
        return self._ordered(Bounds(low, high))

    def _ordered(self, bounds: Bounds) -> Bounds:
        if bounds.low is not None and bounds.high is not None and bounds.low > bounds.high:
            raise self._error(f"no number is {bounds}", "put the smaller bound first")
        return bounds

    def _common(self, element: Mapping[str, Any]) -> dict[str, Any]:
        roles = self._strings(element, "roles")
        for role in roles:
            self._known(role, ROLES, "role")
        layers = self._string(element, "layers") if "layers" in element else None
        self._check_pattern(layers or "")
        allow = self._float(element, "allow") if "allow" in element else 0.0
        if not 0 <= allow < 1:
            raise self._error(f"allow is {allow:g}", "give the share of layers that may fail, in [0, 1), e.g. 0.1")
        texts = {key: self._string(element, key) for key in ("name", "baseline") if key in element}
        return {"roles": roles, "layers": layers, "allow": allow, "line": self._line, **texts}

    def _check_pattern(self, pattern: str) -> None:
        try:
            pattern_from_file(pattern, longest=LONGEST_PATTERN)
        except ValueError as error:
            fix = "write it with fewer repeats, none within another; several expectations may share the layers"
            raise self._error(f"{pattern[:200]!r} is not a regular expression to search with: {error}", fix) from error

    def _known(self, name: str, names: Any, kind: str) -> str:
        if name not in names:
            raise self._located(unknown_name(kind, name, names))
        return name

    def _string(self, element: Mapping[str, Any], key: str) -> str:
        if not isinstance(element[key], str) or not element[key]:
            raise self._error(f"{key} is {element[key]!r}", "give a text")
        return str(element[key])

    def _strings(self, element: Mapping[str, Any], key: str) -> tuple[str, ...]:
        values = element.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self._error(f"{key} is {values!r}", 'give a list of texts, e.g. ["attn_q"]')
        return tuple(values)

    def _float(self, element: Mapping[str, Any], key: str) -> float:
        value = element[key]
        if not is_finite(value):
            raise self._error(f"{key} is {shortened(repr(value), 100)}", "give a finite number")
        return float(value)

    def _error(self, what: str, fix: str | None = None) -> UsageError:
        return UsageError(what, where=self._where, fix=fix)

    def _located(self, error: UsageError) -> UsageError:
        return UsageError(error.what, where=self._where, fix=error.fix)
