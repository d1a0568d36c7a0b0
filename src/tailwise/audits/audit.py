"""The audit as a noun: rows of numbers, their spectra, and where they came from. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.audits.weightwatcher import weightwatcher_columns
from tailwise.checkpoints.orientation import KEEPS_ORDER, in_order
from tailwise.core.errors import UsageError, unknown_name
from tailwise.spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    from tailwise.audits.table import Table

#: Statuses of rows that carry numbers, and what each says.
MEASURED = {
    "OK": "measured",
    "FEW_EIGENVALUES": "measured; too few eigenvalues for a verdict on the tail",
    "DEGENERATE": "measured; the tail has no spread, so it has no exponent",
}


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


class Audit:
    """Every spectral fact of one checkpoint, from the data to the labels: embeddings, blocks in order, heads.

    Index it by a matrix's name, iterate over its measured layers, or take everything as a table.
    """

    def __init__(self, rows: list[LayerRow], layers: Mapping[str, Layer], provenance: Provenance) -> None:
        as_listed = provenance.format in KEEPS_ORDER
        matrices, rest = ([row for row in rows if bool(row.kind) is one] for one in (True, False))
        # What is no matrix stands behind them, in the same order.
        self.rows = (*in_order(matrices, as_listed=as_listed), *in_order(rest, as_listed=as_listed))
        self._layers = {row.name: layers[row.name] for row in self.rows if row.name in layers}
        self.provenance = provenance

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name; a trailing `.weight` is allowed. `UsageError` with near names otherwise."""
        for key in (name, name.removesuffix(".weight")):
            if key in self._layers:
                return self._layers[key]
        for row in self.rows:
            if row.name in (name, name.removesuffix(".weight")):
                raise UsageError(f"{name} was not measured: {row.reason or row.status}")
        raise unknown_name("layer", name, self._layers)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._layers or name.removesuffix(".weight") in self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def model(self) -> str:
        """What was audited."""
        return self.provenance.model

    @property
    def unmeasured(self) -> tuple[LayerRow, ...]:
        """The rows without numbers, with why."""
        return tuple(row for row in self.rows if not row.measured)

    def table(self, *, unmeasured: bool = False) -> Table:
        """One row per matrix, one column per fact; with `unmeasured`, also what was not measured."""
        from tailwise.audits.table import layer_table

        return layer_table([row for row in self.rows if row.measured or unmeasured])

    def weightwatcher(self) -> Table:
        """The same numbers under WeightWatcher's column names (`details`)."""
        from tailwise.audits.table import Table

        return Table.from_rows(
            [weightwatcher_columns(index, layer.row, layer.spectrum) for index, layer in enumerate(self)]
        )

    def summary(self) -> dict[str, float | None]:
        """Mean of every metric over the layers where it is defined, its tail not degenerate, and its fit trusted.

        `audits.trusted` says what a trusted fit is, and how many there are.
        """
        from tailwise.audits.trusted import usable_values

        rows = [layer.row for layer in self if layer.row.status != "DEGENERATE"]
        names = dict.fromkeys(name for row in rows for name in row.metrics)
        return {name: _mean(usable_values(self, name, rows)) for name in names}

    def save(self, path: str | Path, *, exclusive: bool = False) -> Path | str:
        """Write the audit: one file, or a folder where `path` ends in a slash or is one; at a URL too. Atomic.

        An older audit there is replaced, unless `exclusive`: then it is a `FileExistsError`.
        """
        from tailwise.audits.codec import save

        return save(self, path, exclusive=exclusive)

    def plot(self, chart: str, **options: Any) -> Any:
        """The named chart (`tailwise plot --list`) as an Altair chart: `audit.plot("alpha_hist", theme="dark")`.

        `options`: `base` (an audit to compare with), `layer`, `metric`, `theme`. Needs `tailwise[report]`.
        """
        # By name and late: the noun stands below the reports and must not import them.
        return import_module("tailwise.report.render").plot(chart, [self], **options)

    @staticmethod
    def load(path: str | Path) -> Audit:
        """Read what `save` wrote. Raises `UnreadableError`."""
        from tailwise.audits.codec import load

        return load(path)

    def __repr__(self) -> str:
        from tailwise.audits.trusted import left_out

        alpha, (doubted, fits) = self.summary().get("alpha"), left_out(self)
        mean = "" if alpha is None else f", mean alpha {alpha:.2f} over {fits - doubted} of {fits} fits"
        return f"Audit({self.model!r}, {len(self)} matrices{mean}, {len(self.unmeasured)} not measured)"

    def _repr_html_(self) -> str:
        from tailwise.audits.table import html_table

        return html_table(self)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
