"""A decision: a site, what is done to it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tailwise.compression.plans.casting import noted
from tailwise.compression.plans.patterns import UNSTRUCTURED
from tailwise.compression.plans.site import Site
from tailwise.compression.plans.taking import Structured
from tailwise.compression.plans.treatment import Treatment
from tailwise.core.errors import UsageError
from tailwise.core.shown import Brief
from tailwise.number_formats.number_format import NumberFormat

_OF_SITE = ("tensor", "matrix", "role", "block", "n_params", "shape")
_OF_TREATMENT = ("sparsity", "pattern", "rank", "format", "experts")


@dataclass(frozen=True, repr=False, slots=True)
class Decision(Brief):
    """What is done to one site, and why."""

    site: Site
    treatment: Treatment
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""

    @property
    def tensor(self) -> str:
        """Full name of the stored tensor."""
        return self.site.tensor

    @property
    def matrix(self) -> str:
        """Name of the matrix in the audit."""
        return self.site.matrix

    @property
    def role(self) -> str:
        """A key of `roles.ROLES`."""
        return self.site.role

    @property
    def block(self) -> int | None:
        """Number of the block."""
        return self.site.block

    @property
    def n_params(self) -> int:
        """Parameters of the tensor."""
        return self.site.n_params

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Site`."""
        return self.site.shape

    @property
    def sparsity(self) -> float | None:
        """Fraction of the parameters that goes, in [0, 0.99]; 1 with its whole block; None where none is asked for."""
        return self.treatment.sparsity

    @property
    def pattern(self) -> str:
        """N:M, N kept of each M along the input axis; or `unstructured`, `block`, `experts`."""
        return self.treatment.pattern

    @property
    def rank(self) -> int | None:
        """Of each matrix, for low rank."""
        return self.treatment.rank

    @property
    def experts(self) -> tuple[int, ...]:
        """Numbers of the experts that go out of a stack."""
        return self.treatment.experts

    @property
    def format(self) -> str | None:
        """Number format, where it is given one."""
        return self.treatment.format

    @property
    def number_format(self) -> NumberFormat:
        """The format itself. `UsageError` where the entry has none."""
        cast = self.treatment.cast
        if cast is None:
            raise UsageError("has no format", where=self.tensor)
        return cast.number_format

    @property
    def removed(self) -> float:
        """Parameters that go: n_params · sparsity."""
        return self.n_params * (self.sparsity or 0.0)

    def but(self, **changes: Any) -> Decision:
        """The same with some fields changed, by the names that a plan's file has for them (and `n_params`)."""
        held = {name: getattr(self, name) for name in (*_OF_SITE, *_OF_TREATMENT, "metrics", "reason")}
        return entry(**{**held, **changes}, units=isinstance(self.treatment, Structured))


def entry(
    tensor: str, matrix: str, role: str, block: int | None, n_params: int, *, units: bool = False, **fields: Any
) -> Decision:
    """A decision as a plan's file writes it: sparsity, pattern, rank, format, experts, shape, metrics and
    reason by name.

    `units`: of an operator that takes heads and neurons out.
    """
    site = Site(tensor, matrix, role, block, n_params, tuple(fields.pop("shape", ())))
    given = {name: fields.pop(name, None) for name in ("sparsity", "rank", "format")}
    pattern, experts = fields.pop("pattern", UNSTRUCTURED), fields.pop("experts", ())
    treatment = noted(**given, pattern=pattern, units=units, experts=experts)
    return Decision(site, treatment, **fields)
