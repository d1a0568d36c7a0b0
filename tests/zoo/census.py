"""Examines the whole zoo: writes `shares.json`, and says what fails.

    PYTHONPATH=tests python -m zoo.census [part of a name]

Shares are written only for a run over all of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

from zoo.laws import examine
from zoo.table import SHARES, entries


def main(wanted: str) -> None:
    """One line an entry, and its faults. A share is kept of what has none."""
    found: dict[str, list[float]] = {}
    for entry in entries():
        name = f"{entry.kind}: {entry.name}"
        if wanted not in name:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            findings = examine(entry, entry.build(Path(folder)))
        if not findings.faults:
            found[name] = [round(findings.measured, 4), round(findings.named, 4)]
        state = (("no longer pending", "pending") if entry.pending else ("ok", "FAULT"))[bool(findings.faults)]
        shares = f"{findings.measured:.4f} {findings.named:.4f} {findings.proved:.4f}"
        print(f"{state}: {name}  {shares}", flush=True)
        for fault in findings.faults:
            print("   ", fault)
    if not wanted:
        SHARES.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
