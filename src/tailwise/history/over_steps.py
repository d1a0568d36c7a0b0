"""`diagnose_run()`: the checkpoints of one run, each judged by itself, and what that says of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Any

from tailwise.audits.audit import Audit, AuditLike
from tailwise.core.shown import Brief, Shown
from tailwise.core.validation import checked
from tailwise.history.one_table import listed
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.finding import Diagnosis, Health

if TYPE_CHECKING:
    from tailwise.audits.table import Table

_BAD = ("needs a look", "unhealthy")
#: The rule that finds what training has not moved yet, which is how a run begins, and those that see no more than that.
_NOISE, _AS_NOISE = "TW201", frozenset({"TW201", "TW202", "TW203", "TW303"})
_NO_VERDICT = Health("no verdict", "", (), "")
#: Layers of a finding whose past is looked at, and checkpoints whose numbers are told.
_LOOKED_BACK, _TOLD = 5, 6
#: A layer leaves the others' way where its log stable rank changes by so many of their scatters more, and by so much.
_CLEARLY, _LEAST = 6.0, 0.1
_MOST = 4  # stretches of a run that its line names


@dataclass(frozen=True, repr=False)
class CheckpointHealth(Brief):
    """The verdict on one checkpoint of a run."""

    place: str  # the step, or the name of what has none
    diagnosis: Diagnosis
    untrained: bool = False  # it is found to be like noise, no more, and so were all before it
    same_as: str | None = None  # the place of the first checkpoint with these weights, to the byte, before it
    stable_ranks: Mapping[str, float] = field(default_factory=dict)  # of every matrix

    @property
    def health(self) -> Health:
        """The verdict in one line, as of a model alone."""
        return self.diagnosis.health or _NO_VERDICT  # what `diagnose` made always has one

    @property
    def odd(self) -> bool:
        """Whether something is found that the beginning of a run does not explain."""
        return self.health.word in _BAD and not self.untrained

    @property
    def lines(self) -> tuple[str, ...]:
        """What there is to say of it; nothing of a healthy checkpoint whose weights have moved."""
        found = [self.health.line] if self.odd else []
        if self.untrained:
            found.append(f"not trained yet: {self.health.why}")
        if self.same_as is not None:
            found.append(f"the same weights as at {self.same_as}, to the byte")
        return tuple(found)


@dataclass(frozen=True, repr=False)
class RunDiagnosis(Brief):
    """The verdicts on a run's checkpoints, in their order."""

    checkpoints: tuple[CheckpointHealth, ...]

    @property
    def conclusion(self) -> str:
        """Of the whole run: `Unhealthy at step 70 alone: … The weights stand still from …`."""
        begun = [one for one in self.checkpoints if one.untrained]
        if len(begun) == len(self.checkpoints):  # which is no beginning
            return " ".join([f"Not trained at any checkpoint: {begun[-1].health.line}", *self._stand_still()])
        odd = sorted(self._stretches(), key=lambda stretch: stretch[0].health.word != "unhealthy")  # the worst first
        said = [self._of(stretch) for stretch in odd[:_MOST]]
        if len(odd) > _MOST:
            said.append(f"Findings in {len(odd) - _MOST} more stretches of the run.")
        said += self._stand_still()
        if begun:
            said.append(f"Not trained yet {_span(begun, self.checkpoints)}, as runs begin.")
        if not odd:
            rest = len(self.checkpoints) - len(begun)
            said.insert(0, f"Nothing found in {rest} checkpoint{'' if rest == 1 else 's'}.")
        return " ".join(said)

    def table(self) -> Table:
        """A row a checkpoint: place, verdict, why, whose weights it has, and the codes of what is found."""
        import pyarrow as pa

        from tailwise.audits.table import Table

        heads = ("place", "verdict", "why", "same_weights_as", "codes")
        rows = [dict(zip(heads, row, strict=True)) for row in self._rows()]
        return Table(pa.Table.from_pylist(rows, schema=pa.schema(dict.fromkeys(heads, pa.string()))))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"conclusion": self.conclusion, "checkpoints": self.table().to_pylist()}

    def __repr__(self) -> str:
        return f"RunDiagnosis({len(self.checkpoints)} checkpoints: {self.conclusion})"

    def _rows(self) -> Iterator[tuple[str, str, str, str | None, str]]:
        for one in self.checkpoints:
            word = "not trained yet" if one.untrained else one.health.word
            codes = ", ".join(finding.code for finding in one.diagnosis.findings if not finding.noted)
            yield one.place, word, one.health.why, one.same_as, codes

    def _shown(self) -> Shown:
        return Shown(self.conclusion, ("checkpoint", "verdict", "why", "same weights as", "findings"),
                     list(self._rows()), "`checkpoints`")  # fmt: skip

    def _stretches(self) -> Iterator[list[CheckpointHealth]]:
        """Neighbours of one verdict that is not good, with one reason."""
        for odd, group in groupby(self.checkpoints, key=lambda one: one.health.word if one.odd else ""):
            if odd:
                yield list(group)

    def _of(self, stretch: list[CheckpointHealth]) -> str:
        last = stretch[-1].health
        word = f"{last.word[0].upper()}{last.word[1:]}"
        return f"{word} {_span(stretch, self.checkpoints)}: {last.why}{self._began(stretch[0])}"

    def _began(self, first: CheckpointHealth) -> str:
        """From where a layer that is found at `first` had left the others' way; "" where that is not seen before."""
        at = self.checkpoints.index(first)
        named = dict.fromkeys(
            name for finding in first.diagnosis.findings if not finding.noted for name in finding.layers
        )
        begins = {name: begin for name in list(named)[:_LOOKED_BACK] if (begin := self._leaves(name, at)) < at}
        if not begins:
            return ""
        name, begin = min(begins.items(), key=lambda item: item[1])
        told = [f"{one.stable_ranks[name]:.3g} at {one.place}" for one in self.checkpoints[begin - 1 : at + 1]]
        more = f" (of {len(begins)} such layers the first)" if len(begins) > 1 else ""
        return (
            f" It begins before a rule finds it, at {self.checkpoints[begin].place}: the stable rank of {name}{more} "
            f"is {', '.join(told[:_TOLD])}."
        )

    def _leaves(self, name: str, at: int) -> int:
        """The first of the checkpoints up to `at` over which the stable rank of a layer leaves the others, one way."""
        way = 0.0
        while at > 0:
            excess, usual = _excess(name, self.checkpoints[at - 1], self.checkpoints[at])
            if abs(excess) <= max(_CLEARLY * usual, _LEAST) or excess * way < 0:
                return at + 1 if way else at
            way, at = excess, at - 1
        return at + 1 if way else at

    def _stand_still(self) -> list[str]:
        found = groupby(self.checkpoints, key=lambda one: one.same_as)
        return [
            f"The weights stand still from {first} to {list(group)[-1].place}, to the byte: nothing was trained, "
            "or an old file saved again."
            for first, group in found
            if first is not None
        ]


