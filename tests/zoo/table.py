"""All entries, and the shares that may only rise."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from zoo.entry import Entry

SHARES = Path(__file__).with_name("shares.json")
MODULES = ("families_torch", "families_text", "families_vision", "families_audio", "families_multimodal",
           "families_diffusers", "families_packed", "families_gguf", "families_adapters",
           "families_files", "families_real")  # fmt: skip


def entries() -> list[Entry]:
    """Every entry, in the order of the files."""
    return [entry for module in MODULES for entry in import_module(f"zoo.{module}").ENTRIES]


def shares() -> dict[str, list[float]]:
    """Entry → share of the parameters that is measured, share of those whose role is known."""
    found: dict[str, list[float]] = json.loads(SHARES.read_text(encoding="utf-8"))
    return found
