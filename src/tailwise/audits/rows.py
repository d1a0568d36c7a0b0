"""What an audit is made of: a row of numbers for each matrix, its spectra, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tailwise.core.errors import near_names
from tailwise.core.shown import Brief, Shown
from tailwise.spectrum.spectrum import Spectrum

#: Statuses of rows that carry numbers, and what each says.
MEASURED = {
    "OK": "measured",
    "FEW_EIGENVALUES": "measured; too few eigenvalues for a verdict on the tail",
    "DEGENERATE": "measured; the tail has no spread, so it has no exponent",
}


def raised_by(metric: str, error: str = "") -> str:
    """What the reason of a row says of a metric that raised an exception; without `error`, how that begins."""
    return f"the metric {metric} raised {error}"


@dataclass(frozen=True, repr=False)
class LayerRow(Brief):
    """One matrix (or one tensor that is not measured) and everything known of it."""

    name: str
    role: str
    block: int | None
    kind: str
    rows: int  # of one slice, as stored
    cols: int
    slices: int
    dtype: str
    status: str  # a key of MEASURED, or NOT_FINITE, NOT_A_MATRIX, TOO_SMALL, SHARED, UNSUPPORTED, UNREADABLE, FAILED
    reason: str = ""  # what the status means here, and what to do
    tensors: tuple[str, ...] = ()
    reading: str = ""  # how the tensors were taken: plain, kernel, fused, stack, a packing, …
    input_axis: int | None = None  # 1 where the columns are the inputs (out × in), 0 where the rows are
    nbytes: int = 0  # on disk
    solver: str = ""
    error_bound: float = 0.0
    digest: str = ""  # of the matrix's content
    reused: bool = False  # the spectrum came from the cache
    seconds: float = 0.0
    degenerate: tuple[str, ...] = ()  # exponents whose tail has no spread: they stay out of means, plans and charts
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether the row carries numbers."""
        return self.status in MEASURED

    @property
    def n_params(self) -> int:
        """Entries of the matrix."""
        return self.rows * self.cols * self.slices

    def __repr__(self) -> str:
        alpha = self.metrics.get("alpha")
        found = "" if alpha is None else f", alpha {alpha:.3f}"
        size = f"{self.slices} × " if self.slices > 1 else ""
        return f"LayerRow({self.name!r}, {self.role}, {size}{self.rows} × {self.cols}, {self.status}{found})"


@dataclass(frozen=True, repr=False)
class Provenance(Brief):
    """Where an audit came from, and what it took."""

    model: str
    format: str
    revision: str | None
    fingerprint: str  # of the content of every measured matrix
    recipe: Mapping[str, Any]
    config: Mapping[str, Any]  # what the model says of itself
    versions: Mapping[str, str]
    device: str
    workers: int
    started: str  # ISO 8601, UTC
    seconds: float
    reused: int  # spectra taken from the cache
    bytes_read: int
    selection: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Layer(Brief):
    """One measured matrix: its row and its spectra. Its metrics, and the facts of its row, are attributes too.

    >>> import numpy as np, tailwise as tw
    >>> weights = {"up.weight": np.random.default_rng(0).standard_normal((80, 60))}
    >>> layer = tw.audit(weights, use_cache=False)["up"]
    >>> layer.rows, layer.cols, layer.stable_rank == layer.row.metrics["stable_rank"]
    (80, 60, True)
    """

    row: LayerRow
    spectrum: Spectrum
    permuted: tuple[Spectrum, ...] = ()
    windows: Spectrum | None = None

    def __getattr__(self, name: str) -> Any:
        row: LayerRow | None = self.__dict__.get("row")  # not there yet while a copy is being made
        if row is not None and name in row.metrics:
            return row.metrics[name]
        if row is None or name.startswith("_"):
            raise AttributeError(name)
        if name in _OF_ROW:
            return getattr(row, name)
        if name in _WEIGHTS:
            kept = "an audit keeps spectra (.spectrum), not weights: read those from the model"
            raise AttributeError(f"{row.name} has no {name!r}; {kept}")
        raise AttributeError(f"{row.name} has no {name!r}; its metrics: {_near(name, row.metrics)}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.row.metrics, *_OF_ROW})

    def __repr__(self) -> str:
        return f"Layer{repr(self.row).removeprefix('LayerRow')}"

    def _shown(self) -> Shown:
        return Shown(repr(self), ("metric", "value"), list(self.row.metrics.items()), "`row.metrics`")


_WEIGHTS = ("weight", "weights", "tensor", "data", "values", "numpy")
_OF_ROW = (*(item.name for item in fields(LayerRow)), "n_params", "measured")


def _near(name: str, metrics: Mapping[str, float | None]) -> str:
    near = near_names(name, metrics)
    return ", ".join(near or metrics) or "none"
