"""What is done to a site: set entries to zero, lower the rank, take units or a block out, round to a format, or two.

A treatment checks itself, says its price, works on a matrix, and says what was reached. Imports no torch: the methods
that work on matrices use what they are given.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tailwise.compression.operators.operator import Activations, Amount, Done, Need, Operator, Target
from tailwise.compression.plans.budget import MOST
from tailwise.compression.plans.patterns import BLOCK, UNSTRUCTURED, parse_pattern
from tailwise.compression.plans.site import Site
from tailwise.errors import UnreadableError, UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.number_format import NumberFormat

if TYPE_CHECKING:
    import torch

Unit = Literal["parameters", "bits"]
_NEEDS: tuple[Need, ...] = ("none", "norms", "hessian")  # each says more than the one before

#: Of the norm of a matrix: what rounding to the stored dtype leaves beside its r directions.
_ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 1e-5, "float64": 1e-5}
_REPORT = "this is an error of tailwise: report it with the plan"


@dataclass(frozen=True)
class How:
    """By which operator, with what is said once for all entries of a plan."""

    operator: Operator
    act_order: bool = False
    keep_zeros: bool = False  # what was pruned before stays zero
    then: How | None = None  # of the second of two treatments

    @property
    def needs(self) -> Need:
        """The most that is to be known of the inputs of a layer."""
        both = (self.operator.needs, "none" if self.then is None else self.then.needs)
        return max(both, key=_NEEDS.index)

    @property
    def looks(self) -> bool:
        """Whether it looks at the inputs of each layer."""
        return self.needs != "none"


@dataclass(frozen=True, eq=False)
class Matrices:
    """A tensor before and after, each (count, out, in) as stored, and the grids that its values were rounded to."""

    before: torch.Tensor | None  # None where it is not read
    after: torch.Tensor
    grids: tuple[Grid, ...] | None = None  # None: a plain cast, or no format at all


class Treatment(ABC):
    """What is done to one site. The four properties are how a plan's file writes it."""

    unit: ClassVar[Unit]

    @property
    def sparsity(self) -> float | None:
        """Fraction of the parameters that goes."""
        return None

    @property
    def pattern(self) -> str:
        """N:M, `block`, or `unstructured`."""
        return UNSTRUCTURED

    @property
    def rank(self) -> int | None:
        """Of W ≈ A·B."""
        return None

    @property
    def format(self) -> str | None:
        """Name of a number format."""
        return None

    @property
    def parts(self) -> tuple[Treatment, ...]:
        """What is done one after the other."""
        return (self,)

    @property
    def cast(self) -> Cast | None:
        """The rounding to a format, where there is one."""
        return None

    @property
    def idle(self) -> bool:
        """Whether it leaves the site as it is."""
        return False

    @property
    def masks(self) -> bool:
        """Whether it sets single entries to zero."""
        return False

    def taken(self, site: Site) -> float:  # noqa: ARG002 - not all look at the site
        """The fraction of the parameters that really goes, in [0, 1]."""
        return self.sparsity or 0.0

    @abstractmethod
    def price(self, site: Site) -> float:
        """What the site takes afterwards, in `unit`."""

    @abstractmethod
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """What is wrong with it, one line each."""

    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:  # noqa: ARG002 - most fit any matrix
        """Why a stored tensor of so many inputs and entries cannot be worked on: what it has, in words."""
        yield from ()

    @abstractmethod
    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """Work on one matrix (out × in). Without inputs, by the operator that stands in for one that looks at them."""

    @abstractmethod
    def reached(self, site: Site, found: Matrices) -> float:
        """What a written tensor comes to: the fraction that went, or bits per weight.

        `UnreadableError` where it holds less than was asked.
        """

    @abstractmethod
    def words(self) -> str:
        """For a column of a table."""


def operator_for(how: How, seen: Activations | None) -> Operator:
    """The operator itself, or the one in its place for a layer that no input reached."""
    from tailwise.compression.operators.table import OPERATORS

    return how.operator if seen is not None or not how.operator.looks else OPERATORS[how.operator.blind]


