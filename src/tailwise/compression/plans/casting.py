"""Rounding to a number format, two treatments in a row, and any treatment as a file writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from tailwise.compression.operators.operator import Operator, OperatorResult, Target
from tailwise.compression.plans.fusing import merged_by_servers
from tailwise.compression.plans.patterns import BLOCK, EXPERTS, UNSTRUCTURED
from tailwise.compression.plans.site import Site
from tailwise.compression.plans.taking import Drop, DropExperts, LowRank, Sparsify, Structured
from tailwise.compression.plans.treatment import (
    REPORT,
    Matrices,
    Treatment,
    TreatmentSettings,
    Unit,
    operator_for,
)
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.number_format import NumberFormat

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Cast(Treatment):
    """Values are rounded to those of a number format."""

    to: str  # name of the format; what a file has in its place where it has none, which `check` says
    unit: ClassVar[Unit] = "bits"

    @property
    @override
    def format(self) -> str | None:
        return self.to

    @property
    @override
    def cast(self) -> Cast | None:
        return self

    @property
    def number_format(self) -> NumberFormat:
        """The format. `UsageError` where there is none of that name."""
        return parse_format(self.to)

    def fitted(self, shape: tuple[int, ...]) -> NumberFormat:
        """What a matrix of this shape, inputs last, is stored in; the format itself where the shape is unknown."""
        return self.number_format.fitting(shape[-1]) if shape else self.number_format

    def bits(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight, scales counted, of (out, in) or (count, out, in); nominal where it is unknown."""
        number_format = self.number_format
        return (
            number_format.bits_per_weight(shape[-2], shape[-1]) if len(shape) in (2, 3) else number_format.element_bits
        )

    def price(self, site: Site) -> float:
        """Stored bits."""
        return site.n_params * self.bits(site.shape)

    @override
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        if not isinstance(self.to, str) or not self.to:
            yield "has no format"
            return
        try:
            chosen = self.fitted(site.shape)
        except UsageError as error:
            yield f"{error.what}; {error.fix}"
            return
        if operator.needs == "hessian" and isinstance(chosen, GgmlFormat):
            yield f"{operator.name} goes column by column, and {chosen.name} is rounded in whole blocks; take imatrix"

    @override
    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        chosen = self.number_format
        reach = how.reach if merged_by_servers(chosen) else None
        return operator_for(how, seen)(W, Target(chosen, how.act_order, how.keep_zeros, reach), seen)

    def reached(self, site: Site, matrices: Matrices) -> float:
        """Bits per weight. `UnreadableError` where an entry is no value of the format.

        An entry is one if rounding it to the scales that were chosen, and to the dtype that it is stored in, gives it
        again.
        """
        if not self._holds(matrices):
            raise UnreadableError(f"holds values that {self.number_format.name} has not", where=site.tensor, fix=REPORT)
        return self.number_format.bits_per_weight(matrices.after.shape[1], matrices.after.shape[2])

    def _holds(self, weights: Matrices) -> bool:
        after, grids = weights.after, weights.grids
        if grids is None:
            chosen = self.number_format
            return all(chosen.quantize(W).values.to(W.dtype).equal(W) for W in after)
        if not grids:
            return False
        matrices = after.reshape(len(grids), -1, after.shape[2])  # the groups of a convolution have scales of their own
        return all(grid.round(W).to(W.dtype).equal(W) for grid, W in zip(grids, matrices, strict=True))

    @override
    def words(self) -> str:
        return self.to


@dataclass(frozen=True, slots=True)
class Then(Treatment):
    """One after the other: the second sees what the first left, and keeps its zeros."""

    first: Treatment
    second: Treatment
    unit: ClassVar[Unit] = "bits"

    @property
    @override
    def sparsity(self) -> float | None:
        return self.first.sparsity

    @property
    @override
    def pattern(self) -> str:
        return self.first.pattern

    @property
    @override
    def rank(self) -> int | None:
        return self.first.rank

    @property
    @override
    def format(self) -> str | None:
        return self.second.format

    @property
    @override
    def parts(self) -> tuple[Treatment, ...]:
        return (*self.first.parts, *self.second.parts)

    @property
    @override
    def cast(self) -> Cast | None:
        return self.second.cast

    @property
    @override
    def idle(self) -> bool:
        return self.first.idle and self.second.idle

    def price(self, site: Site) -> float:
        """Stored bits: zeros are stored as the others are."""
        return self.second.price(site)

    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        """A plan that does both is checked part by part; in any other, one of the two does not belong."""
        yield from self.first.check(site, operator)

    @override
    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        if how.then is None:
            raise UsageError("two treatments take two operators")
        between = self.first.do(W, how, seen)
        treated = self.second.do(between.weight.to(W.dtype), replace(how.then, keep_zeros=True, reach=how.reach), seen)
        return replace(treated, kept=between.kept)

    def reached(self, site: Site, matrices: Matrices) -> float:
        """Of the second; the zeros of the first are looked at too."""
        self.first.reached(site, matrices)
        return self.second.reached(site, matrices)

    @override
    def words(self) -> str:
        return f"{self.first.words()}, {self.second.words()}"


def noted(
    *, sparsity: Any, pattern: Any, rank: Any, format: Any, units: bool, experts: Any = ()  # noqa: A002 - as in files
) -> Treatment:  # fmt: skip
    """The treatment that an entry of a file writes down, right or wrong. `units`: of an operator that takes units out.

    What is wrong is told by `check`: entries are edited by people.
    """
    if format is not None and sparsity is None and rank is None:
        return Cast(format)
    first: Treatment
    if pattern == BLOCK:
        first = Drop(sparsity)
    elif pattern == EXPERTS:
        first = DropExperts(sparsity, tuple(experts) if isinstance(experts, list | tuple) else (experts,))
    elif rank is not None:
        first = LowRank(sparsity, rank)
    else:
        first = Structured(sparsity) if units and pattern == UNSTRUCTURED else Sparsify(sparsity, pattern)
    return first if format is None else Then(first, Cast(format))
