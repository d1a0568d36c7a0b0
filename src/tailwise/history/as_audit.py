"""A step of a store as an `Audit`, for everything that reads audits."""

from __future__ import annotations

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import one_line
from tailwise.core.storage import is_url
from tailwise.history.point import Point
from tailwise.history.store import History
from tailwise.history.vectors import VectorLayout
from tailwise.spectrum.spectrum import Spectrum

#: What a path begins with that Windows asks another machine for.
_SHARES = ("\\\\", "//")


def audit_at(history: History, run: str, step: int) -> tuple[Audit, str]:
    """The audit of a step, and what it lacks ("" for nothing).

    From its file where that is still there, on this machine; else from the numbers in the store, which have no
    spectra; else from what a monitor measured at that step. Raises `UsageError` where the run has nothing of that step.
    """
    stored = next((item for item in history.audits(run) if item.step == step), None)
    if stored is None:
        return _of_point(history, run, step), f"step {step} is a monitor's point, without spectra"
    if stored.path is not None and (is_url(stored.path) or stored.path.startswith(_SHARES)):
        # `History.add_audit` keeps places on this machine; whoever wrote this would have it ask an address.
        named = one_line(stored.path)[:200]
        why = f"the store names {named} for them, which is asked for nothing; compare it by its name"
    elif stored.path is not None:
        try:
            saved = Audit.load(stored.path)
        except UnreadableError as error:
            why = f"the audit's file is not readable ({error.what})"
        else:
            if saved.provenance.fingerprint == stored.provenance.fingerprint:
                return saved, ""
            why = f"{stored.path} is an audit of other weights now"
    else:
        why = "no file was written"
    rows = history.audit_rows(run, step)
    return _without_spectra(rows, stored.provenance), f"the spectra of step {step} are not there: {why}"


def _of_point(history: History, run: str, step: int) -> Audit:
    there = list(history.points(run, steps=(step, step)))
    if not there:
        history.audit_rows(run, step)  # which says what steps there are
        raise UsageError(f"the run {run!r} has nothing of step {step}")
    return _without_spectra(_rows(there[-1]), _provenance(there[-1]))


def _rows(point: Point) -> list[LayerRow]:
    return [
        LayerRow(item.name, item.role, item.block, "", 0, 0, 1, "", "OK", metrics=dict(point.layers[item.name]))
        for item in VectorLayout.of_names(point.layers).places
    ]


def _provenance(point: Point) -> Provenance:
    return Provenance(f"{point.run}, step {point.step}", "monitor", None, "", {}, {}, {}, "", 1, "", 0.0, 0, 0)


def _without_spectra(rows: list[LayerRow], provenance: Provenance) -> Audit:
    return Audit(rows, {row.name: Layer(row, _nothing(row)) for row in rows if row.measured}, provenance)


def _nothing(row: LayerRow) -> Spectrum:
    """A spectrum without a tail: nothing that is fitted to it can be called significant."""
    count = min(row.rows, row.cols) * row.slices
    return Spectrum(np.zeros(count), row.rows, row.cols, row.slices, solver="not kept")