@dataclass(frozen=True)
class _Taking(Treatment):
    """What takes parameters away."""

    share: float | None  # fraction that goes; None in a file that lacks it, which `check` says
    unit: ClassVar[Unit] = "parameters"

    @property
    def sparsity(self) -> float | None:
        """See `Treatment`."""
        return self.share

    def price(self, site: Site) -> float:
        """Parameters that stay."""
        return site.n_params * (1.0 - self.taken(site))

    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """See `Treatment`."""
        amount = self.share
        if not is_number(amount) or amount is None:
            yield f"sparsity is {amount!r}; it is a fraction from 0 to {MOST}"
            return
        if not 0.0 <= amount <= MOST:
            hint = f" (write {amount / 100:g} for {amount:g} %)" if 2.0 <= amount <= 100.0 * MOST else ""
            yield f"sparsity is {amount:g}; it is a fraction from 0 to {MOST}{hint}"
        yield from self._check_pattern(operator)
        yield from self._check_rank(site, operator)

    def _check_pattern(self, operator: Operator) -> Iterator[str]:
        try:
            pattern = parse_pattern(self.pattern, mixed=False) if isinstance(self.pattern, str) else None
        except UsageError as error:
            yield f"{error.what}; {error.fix}"
            return
        if pattern is None:
            yield f"pattern is {self.pattern!r}; write it in quotes, like '2:4'"
        elif pattern.fixed is not None and not operator.patterns:
            yield f"{operator.name} has no pattern; write {UNSTRUCTURED}"
        elif pattern.fixed is not None and abs(pattern.fixed - (self.share or 0.0)) > 1e-6:
            yield f"{self.pattern} is a sparsity of {pattern.fixed:g}, not {self.share:g}"

    def _check_rank(self, site: Site, operator: Operator) -> Iterator[str]:
        rank = self.rank
        if not operator.ranks:
            if rank is not None:
                yield f"has a rank, which {operator.name} does not use"
            return
        most = min(site.shape) if len(site.shape) == 2 else None
        if not is_whole(rank) or (rank or 0) < 1 or (most is not None and (rank or 0) > most):
            yield f"rank is {rank!r}; it is a whole number from 1" + (f" to {most}" if most else "")

    def reached(self, site: Site, found: Matrices) -> float:
        """The fraction that is zero. Rows may keep up to one entry more, since they are whole entries."""
        after, asked = found.after, self.sparsity or 0.0
        zeros = after.numel() - int(after.count_nonzero())
        share = zeros / max(after.numel(), 1)
        if share < asked - 1.0 / after.shape[2] - 1.0 / after.numel() or not self._has_pattern(after):
            raise UnreadableError(
                f"holds {share:.2%} zeros where {asked:.2%} ({self.pattern}) were asked for",
                where=site.tensor,
                fix=_REPORT,
            )
        return share

    def _has_pattern(self, after: torch.Tensor) -> bool:
        pattern = parse_pattern(self.pattern)
        if pattern.group is None or pattern.kept is None or self.idle:
            return True
        return int((after.reshape(-1, pattern.group) != 0).sum(dim=1).max()) <= pattern.kept


@dataclass(frozen=True)
class Sparsify(_Taking):
    """Entries are set to zero: anywhere, or all but N of each M along the inputs."""

    nm: str = UNSTRUCTURED  # or N:M

    @property
    def pattern(self) -> str:
        """See `Treatment`."""
        return self.nm

    @property
    def idle(self) -> bool:
        """See `Treatment`."""
        return not self.share and parse_pattern(self.nm).group is None

    @property
    def masks(self) -> bool:
        """See `Treatment`."""
        return not self.idle

    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:  # noqa: ARG002 - see Treatment
        """See `Treatment`."""
        group = parse_pattern(self.nm).group
        if group is not None and inputs % group:
            yield f"{inputs} inputs, which {self.nm} does not divide"

    def asks(self) -> Amount:
        """Of one matrix."""
        pattern = parse_pattern(self.nm, mixed=False)
        fixed = None if pattern.kept is None or pattern.group is None else (pattern.kept, pattern.group)
        return Amount(self.share or 0.0, fixed)

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """See `Treatment`."""
        return operator_for(how, seen)(W, self.asks(), seen)

    def words(self) -> str:
        """See `Treatment`."""
        return self.nm


