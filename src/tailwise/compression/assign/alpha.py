"""AlphaQuant: by percentiles of the tail exponent."""

from __future__ import annotations

import numpy as np

from tailwise.compression.assign.assigner import (
    Assignment,
    Choices,
    FormatSettings,
    Levels,
    assigner,
    reasons_of,
)
from tailwise.compression.assign.ordered import ordered, ranks
from tailwise.compression.budget import Vector
from tailwise.errors import UsageError

POOLED = (
    "α is ranked across roles; in published data that reverses its sign (q and k have the lowest α and spare the "
    "most bits): hold it against uniform, or take one role at a time with --roles"
)


@assigner(
    "alpha",
    source="AlphaQuant: its published code, percentile thresholds on alpha_hill",
    takes=("mxfp4_ratio", "bf16_ratio"),
    needs=("alpha",),
)
def alpha(choices: Choices, settings: FormatSettings) -> Assignment:
    """AlphaQuant: the higher α, the fewer bits, by percentile thresholds or within a budget.

    With ratios and three formats: α at or above the (1 − mxfp4_ratio) quantile gets the lowest, at or below the
    bf16_ratio quantile the highest, the others the middle one; a ratio of 0 is none, and no budget is taken. With a
    budget: the two formats next to it, the better one where α is lowest. α of tensors that have one format is their
    mean weighted by parameters; without α a tensor counts as the middle.
    """
    values = np.array([group.mean("alpha") for group in choices.groups])
    if settings.has_ratios:
        levels, notes = _by_ratio(choices, values, settings)
    else:
        levels, notes = ordered(choices, ranks(values))
    place = np.round(ranks(values) * 100).astype(int)
    why = [
        "no α, so the middle" if np.isnan(value) else f"α {value:.3g}, percentile {rank} of {len(values)}"
        for value, rank in zip(values, place, strict=True)
    ]
    used = {"mxfp4_ratio": settings.mxfp4_ratio, "bf16_ratio": settings.bf16_ratio} if settings.has_ratios else {}
    return Assignment(levels, reasons_of(choices, levels, why), ("alpha",), used, (*notes, POOLED))


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
