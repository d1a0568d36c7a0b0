"""All entries, and the shares that may only rise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from zoo.entry import Entry
from zoo.laws import Findings

ROUNDING = 1e-4  # of a share as it is kept
SHARES = Path(__file__).with_name("shares.json")
MODULES = ("families_torch", "families_text", "families_vision", "families_audio", "families_multimodal",
           "families_diffusers", "families_packed", "families_gguf", "families_adapters",
           "families_files", "families_real")  # fmt: skip


def entries() -> list[Entry]:
    """Every entry, in the order of the files."""
    return [entry for module in MODULES for entry in import_module(f"zoo.{module}").ENTRIES]


def key_of(entry: Entry) -> str:
    """What an entry is called in the table of shares."""
    return f"{entry.kind}: {entry.name}"


def fallen(entry: Entry, findings: Findings, kept: Mapping[str, list[float]]) -> list[str]:
    """Sentences about shares that are below those kept; an entry that is not kept cannot fall."""
    measured, named = kept.get(key_of(entry), (0.0, 0.0))
    found = []
    if findings.measured < measured - ROUNDING:
        found.append(f"{findings.measured:.4f} of it is measured, and was {measured}")
    if findings.named < named - ROUNDING:
        found.append(f"{findings.named:.4f} of what is measured has a role, and was {named}")
    return found


def shares() -> dict[str, list[float]]:
    """Entry → share of the parameters that is measured, share of those whose role is known."""
    found: dict[str, list[float]] = json.loads(SHARES.read_text(encoding="utf-8"))
    return found
