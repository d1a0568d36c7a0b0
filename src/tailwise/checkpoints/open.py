"""`open_checkpoint`: from whatever names a model to its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import LocalFile
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.formats.safetensors import SafetensorsCheckpoint


def open_checkpoint(uri: Any) -> Checkpoint:
    """Thin path."""
    import json

    import torch

    if isinstance(uri, torch.nn.Module):
        return MemoryCheckpoint.of_module(uri)
    if not isinstance(uri, (str, os.PathLike)):
        return MemoryCheckpoint.of_arrays(uri)
    path = Path(uri)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    config = path / "config.json"
    settings = json.loads(config.read_text()) if config.is_file() else None
    return SafetensorsCheckpoint(str(path), [LocalFile(f) for f in files], config=settings)
