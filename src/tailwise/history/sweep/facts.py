"""What a sweep keeps of an audit in its catalogue: what it took, and the numbers that models are ranked by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.judging.compare.ranking import ModelNumbers, numbers_of

#: Statuses of matrices that another attempt may measure.
UNREAD = ("UNREADABLE", "FAILED")


def facts_of(audit: Audit, audit_file: str, seconds: float, core_seconds: float | None = None) -> dict[str, Any]:
    """Plain JSON types. `flops` counts what was solved here, not what was known.

    `core_seconds` are of the processor; where nobody counted them, every worker is taken to have been busy.
    """
    numbers = numbers_of(audit)
    measured = [layer.row for layer in audit]
    solved = [row for row in measured if not row.reused]
    return {
        "audit": audit_file,
        "revision": audit.provenance.revision,
        "fingerprint": audit.provenance.fingerprint,
        "model_type": numbers.model_type,
        "values": dict(numbers.values),
        "matrices": len(measured),
        "reused": len(measured) - len(solved),
        "unmeasured": dict(Counter(row.status for row in audit.unmeasured)),
        "bytes": sum(row.nbytes for row in measured),
        "bytes_read": audit.provenance.bytes_read,
        "flops": sum(flops(row.rows, row.cols, row.slices) for row in solved),
        "workers": audit.provenance.workers,
        "seconds": seconds,
        "core_seconds": seconds * audit.provenance.workers if core_seconds is None else core_seconds,
    }


def flops(rows: int, cols: int, slices: int) -> float:
    """As `MatrixSource.flops`, from the row of an audit."""
    n, m = max(rows, cols), min(rows, cols)
    return slices * (float(n) * m**2 + 4 / 3 * float(m) ** 3)


def not_finite(audit: Audit) -> str:
    """What is broken in the model itself; empty where nothing is."""
    bad = [row for row in audit.unmeasured if row.status == "NOT_FINITE"]
    what = "1 matrix has" if len(bad) == 1 else f"{len(bad)} matrices have"
    return f"{what} NaN or infinite entries, the first: {bad[0].name}" if bad else ""


def unread(audit: Audit) -> str:
    """What could not be read of a model that was audited otherwise; empty where all was."""
    bad = [row for row in audit.unmeasured if row.status in UNREAD]
    return "" if not bad else f"{len(bad)} matrices could not be read, the first: {bad[0].name}: {bad[0].reason}"


def numbers_from(model: str, facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> ModelNumbers:
    """The numbers that a ranking takes."""
    return ModelNumbers(model, facts["values"], recipe, facts["model_type"])
