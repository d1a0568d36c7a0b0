"""The packings, by name."""

from __future__ import annotations

from importlib import import_module

from tailwise.compression.packing.packing import Packing
from tailwise.core.errors import unknown_name

_PLACES = {
    "compressed-tensors": ("compressed_tensors", "CompressedTensors"),
    "torchao": ("torchao_packing", "TorchAo"),
    "gguf": ("gguf_packing", "Gguf"),
}
PACKINGS = tuple(_PLACES)


def packing_of(name: str) -> Packing:
    """The packing that is named so; `UsageError` where there is none."""
    if name not in _PLACES:
        raise unknown_name("packing", name, PACKINGS)
    module, kind = _PLACES[name]
    made: Packing = getattr(import_module(f"tailwise.compression.packing.{module}"), kind)()
    return made
