"""A GGUF file as what it is: a model. transformers reads it, and a folder is written that everything else works on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import LocalFolder
from tailwise.checkpoints.copied_settings import copy_beside, links_elsewhere
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UnreadableError


def unpacked(file: Path, folder: Path) -> dict[str, str]:
    """Write the model of a GGUF file as a folder of transformers, in float32 where it holds rounded values.

    Stored tensor of the GGUF → stored tensor of the folder. A folder that is there already is taken as it is.
    """
    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.models.evaluation.gguf_files import gguf_places
    from tailwise.models.evaluation.loading import load_model
    from tailwise.models.evaluation.quiet import quiet

    with _without_links(file) as alone:
        loaded = load_model(str(alone), dtype="float32")
    with open_checkpoint(file) as checkpoint:
        places = gguf_places(loaded.module, checkpoint)
        kinds = {spec.dtype for spec in checkpoint.tensors.values() if len(spec.shape) > 1}
    if not (folder / "config.json").is_file():
        model: Any = _plain(loaded.module)
        half = {"BF16": "bfloat16", "F16": "float16"}.get(next(iter(kinds))) if len(kinds) == 1 else None
        with quiet():
            if half is not None:
                import torch

                model = model.to(getattr(torch, half))
            model.save_pretrained(folder)
            if loaded.tokenizer is not None:
                loaded.tokenizer.save_pretrained(folder)
    return places


@contextmanager
def _without_links(file: Path) -> Iterator[Path]:
    """The file without what links beside it lead to elsewhere: tokenizer and settings are about to be written."""
    if not links_elsewhere(file.parent):
        yield file
        return
    with tempfile.TemporaryDirectory() as made:
        for _ in copy_beside(LocalFolder(file.parent), Path(made)):
            pass
        alone = Path(made) / file.name
        alone.symlink_to(file.resolve())
        yield alone


def _plain(model: Any) -> Any:
    """Without what transformers remembers of the file: its weights are real numbers now, and can be saved."""
    model.hf_quantizer = None
    for config in (model.config, getattr(model.config, "text_config", None)):
        if config is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
    return model


def for_folder(plan: Plan, names: dict[str, str], where: Path) -> Plan:
    """A plan that was made of a GGUF file for the folder that was made of it."""
    lost = [item.tensor for item in plan if item.tensor not in names]
    if lost:
        raise UnreadableError(
            f"transformers makes no weight of {lost[0]}", where=where, fix="take the entry out of the plan"
        )
    moved = tuple(
        item.but(tensor=names[item.tensor], matrix=names[item.tensor].removesuffix(".weight")) for item in plan
    )
    return plan.replace(decisions=moved, fingerprint="", settings=_without(plan.settings))


def _without(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("audited", "dequantize")}
