"""By the tail exponent: AlphaPruning for amounts, AlphaQuant for formats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator, values_of
from tailwise.compression.choosing.bit_formats import (
    Assignment,
    Choices,
    FormatSettings,
    Levels,
    assigner,
    reasons_of,
)
from tailwise.compression.choosing.ordered import ONE_FORMAT, by_share, decided, ordered, ranks
from tailwise.compression.choosing.shares import MeasuredMetric, spread
from tailwise.compression.choosing.signs import reversed_of, sign_of_alpha
from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError

POOLED = (
    "α is ranked across roles; in published data that reverses its sign (q and k have the lowest α and spare the "
    "most bits): hold it against uniform, or take one role at a time with --roles"
)


@allocator(
    "alpha",
    source="Lu et al. 2024, AlphaPruning, arXiv:2410.10912",
    takes=("mapping", "tau", "reverse"),
    needs_alpha=True,
)
def alpha(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """AlphaPruning: shares linear in α within [1 − τ, 1 + τ], by block mean, by matrix, or mixed.

    s = η·r with r = (α − α_min)/(α_max − α_min)·2τ + (1 − τ) and η = S·Σd / Σ(d·r). The published code clamps
    nothing and asks for 1.063 at S = 0.8, τ = 0.3; here amounts stay at 0.99 or below and the others take over
    what is cut, unless the budget says not to clamp. For low rank, r is mirrored, and by `reverse` once more.
    """
    measured = MeasuredMetric("α", values_of(candidates, "alpha"), settings.direction)
    amounts, reasons = spread(candidates, measured, budget, settings)
    notes: tuple[str, ...] = ()
    if settings.mapping != "block":
        notes = (
            f"mapping {settings.mapping} ranks α across roles; in published data that reverses its sign "
            "(q and k have the lowest α and spare the most); alpha-role ranks within a role",
        )
    used = {"mapping": settings.mapping, "tau": settings.tau, **reversed_of(settings)}
    return Allocation(amounts, reasons, ("alpha",), used, notes, sign_of_alpha(settings))


@assigner(
    "alpha",
    source="AlphaQuant: its published code, percentile thresholds on alpha_hill",
    takes=("mxfp4_ratio", "bf16_ratio", "tau"),
    needs=("alpha",),
)
def alpha_of_formats(choices: Choices, settings: FormatSettings) -> Assignment:
    """AlphaQuant: the higher α, the fewer bits, by percentile thresholds or within a budget.

    With ratios and three formats: α at or above the (1 − mxfp4_ratio) quantile gets the lowest, at or below the
    bf16_ratio quantile the highest, the others the middle one; a ratio of 0 is none, and no budget is taken. With a
    budget: the two formats next to it, the better one where α is lowest. With τ: as AlphaPruning spreads sparsity, a
    group is to have r times the mean bits, r falling from 1 + τ to 1 − τ as α rises, and gets what is offered near
    it. α of tensors that have one format is their mean weighted by parameters; without α a tensor counts as the
    middle.
    """
    values = np.array([group.mean("alpha") for group in choices.groups])
    if settings.has_ratios:
        levels, notes = _by_ratio(choices, values, settings)
    elif settings.tau is not None:
        levels, notes = _by_share(choices, values, settings.tau)
    else:
        levels, notes = ordered(choices, ranks(values))
    place = np.round(ranks(values) * 100).astype(int)
    why = [
        "no α, so the middle" if np.isnan(value) else f"α {value:.3g}, percentile {rank} of {len(values)}"
        for value, rank in zip(values, place, strict=True)
    ]
    used: dict[str, object] = {} if settings.tau is None else {"tau": settings.tau}
    if settings.has_ratios:
        used = {"mxfp4_ratio": settings.mxfp4_ratio, "bf16_ratio": settings.bf16_ratio}
    pooled = () if any(note.startswith(ONE_FORMAT) for note in notes) else (POOLED,)  # where α decided nothing
    return Assignment(levels, reasons_of(choices, levels, why), ("alpha",), used, (*decided(notes), *pooled))


def _by_share(choices: Choices, values: Vector, tau: float) -> tuple[Levels, tuple[str, ...]]:
    """Shares of the mean bits, linear in α."""
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 0.0)
    place = np.nan_to_num((values - low) / (high - low) if high > low else values * np.nan, nan=0.5)
    return by_share(choices, place, tau)


def _by_ratio(choices: Choices, values: Vector, settings: FormatSettings) -> tuple[Levels, tuple[str, ...]]:
    if choices.budget is not None:
        raise UsageError("ratios say how many bits", fix="leave --bits and --bytes out, or the ratios")
    if len(choices.formats) != 3:
        raise UsageError(
            f"ratios choose among three formats, not {len(choices.formats)}", fix="use --formats mxfp4,mxfp8,bf16"
        )
    levels = choices.nearest(1)
    known = values[np.isfinite(values)]
    notes: tuple[str, ...] = ()
    if len(known) and settings.bf16_ratio:
        bottom = float(np.quantile(known, settings.bf16_ratio))
        levels = np.where(values <= bottom, choices.nearest(2), levels)
        notes += (f"α ≤ {bottom:.4g}: {choices.formats[2]}",)
    if len(known) and settings.mxfp4_ratio:
        top = float(np.quantile(known, 1.0 - settings.mxfp4_ratio))
        levels = np.where(values >= top, choices.nearest(0), levels)
        notes += (f"α ≥ {top:.4g}: {choices.formats[0]}",)
    return levels, notes
