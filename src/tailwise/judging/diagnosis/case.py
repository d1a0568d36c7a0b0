"""What a rule sees: the rows of one audit that are not muted for it, and the thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.core.kept import kept_property
from tailwise.core.layer_patterns import is_found
from tailwise.spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    from tailwise.judging.diagnosis.atlas import Atlas, Standing

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Case:
    """One audit as one rule sees it."""

    rows: tuple[LayerRow, ...]
    spectra: Mapping[str, Spectrum]
    limits: Mapping[str, float]
    history: tuple[Mapping[str, LayerRow], ...] = field(default=())  # earlier audits of the same run, oldest first
    draws: int = 24  # noise matrices behind each baseline
    tied: bool = False  # the embedding is the head too
    base: Mapping[str, LayerRow] | None = None  # the model as it was before: its base, or its first checkpoint
    atlas: Atlas | None = None  # healthy models, this one not among them
    known: dict[object, object] = field(default_factory=dict, compare=False, repr=False)  # what several rules ask for

    @staticmethod
    def of(
        audit: Audit,
        limits: Mapping[str, float],
        history: Sequence[Audit] = (),
        base: Audit | None = None,
        atlas: Atlas | None = None,
    ) -> Case:
        """The whole audit."""
        spectra = {layer.row.name: layer.spectrum for layer in audit}
        past = tuple({layer.row.name: layer.row for layer in earlier} for earlier in history)
        draws = int(audit.provenance.recipe.get("baseline_replicas", 24))
        shared = any(row.status == "SHARED" and row.role == "lm_head" for row in audit.rows)
        tied = shared or bool(audit.provenance.config.get("tie_word_embeddings"))
        before = base if base is not None else history[0] if history else None
        earlier = None if before is None else {row.name: row for row in before.rows}
        return Case(tuple(audit.rows), spectra, limits, past, draws, tied, earlier, atlas)

    def without(self, pattern: str) -> Case:
        """The case without the layers in whose name a regular expression is found."""
        rows = tuple(row for row in self.rows if not is_found(pattern, row.name))
        return replace(self, rows=rows, known={})

    def limit(self, name: str) -> float:
        """A threshold."""
        return self.limits[name]

    @kept_property
    def measured(self) -> tuple[LayerRow, ...]:
        """The rows with numbers."""
        return tuple(row for row in self.rows if row.measured)

    def judged(self, *metrics: str) -> list[LayerRow]:
        """The rows that have all these metrics, enough eigenvalues, and no degenerate tail among them."""
        least = self.limit("min_evals")
        return [
            row
            for row in self.measured
            if min(row.rows, row.cols) * row.slices >= least
            and not any(name in row.degenerate for name in metrics)
            and all(has(row, name) for name in metrics)
        ]

    def moved(self, row: LayerRow) -> bool | None:
        """Whether the matrix differs from what it was in the base or in the first audit; None where nobody knows."""
        before = (self.base or {}).get(row.name)
        return None if before is None or not (before.digest and row.digest) else before.digest != row.digest

    def standing(self, row: LayerRow, metric: str) -> Standing | None:
        """Where a matrix's number lies among healthy models; None where too few are known."""
        return None if self.atlas is None else self.atlas.standing(row, metric)

    def chains(self, rows: Sequence[LayerRow]) -> list[list[LayerRow]]:
        """Matrices of one role and shape along depth, with at least `min_blocks` blocks.

        What makes a chain is the name without its block's number, so that experts and towers are not mixed.
        """
        by_kind: dict[tuple[str, str, int, int], dict[int, LayerRow]] = {}
        for row in rows:
            if row.block is not None:
                key = (row.role, _NUMBER.sub("#", row.name, count=1), row.rows, row.cols)
                by_kind.setdefault(key, {})[row.block] = row
        chains = [[blocks[index] for index in sorted(blocks)] for blocks in by_kind.values()]
        return [chain for chain in chains if len(chain) >= self.limit("min_blocks")]

    def peers(self, rows: Sequence[LayerRow]) -> list[list[LayerRow]]:
        """Matrices of one role and shape, at least `min_peers` of them."""
        by_kind: dict[tuple[str, int, int], list[LayerRow]] = {}
        for row in rows:
            by_kind.setdefault((row.role, row.rows, row.cols), []).append(row)
        return [group for group in by_kind.values() if len(group) >= self.limit("min_peers")]

    def feeds_softmax(self, row: LayerRow) -> bool:
        """Whether the layer's output goes through a softmax over tokens or classes."""
        return row.role in ("lm_head", "classifier") or (self.tied and row.role == "embed" and row.block is None)


def noise_stable_rank(row: LayerRow) -> float:
    """Stable rank of noise of the same shape: n·m / (√n + √m)²."""
    return row.rows * row.cols / (math.sqrt(row.rows) + math.sqrt(row.cols)) ** 2


def has(row: LayerRow, name: str) -> bool:
    """Whether the row has a number under that name."""
    value = row.metrics.get(name)
    return value is not None and math.isfinite(value)


def value(row: LayerRow, name: str) -> float:
    """A metric that the row is known to have."""
    number = row.metrics[name]
    assert number is not None, f"{row.name} has no {name}"  # noqa: S101 - `judged` asked for it
    return number


def ratio_to_noise(row: LayerRow) -> float:
    """alpha_hill relative to that of noise of the same shape: 1 is untrained, near 0 is heavy-tailed."""
    return value(row, "alpha_hill") / value(row, "alpha_hill_baseline")


def share_of_noise_rank(row: LayerRow) -> float:
    """Effective rank relative to that of noise of the same shape."""
    return math.exp(value(row, "singular_entropy_baseline") - value(row, "singular_entropy"))
