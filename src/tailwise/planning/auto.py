"""`plan_auto()`: ways to spread a budget are tried on the model, and the one that loses least on text is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise.audits.audit import Audit
from tailwise.compression.correlation import depth_correlation
from tailwise.compression.make import Request, plan_prune
from tailwise.compression.operators import direction_in_words
from tailwise.compression.plan import Decision, Plan
from tailwise.errors import UsageError
from tailwise.evaluation.intervals import mean_interval
from tailwise.planning.refine import Refined, refined
from tailwise.planning.sensitivity import levels_of, measured_losses
from tailwise.planning.stage import Stage

#: Shares of α and steps of depth that are tried; β as a fraction of what the budget allows.
_TAUS = (0.05, 0.1, 0.2, 0.3)
_BETAS = (0.125, 0.25, 0.5, -0.125, -0.25)
_MAPPINGS = ("block", "matrix", "mixed")
#: Nats a token above uniform at which a stronger setting of the same kind is not tried any more.
_HOPELESS = 0.05
#: Plans that are tried whatever the time: uniform and two of depth.
_AT_LEAST = 3
#: Share of the time that single tensors may be measured for, and the changes of sparsity to measure, best first.
_SWEEP = 0.4
_SWEEPS = ((-0.3, -0.15, 0.1, 0.2), (-0.15, 0.1))
#: Plans that are scored anew on text that the search has not seen.
_FINALISTS = 3

Say = Callable[[str, float], None]  # what is done, fraction of the time


@dataclass
class _Scored:
    """A plan, and what it loses."""

    name: str
    settings: Mapping[str, Any]
    plan: Plan
    search: NDArray[np.float64]  # loss of every window that the search looks at
    guard: NDArray[np.float64] | None = None  # of those kept from it
    notes: str = ""
    tried: int = field(default=1)

    @property
    def loss(self) -> float:
        return float(self.search.mean())


def plan_auto(audit: Audit, request: Request, stage: Stage, *, seconds: float = 300.0, say: Say | None = None) -> Plan:
    """The plan that loses least on calibration text, with a table of all that were tried.

    Uniform, depth, OWL, DLP and every mapping of α come first, then measured sensitivity where a sweep fits into
    the time; the best of them is refined by trial
    until `seconds` are over. The best few are scored once more on windows that no step has seen, uniform among them,
    and the one with the least loss there is kept: what the search made up for its own windows does not pass.
    """
    began = monotonic()
    search = _Search(audit, request, stage, began, seconds, say or (lambda _what, _done: None))
    candidates = search.candidates()
    search.judge(candidates[:1])
    candidates += search.from_sensitivity()
    best = min(candidates, key=lambda item: item.loss)
    finalists = [candidates[0], *sorted(candidates[1:], key=lambda item: item.loss)[: search.finalists]]
    if search.can_refine:
        found = search.refine(best)
        finalists += [found] if found.plan is not best.plan else []
    search.judge(finalists)
    kept = min(finalists, key=_guarded)
    stage.trial.restore()
    return _final(kept, [*candidates, *(item for item in finalists if item not in candidates)], search)


class _Search:
    def __init__(self, audit: Audit, request: Request, stage: Stage, began: float, seconds: float, say: Say) -> None:
        self.audit, self.request, self.stage = audit, request, stage
        self._began, self._seconds, self._say = began, seconds, say
        self.spent = self._judging = 0.0  # seconds; of one plan on the windows of the last choice

    @property
    def finalists(self) -> int:
        """How many of the known ways can be judged in half of the time."""
        return max(1, min(_FINALISTS, int(self._seconds / 2 / max(self._judging, 1e-9)) - 1))

    @property
    def can_refine(self) -> bool:
        """Whether amounts can be moved freely: a pattern or ranks would round each move away."""
        return self.request.pattern == "unstructured" and self.request.operator not in ("low_rank", "structured")

    def candidates(self) -> list[_Scored]:
        """Every known way, family by family; uniform and depth are tried whatever the time.

        A family goes from weak to strong settings, and ends where one loses `_HOPELESS` nats more than uniform.
        """
        found = [self._scored("uniform", {})]
        half = self._began + self._seconds / 2
        for name, family in self._families():
            for settings in family:
                if len(found) >= _AT_LEAST and monotonic() > half:
                    return found
                found.append(self._scored(name, settings))
                if not found[-1].loss < found[0].loss + _HOPELESS:
                    break
        return found

    def _scored(self, name: str, settings: Mapping[str, Any]) -> _Scored:
        plan = plan_prune(self.audit, replace(self.request, allocator=name, settings=settings))
        losses = self.stage.trial.losses(plan, self.stage.search)
        shown = {key: value for key, value in settings.items() if key != "statistics"}
        scored = _Scored(name, shown, plan, losses)
        self._say(f"{name}: perplexity {math.exp(min(scored.loss, 50)):.4g}", self._done)
        return scored

    def from_sensitivity(self) -> list[_Scored]:
        """The plan by measured losses of single tensors, where a sweep fits into the time; else nothing."""
        trial, uniform = (
            self.stage.trial,
            plan_prune(self.audit, replace(self.request, allocator="uniform", settings={})),
        )
        room = _SWEEP * self._seconds / max(trial.pace * len(uniform), 1e-9)  # sweeps
        steps = next((steps for steps in _SWEEPS if len(steps) <= room), None)
        if steps is None or not self.can_refine:
            return []
        levels = levels_of(uniform.sparsity, (0.0, *steps))
        losses = measured_losses(trial, uniform, self.stage.search, levels=levels, progress=self._swept)
        plan = plan_prune(self.audit, replace(self.request, allocator="sensitivity", settings={"losses": losses}))
        found = trial.losses(plan, self.stage.search)
        return [_Scored("sensitivity", {"levels": list(levels)}, plan, found, tried=len(losses) - len(uniform))]

    def _swept(self, done: int, total: int) -> None:
        self._say(f"measuring tensor by tensor, {done} of {total}", self._done)

    def refine(self, best: _Scored) -> _Scored:
        """The best plan, changed by trial for the time that is left but for the last scores."""
        spare = self._judging * (self.finalists + 1)

        def moved(state: Refined) -> None:
            self._say(f"search: perplexity {math.exp(min(state.loss, 50)):.4g} after {state.tried} moves", self._done)

        found = refined(
            self.stage.trial,
            best.plan,
            self.stage.search,
            deadline=max(monotonic(), self._began + self._seconds - spare),
            seed=self.stage.seed,
            progress=moved,
        )
        losses = self.stage.trial.losses(found.plan, self.stage.search)
        origin = {"from": best.name, **best.settings}
        return _Scored("search", origin, found.plan, losses, notes=f"{found.kept} moves kept", tried=found.tried)

    def judge(self, finalists: list[_Scored]) -> None:
        """Carry out each plan as `apply` would, and score it on the windows that were kept from the search."""
        stage = self.stage
        for item in finalists:
            if item.guard is None:
                began = monotonic()
                item.guard = stage.trial.applied_losses(item.plan, stage.looked, stage.guard)
                self._judging = max(self._judging, monotonic() - began)
                self._say(f"{item.name}: judged", self._done)
        self.spent = monotonic() - self._began

    @property
    def _done(self) -> float:
        return min(1.0, (monotonic() - self._began) / max(self._seconds, 1e-9))

    def _families(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        given = self.request.settings
        yield "depth", [{"beta": self._beta(share)} for share in _BETAS if share > 0]
        yield "depth", [{"beta": self._beta(share)} for share in _BETAS if share < 0]
        yield "owl", [{"statistics": self.stage.scores.outlier_ratios}]
        yield "dlp", [{"statistics": self.stage.scores.medians}]
        taus = (given["tau"],) if "tau" in given else _TAUS
        for mapping in (given["mapping"],) if "mapping" in given else _MAPPINGS:
            yield "alpha", [{"mapping": mapping, "tau": tau} for tau in taus]
        yield "alpha-role", [{"tau": tau} for tau in taus]
        yield "entropy", [{"tau": tau} for tau in taus]

    def _beta(self, share: float) -> float:
        plan = plan_prune(self.audit, replace(self.request, allocator="depth", settings={}))
        return float(plan.settings["beta"]) * 2 * share


def _guarded(item: _Scored) -> float:
    if item.guard is None:
        raise AssertionError("scored before it is judged")
    loss = float(item.guard.mean())
    return loss if math.isfinite(loss) else math.inf


def _final(kept: _Scored, everything: list[_Scored], search: _Search) -> Plan:
    uniform = everything[0]
    rows = tuple(_row(item, uniform, kept) for item in everything)
    decisions = kept.plan.decisions
    if kept.name == "search":
        decisions = tuple(_explained(item, kept.plan.sparsity) for item in decisions)
    plan = kept.plan.replace(allocator="auto", decisions=decisions, tried=rows)
    stage = search.stage
    notes = [
        f"sign: {direction_in_words(plan.operator)}; here nothing was believed, all was tried",
        depth_correlation(plan).words,
        _verdict(kept, uniform),
        f"{stage.trial.runs} trials in {search.spent:.0f} s, on {len(stage.search)} windows of "
        f"{stage.search.shape[1]} tokens; the last choice on {len(stage.guard)} others",
        *(note for note in kept.plan.notes if note.startswith(("left", "asked"))),
        *stage.notes,
    ]
    budget = dict(plan.budget) | {"reached": round(plan.sparsity, 9)} if search.can_refine else plan.budget
    settings = {"kept": kept.name, **kept.settings, "pattern": search.request.pattern, "seed": stage.seed}
    return plan.replace(budget=budget, settings=settings, notes=tuple(dict.fromkeys(notes)))


def _row(item: _Scored, uniform: _Scored, kept: _Scored) -> dict[str, Any]:
    row: dict[str, Any] = {"allocator": item.name, **item.settings, "search_loss": round(item.loss, 6)}
    if item.guard is not None:
        row["guard_loss"] = round(float(item.guard.mean()), 6)
    if item.guard is not None and uniform.guard is not None and item is not uniform:
        row["against_uniform"] = round(float((item.guard - uniform.guard).mean()), 6)
        if (found := mean_interval(item.guard - uniform.guard)) is not None:
            row |= {"low": round(found[0], 6), "high": round(found[1], 6)}
    return row | {"trials": item.tried, "kept": item is kept}


def _verdict(kept: _Scored, uniform: _Scored) -> str:
    if kept.guard is None or uniform.guard is None:
        raise AssertionError("judged before it is told")
    if kept is uniform:
        return "nothing that was tried lost less than uniform on text that the search had not seen"
    change, found = float((kept.guard - uniform.guard).mean()), mean_interval(kept.guard - uniform.guard)
    where = "found by search" if kept.name == "search" else kept.name
    if found is None:
        return f"{where}: {change:+.4f} nats a token against uniform, on too few windows for an interval"
    low, high = found
    clear = "" if high < 0 else ", which may be chance"
    return f"{where}: {change:+.4f} nats a token against uniform [{low:+.4f}, {high:+.4f}]{clear}"


def _explained(item: Decision, mean: float) -> Decision:
    difference = (item.sparsity or 0.0) - mean
    word = "as the budget" if abs(difference) < 5e-4 else f"{'more' if difference > 0 else 'less'} than the budget"
    return replace(item, reason=f"found by trial: {word} ({difference:+.3f})")


def check_time(seconds: float) -> float:
    """A time budget that is one. Raises `UsageError`."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise UsageError(f"a time budget of {seconds:g} s", fix="give some time, e.g. --budget 5m")
    return seconds
