"""The precision study as a noun: what every number format did to every layer. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tailwise.checkpoints.orientation import in_order
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UnreadableError, unknown_name
from tailwise.core.shown import Brief, Shown, brief
from tailwise.core.storage import is_text, json_of, read_text
from tailwise.core.typed import check_typed

#: Distortions of a `Reading`: name → what it is, in its unit.
MEASURES: Mapping[str, str] = {
    "relative_error": "‖Ŵ − W‖_F / ‖W‖_F",
    "sqnr_db": "10·log10(‖W‖² / ‖Ŵ − W‖²), in dB",
    "alpha_shift": "change of alpha_hill",
    "spectral_distance": "Wasserstein-1 distance of ln λ, over the resolved λ",
    "stable_rank_change": "relative change of the stable rank",
    "overlap": "‖V₀ᵀV‖_F² / r of the r leading directions, in [0, 1]",
    "overflow": "entries beyond the format's reach",
    "underflow": "non-zero entries that became zero",
}
#: Measures that are better when larger; of all others, a value nearer to 0 is better.
LARGER_IS_BETTER = frozenset({"sqnr_db", "overlap"})
#: Relative error up to which a format as good as holds a layer: the rounding of a few subnormal entries.
FELT = 1e-6
#: The status of weights with NaN or infinite entries.
NOT_FINITE = "NOT_FINITE"
_BROKEN = ("FAILED", "UNREADABLE", "UNSUPPORTED")
_VERSION = 1


@dataclass(frozen=True)
class Reading:
    """One layer in one format, beside the layer as it was loaded."""

    format: str
    bits_per_weight: float  # scales and zero points counted
    status: str = "OK"  # OK, FEW_EIGENVALUES, DEGENERATE, NOT_FINITE, FAILED
    reason: str = ""
    alpha: float | None = None  # Hill, of the largest k eigenvalues
    alpha_sigma: float | None = None  # its standard error, (α − 1)/√k
    k: int = 0  # eigenvalues in the tail
    n_eigs: int = 0
    method: str = ""  # estimator/solver
    alpha_shift: float | None = None  # α − α of the layer as loaded
    alpha_shift_se: float | None = None  # paired standard error of the shift
    relative_error: float | None = None
    sqnr_db: float | None = None  # None where nothing changed: it would be infinite
    spectral_distance: float | None = None
    stable_rank_change: float | None = None
    overlap: float | None = None
    overflow: int = 0
    underflow: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)  # those asked for
    seconds: float = 0.0  # 0 where it was known already

    @property
    def lossless(self) -> bool:
        """Whether the format holds every weight exactly."""
        return self.relative_error == 0.0

    @property
    def tail_moved(self) -> bool:
        """Whether alpha left its own error bar: a shift of more than 2 standard errors of alpha as loaded.

        Not of alpha after it: that error grows with alpha, so that with k ≤ 4 no shift upwards would ever count.
        """
        if self.alpha_shift is None or self.alpha is None or self.k < 1:
            return False
        return abs(self.alpha_shift) > 2 * (self.alpha - self.alpha_shift - 1) / math.sqrt(self.k)


@dataclass(frozen=True, repr=False)
class LayerStudy(Brief):
    """One matrix in every format."""

    name: str
    category: str  # its role
    block: int | None
    out_features: int
    in_features: int
    numel: int
    dtype: str  # as stored
    status: str = "OK"  # OK, or why there are no readings: TOO_SMALL, NOT_FINITE, UNREADABLE, FAILED
    reason: str = ""
    alpha: float | None = None  # Hill, of the layer as loaded; None where its tail is degenerate
    alpha_sigma: float | None = None
    stable_rank: float | None = None
    digest: str = ""
    readings: Mapping[str, Reading] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """The category, by the name that audits have for it."""
        return self.category

    @property
    def measured(self) -> bool:
        """Whether the layer carries readings."""
        return bool(self.readings)


@dataclass(frozen=True, repr=False)
class PrecisionStudy(Brief):
    """What every format did to every layer of one model."""

    model: str
    formats: tuple[str, ...]  # in the order asked for
    sources: Mapping[str, str]  # format → whose codec it is
    layers: tuple[LayerStudy, ...]  # from the data to the labels
    settings: Mapping[str, Any]  # k_frac, load_dtype, directions, selection, …
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[str, ...]:
        """Layers that could not be studied, in any format or in one, and not for what is in them (NaN)."""
        return tuple(
            layer.name for layer in self.layers
            if layer.status in _BROKEN or any(one.status in _BROKEN for one in layer.readings.values())
        )  # fmt: skip

    def __iter__(self) -> Iterator[LayerStudy]:
        return iter(layer for layer in self.layers if layer.measured)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> LayerStudy:
        """The layer of that name; a trailing `.weight` is allowed."""
        for layer in self.layers:
            if layer.name in (name, name.removesuffix(".weight")):
                return layer
        raise unknown_name("layer", name, [layer.name for layer in self.layers])

    def values(self, measure: str, format: str) -> dict[str, float]:  # noqa: A002 - the field's word
        """Layer name → a field of its reading in one format, where it is a number."""
        readings = {layer.name: getattr(layer.readings[format], measure) for layer in self if format in layer.readings}
        return {name: float(value) for name, value in readings.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": "precision study", "version": _VERSION, **asdict(self)}

    def save(self, path: str | Path) -> Path | str:
        """Write the study as JSON; the file appears whole or not at all."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False)
        return write_whole(path, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> PrecisionStudy:
        """Read what `save` wrote. Raises `UnreadableError`."""
        try:
            data = json_of(read_text(path))
            if not is_text(data):
                raise ValueError("half a character in a text")
            if data.pop("kind") != "precision study" or data.pop("version") > _VERSION:
                raise ValueError("another kind of file, or written by a newer tailwise")
            check_typed(cls, data)
            # Files of older versions have the order of the checkpoint.
            data["layers"] = tuple(in_order(map(_layer, data["layers"]), as_listed=True))
            return cls(**{**data, "formats": tuple(data["formats"]), "notes": tuple(data["notes"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            fix = "make it with `tailwise precision MODEL`"
            raise UnreadableError(f"is not a precision study ({error})", where=str(path), fix=fix) from error

    def __repr__(self) -> str:
        return f"PrecisionStudy({brief(self.model)}: {len(self)} matrices in {', '.join(self.formats)})"

    def _shown(self) -> Shown:
        rows = [(one.name, one.role, one.alpha, *(self._error(one, name) for name in self.formats)) for one in self]
        heads = ("name", "role", "alpha_hill", *(f"relative error, {name}" for name in self.formats))
        return Shown(repr(self), heads, rows, "`to_json()`", self.notes)

    def _error(self, layer: LayerStudy, name: str) -> float | None:
        reading = layer.readings.get(name)
        return None if reading is None else reading.relative_error

    def _ipython_key_completions_(self) -> list[str]:
        return [layer.name for layer in self.layers]


def _layer(data: dict[str, Any]) -> LayerStudy:
    readings = {name: Reading(**item) for name, item in data.pop("readings").items()}
    if any(name != reading.format for name, reading in readings.items()):
        raise ValueError("a reading stands under the name of another format")
    return LayerStudy(**data, readings=readings)
