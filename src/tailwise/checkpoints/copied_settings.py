"""Configs, tokenizers and templates beside the weights, copied into the folder of a new model."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tailwise.checkpoints.bytesource import Folder, LocalFolder
from tailwise.core.errors import MALFORMED
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    from tailwise.checkpoints.writer import OutputLayout


#: Larger files beside the weights are no settings, and stay behind.
_SMALL = 64 << 20
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".index.json",
    ".pkl", ".npz",
)  # fmt: skip
#: What is written anew for each model, or states facts of other weights.
_OWN = ("README.md", "tailwise_recovery.json")
#: The one folder that tokenizers of transformers read.
_TEMPLATES = "additional_chat_templates"


def copy_settings(layout: OutputLayout, target: Path) -> Iterator[str]:
    """Copy what lies beside the weights (config, tokenizer, code); notes on what is too large to be settings."""
    yield from copy_beside(layout.folder, target)
    config = target / "config.json"
    if layout.left_out and config.is_file():
        document = json_of(config.read_text(encoding="utf-8"))
        settings = {name: value for name, value in document.items() if name not in layout.left_out}
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def links_elsewhere(root: Path) -> bool:
    """Whether something in a model's folder, or in one right below it, is a link to what is not the model's."""
    return any(item.is_symlink() and _not_of(root, item) is not None for item in (*root.glob("*"), *root.glob("*/*")))


def copy_beside(folder: Folder, target: Path) -> Iterator[str]:
    """Copy what lies in a model's folder beside weights; notes on what is not the model's, or too large."""
    for name in sorted(folder.names()):
        hidden = PurePosixPath(name).name.startswith(".")
        if hidden or "/" in name or name.endswith(_WEIGHTS) or name in _OWN:
            continue
        stays = None if not isinstance(folder, LocalFolder) else _not_of(folder.path, folder.path / name)
        if stays is not None:
            yield f"{name} was left behind: {stays}"
            continue
        source = folder.source(name)
        try:
            if source.size > _SMALL:
                yield f"{name} was left behind: {source.size / 1e6:.0f} MB is more than settings take"
            else:
                (target / name).write_bytes(source.read(0, source.size) if source.size else b"")
        finally:
            source.close()
    yield from _copy_templates(folder, target)


def _not_of(root: Path, path: Path) -> str | None:
    """Why a file is not copied with a model's folder: it is no file, or a link to what is not the model's.

    A link may lead to another place in the folder, or where the Hub's cache keeps the files of its snapshots: a
    folder `blobs` beside the folder of `snapshots`.
    """
    try:
        real, home = path.resolve(strict=True), root.resolve()
        mode = path.stat().st_mode
    except (OSError, RuntimeError):
        return "it is a link that leads nowhere"
    if not stat.S_ISREG(mode):
        return "it is no file"
    homes = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    if not any(real.is_relative_to(place) for place in homes):
        return "it is a link to a file outside the model's folder"
    return None


def _copy_inside(root: Path, folder: Path, target: Path) -> Iterator[str]:
    """Copy the files directly in a folder of templates; a note on each that is not the model's."""
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        yield f"{folder.name} was left behind: it is a link to a folder outside the model's"
        return
    target.mkdir()
    for path in sorted(folder.iterdir()):
        why = _not_of(root, path)
        if why is None:
            shutil.copyfile(path, target / path.name)
        else:
            yield f"{folder.name}/{path.name} was left behind: {why}"


def _modules_of(root: Path) -> set[str]:
    """Folders of the layers behind the transformer (pooling, a projection), as sentence-transformers lists them."""
    try:
        document = json_of((root / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]) for module in document if module["path"]}
    except (*MALFORMED, OSError):
        return set()


def _copy_templates(folder: Folder, target: Path) -> Iterator[str]:
    """Copy the folder of chat templates, and what sentence-transformers lists as parts; a note on the others."""
    left = {name for name in folder.subfolders() if not name.startswith(".")}
    if isinstance(folder, LocalFolder):
        for name in sorted(left & {_TEMPLATES, *_modules_of(folder.path)}):
            left.remove(name)
            yield from _copy_inside(folder.path, folder.path / name, target / name)
    if left:
        yield f"folders were left behind: {', '.join(sorted(left))}"
