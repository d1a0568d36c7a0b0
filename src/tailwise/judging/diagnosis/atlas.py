"""Where a matrix stands among those of healthy models: distributions of metrics by role, shape, size and depth.

An atlas keeps, for each model, a few quantiles of every metric in each cell, so that a model of a thousand matrices
counts no more than one of ten. A model is never compared with itself: what shares content with it is left out.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.core.errors import MALFORMED, UnreadableError
from tailwise.core.shown import Brief
from tailwise.core.storage import json_of, read_text
from tailwise.judging.diagnosis.case import has, noise_stable_rank, value

#: Fewer models say nothing.
LEAST_MODELS = 5
#: Names an atlas in place of the one that comes with the package; `none` for none.
VARIABLE = "TAILWISE_ATLAS"
FORMAT, VERSION = "tailwise-atlas", 1
#: Metrics that depend on the shape, taken relative to those of noise of the shape.
OF_NOISE = ("alpha_hill", "stable_rank", "effective_rank")
#: What a layer's place is told by, in this order.
TOLD = ("effective_rank", "stable_rank", "alpha_hill")
_FAMILIES = (
    ("attention", ("attn_", "rwkv_r", "rwkv_k", "rwkv_v", "rwkv_g", "rwkv_o", "ssm_")),
    ("feed-forward", ("mlp_", "shared_", "expert_", "rwkv_ffn")),
    ("convolution", ("conv", "squeeze_excite", "patch_embed", "patch_out")),
    ("recurrent", ("rnn_",)),
    ("embedding or head", ("embed", "pos_embed", "lm_head", "classifier", "regressor", "codebook")),
)

Cell = tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Member(Brief):
    """One model of an atlas."""

    name: str
    fingerprint: str  # of its content
    digests: frozenset[str]  # of its matrices
    sizes: tuple[tuple[int, int, float, float], ...]  # rows, cols, log ‖W‖², log λ_max: the same weights in other types
    cells: Mapping[Cell, tuple[int, Mapping[str, tuple[float, ...]]]]  # number of matrices, and quantiles by metric


@dataclass(frozen=True)
class Standing:
    """Where one number lies among healthy models, each of which counts once."""

    metric: str
    below: float  # share of healthy matrices with less, 0 to 1
    models: int
    matrices: int
    among: str  # "attn_v of 50–200 eigenvalues, 1:2–1:4, in the first third"

    def __str__(self) -> str:
        high = self.below > 0.5
        side = f"{'higher' if high else 'lower'} than in {_percent(self.below if high else 1 - self.below)}"
        title = _TITLES.get(self.metric, self.metric)
        of = f"{self.matrices:,} matri{'x' if self.matrices == 1 else 'ces'} of {self.models} models"
        return f"{title} {side} healthy {self.among} ({of})"


def _percent(share: float) -> str:
    """`98 % of`; `99 % of` what is all but a few."""
    return "all" if share == 1 else f"{100 * min(share, 0.99):.0f} % of"


_TITLES = {"effective_rank": "effective rank", "stable_rank": "stable rank", "alpha_hill": "alpha_hill"}


@dataclass(frozen=True, repr=False)
class Atlas(Brief):
    """Healthy models, to compare with."""

    members: tuple[Member, ...] = ()
    name: str = ""
    _pooled: dict[Cell, list[tuple[int, Mapping[str, tuple[float, ...]]]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __len__(self) -> int:
        return len(self.members)

    def without(self, audit: Audit) -> Atlas:
        """The atlas without the audited model: by its content, or by the sizes of its matrices in another type."""
        digests = {_short(layer.row.digest) for layer in audit if layer.row.digest}
        sizes = {(row.rows, row.cols): [] for row in (layer.row for layer in audit)}  # type: ignore[var-annotated]
        for layer in audit:
            sizes[layer.row.rows, layer.row.cols].append(_size(layer.row)[2:])
        own = audit.provenance.fingerprint
        others = [one for one in self.members
                  if one.fingerprint != own and not one.digests & digests and not _alike(one, sizes)]  # fmt: skip
        return self if len(others) == len(self.members) else Atlas(tuple(others), self.name)

    def but(self, names: Iterable[str]) -> Atlas:
        """The atlas without these models, by name."""
        gone = set(names)
        return Atlas(tuple(one for one in self.members if one.name not in gone), self.name)

    def standing(self, row: LayerRow, metric: str, depth: str = "") -> Standing | None:
        """Where a matrix's number lies, among the nearest kind of which five models have some; None where none is.

        `depth`: see `depth_of`.
        """
        number = number_of(row, metric)
        if number is None:
            return None
        for cell in _cells(row, depth):
            parts = [part for part in self._of(cell) if metric in part[1]]
            if len(parts) >= LEAST_MODELS:
                shares = [_share_below(values[metric], number) for _, values in parts]
                count = sum(count for count, _ in parts)
                return Standing(metric, float(np.mean(shares)), len(parts), count, _said(cell))
        return None

    def models_with(self, row: LayerRow, flag: str) -> tuple[int, int] | None:
        """(models that have a matrix of this role and size with the flag, models with such a role); None below five."""
        parts = [part for part in self._of(_cells(row, "")[0]) if flag in part[1]]
        if len(parts) < LEAST_MODELS:
            return None
        return sum(max(values[flag]) > 0 for _, values in parts), len(parts)

    def _of(self, cell: Cell) -> list[tuple[int, Mapping[str, tuple[float, ...]]]]:
        if not self._pooled and self.members:
            for member in self.members:
                for key, part in member.cells.items():
                    self._pooled.setdefault(key, []).append(part)
        return self._pooled.get(cell, [])

    def __repr__(self) -> str:
        return f"Atlas({self.name!r}, {len(self)} models)"


def counted(others: Atlas, whole: Atlas) -> str:
    """`33 healthy models`; of an atlas that has the audited model too, how many are left."""
    if len(others) == len(whole):
        return f"{len(whole)} healthy models"
    return f"{len(others)} healthy models (of the atlas' {len(whole)}, what shares weights with this one is left out)"


def number_of(row: LayerRow, metric: str) -> float | None:
    """A metric as an atlas has it: of those in `OF_NOISE`, the ratio to noise of the shape."""
    if metric == "effective_rank":
        both = has(row, "singular_entropy") and has(row, "singular_entropy_baseline")
        gap = value(row, "singular_entropy_baseline") - value(row, "singular_entropy") if both else math.inf
        return math.exp(gap) if gap < _MOST_GAP else None
    if metric in row.degenerate or not has(row, metric):
        return None
    number = value(row, metric)
    if metric == "alpha_hill":
        noise = value(row, "alpha_hill_baseline") if has(row, "alpha_hill_baseline") else 0.0
        return number / noise if noise else None
    return number / noise_stable_rank(row) if metric == "stable_rank" else number


_MOST_GAP = 50.0  # of entropies, in nats: no matrix has more


def depths(rows: Sequence[LayerRow]) -> dict[str, str]:
    """Name → `first third`, `middle`, `last third` of the blocks; "" outside them."""
    blocks = sorted({row.block for row in rows if row.block is not None})
    place = {block: index / max(len(blocks) - 1, 1) for index, block in enumerate(blocks)}
    return {row.name: "" if row.block is None else _third(place[row.block]) for row in rows}


def _third(place: float) -> str:
    return "first third" if place < 1 / 3 else "middle" if place <= 2 / 3 else "last third"


def cells_of(row: LayerRow, depth: str) -> list[Cell]:
    """Every cell that a matrix counts in, the narrowest first."""
    return _cells(row, depth)


def _cells(row: LayerRow, depth: str) -> list[Cell]:
    ratio, size = _ratio(row), _class(min(row.rows, row.cols) * row.slices)
    cells = [("role", row.role, size, ratio, depth)] if depth else []
    return [
        *cells, ("role", row.role, size, ratio), ("role", row.role, size), ("role", row.role),
        ("family", family_of(row.role), size), ("family", family_of(row.role)),
    ]  # fmt: skip


def family_of(role: str) -> str:
    """The family of roles that a role falls back on."""
    return next((name for name, starts in _FAMILIES if role.startswith(starts)), "other")


def _ratio(row: LayerRow) -> str:
    q = max(row.rows, row.cols) / min(row.rows, row.cols)
    return "1:1" if q < 1.2 else "1:1–1:2" if q < 2 else "1:2–1:4" if q <= 4 else "above 1:4"


def _class(m: int) -> str:
    return "below 50" if m < 50 else "50–200" if m < 200 else "200–1000" if m < 1000 else "1000 and more"


def _said(cell: Cell) -> str:
    what = cell[1] if cell[0] == "role" else f"{cell[1]} matrices"
    parts = [
        f"{what} of {cell[2]} eigenvalues" if len(cell) > 2 else what,
        *cell[3:4],
        *(f"in the {d}" for d in cell[4:]),
    ]
    return ", ".join(parts)


def _share_below(quantiles: Sequence[float], number: float) -> float:
    """The share of a distribution below a number, from its evenly spaced quantiles (all values where they are few)."""
    low, high = bisect_left(quantiles, number), bisect_right(quantiles, number)
    if low != high or len(quantiles) == 1 or low in (0, len(quantiles)):
        return float((low + high) / 2 / len(quantiles))
    left, right = quantiles[low - 1], quantiles[low]
    return float(low - 0.5 + (number - left) / (right - left)) / len(quantiles)


def _size(row: LayerRow) -> tuple[int, int, float, float]:
    norms = [value(row, name) if has(row, name) else math.nan for name in ("log_norm", "log_spectral_norm")]
    return row.rows, row.cols, norms[0], norms[1]


#: How near log ‖W‖² and log λ_max of the same weights are in another type, of 4 bits or more.
_NEAR = 0.02


def _alike(member: Member, sizes: Mapping[tuple[int, int], Sequence[tuple[float, ...]]]) -> bool:
    if len(member.sizes) < 2:
        return False
    hits = sum(
        any(abs(norm - a) <= _NEAR and abs(top - b) <= _NEAR for a, b in sizes.get((rows, cols), ()))
        or any(abs(norm - a) <= _NEAR and abs(top - b) <= _NEAR for a, b in sizes.get((cols, rows), ()))
        for rows, cols, norm, top in member.sizes
    )
    return 2 * hits > len(member.sizes)


def _short(digest: str) -> str:
    return digest[:16]


_BUILD = "build one: `tailwise atlas build AUDIT…`"


def load(path: str | Path) -> Atlas:
    """Read what `atlas_build.save` wrote. Raises `UnreadableError`."""
    try:
        text = read_text(path)
    except OSError as error:
        raise UnreadableError(f"could not be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise UnreadableError(f"is no atlas, for it is no text ({error})", where=path, fix=_BUILD) from error
    return of_text(text, str(path))


def of_text(text: str, where: str) -> Atlas:
    """An atlas from its text. Raises `UnreadableError` where it is none."""
    try:
        document = json_of(text)
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"version {document['version']!r}")
        members = tuple(_member(item) for item in document["models"])
    except MALFORMED as error:
        raise UnreadableError(
            f"is no atlas that this version reads ({error})",
            where=where,
            fix=_BUILD,
        ) from error
    return Atlas(members, Path(where).name)


def _member(item: Mapping[str, Any]) -> Member:
    cells = {
        tuple(map(str, cell["of"])): (
            int(cell["matrices"]),
            {str(name): tuple(sorted(map(float, values))) for name, values in cell["values"].items() if values},
        )
        for cell in item["cells"]
    }
    sizes = tuple((int(a), int(b), float(c), float(d)) for a, b, c, d in item["sizes"])
    return Member(str(item["name"]), str(item["fingerprint"]), frozenset(map(str, item["digests"])), sizes, cells)


@lru_cache(maxsize=1)
def _shipped() -> Atlas:
    file = resources.files("tailwise.judging.diagnosis") / "healthy.atlas"
    return of_text(file.read_text(encoding="utf-8"), "healthy.atlas") if file.is_file() else Atlas()


def default() -> Atlas:
    """The atlas that `TAILWISE_ATLAS` names, or the small one that comes with the package. `none` is an empty one."""
    named = os.environ.get(VARIABLE, "")
    if named == "none":
        return Atlas()
    return _of_file(named, Path(named).stat().st_mtime_ns if Path(named).is_file() else 0) if named else _shipped()


@lru_cache(maxsize=4)
def _of_file(path: str, _changed: int) -> Atlas:
    return load(path)


def renamed(member: Member, name: str) -> Member:
    """The model under another name."""
    return replace(member, name=name)
