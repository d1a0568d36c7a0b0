"""Whether an audit is of an adapter, and then of its change alone or of the model with it."""

from __future__ import annotations

from typing import Literal

from tailwise.audits.audit import Audit


def adapter_mode(audit: Audit) -> Literal["delta", "merged"] | None:
    """`delta`: of ΔW alone. `merged`: of W + ΔW. None: no adapter.

    Older audits are told by how their rows were read.
    """
    said = audit.provenance.selection.get("adapter")
    if said in ("delta", "merged"):
        return "merged" if said == "merged" else "delta"
    measured = [row for row in audit.rows if row.measured]
    if measured and all(row.kind == "lora" for row in measured):
        return "delta"
    if audit.provenance.format != "peft":
        return None
    return "merged" if any(row.reading == "lora-merged" for row in measured) else "delta"