@dataclass(frozen=True)
class LowRank(_Taking):
    """W ≈ A·B of a rank; stored as the product, or in two factors."""

    of: int | None = None

    @property
    def rank(self) -> int | None:
        """See `Treatment`."""
        return self.of

    def taken(self, site: Site) -> float:
        """By the rank: 1 − r(rows + cols)/(rows·cols); negative for a matrix too small to gain."""
        if self.of is None or len(site.shape) != 2:
            return self.share or 0.0
        return saved_by_rank(self.of, *site.shape)

    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:
        """See `Treatment`."""
        most = min(inputs, n_params // max(inputs, 1))
        if (self.of or 0) > most:
            yield f"a rank of {most} at most, not {self.of}"

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """See `Treatment`."""
        return operator_for(how, seen)(W, Amount(self.share or 0.0, rank=self.of), seen)

    def reached(self, site: Site, found: Matrices) -> float:
        """What the factors save. `UnreadableError` where the matrix has more directions than its rank."""
        (W,) = found.after
        rank, dtype = self.of or 0, str(W.dtype).removeprefix("torch.")
        sigma = np.linalg.svd(W.float().numpy(), compute_uv=False)
        beyond = float(np.linalg.norm(sigma[rank:])) / max(float(np.linalg.norm(sigma)), 1e-30)
        if beyond > _ROUNDING.get(dtype, 1e-2):
            raise UnreadableError(f"has {beyond:.1%} of its norm beyond rank {rank}", where=site.tensor, fix=_REPORT)
        return saved_by_rank(rank, *W.shape)

    def words(self) -> str:
        """See `Treatment`."""
        return f"rank {self.of}"


@dataclass(frozen=True)
class Structured(_Taking):
    """Heads or neurons go, through all the tensors of the block that hold them."""

    @property
    def idle(self) -> bool:
        """See `Treatment`."""
        return not self.share

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """No matrix can be worked on alone: `shrinking` does it."""
        return how.operator(W, Amount(self.share or 0.0), seen)

    def words(self) -> str:
        """See `Treatment`."""
        return UNSTRUCTURED


@dataclass(frozen=True)
class Drop(_Taking):
    """The whole block of the site goes."""

    share: float | None = 1.0

    @property
    def pattern(self) -> str:
        """See `Treatment`."""
        return BLOCK

    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """See `Treatment`."""
        if not is_number(self.share) or self.share is None:
            yield f"sparsity is {self.share!r}; it is a fraction from 0 to {MOST}"
            return
        if operator.work is not None:
            yield f"{operator.name} does not take whole blocks; operator: structured does"
        if site.block is None:
            yield "is in no block that could go as a whole"
        if self.share != 1.0:
            yield f"sparsity is {self.share:g}; with the pattern {BLOCK} it is 1"

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """No matrix can be worked on alone: `shrinking` does it."""
        return how.operator(W, Amount(), seen)

    def words(self) -> str:
        """See `Treatment`."""
        return BLOCK


@dataclass(frozen=True)
class Cast(Treatment):
    """Values are rounded to those of a number format."""

    to: str  # name of the format; what a file has in its place where it has none, which `check` says
    unit: ClassVar[Unit] = "bits"

    @property
    def format(self) -> str | None:
        """See `Treatment`."""
        return self.to

    @property
    def cast(self) -> Cast | None:
        """See `Treatment`."""
        return self

    @property
    def number_format(self) -> NumberFormat:
        """The format. `UsageError` where there is none of that name."""
        return parse_format(self.to)

    def bits(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight, scales counted, of (out, in) or (count, out, in); nominal where it is unknown."""
        found = self.number_format
        return found.bits_per_weight(shape[-2], shape[-1]) if len(shape) in (2, 3) else found.element_bits

    def price(self, site: Site) -> float:
        """Stored bits."""
        return site.n_params * self.bits(site.shape)

    def check(self, site: Site, operator: Operator) -> Iterator[str]:  # noqa: ARG002 - any site, any operator
        """See `Treatment`."""
        if not isinstance(self.to, str) or not self.to:
            yield "has no format"
            return
        try:
            parse_format(self.to)
        except UsageError as error:
            yield f"{error.what}; {error.fix}"

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """See `Treatment`."""
        return operator_for(how, seen)(W, Target(self.number_format, how.act_order, how.keep_zeros), seen)

    def reached(self, site: Site, found: Matrices) -> float:
        """Bits per weight. `UnreadableError` where an entry is no value of the format.

        An entry is one if rounding it to the scales that were chosen, and to the dtype that it is stored in, gives it
        again.
        """
        if not self._holds(found):
            raise UnreadableError(
                f"holds values that {self.number_format.name} has not", where=site.tensor, fix=_REPORT
            )
        return self.number_format.bits_per_weight(found.after.shape[1], found.after.shape[2])

    def _holds(self, found: Matrices) -> bool:
        after, grids = found.after, found.grids
        if grids is None:
            chosen = self.number_format
            return all(chosen.quantize(W).values.to(W.dtype).equal(W) for W in after)
        if not grids:
            return False
        matrices = after.reshape(len(grids), -1, after.shape[2])  # the groups of a convolution have scales of their own
        return all(grid.round(W).to(W.dtype).equal(W) for grid, W in zip(grids, matrices, strict=True))

    def words(self) -> str:
        """See `Treatment`."""
        return self.to


@dataclass(frozen=True)
class Then(Treatment):
    """One after the other: the second sees what the first left, and keeps its zeros."""

    first: Treatment
    second: Treatment
    unit: ClassVar[Unit] = "bits"

    @property
    def sparsity(self) -> float | None:
        """See `Treatment`."""
        return self.first.sparsity

    @property
    def pattern(self) -> str:
        """See `Treatment`."""
        return self.first.pattern

    @property
    def rank(self) -> int | None:
        """See `Treatment`."""
        return self.first.rank

    @property
    def format(self) -> str | None:
        """See `Treatment`."""
        return self.second.format

    @property
    def parts(self) -> tuple[Treatment, ...]:
        """See `Treatment`."""
        return (*self.first.parts, *self.second.parts)

    @property
    def cast(self) -> Cast | None:
        """See `Treatment`."""
        return self.second.cast

    @property
    def idle(self) -> bool:
        """See `Treatment`."""
        return self.first.idle and self.second.idle

    def price(self, site: Site) -> float:
        """Stored bits: zeros are stored as the others are."""
        return self.second.price(site)

    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """A plan that does both is checked part by part; in any other, one of the two does not belong."""
        yield from self.first.check(site, operator)

    def do(self, W: torch.Tensor, how: How, seen: Activations | None = None) -> Done:
        """See `Treatment`."""
        if how.then is None:
            raise UsageError("two treatments take two operators")
        between = self.first.do(W, how, seen)
        found = self.second.do(between.weight.to(W.dtype), replace(how.then, keep_zeros=True), seen)
        return replace(found, kept=between.kept)

    def reached(self, site: Site, found: Matrices) -> float:
        """Of the second; the zeros of the first are looked at too."""
        self.first.reached(site, found)
        return self.second.reached(site, found)

    def words(self) -> str:
        """See `Treatment`."""
        return f"{self.first.words()}, {self.second.words()}"


def noted(*, sparsity: Any, pattern: Any, rank: Any, format: Any, units: bool) -> Treatment:  # noqa: A002 - as in files
    """The treatment that an entry of a file writes down, right or wrong. `units`: of an operator that takes units out.

    What is wrong is told by `check`: entries are edited by people.
    """
    if format is not None and sparsity is None and rank is None:
        return Cast(format)
    first: Treatment
    if pattern == BLOCK:
        first = Drop(sparsity)
    elif rank is not None:
        first = LowRank(sparsity, rank)
    else:
        first = Structured(sparsity) if units and pattern == UNSTRUCTURED else Sparsify(sparsity, pattern)
    return first if format is None else Then(first, Cast(format))


def saved_by_rank(rank: int, rows: int, cols: int) -> float:
    """What a rank takes away: 1 − r(rows + cols)/(rows·cols); negative for a matrix too small to gain."""
    return 1.0 - rank * (rows + cols) / (rows * cols)


def is_whole(value: object) -> bool:
    """Whether a value of a file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value of a file is a finite number."""
    # Compared and not converted: whole numbers in a file may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
