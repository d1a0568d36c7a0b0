"""At which step a layer went wrong: found by judging few checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tailwise.core.kept import kept_property
from tailwise.core.validation import checked

#: Index of a checkpoint → the layers that the rule names there; the whole model is "".
Probe = Callable[[int], frozenset[str]]


@dataclass(frozen=True)
class Onset:
    """Between which checkpoints something began, as indices; `good` is None where it is there from the first."""

    good: int | None
    bad: int | None  # None where it is not there at the last


@dataclass(frozen=True)
class Bisection:
    """What a search found."""

    steps: tuple[int, ...]  # of all checkpoints
    probed: dict[int, frozenset[str]]  # index → layers that the rule named
    onset: Onset

    @kept_property
    def layers(self) -> tuple[str, ...]:
        """The layers that the rule names at the last checkpoint."""
        return tuple(sorted(self.probed[len(self.steps) - 1]))

    def of_layer(self, layer: str) -> Onset:
        """Between which of the checkpoints that were looked at a layer of `layers` began to be named for good."""
        good = [index for index, named in self.probed.items() if layer not in named]
        last = max(good, default=None)
        return Onset(last, min(index for index in self.probed if last is None or index > last))

    @property
    def turns(self) -> tuple[int, ...]:
        """Steps that were clean although the rule had spoken at an earlier one; none where all is monotone."""
        wrong = [index for index, named in self.probed.items() if named]
        first = min(wrong, default=len(self.steps))
        return tuple(self.steps[index] for index in sorted(self.probed) if index > first and not self.probed[index])

    @property
    def spoke(self) -> tuple[int, ...]:
        """Steps at which the rule spoke."""
        return tuple(self.steps[index] for index in sorted(self.probed) if self.probed[index])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        good, bad = (None if index is None else self.steps[index] for index in (self.onset.good, self.onset.bad))
        return {
            "checkpoints": len(self.steps),
            "audited": [self.steps[index] for index in sorted(self.probed)],
            "last_good": good,
            "first_bad": bad,
            "monotone": not self.turns,
            "clean_again": list(self.turns),
            "spoke": list(self.spoke),
            "layers": {layer: self._steps(self.of_layer(layer)) for layer in self.layers},
        }

    def _steps(self, onset: Onset) -> dict[str, int | None]:
        good, bad = (None if index is None else self.steps[index] for index in (onset.good, onset.bad))
        return {"last_good": good, "first_bad": bad}


@checked
def bisect(steps: Sequence[int], probe: Probe, *, verify: bool = True) -> Bisection:
    """The first checkpoint from which the rule speaks, by about log₂ n looks.

    Halving takes it that what went wrong stays wrong, and cannot notice where that is not so. With `verify`, further
    checkpoints at doubling distances on both sides are looked at, again about log₂ n each.
    """
    seen: dict[int, frozenset[str]] = {}

    def wrong(index: int) -> bool:
        if index not in seen:
            seen[index] = probe(index)
        return bool(seen[index])

    last = len(steps) - 1
    if not wrong(last):
        wrong(0)
        if verify:
            _look_around(last, last, wrong)
        return Bisection(tuple(steps), seen, Onset(last, None))
    onset = Onset(None, 0) if wrong(0) else _halved(0, last, wrong)
    if verify and onset.bad is not None:
        _look_around(onset.bad, last, wrong)
    return Bisection(tuple(steps), seen, onset)


def _halved(good: int, bad: int, wrong: Callable[[int], bool]) -> Onset:
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if wrong(middle) else (middle, bad)
    return Onset(good, bad)


def _look_around(index: int, last: int, wrong: Callable[[int], bool]) -> None:
    distance = 1
    while distance <= last:
        for other in (index - distance, index + distance):
            if 0 <= other <= last:
                wrong(other)
        distance *= 2
