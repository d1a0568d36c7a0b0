"""Number formats: what an assigner chooses from, and the registry of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tailwise.compression.choosing.chooser import Chooser, loader, registered
from tailwise.compression.choosing.knapsack import Chosen, Knapsack, Matrix, solve_near
from tailwise.compression.plans.budget import Vector
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError
from tailwise.core.registry import Registry
from tailwise.core.validation import check, check_fields

#: How far below its budget an assignment may stay, relative, tried one after another: few tensors and few formats
#: cannot come near to every budget.
SLACKS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
_SECONDS = 8.0
_FEW = 300  # groups; more of them come near to any budget

Levels = NDArray[np.int64]


@dataclass(frozen=True)
class FormatGroup:
    """Tensors that have one format."""

    name: str
    members: tuple[Candidate, ...]

    @property
    def n_params(self) -> int:
        """Parameters of all of them."""
        return sum(item.n_params for item in self.members)

    @property
    def block(self) -> int | None:
        """The block of the first."""
        return self.members[0].block

    def mean(self, metric: str) -> float:
        """A metric, the mean over the members that have it, weighted by parameters; NaN where none has."""
        known = [(item.n_params, value) for item in self.members if (value := item.value(metric)) is not None]
        return sum(size * value for size, value in known) / sum(size for size, _ in known) if known else math.nan


@dataclass(frozen=True, eq=False)
class Choices:
    """What to choose from: a format for each group, within a budget."""

    groups: tuple[FormatGroup, ...]
    formats: tuple[str, ...]  # ascending in bits
    element_bits: Vector  # (formats,): bits of an entry, without scales
    bits: Matrix  # (groups, formats): stored bits, scales counted; +inf where a format is not offered
    budget: float | None  # bits in all; None: the assigner needs none

    @property
    def sizes(self) -> Vector:
        """Parameters, (groups,)."""
        return np.array([group.n_params for group in self.groups], dtype=np.float64)

    @property
    def goal(self) -> float:
        """The budget; `UsageError` where there is none."""
        if self.budget is None:
            raise UsageError("how many bits?", fix="give --bits, e.g. 4.5, or --bytes")
        return self.budget

    def nearest(self, level: int) -> Levels:
        """The offered format next to `level` for each group: it, else the next with more bits, else the highest."""
        offered = np.isfinite(self.bits)
        from_here = offered.copy()
        from_here[:, :level] = False
        highest = offered.shape[1] - 1 - offered[:, ::-1].argmax(axis=1)
        found: Levels = np.where(from_here.any(axis=1), from_here.argmax(axis=1), highest)
        return found

    def weight(self, levels: Levels) -> float:
        """Bits of all groups."""
        return float(self.bits[np.arange(len(levels)), levels].sum())

    def cheapest(
        self, losses: Matrix, gap: float = 1e-6, seconds: float = _SECONDS, slacks: Sequence[float] = SLACKS
    ) -> Chosen:
        """The least summed loss, (groups, formats), within the budget: as near below it as the tensors allow.

        Solved exactly to the relative `gap`, with a bound; see `knapsack.solve`. After `seconds` the best so far is
        taken. `slacks` are the shares of the budget that may be left, tried one after the other.
        """
        offered = np.isfinite(self.bits) & np.isfinite(losses)
        costs, weights = np.where(offered, losses, np.inf), np.where(offered, self.bits, 0.0)
        most = _most_reached(np.where(offered, self.bits, np.inf), self.goal)
        problem = Knapsack(costs, weights, self.goal, seconds=seconds, gap=gap)
        met = [slack for slack in slacks[:-1] if self.goal * (1.0 - slack) <= most]
        return solve_near(problem, (*met, slacks[-1]))


def _most_reached(bits: Matrix, budget: float) -> float:
    """No choice of levels weighs more than this and not more than `budget`; it is known to 1e-4 of the budget.

    Sums of whole units, as the bits of one long integer: the integer program would take seconds to find out that few
    tensors of few sizes come no nearer.
    """
    if len(bits) > _FEW:
        return budget
    unit = budget * 1e-4 / len(bits)
    most = int(budget / unit)
    sums = 1
    for row in bits:
        steps = {int(value / unit) for value in row if value <= budget}
        longer = 0
        for step in steps:
            longer |= sums << step
        sums = longer & ((1 << (most + 1)) - 1)
    return (sums.bit_length() - 1 + len(bits)) * unit


@dataclass(frozen=True)
class FormatSettings:
    """What assigners can be told. Each reads only the fields that it names."""

    gamma: float = 1.0  # power of α in `alphaq`; 0: the variance alone
    mxfp4_ratio: float | None = None  # share of the tensors, highest α first, in the lowest format (`alpha`)
    bf16_ratio: float | None = None  # share, lowest α first, in the highest format (`alpha`)
    tau: float | None = None  # shares of the budget lie in [1 − τ, 1 + τ] (`alpha`)
    errors: Mapping[tuple[str, str], float] | None = None  # (tensor, format) → squared error (`distortion`)
    losses: Mapping[tuple[str, str], float] | None = (
        None  # (tensor, format) → change of loss, or error (`sensitivity`, `outputs`)
    )

    def __post_init__(self) -> None:
        check_fields(self, but=("errors", "losses"))  # which say themselves, by tensor, what number is none
        for name in ("errors", "losses"):
            check(name, getattr(self, name), Mapping | None)
        if not math.isfinite(self.gamma):
            raise UsageError(f"gamma is {self.gamma:g}", fix="give a number; published: 1, and up to 200")
        if self.tau is not None and not 0.0 <= self.tau < 1.0:
            raise UsageError(f"tau is {self.tau:g}", fix="give a fraction from 0 to below 1, e.g. 0.3")
        if self.tau is not None and self.has_ratios:
            raise UsageError("ratios and tau are two ways", fix="leave --tau out, or the ratios")
        for name in ("mxfp4_ratio", "bf16_ratio"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value:g}", fix="give a fraction from 0 to 1")
        if (self.mxfp4_ratio or 0.0) + (self.bf16_ratio or 0.0) > 1.0:
            raise UsageError("the two ratios are more than all tensors", fix="let them add up to 1 at most")

    @property
    def has_ratios(self) -> bool:
        """Whether ratios decide in place of a budget."""
        return self.mxfp4_ratio is not None or self.bf16_ratio is not None


@dataclass(frozen=True, eq=False)
class Assignment:
    """A format and a reason for each group, in their order."""

    levels: Levels  # (groups,), index into the formats
    reasons: tuple[str, ...]
    used: tuple[str, ...] = ()  # metrics that it comes from
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Assign = Callable[[Choices, FormatSettings], Assignment]


class Assigner(Chooser[Assign]):
    """A named way to spend bits."""

    def __call__(self, choices: Choices, settings: FormatSettings) -> Assignment:
        """Assign; the order of the groups does not matter."""
        if not choices.groups:
            raise UsageError("there is nothing to spend bits on", fix="give at least one candidate")
        keys = [(-1 if group.block is None else group.block, group.name) for group in choices.groups]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        sorted_choices = replace(
            choices, groups=tuple(choices.groups[index] for index in order), bits=choices.bits[order]
        )
        found = self.choose(sorted_choices, settings)
        back = np.argsort(order)
        return replace(found, levels=found.levels[back], reasons=tuple(found.reasons[index] for index in back))


_MODULES = ("uniform", "by_depth", "by_alpha", "alphaq", "measured")
ASSIGNERS: Registry[Assigner] = Registry(
    "allocator of formats", "tailwise.assigners", loader(_MODULES, lambda: ASSIGNERS)
)


def assigner(
    name: str, *, source: str, takes: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> Callable[[Assign], Assign]:
    """Register the decorated function; the first line of its docstring is the summary.

    It must stay within the budget, and choose offered formats alone; `tests/contracts/test_assigners.py` says the
    rest. Groups come in the order of their blocks and names.
    """
    return registered(ASSIGNERS, Assigner, name, source=source, takes=takes, needs=needs)


def reasons_of(choices: Choices, levels: Levels, why: Sequence[str]) -> tuple[str, ...]:
    """What was seen of each group, and what its bits mean beside the mean."""
    rows = np.arange(len(levels))
    own = choices.bits[rows, levels] / choices.sizes
    mean = choices.weight(levels) / float(choices.sizes.sum())
    words = ("as the mean", "more bits", "fewer bits")
    found = []
    for text, bits in zip(why, own, strict=True):
        word = words[0] if abs(bits - mean) < 0.05 else words[1 if bits > mean else 2]
        found.append(f"{text}: {word}")
    return tuple(found)
