"""What a model's headers say of a request to quantize, before anything slow is done for it."""

from __future__ import annotations

from dataclasses import replace

from tailwise.audits.audit import Audit
from tailwise.audits.prepare import prepare
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.audits.run import unmeasured_row, versions
from tailwise.audits.work import row_of
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.making.asked import asked_of
from tailwise.compression.making.bit_budget import OutOfReachError
from tailwise.compression.making.request import QuantizeRequest
from tailwise.core.errors import TailwiseError
from tailwise.spectrum.spectrum import Spectrum


def check_reach_early(model: str, request: QuantizeRequest) -> None:
    """`OutOfReachError` where no choice of the formats meets the budget, from the headers of the model alone.

    A model that cannot be opened is `UnreadableError`; what else is wrong with the request is left to who plans.
    """
    if request.budget is None or request.budget.unit == "rise":
        return
    found = _from_headers(model)
    try:
        asked_of(found, replace(request, allocator="uniform", settings={}, study=None, relative=False, estimator=None))
    except OutOfReachError:
        raise
    except TailwiseError:
        return


def _from_headers(model: str) -> Audit:
    """Rows of every matrix as if it were measured, without a spectrum."""
    with open_checkpoint(model) as checkpoint:
        prepared = prepare(checkpoint)
        rows = [replace(row_of(source), status="OK") for source in prepared.sources]
        rows += [unmeasured_row(item) for item in prepared.unmeasured]
        config = {key: value for key, value in checkpoint.config.items() if isinstance(value, str | int | float | bool)}
        facts = Provenance(checkpoint.uri, checkpoint.format, checkpoint.revision, "", {}, config, versions(), "", 1,
                           "", 0.0, sum(row.measured for row in rows), 0)  # fmt: skip
    return Audit(rows, {row.name: Layer(row, _nothing(row)) for row in rows if row.measured}, facts)


def _nothing(row: LayerRow) -> Spectrum:
    import numpy as np

    return Spectrum(np.zeros(min(row.rows, row.cols) * row.slices), row.rows, row.cols, row.slices, solver="not kept")
