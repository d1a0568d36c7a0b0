"""GGUF files as models of transformers: where one lies, and how transformers is told of it."""

from __future__ import annotations

import os
from pathlib import Path

_OTHERS = (".safetensors", ".bin", ".index.json", ".pt", ".pth")


def gguf_file_of(name: str | os.PathLike[str]) -> Path | None:
    """The file itself, or the only one of a folder that has no other weights; None for all else."""
    path = Path(os.fspath(name)).expanduser()
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir():
        return None
    files = sorted(path.glob("*.gguf"))
    others = any(next(path.glob(f"*{suffix}"), None) for suffix in _OTHERS)
    return files[0] if len(files) == 1 and not others else None


def told(name: str | os.PathLike[str], own: str | None = None) -> dict[str, str]:
    """What `from_pretrained` is told of a GGUF file; nothing where there is none, or where the folder has `own`."""
    file = gguf_file_of(name)
    if file is None or (own is not None and (file.parent / own).is_file()):
        return {}
    return {"gguf_file": file.name}
