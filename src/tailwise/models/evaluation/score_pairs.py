"""Two evaluations over the same windows and tasks, pair by pair. Needs no torch and no model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.stats import norm

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import (
    MIN_VALUES,
    Values,
    few_windows,
    independent,
    mean_interval,
    sign_flip_p,
)
from tailwise.models.evaluation.scores import (
    BETTER,
    NONE,
    UNKNOWN,
    WORSE,
    ScoreChange,
    ScoreComparison,
    Scores,
    TaskScore,
)

#: Of pairs too few for any test to come out.
FEW = "too few windows"
#: A difference is called only where p is below this and the interval leaves out zero.
ALPHA = 0.05


def compare_scores(model: Scores, base: Scores, *, seed: int = 0) -> ScoreComparison:
    """`model` against `base`, window by window and document by document.

    `UsageError` where both have losses, but not of the same windows.
    """
    notes: list[str] = []
    change = _perplexity(model, base, seed, notes) if model.losses and base.losses else None
    theirs = {(score.task, score.metric): score for score in base.tasks}
    pairs = [(score, theirs[score.task, score.metric]) for score in model.tasks if (score.task, score.metric) in theirs]
    if len(pairs) < max(len(model.tasks), len(base.tasks)):
        notes.append("tasks that only one of the two was asked are left out of the comparison")
    if change is None and not pairs and (model.losses or model.tasks):
        raise UsageError("the base has no scores of the same kind", where=base.model, fix="evaluate both on one text")
    return ScoreComparison(model, base, change, tuple(_task(one, other, seed) for one, other in pairs), tuple(notes))


def _perplexity(model: Scores, base: Scores, seed: int, notes: list[str]) -> ScoreChange:
    if model.digest != base.digest or len(model.losses) != len(base.losses):
        raise UsageError(
            "the two were scored on different windows, so they cannot be paired",
            where=f"{model.model} and {base.model}",
            fix="use one text, tokenizer, --window, --max-windows and --seed for both",
        )
    name, n = "log perplexity", len(model.losses)
    if None in model.losses or None in base.losses:
        notes.append("some losses are not finite, so there is no difference to measure")
        broken = None in model.losses and None not in base.losses
        return ScoreChange(
            name, base.log_perplexity, model.log_perplexity, None, None, None, n, WORSE if broken else UNKNOWN
        )
    after, before = np.array(model.losses, dtype=float), np.array(base.losses, dtype=float)
    if n < MIN_VALUES:
        notes.append(few_windows(n))
    change = paired(name, before, after, seed, higher_is_better=False)
    return replace(change, verdict=FEW) if n < MIN_VALUES else change


def paired(name: str, before: Values, after: Values, seed: int, *, higher_is_better: bool) -> ScoreChange:
    """The change of a number from `before` to `after`, (n,) each, of the same windows or documents in their order."""
    differences = after - before
    interval, p = mean_interval(differences, seed=seed), sign_flip_p(differences, seed=seed)
    change = float(differences.mean())
    seen = p is not None and p < ALPHA and interval is not None and not interval[0] <= 0 <= interval[1]
    verdict = _verdict(change, higher_is_better) if seen else NONE
    before_mean, after_mean, n = float(before.mean()), float(after.mean()), len(differences)
    return ScoreChange(name, before_mean, after_mean, change, interval, p, n, verdict, len(independent(differences)))


def _verdict(change: float, higher_is_better: bool) -> str:
    return BETTER if (change > 0) == higher_is_better else WORSE


def _task(model: TaskScore, base: TaskScore, seed: int) -> ScoreChange:
    name = f"{model.task} {model.metric}"
    if model.samples and len(model.samples) == len(base.samples):
        before, after = np.array(base.samples, dtype=float), np.array(model.samples, dtype=float)
        return paired(name, before, after, seed, higher_is_better=model.higher_is_better)
    return _unpaired(name, model, base)


def _unpaired(name: str, model: TaskScore, base: TaskScore) -> ScoreChange:
    """From the two standard errors alone, as if the documents were others: cautious, since they are the same."""
    change = model.value - base.value
    if model.stderr is None or base.stderr is None:
        return ScoreChange(name, base.value, model.value, change, None, None, model.n, UNKNOWN)
    error = math.hypot(model.stderr, base.stderr)
    half = float(norm.ppf(0.975)) * error
    p = 2 * float(norm.sf(abs(change) / error)) if error else float(change == 0)
    verdict = _verdict(change, model.higher_is_better) if p < ALPHA else NONE
    return ScoreChange(name, base.value, model.value, change, (change - half, change + half), p, model.n, verdict)
