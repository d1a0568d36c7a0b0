"""What an audit is made of: a row of numbers for each matrix, its spectra, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class LayerRow:
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


@dataclass(frozen=True)
class Provenance:
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


@dataclass(frozen=True)
class Layer:
    """One measured matrix: its row and its spectra."""

    row: LayerRow
    spectrum: Spectrum
    permuted: tuple[Spectrum, ...] = ()
    windows: Spectrum | None = None

    def __getattr__(self, name: str) -> Any:
        row: LayerRow | None = self.__dict__.get("row")  # not there yet while a copy is being made
        if row is not None and name in row.metrics:
            return row.metrics[name]
        raise AttributeError(name)
