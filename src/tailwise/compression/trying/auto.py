"""`auto()`: ways to spend a budget are tried on the model, and the plan that loses least on text is kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tailwise.compression.operators.registered import direction_in_words
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.scored import (
    PlanScorer,
    Scored,
    best_of_each,
    rows_of,
    trials_in_words,
    verdict,
)
from tailwise.core.interrupts import ended_by_interrupts

Way = tuple[str, Mapping[str, Any]]  # an allocator and its settings

#: Part of the time after which no known way is tried for the first time, and none with other settings.
_FIRST, _MORE = 0.4, 0.3
#: Times of the budget that what is always tried may take before quicker ways are named.
_FAR = 1.5
#: Ways whose other settings are tried: those that lost least with the first.
_PROMISING = 2
_STOPPED = "interrupted: judging the best plan so far, which is then kept; interrupt again to end without a plan"


class Search(ABC):
    """What is tried, of amounts or of formats."""

    def __init__(self, scorer: PlanScorer) -> None:
        self.scorer, self.stage, self.clock = scorer, scorer.stage, scorer.clock
        self.untried: list[str] = []  # ways that the time did not reach
        self.measuring = 0.0  # seconds that some of those take beside their trials

    uniform: Plan  # the budget spread evenly
    by_depth = "depth"  # the allocator that knows the most without an input

    @property
    @abstractmethod
    def always(self) -> tuple[Way, ...]:
        """What is tried and judged beside uniform however short the time: depth as it is by default."""

    @property
    @abstractmethod
    def known(self) -> int:
        """How many ways there are beside what is always tried."""

    @abstractmethod
    def reads_alpha(self, name: str) -> bool:
        """Whether the way of this name looks at α."""

    @abstractmethod
    def ways(self) -> Iterator[Sequence[Way]]:
        """Every other known way: its settings, the best known first."""

    @abstractmethod
    def plan_of(self, name: str, settings: Mapping[str, Any]) -> Plan | None:
        """The plan by a way; None where it has none here."""

    @abstractmethod
    def by_gradient(self, uniform: Scored) -> Scored | None:
        """The plan of least estimated loss around uniform; None where tensors cannot be moved alone."""

    @abstractmethod
    def refine(self, best: Scored) -> Scored:
        """A plan changed by trial for the time that is left but for the last scores; itself where none can be."""

    @abstractmethod
    def told(self, best: Scored) -> Plan:
        """The plan that is kept, with its budget, settings, and reasons where the search found it."""

    @abstractmethod
    def notes(self, best: Scored) -> tuple[str, Sequence[str]]:
        """How it follows depth, and what was left out."""

    def moved(self, loss: float, tried: int) -> None:
        """Say how far the refinement is."""
        self.scorer.tell(f"search: {self.scorer.in_words(loss)} after {tried} moves")


def auto(search: Search) -> Plan:
    """The plan that loses least on calibration text, with a table of all that were tried.

    Uniform and depth come first, whatever the time; then every known way once, at its best known setting, and the plan
    by the gradient; then other settings of the ways that did best. The inputs of the layers are measured again behind
    the best of them, and it is refined until the scorer's clock leaves time for the last choice: uniform, depth, the
    best known way and what was found are scored on windows that no step has seen, and the one with the least is kept.

    An interruption, once uniform is judged, ends the search early: the best so far is judged beside uniform.
    """
    scorer = search.scorer
    scorer.say(_allowed(search), 0.0)
    uniform = scorer.opened("uniform", search.uniform)
    scorer.judge([uniform])  # at once, so that the time of a judgement is known

    def end() -> None:
        scorer.clock.stop()
        scorer.say(_STOPPED, 0.0)

    with ended_by_interrupts(end):
        tried, finalists = _searched(search, uniform)
        if scorer.clock.stopped:
            finalists = [uniform, min(finalists, key=lambda item: item.loss)]
        scorer.judge(finalists)
    judged = [item for item in finalists if item.last is not None]
    kept = min(judged, key=lambda item: item.judged)
    scorer.stage.trial.restore()
    return _final(search, kept, [*tried, *(item for item in judged if item not in tried)])


def _searched(search: Search, uniform: Scored) -> tuple[list[Scored], list[Scored]]:
    """All that was tried, and what is to be judged of it."""
    scorer = search.scorer
    always = [uniform, *_first_of(search, search.always, [uniform])]
    # They may take a share of the time.
    families = [] if scorer.clock.stopped else [list(family) for family in search.ways()]
    tried = [*always, *_of_known_ways(search, families, always)]
    best = min(tried, key=lambda item: item.loss)
    finalists = [*always, *best_of_each(tried[len(always) :], scorer.finalists)]
    if not scorer.over:
        found = search.refine(_seen_anew(scorer, best))
        finalists += [found] if found.plan != best.plan else []
    return tried, finalists


def _allowed(search: Search) -> str:
    """What the time is enough for, before it is spent; how much would do is known when it is over."""
    scorer, count = search.scorer, 1 + len(search.always) + search.known
    clock, pace = scorer.clock, scorer.stage.pace
    if pace is None:
        return f"{count} known ways to try"
    treating = scorer.stage.treating
    each = max(pace.quick * len(scorer.stage.search) + (0.0 if scorer.stage.options.lighter else treating), 1e-9)
    judging = pace.exact * len(scorer.stage.guard) + 2 * pace.quick * len(scorer.stage.judged_on) + treating
    trials = int((min(clock.left - 4 * judging, clock.seconds * _FIRST - clock.spent)) / each)
    if trials > count:
        return f"this budget allows about {trials} trials of {each:.2g} s; there are {count} known ways to try"
    least = clock.spent + 2 * each + 3 * judging  # uniform and depth tried; they and the best judged
    scorer.expected = least
    return (
        f"a budget of {clock.seconds:g} s is too short for all {count} known ways: uniform and depth are tried and "
        f"judged, which takes {least:.0f} s or more in all, reading the model included; the rest as time is left"
        f"{_ways_out(search) if least > _FAR * clock.seconds else ''}"
    )


def _ways_out(search: Search) -> str:
    """What ends sooner, where the time that was given is far from enough."""
    trial = search.scorer.stage.trial
    operator = (trial.judged or trial.how).operator
    lighter = operator.lighter or operator.blind
    other = f". Quicker to carry out: --operator {lighter}" if lighter not in ("", operator.name) else ""
    return f". Without any trial: --allocator uniform or {search.by_depth}{other}"


def _give(seconds: float) -> str:
    """The option that gives at least so long, in whole tens of seconds or minutes."""
    if seconds <= 120:
        return f"give --budget {10 * max(1, math.ceil(seconds / 10))}s or more"
    return f"give --budget {math.ceil(seconds / 60)}m or more"


def _missed(search: Search) -> list[str]:
    """What the time did not reach, and how long would."""
    names, scorer = list(dict.fromkeys(search.untried)), search.scorer
    if not names:
        return []
    enough = (scorer.clock.spent + search.measuring + len(names) * scorer.pace) / _FIRST
    return [f"not tried for lack of time: {listed(names)}; {_give(enough)} to try them too"]


def _of_known_ways(search: Search, families: Sequence[Sequence[Way]], always: Sequence[Scored]) -> list[Scored]:
    """Each once, the plan by the gradient, and other settings of those that did best, while there is time."""
    scorer, tried = search.scorer, list[Scored]()

    def try_new(ways: Sequence[Way]) -> None:
        tried.extend(_first_of(search, ways, [*always, *tried]))

    if scorer.engine is not None:
        try_new([family[0] for family in families])
    else:
        for family in families:
            if scorer.clock.share > _FIRST or scorer.over:
                search.untried.append(family[0][0])
                continue
            try_new(family[:1])
    if not scorer.over and (estimated := search.by_gradient(always[0])) is not None:
        tried.append(estimated)
    by_loss = {item.name: item.loss for item in sorted([*always, *tried], key=lambda item: -item.loss)}
    promising = sorted(families, key=lambda family: by_loss.get(family[0][0], float("inf")))[:_PROMISING]
    for family in promising:
        for way in family[1:]:
            if scorer.clock.share > _MORE or scorer.over:
                return tried
            try_new([way])
    return tried


def _first_of(search: Search, ways: Sequence[Way], tried: Sequence[Scored]) -> list[Scored]:
    """Those whose plans were not tried yet, scored."""
    known = [item.plan.decisions for item in tried]
    new: list[tuple[str, Mapping[str, Any], Plan]] = []
    for name, settings in ways:
        plan = search.plan_of(name, settings)
        if plan is not None and not any(_same(plan.decisions, decisions) for decisions in known):
            known.append(plan.decisions)
            new.append((name, settings, plan))
    return search.scorer.tried_all(new)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(a.treatment == b.treatment for a, b in zip(one, other, strict=True))


def _seen_anew(scorer: PlanScorer, best: Scored) -> Scored:
    """The best so far, scored by what layers see behind it."""
    trial = scorer.stage.trial
    if not trial.how.looks:
        return best
    scorer.tell(f"measuring inputs behind {best.name}")
    trial.look_again(best.plan, scorer.stage.looked)
    return scorer.tried(best.name, best.settings, best.plan)


def _final(search: Search, chosen: Scored, everything: list[Scored]) -> Plan:
    plan, scorer = search.told(chosen), search.scorer
    depth, left = search.notes(chosen)
    notes = [
        *([f"sign: {direction_in_words(plan.operator)}"] if search.reads_alpha(chosen.name) else []),
        depth,
        verdict(chosen, everything[0], scorer.stage.trial.material.unit),
        trials_in_words(scorer),
        *(["the search was interrupted: what it had not come to was not tried"] if scorer.clock.stopped else []),
        *_missed(search),
        *left,
        *scorer.stage.notes,
    ]
    settings: dict[str, Any] = {"kept": chosen.name, **plan.settings, "seed": scorer.stage.seed}
    tried = rows_of(everything, chosen)
    return plan.replace(allocator="auto", settings=settings, tried=tried, notes=tuple(dict.fromkeys(notes)))
