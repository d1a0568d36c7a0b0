"""Examines the whole zoo: writes `shares.json`, and says what fails.

PYTHONPATH=tests python -m zoo.census [part of a name]
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

from zoo.laws import examine
from zoo.table import SHARES, entries, fallen, key_of, shares


def main(wanted: str) -> None:
    """One line an entry, and its faults. The shares of what has none are kept where they rose."""
    kept = shares()
    for entry in entries():
        if wanted not in key_of(entry):
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            findings = examine(entry, entry.build(Path(folder)))
        now = [round(findings.measured, 4), round(findings.named, 4)]
        faults = [*findings.faults, *fallen(entry, findings, kept)]
        if not faults:
            kept[key_of(entry)] = [max(pair) for pair in zip(now, kept.get(key_of(entry), now), strict=True)]
        state = (("no longer pending", "pending") if entry.pending else ("ok", "FAULT"))[bool(faults)]
        print(f"{state}: {key_of(entry)}  {now[0]:.4f} {now[1]:.4f} {findings.proved:.4f}", flush=True)
        for fault in faults:
            print("   ", fault)
    known = {key_of(entry) for entry in entries()}
    rows = {name: pair for name, pair in sorted(kept.items()) if name in known}
    SHARES.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
