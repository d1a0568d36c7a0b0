"""What a model is calibrated on: windows of ids, inputs by name, or text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tailwise.core.errors import UsageError
from tailwise.core.optional import needed
from tailwise.core.storage import free_memory
from tailwise.models.evaluation.images import images_of, is_classifier, pictures_of
from tailwise.models.evaluation.loading import address_of
from tailwise.models.evaluation.own_config import config_of
from tailwise.models.evaluation.own_documents import check_processor_settings
from tailwise.models.evaluation.own_processor import check_processor
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.block_inputs import Pictures
from tailwise.models.walking.calibrate import SAMPLES, WINDOW, sample_windows
from tailwise.models.walking.hosts import Host, check_causal


@dataclass(frozen=True)
class Draw:
    """How windows are drawn from a text."""

    samples: int = SAMPLES
    window: int = WINDOW
    seed: int = 0
    bos: str = "auto"  # whether windows begin with BOS: auto, always, never


def calibration_inputs(model: str, given: Any, draw: Draw) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the model is called with, by name with n on the first axis, and how it came about."""
    if isinstance(given, Mapping):
        sizes = {len(value) for value in given.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise UsageError("the calibration inputs are empty, or not as many of each", fix="give n of each")
        return dict(given), {"calibration": ", ".join(sorted(given)), "samples": sizes.pop()}
    if not isinstance(given, torch.Tensor) and is_classifier(model):
        return _of_images(model, given, draw)
    check_causal(model)
    if isinstance(given, torch.Tensor) and given.ndim == 2:
        if not given.numel():
            raise UsageError("the calibration windows are empty", fix="give one window or more")
        return {"input_ids": given}, {"calibration": "token windows", "samples": len(given)}
    from tailwise.models.evaluation.loading import load_tokenizer
    from tailwise.models.evaluation.tokens import tokens_of

    tokens = tokens_of(given, load_tokenizer(model), bos=draw.bos)
    windows = sample_windows(tokens.ids, draw.samples, draw.window, draw.seed, tokens.bos)
    settings: dict[str, Any] = {"samples": draw.samples, "window": draw.window, "seed": draw.seed}
    if tokens.bos is not None:
        settings["bos"] = tokens.bos
    return {"input_ids": windows}, {"calibration": tokens.name, **settings}


def looked_at(inputs: Mapping[str, torch.Tensor] | None) -> str:
    """How much of what a model is calibrated on: `128 windows of 512 tokens`."""
    ids = (inputs or {}).get("input_ids")
    if ids is not None and ids.ndim == 2:
        return f"{len(ids)} windows of {ids.shape[1]} tokens"
    return f"{len(next(iter(inputs.values())))} inputs" if inputs else "images"


def calibrated_on(
    operator: str, inputs: Mapping[str, torch.Tensor] | None, settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """A note of what an operator looked at; none where it looked at no text."""
    if not inputs:
        return ()
    how = " (--samples and --window say how many and how long)" if "window" in settings else ""
    return (f"{operator} looked at {looked_at(inputs)} of {settings['calibration']}{how}",)


def _of_images(model: str, given: Any, draw: Draw) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    name, revision = address_of(model)
    config = config_of(name, revision)
    images = images_of(given, model, config, most=draw.samples, seed=draw.seed)
    return {"pixel_values": images.pixels}, {"calibration": images.name, "samples": len(images), "seed": draw.seed}


def image_inputs(model: str, given: Any, draw: Draw) -> tuple[Pictures, dict[str, Any]]:
    """Images as the tower that reads them takes them, and how they came about.

    `given` is what `images_of` takes. `UsageError` where the model reads no images beside text, or nothing says how
    they are made ready.
    """
    transformers = needed("transformers", "eval", "calibration")

    name, revision = address_of(model)
    config = config_of(name, revision)
    if getattr(config, "vision_config", None) is None:
        raise UsageError(
            "it reads no images beside text",
            where=model,
            fix="leave --images out; the images of a classifier are given to --calibration",
        )
    check_processor_settings(name, revision)
    try:
        with quiet():
            made: Any = transformers.AutoImageProcessor
            ready = made.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # what is missing has many errors: a file, a package, a name
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"nothing says how its images are made ready ({lines[0][:120] if lines else type(error).__name__})",
            where=model,
            fix="put the preprocessor_config.json of its family beside its weights",
        ) from error
    pictures, settings = pictures_of(given, most=draw.samples, seed=draw.seed)
    check_processor(ready, pictures.sizes, model)
    try:
        each = tuple(_made_ready(ready, pictures, settings))
    except UsageError:
        raise
    except Exception as error:  # every processor fails in its own way
        raise UsageError(
            f"its processor could not take an image ({error})", where=settings, fix="give other images"
        ) from error
    return Pictures(each), {"images": settings, "image_count": len(each)}


def _made_ready(ready: Any, pictures: Iterable[Any], where: str) -> Iterator[dict[str, Any]]:
    """What the tower takes of each picture. `UsageError` where all of them do not fit into memory."""
    taken, free = 0, free_memory()
    for picture in pictures:
        made = dict(ready(images=[picture.convert("RGB")], return_tensors="pt"))
        taken += sum(getattr(value, "nbytes", 0) for value in made.values())
        if free is not None and 2 * taken > free:
            what = f"the pictures take more than {taken / 1e9:.1f} GB as the model sees them, which is too much here"
            raise UsageError(what, where=where, fix="give fewer or smaller ones (--samples)")
        yield made


def check_inputs(host: Host, inputs: Mapping[str, torch.Tensor], model: str) -> None:
    """`UsageError` where ids are beyond the model's vocabulary, or windows longer than it takes."""
    from tailwise.models.evaluation.loading import check_length, vocabulary_of
    from tailwise.models.evaluation.tokens import check_vocabulary

    ids = inputs.get("input_ids")
    if ids is None:
        return
    vocabulary = vocabulary_of(host.model)
    if vocabulary is not None:
        check_vocabulary(ids, vocabulary, model)
    check_length(host.model, ids.shape[1], model)
