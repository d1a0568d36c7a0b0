"""Expectations that a baseline itself meets, with room for what training runs differ by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import estimator_of, usable
from tailwise.core.errors import UsageError
from tailwise.judging.compare.summary import SUMMARIES, model_numbers

#: Metric and the half-width of its bounds: four standard errors, or a share of the role's range and of its size.
_EXPONENTS = ("alpha", "alpha_hill")
_PLAIN = ("log_spectral_norm", "stable_rank", "effective_rank")
_SIGMAS = 4.0
_RANGE, _SIZE = 0.25, 0.1


def initial_expectations(audit: Audit, *, baseline: str | None = None) -> str:
    """TOML with bounds by role from `audit`.

    Exponents may lie four standard errors beyond what the baseline has; other metrics a quarter of the role's range,
    or 10 % of its size if that is more. With `baseline`, the path of the saved audit from the folder that the text is
    written to, the layers must stay what they are; one that lies outside of it is given anew for each check. Findings
    may be as severe as the baseline's.
    """
    rows = [layer.row for layer in audit if layer.row.status != "DEGENERATE"]
    if not rows:
        raise UsageError("the audit has no layer to take bounds from", where=audit.model)
    parts = [f"# Made by `tailwise check --init` from {audit.model}. Every line is yours to change."]
    parts += ([_named(baseline)] if baseline else []) + list(_finding(audit))
    if baseline:
        parts.append('[[expect]]\nstructure = "same"')
    parts += _summary(audit)
    for role in dict.fromkeys(row.role for row in rows):
        group = [row for row in rows if row.role == role]
        parts += [_expect("metric", metric, *bounds, role) for metric, bounds in _bounds(group, estimator_of(audit))]
    return "\n\n".join(parts) + "\n"


def _named(baseline: str) -> str:
    """The line that names the baseline; what lies elsewhere is named by who calls the command."""
    if is_beside(baseline):
        return f"baseline = {_quoted(baseline)}"
    return "# Give --baseline with the audit that this was made from: it lies outside this folder."


def is_beside(baseline: str) -> bool:
    """Whether an audit can be named in a file of expectations, from whose folder the path is."""
    return not Path(baseline).is_absolute() and ".." not in Path(baseline).parts


def _finding(audit: Audit) -> Iterator[str]:
    from tailwise.judging.diagnosis.diagnose import diagnose

    yield f'[[expect]]\nfinding = "{diagnose(audit).worst or "none"}"'


def _summary(audit: Audit) -> list[str]:
    numbers = model_numbers(audit)
    lines = []
    for name in ("share_2_4", "mean_alpha_weighted"):
        value = numbers[name] if name in SUMMARIES else None
        if value is not None:
            share = name.startswith("share")
            room = 0.1 if share else max(0.25, 0.25 * abs(value))
            low, high = (max(0.0, value - room), min(1.0, value + room)) if share else (value - room, value + room)
            lines.append(_expect("summary", name, low, high))
    return lines


def _bounds(rows: list[LayerRow], estimator: str) -> Iterator[tuple[str, tuple[float, float]]]:
    for metric in _EXPONENTS:
        fits = [(usable(row, metric, estimator), row.metrics.get(f"{metric}_sigma")) for row in rows]
        known = [(value, sigma) for value, sigma in fits if value is not None and sigma is not None]
        if known:
            # An exponent is above one; the standard error of a short tail would reach below.
            low = min(max(1.0, value - _SIGMAS * sigma) for value, sigma in known)
            yield metric, (low, max(value + _SIGMAS * sigma for value, sigma in known))
    for metric in _PLAIN:
        values = [value for value in (row.metrics.get(metric) for row in rows) if value is not None]
        if values:
            room = max(_RANGE * (max(values) - min(values)), _SIZE * max(map(abs, values)))
            floor = -math.inf if metric.startswith("log") else 0.0
            yield metric, (max(min(values) - room, floor), max(values) + room)


def _expect(kind: str, name: str, low: float, high: float, role: str | None = None) -> str:
    lines = ["[[expect]]", f'{kind} = "{name}"']
    lines += [f'roles = ["{role}"]'] if role else []
    # Rounding goes outward, so that the baseline still passes.
    return "\n".join([*lines, f"min = {_rounded(low, math.floor)}", f"max = {_rounded(high, math.ceil)}"])


def _rounded(value: float, way: object) -> str:
    digits = 3 - math.floor(math.log10(abs(value))) if value else 3
    scaled = value * 10.0**digits
    return f"{(math.floor(scaled) if way is math.floor else math.ceil(scaled)) / 10.0**digits:g}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def relative_to(path: str, folder: Iterable[str] | str) -> str:
    """`path` as the expectations file in `folder` should name it."""
    from os.path import relpath

    return Path(relpath(path, str(folder) or ".")).as_posix()
