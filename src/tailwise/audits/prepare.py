"""What an audit will do, settled from headers alone: which matrices, by which recipe, at what cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailwise.audits.work import HOLD_BYTES, memory_of_factors
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, Unmeasured, group
from tailwise.checkpoints.roles import ROLES
from tailwise.core import validation
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.layer_patterns import is_found
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.core.shown import Brief, Shown
from tailwise.spectrum.metrics.facts import completed, selected
from tailwise.spectrum.power_law import ESTIMATORS, estimator_names

#: Working memory beside the matrices: converted blocks of the contraction.
BLOCKS_IN_FLIGHT = 64 << 20


@dataclass(frozen=True)
class Selection:
    """Which matrices to take: by name (a regular expression, searched), and by role."""

    layers: str | None = None
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validation.check_fields(self)
        try:
            re.compile(self.layers or "")
        except re.error as error:
            fix = "escape special characters, e.g. 'layers\\.3\\.'"
            raise UsageError(f"{self.layers!r} is not a regular expression: {error}", fix=fix) from error
        for role in self.roles:
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)

    def takes(self, name: str, role: str) -> bool:
        """Whether a matrix of that name and role is selected."""
        return (not self.layers or is_found(self.layers, name)) and (not self.roles or role in self.roles)


@dataclass(frozen=True, repr=False)
class Prepared(Brief):
    """What an audit would do, known from headers alone."""

    sources: tuple[MatrixSource, ...]  # in the checkpoint's order
    unmeasured: tuple[Unmeasured, ...]
    recipe: Recipe
    options: RunOptions
    selection: Selection

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(source.nbytes for source in self.sources)

    @property
    def flops(self) -> float:
        """Operations, permutations included."""
        return sum(source.flops for source in self.sources) * (1 + self.recipe.randomize)

    def memory(self, workers: int) -> int:
        """Largest working memory in bytes, without the interpreter and libraries."""
        size = 8 if self.recipe.precision == "float64" else 4
        needs = sorted((_memory_of(source, size, self.recipe) for source in self.sources), reverse=True)
        return sum(needs[:workers])

    def __repr__(self) -> str:
        rest = f"{self.nbytes:,} bytes to read, {len(self.unmeasured)} not measured"
        return f"Prepared({len(self.sources)} matrices, {rest})"

    def _shown(self) -> Shown:
        rows = [(one.name, one.role, one.rows, one.cols, one.dtype) for one in self.sources]
        return Shown(repr(self), ("name", "role", "rows", "cols", "dtype"), rows, "`sources`")


def _memory_of(source: MatrixSource, size: int, recipe: Recipe) -> int:
    square = size * source.m**2
    whole = source.rows < source.cols or recipe.randomize > 0 or recipe.uses_windows
    if source.by_factors and not (recipe.randomize > 0 or recipe.uses_windows):
        return memory_of_factors(source) + BLOCKS_IN_FLIGHT
    stored = source.nbytes if whole or source.nbytes <= HOLD_BYTES else 0
    # Eigenvalues are computed from a copy of the Gram matrix, after the weights have been let go.
    return max(2 * square, square + stored) + BLOCKS_IN_FLIGHT


def checked(recipe: Recipe) -> Recipe:
    """`recipe` with the options that its metrics need. Raises `UsageError` for unknown metrics and estimators."""
    recipe = completed(recipe)
    selected(recipe)
    check_estimators(recipe)
    return recipe


def check_estimators(recipe: Recipe) -> None:
    """Raise `UsageError` with near names for an estimator that does not exist."""
    for estimator in (recipe.estimator.removeprefix("farms:"), recipe.hill_estimator):
        if estimator not in ESTIMATORS:
            raise unknown_name("estimator", estimator, estimator_names())


@validation.checked
def prepare(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    options: RunOptions | None = None,
    selection: Selection | None = None,
) -> Prepared:
    """Read the headers, group tensors to matrices and check every setting. No weight is read."""
    recipe, selection = checked(recipe or Recipe()), selection or Selection()
    sources, unmeasured = group(checkpoint, conv=recipe.conv, min_evals=recipe.min_evals)
    taken = tuple(source for source in sources if selection.takes(source.name, source.role))
    if sources and not taken:
        roles = sorted({source.role for source in sources})
        raise UsageError(
            f"none of the {len(sources)} matrices is selected by layers={selection.layers!r}, roles={selection.roles}",
            where=checkpoint.uri,
            fix=f"names look like {sources[0].name!r}; roles here: {', '.join(roles)}",
        )
    rest = tuple(item for item in unmeasured if selection.takes(item.name, item.role))
    return Prepared(taken, rest, recipe, options or RunOptions(), selection)
