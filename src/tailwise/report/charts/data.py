"""What charts stand on: one flat record per layer, places along depth, and histograms.

Numbers are rounded to five digits: a picture shows fewer, and a report must stay small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import doubt, estimator_of, value_of
from tailwise.checkpoints.orientation import before_blocks
from tailwise.report.theme import group_of

#: Drawn as a line: about where Gaussian noise begins. Whether a fit is trusted depends on the size of its tail too.
POOR_FIT = 0.1

OUTSIDE = "outside the blocks"

Record = dict[str, Any]


def rounded(value: float | None) -> float | int | None:
    """Five significant digits; whole numbers without a point."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


@dataclass(frozen=True)
class Depth:
    """The axis from the data to the labels."""

    low: int  # first and last block
    high: int
    inputs: bool  # whether anything stands before the first block, or after the last
    outputs: bool
    ordinal: bool  # no layer has a block: layers are numbered in the order of the audit

    @property
    def title(self) -> str:
        """Of the axis."""
        return "layer, from the data on" if self.ordinal else "block (0 is nearest the data)"


def places(audit: Audit) -> list[int]:
    """The place of every measured layer along depth; before the first block and after the last: one step out."""
    rows = [layer.row for layer in audit]
    blocks = [row.block for row in rows if row.block is not None]
    if not blocks:
        return list(range(len(rows)))
    low, high = min(blocks), max(blocks)
    outside = {True: low - 1, False: high + 1}
    return [row.block if row.block is not None else outside[before_blocks(row.role, row.name)] for row in rows]


def depth_of(audits: Sequence[Audit]) -> Depth:
    """One axis for all audits."""
    rows = [layer.row for audit in audits for layer in audit]
    blocks = [row.block for row in rows if row.block is not None]
    if not blocks:
        return Depth(0, max(max(map(len, audits), default=1) - 1, 1), inputs=False, outputs=False, ordinal=True)
    before = {before_blocks(row.role, row.name) for row in rows if row.block is None}
    return Depth(min(blocks), max(blocks), inputs=True in before, outputs=False in before, ordinal=False)


def layer_records(audits: Sequence[Audit], names: Sequence[str]) -> list[Record]:
    """One record per measured layer: facts, place along depth, and every metric; `names` tell the audits apart."""
    records = []
    for name, audit in zip(names, audits, strict=True):
        kind = estimator_of(audit)
        for place, layer in zip(places(audit), audit, strict=True):
            records.append({"model": name, **layer_record(layer.row, place, kind)})
    return records


def layer_record(row: LayerRow, place: int, estimator: str = "ks") -> Record:
    """One layer. Exponents of tails without spread are left out; fits that are not trusted are `poor`."""
    times = f" ×{row.slices}" if row.slices > 1 else ""
    return {
        "name": row.name,
        "role": row.role,
        "group": group_of(row.role),
        "block": row.block,
        "place": place,
        "panel": row.role if row.block is not None else OUTSIDE,
        "shape": f"{row.rows}×{row.cols}{times}",
        "status": row.status,
        "poor": row.metrics.get("alpha") is not None and bool(doubt(row, estimator)),
        **{key: rounded(value_of(row, key)) for key in row.metrics},
    }


def ordered(values: Iterable[str], order: Sequence[str]) -> list[str]:
    """Distinct values in a given order, unknown ones last."""
    known = {name: index for index, name in enumerate(order)}
    return sorted(dict.fromkeys(values), key=lambda name: known.get(name, len(known)))


def nice_step(span: float, count: int) -> float:
    """The width 1, 2, 2.5 or 5 · 10^k that cuts `span` into about `count` parts."""
    if not span > 0:
        return 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)


@dataclass(frozen=True)
class Bins:
    """Edges of a histogram; what lies beyond `cap` is counted in the last bin."""

    edges: NDArray[np.float64]
    beyond: int  # values above the last edge


def whole_bins(values: Sequence[float], *, count: int = 28, cap: int = 60) -> Bins:
    """Bins around whole numbers from 0 on, for counts."""
    stop = min(max(values), cap)
    step = max(1.0, nice_step(stop, count))
    edges = (step * np.arange(int(stop / step) + 2) - step / 2).astype(np.float64)
    return Bins(edges, sum(value > edges[-1] for value in values))


def bins_of(values: Sequence[float], *, count: int = 28, low: float | None = None, cap: float | None = None) -> Bins:
    """Bins at round numbers, from `low` to at most `cap`."""
    data = np.asarray(values, dtype=np.float64)
    start = float(data.min()) if low is None else low
    stop = float(data.max())
    if cap is not None:
        stop = min(stop, cap)
    # Where all values are one, a bin of its size holds them: of no width, nothing would be seen.
    step = nice_step(stop - start if stop > start else abs(stop) or 1.0, count)
    first = math.floor(start / step) * step
    number = max(math.ceil((stop - first) / step + 1e-9), 1)
    edges = (first + step * np.arange(number + 1)).astype(np.float64)
    return Bins(edges, int((data > edges[-1]).sum()))


def stacked(records: Sequence[Mapping[str, Any]], metric: str, bins: Bins, keys: Sequence[str]) -> list[Record]:
    """Stacked counts per bin and role; poor fits on top, as one part of their own."""
    bars: list[Record] = []
    heights = np.zeros(len(bins.edges) - 1)
    for key in [*keys, None]:
        chosen = [
            r[metric] for r in records
            if r.get(metric) is not None and (None if r["poor"] else r["role"]) == key
        ]  # fmt: skip
        counts, _ = np.histogram(np.clip(chosen, bins.edges[0], bins.edges[-1]), bins.edges)
        bars += [
            {"low": rounded(bins.edges[i]), "high": rounded(bins.edges[i + 1]), "from": int(heights[i]),
             "to": int(heights[i] + n), "layers": int(n), "role": key, "poor": key is None}
            for i, n in enumerate(counts) if n
        ]  # fmt: skip
        heights += counts
    return bars
