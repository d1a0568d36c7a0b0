"""The audit as a noun: every matrix of one checkpoint, in order. Imports no torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.audits.weightwatcher import weightwatcher_columns
from tailwise.checkpoints.orientation import KEEPS_ORDER, in_order
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.validation import checked

if TYPE_CHECKING:
    from tailwise.audits.table import Table


class Audit:
    """Every spectral fact of one checkpoint, from the data to the labels: embeddings, blocks in order, heads.

    Index it by a matrix's name or place, iterate over its measured layers, or take everything as a table.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> audit = tw.audit({f"layers.{i}.up.weight": noise.standard_normal((96, 64)) for i in range(3)}, use_cache=False)
    >>> len(audit), audit["layers.1.up"].spectrum.m, audit[0].name
    (3, 64, 'layers.0.up')
    >>> [(row["name"], row["block"], row["rows"]) for row in audit.table().to_dicts()][:2]
    [('layers.0.up', 0, 96), ('layers.1.up', 1, 96)]
    """

    def __init__(self, rows: list[LayerRow], layers: Mapping[str, Layer], provenance: Provenance) -> None:
        as_listed = provenance.format in KEEPS_ORDER
        matrices, rest = ([row for row in rows if bool(row.kind) is one] for one in (True, False))
        # What is no matrix stands behind them, in the same order.
        self.rows = (*in_order(matrices, as_listed=as_listed), *in_order(rest, as_listed=as_listed))
        self._layers = {row.name: layers[row.name] for row in self.rows if row.name in layers}
        self.provenance = provenance

    def __getitem__(self, name: str | int) -> Layer:
        """The layer of that name, a trailing `.weight` allowed, or of that place. `UsageError` with near names."""
        if isinstance(name, Integral) and not isinstance(name, bool):
            return self._at(int(name))
        if not isinstance(name, str):
            fix = "give the name of a matrix, or its place, as audit[0]"
            raise UsageError(f"{name!r} names no layer", fix=fix)
        for key in (name, name.removesuffix(".weight")):
            if key in self._layers:
                return self._layers[key]
        for row in self.rows:
            if row.name in (name, name.removesuffix(".weight")):
                raise UsageError(f"{name} was not measured: {row.reason or row.status}")
        raise unknown_name("layer", name, self._layers)

    def _at(self, place: int) -> Layer:
        if not -len(self) <= place < len(self):
            raise UsageError(f"there is no layer {place}", fix=f"{len(self)} matrices were measured")
        return list(self._layers.values())[place]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "provenance" not in self.__dict__:  # not there yet while a copy is being made
            raise AttributeError(name)
        raise AttributeError(f"an Audit has no {name!r}; {self._instead(name)}")

    def _instead(self, name: str) -> str:
        metrics = {metric for row in self.rows for metric in row.metrics}
        if name in ("layers", "matrices", "weights", "names"):
            return "iterate over it for its layers, index it by a name, or take .rows for what was not measured too"
        if name in metrics:
            return f"each layer has one: audit['NAME'].{name}, audit.table()[{name!r}], audit.summary()[{name!r}]"
        if name.startswith("to_") or name in ("df", "frame", "head", "columns", "details"):
            return f"its table may: audit.table().{name if name.startswith('to_') else 'to_pandas()'}"
        near = difflib.get_close_matches(name, [one for one in dir(self) if not one.startswith("_")], n=2)
        return f"did you mean {' or '.join(near)}?" if near else "dir(audit) lists what it has"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._layers)

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
        """One row per matrix, one column per fact; with `unmeasured`, also what was not measured.

        `trusted` says whether the fit of alpha is: the means of `summary()` are of such rows alone. `of_bulk` says
        whether that fit has more than half of the eigenvalues.
        """
        from tailwise.audits.table import layer_table, with_counts, with_trust
        from tailwise.audits.trusted import estimator_of, is_of_bulk, usable

        rows, kind = [row for row in self.rows if row.measured or unmeasured], estimator_of(self)
        trusted = [usable(row, "alpha", kind) is not None for row in rows]
        return with_trust(with_counts(layer_table(rows)), trusted, [is_of_bulk(row, kind) for row in rows])

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

    @checked
    def save(self, path: str | Path, *, exclusive: bool = False) -> Path | str:
        """Write the audit: one file, or a folder where `path` ends in a slash or is one; at a URL too. Atomic.

        An older audit there is replaced, unless `exclusive`: then it is a `FileExistsError`.
        """
        from tailwise.audits.codec import save

        return save(self, path, exclusive=exclusive)

    def plot(self, chart: str | None = None, **options: Any) -> Any:
        """The named chart (`tailwise plot --list`) as an Altair chart: `audit.plot("alpha_hist", theme="dark")`.

        `options`: `base` (an audit to compare with), `layer`, `metric`, `theme`. Needs `tailwise[report]`.
        """
        # Through the public name: the noun stands below the reports and does not know them.
        import tailwise

        if chart is None:
            fix = 'audit.plot("alpha_hist"), for example; `tailwise plot --list` names all'
            raise UsageError("no chart is named", fix=fix)
        return tailwise.plot(chart, [self], **options)

    @staticmethod
    def of(value: Audit | str | os.PathLike[str]) -> Audit:
        """The audit itself, or the one that lies at a path or URL. `UsageError` for anything else."""
        if isinstance(value, Audit):
            return value
        if not isinstance(value, str | os.PathLike):
            fix = "give an Audit, or the path of its file; `tw.audit(model)` makes one"
            raise UsageError(f"an object of type {type(value).__name__} is no audit", fix=fix)
        place = Path(value)
        if place.is_dir() and (place / "config.json").is_file():
            raise UsageError("is a model, and an audit is asked for", where=value, fix="`tw.audit(model)` makes one")
        return Audit.load(os.fspath(value))

    @staticmethod
    @checked
    def load(path: str | Path) -> Audit:
        """Read what `save` wrote. Raises `UnreadableError`."""
        from tailwise.audits.codec import load

        return Audit(*load(path))

    def __repr__(self) -> str:
        from tailwise.audits.trusted import left_out

        alpha, (doubted, fits) = self.summary().get("alpha"), left_out(self)
        mean = f", {fits - doubted} of {fits} fits trusted" if fits else ""
        mean = mean if alpha is None else f", mean alpha {alpha:.2f} over {fits - doubted} of {fits} fits"
        return f"Audit({self.model!r}, {len(self)} matrices{mean}, {len(self.unmeasured)} not measured)"

    def _repr_html_(self) -> str:
        from tailwise.audits.table import html_table

        return html_table(self)


#: An audit, or where one lies.
AuditLike = Audit | str | os.PathLike[str]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