def _excess(name: str, before: CheckpointHealth, after: CheckpointHealth) -> tuple[float, float]:
    """How far log stable rank of a layer went beyond the others' median way, and how far those scatter about it."""
    changes = {
        other: math.log(value / before.stable_ranks[other])
        for other, value in after.stable_ranks.items()
        if value > 0 and before.stable_ranks.get(other, 0.0) > 0
    }
    own, others = changes.get(name, 0.0), [change for other, change in changes.items() if other != name]
    if not others:
        return 0.0, 0.0
    middle = median(others)
    return own - middle, 1.4826 * median(abs(change - middle) for change in others)


def _span(some: Sequence[CheckpointHealth], every: Sequence[CheckpointHealth]) -> str:
    first, last = some[0], some[-1]
    if first is every[0] and last is every[-1] and len(every) > 1:
        return "at every checkpoint"
    if first is last:
        return f"at {first.place}" + (" alone" if last is not every[-1] and first is not every[0] else "")
    return f"from {first.place} to {'the last' if last is every[-1] else last.place}"


class RunVerdicts:
    """Takes a run's checkpoints in their order, one at a time: `found` has all that were taken."""

    def __init__(self) -> None:
        self._found: list[CheckpointHealth] = []
        self._content: tuple[str, ...] = ()

    def take(self, place: str, audit: Audit) -> CheckpointHealth:
        """Judge the next."""
        diagnosis, content = diagnose(audit), tuple(row.digest for row in audit.rows)
        before = self._found[-1] if self._found else None
        same = None
        if before is not None and any(content) and content == self._content:
            same = before.same_as or before.place
        codes = {finding.code for finding in diagnosis.findings if not finding.noted}
        begins = _NOISE in codes if before is None else before.untrained  # the last layers to leave noise may be few
        untrained = begins and bool(codes) and codes <= _AS_NOISE
        self._content = content
        ranks = {row.name: rank for row in audit.rows if (rank := row.metrics.get("stable_rank")) is not None}
        self._found.append(CheckpointHealth(place, diagnosis, untrained, same, ranks))
        return self._found[-1]

    @property
    def found(self) -> RunDiagnosis:
        """The run, as far as it was taken."""
        return RunDiagnosis(tuple(self._found))


@checked
def diagnose_run(
    audits: Sequence[AuditLike] | Mapping[str, AuditLike] | Mapping[int, AuditLike],
    *,
    steps: Sequence[int | None] | None = None,
) -> RunDiagnosis:
    """Judge every checkpoint of a run by itself, and say at which something is wrong and whether it lasts.

    Parameters
    ----------
    audits
        Audits or their paths, in a list or by step or name, as `table` takes them.
    steps
        One for each audit; without it those that the names say, as for `table`.

    In order of their steps where all have one, else as they are given. First checkpoints that look like noise are "not
    trained yet". Neighbours with equal weights are told by their digests.

    >>> import numpy as np, tailwise as tw
    >>> noise, directions = np.random.default_rng(0).standard_normal((2, 192, 128))
    >>> learned = noise + 4 * directions @ np.diag(1 / np.arange(1.0, 129))
    >>> run = {0: noise, 500: learned, 1000: learned}
    >>> audits = {step: tw.audit({"up.weight": W}, use_cache=False) for step, W in run.items()}
    >>> print(tw.diagnose_run(audits).conclusion.replace(". ", ".\\n"))
    Nothing found in 2 checkpoints.
    The weights stand still from step 500 to step 1000, to the byte: nothing was trained, or an old file saved again.
    Not trained yet at step 0, as runs begin.
    """
    given: Sequence[tuple[str, int | None, Audit]] = listed(audits, steps)
    stepped = [(name, step, audit) for name, step, audit in given if step is not None]
    if len(stepped) == len(given):
        given = sorted(stepped, key=itemgetter(1))
    verdicts = RunVerdicts()
    for name, step, audit in given:
        verdicts.take(name if step is None else place_of(step), audit)
    return verdicts.found


def place_of(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step {step}"
