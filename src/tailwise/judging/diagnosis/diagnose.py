"""`diagnose()`: an audit to a `Diagnosis`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tailwise.audits.audit import Audit, AuditLike
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.validation import checked
from tailwise.judging.diagnosis.atlas import Atlas, default, load
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis, Finding, NotEvaluated, NotLooked
from tailwise.judging.diagnosis.rule import RULES, AuditRule, Cannot, Partly, RuleHit, Verdict
from tailwise.judging.diagnosis.verdict import health_of
from tailwise.judging.diagnosis.wording import count, verb
from tailwise.judging.thresholds import Overrides, resolved
from tailwise.spectrum.metrics.metric import METRICS

#: Which option of the audit provides what a metric asks for.
_OPTIONS = {"permuted": "--randomize", "permuted_bulks": "--randomize", "interval": "--bootstrap 200",
            "rivals": "--rivals"}  # fmt: skip


@checked
def diagnose(
    audit: AuditLike,
    *,
    thresholds: Overrides = None,
    mute: str | Sequence[str] = (),
    history: Sequence[AuditLike] = (),
    base: AuditLike | None = None,
    atlas: Atlas | str | Path | None = None,
) -> Diagnosis:
    """Judge an audit by every rule. Audits may be given by their paths.

    Parameters
    ----------
    thresholds
        Other values of thresholds: a mapping, or the path of a TOML file with `name = value` lines, which may
        serve `Alarms` too.
    mute
        Codes (`TW101`), families (`TW2xx`), or a code for some layers (`TW101:regex`).
    history
        Earlier audits of the same run, oldest first, for the rules that look at change over time.
    base
        An audit of the model that this one was trained from, or of its first checkpoint: it tells whether a matrix was
        moved at all. Without it, the oldest of `history`.
    atlas
        Healthy models to compare with, as `tailwise atlas build` makes them, or the path of one; by default the small
        one that comes with the package, or that `TAILWISE_ATLAS` names. This model is left out of it, by content.

    Raises `UsageError` for an unknown code or threshold. A rule that lacks what it needs raises nothing: it is listed
    under `not_looked` with the reason.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> untrained = {f"layers.{i}.up.weight": noise.standard_normal((192, 128)) for i in range(4)}
    >>> found = tw.diagnose(tw.audit(untrained, use_cache=False), mute="TW6xx")
    >>> found.health.line
    'unhealthy: 4 of 4 matrices look like noise, as before training.'
    >>> [finding.code for finding in found.findings if finding.severity == "error"]
    ['TW201']
    """
    audit, earlier = Audit.of(audit), [Audit.of(one) for one in history]
    base = None if base is None else Audit.of(base)
    limits, muting = resolved(thresholds, RULES), Muting.parse([mute] if isinstance(mute, str) else mute)
    others = atlas_of(atlas).without(audit)
    case = Case.of(audit, limits, earlier, base, others)
    findings: list[Finding] = []
    not_looked: list[NotLooked] = []
    looked: list[str] = []
    left: list[NotEvaluated] = []
    for code, rule in RULES.items():
        if code in muting.codes:
            continue
        seen = muting.seen_by(code, case)
        verdict = _lacking(rule, seen, audit) or _judged(rule, seen)
        if isinstance(verdict, Cannot):
            not_looked.append(NotLooked(code, rule.title, verdict.reason))
            continue
        looked.append(code)
        if isinstance(verdict, Partly):
            left += [NotEvaluated(code, rule.title, why, names) for why, names in verdict.left_out.items() if names]
            verdict = verdict.found
        found = verdict if isinstance(verdict, tuple) else (verdict,)
        findings += [_finding(rule, one, len(seen.measured)) for one in found if one is not None]
    findings.sort(key=lambda item: (-SEVERITIES.index(item.severity), item.code))
    made = Diagnosis(
        audit.model, tuple(findings), tuple(not_looked), tuple(looked), muting.said, limits, tuple(left),
        atlas=len(others),
    )  # fmt: skip
    return replace(made, health=health_of(audit, made, others))


def atlas_of(given: Atlas | str | Path | None) -> Atlas:
    """The atlas that is meant. Raises `UnreadableError` for a file that is none."""
    if given is None:
        return default()
    return given if isinstance(given, Atlas) else load(given)


def _judged(rule: AuditRule, case: Case) -> Verdict:
    try:
        return rule.judge(case)
    except ArithmeticError as error:
        # No matrix has such numbers (an entropy of 1e5, an error of zero): the audit was edited or damaged.
        return Cannot(f"a number of the audit is none that a matrix can have ({error}); audit the model again")


@dataclass(frozen=True)
class Muting:
    """What was asked to be quiet."""

    said: tuple[str, ...]
    codes: frozenset[str]
    layers: dict[str, list[str]]

    @staticmethod
    def parse(mute: Sequence[str]) -> Muting:
        """Raises `UsageError` for a code that no rule has, or a pattern that is none."""
        codes: set[str] = set()
        layers: dict[str, list[str]] = {}
        for item in mute:
            name, colon, pattern = item.partition(":")
            for code in _codes(name):
                if colon:
                    layers.setdefault(code, []).append(_pattern(item, pattern))
                else:
                    codes.add(code)
        return Muting(tuple(mute), frozenset(codes), layers)

    def seen_by(self, code: str, case: Case) -> Case:
        """The case without the layers that are muted for this rule."""
        for pattern in self.layers.get(code, ()):
            case = case.without(pattern)
        return case


def _codes(name: str) -> list[str]:
    # Letters may hold an x of their own; among the last three characters it stands for any digit.
    letters, digits = name.strip()[:-3], name.strip()[-3:]
    wanted = re.compile(re.escape(letters) + re.sub("[xX]", r"\\d", re.escape(digits)), re.IGNORECASE)
    found = [code for code in RULES if wanted.fullmatch(code)]
    if not found:
        raise unknown_name("rule", name, RULES)
    return found


def _pattern(item: str, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{item!r} has no regular expression after the colon: {error}") from error
    return pattern


def _lacking(rule: AuditRule, case: Case, audit: Audit) -> Cannot | None:
    """Why a rule is not evaluated, by its needs alone."""
    if rule.needs and not case.measured:
        return Cannot("no matrix was measured")
    estimator = str(audit.provenance.recipe.get("estimator", "ks"))
    if rule.estimator and estimator != rule.estimator:
        return Cannot(
            f"alpha was fitted by {estimator!r} and the bounds of this rule hold for {rule.estimator!r}; audit with "
            f"--estimator {rule.estimator}"
        )
    missing = [name for name in rule.needs if all(row.metrics.get(name) is None for row in case.measured)]
    return Cannot(_missing(missing, case)) if missing else None


def _missing(names: list[str], case: Case) -> str:
    absent = [name for name in names if not any(name in row.metrics for row in case.measured)]
    if not absent:
        return f"no matrix has a value of {', '.join(names)}"
    needs = [need for name in absent if name in METRICS for need in METRICS[name].needs]
    options = dict.fromkeys(_OPTIONS[need] for need in needs if need in _OPTIONS)
    how = " and ".join(options) if options else "no --metrics, or with these among them"
    return f"the audit lacks {', '.join(absent)}; audit with {how}"


def _finding(rule: AuditRule, found: RuleHit, measured: int) -> Finding:
    return Finding(
        code=rule.code,
        title=found.title or _headline(rule, found, measured),
        severity=found.severity or rule.severity,
        message=found.message,
        layers=found.layers,
        evidence=found.evidence,
        causes=(*found.causes, *rule.causes),
        remedies=rule.remedies if found.remedies is None else found.remedies,
        references=rule.references,
        strength=rule.strength,
        functions=rule.functions if found.functions is None else found.functions,
        pattern=rule.title,
    )


def _headline(rule: AuditRule, found: RuleHit, measured: int) -> str:
    """`2 of 211 matrices look like noise`."""
    hit = len(found.layers)
    if rule.says is None or not hit:
        return rule.title
    of = max(measured if found.tested is None else found.tested, hit)
    return f"{hit} of {count(of, 'matrix')} {verb(hit, *rule.says)}"
