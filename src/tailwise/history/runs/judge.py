"""Whether a rule of diagnosis speaks at a checkpoint, and of which layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tailwise.audits.run import RecipeSettings, audit
from tailwise.core.errors import UsageError
from tailwise.history.runs.found import FoundCheckpoint
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.rule import RULES, AuditRule
from tailwise.judging.thresholds import Overrides
from tailwise.spectrum.metrics.metric import METRICS

#: What a metric asks for → the settings of an audit that provide it.
_PROVIDES: dict[str, dict[str, Any]] = {
    "permuted": {"randomize": 1}, "permuted_bulks": {"randomize": 1}, "interval": {"bootstrap": 200},
    "rivals": {"rivals": True},
}  # fmt: skip


def rule_of(code: str) -> AuditRule:
    """The rule of that code, in either case. Raises `UsageError` with near codes."""
    return RULES[code.strip().upper()]


class Judge:
    """Audits a checkpoint and asks one rule."""

    def __init__(
        self,
        checkpoints: Sequence[FoundCheckpoint],
        code: str,
        *,
        layers: str | None = None,
        thresholds: Overrides = None,
        settings: RecipeSettings | None = None,
        told: Callable[[FoundCheckpoint, frozenset[str]], None] | None = None,
    ) -> None:
        """`layers` is a regular expression for what counts; all layers are audited, since rules compare them."""
        self._found, self._rule, self._thresholds, self._told = checkpoints, rule_of(code), thresholds, told
        try:
            self._layers = None if layers is None else re.compile(layers)
        except re.error as error:
            raise UsageError(f"{layers!r} is not a regular expression: {error}") from error
        self._settings: RecipeSettings = {**_needed(self._rule), **(settings or {})}
        self.blind: dict[int, str] = {}  # step → why the rule was not evaluated there, which counts as silence
        self._others = [other for other in RULES if other != self._rule.code]

    def __call__(self, index: int) -> frozenset[str]:
        """The layers that the rule names at a checkpoint; "" for the model as a whole."""
        one = self._found[index]
        verdict = diagnose(audit(one.uri, **self._settings), thresholds=self._thresholds, mute=self._others)
        if verdict.not_looked:
            self.blind[one.step] = verdict.not_looked[0].reason
            if index == len(self._found) - 1:
                reason = self.blind[one.step]
                raise UsageError(
                    f"{self._rule.code} cannot be evaluated at the last step, {one.step}: {reason}", where=one.uri
                )
        named = frozenset(layer for finding in verdict.findings for layer in finding.layers or ("",))
        if self._layers is not None:
            named = frozenset(layer for layer in named if layer and self._layers.search(layer))
        if self._told is not None:
            self._told(one, named)
        return named


def _needed(rule: AuditRule) -> RecipeSettings:
    needs = [need for name in rule.needs if name in METRICS for need in METRICS[name].needs]
    provided: Any = {}
    for need in needs:
        provided |= _PROVIDES.get(need, {})
    settings: RecipeSettings = provided
    return settings
