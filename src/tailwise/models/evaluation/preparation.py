"""How pictures are made ready for a classifier: sizes, crops and scales, as its preprocessor_config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailwise.checkpoints.bytesource import LocalFolder
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.loading import address_of

if TYPE_CHECKING:
    pass


_LONGEST_SIDE, _MOST_PIXELS = 4096, 1 << 28  # of what a classifier takes, and of a picture on the way there


@dataclass(frozen=True)
class Preparation:
    """From a picture to the model's input, by its `preprocessor_config.json`, or by its config where there is none."""

    height: int
    width: int
    channels: int
    shortest: int | None = None  # the shorter side is brought to this first, and the middle is cut out
    mean: tuple[float, ...] = (0.5,)
    sd: tuple[float, ...] = (0.5,)
    scale: float = 1 / 255
    resample: int = 2  # PIL's number: bilinear

    def __call__(self, picture: Any) -> NDArray[np.float32]:
        """(channels, height, width)."""
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.shortest is not None:
            wide, high = picture.size
            factor = self.shortest / min(wide, high)
            if wide * high * factor**2 > _MOST_PIXELS:
                raise UnreadableError(
                    f"a picture of {wide} × {high}, whose shorter side is to be {self.shortest}, has too many pixels",
                    fix="leave it out",
                )
            picture = picture.resize((max(round(wide * factor), 1), max(round(high * factor), 1)), self.resample)
            left, top = (picture.width - self.width) // 2, (picture.height - self.height) // 2
            picture = picture.crop((left, top, left + self.width, top + self.height))
        elif picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), self.resample)
        values = np.asarray(picture, dtype=np.float32) * self.scale
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        mean, sd = (np.resize(np.asarray(numbers, dtype=np.float32), self.channels) for numbers in (self.mean, self.sd))
        normalised: NDArray[np.float32] = (values - mean[:, None, None]) / sd[:, None, None]
        return normalised


def preparation_of(place: str, config: Any) -> Preparation:
    """How the model's pictures are made ready. `UnreadableError` where what is said of it cannot be."""
    fix = "take preprocessor_config.json and config.json from where the model came from"
    try:
        preparation = _prepared(_processor(place), config)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError) as error:
        what = f"what is said of its pictures cannot be read ({type(error).__name__}: {error})"
        raise UnreadableError(what, where=place, fix=fix) from error
    sides = (preparation.height, preparation.width, preparation.shortest or 1)
    if (
        not 1 <= min(sides) <= max(sides) <= _LONGEST_SIDE
        or preparation.channels not in (1, 3)
        or preparation.resample not in range(6)
    ):
        what = (
            f"pictures of {preparation.channels} × {preparation.height} × {preparation.width} numbers, "
            f"resampled by {preparation.resample},"
        )
        raise UnreadableError(f"{what} are more than can be made, or none", where=place, fix=fix)
    return preparation


def _prepared(settings: Mapping[str, Any], config: Any) -> Preparation:
    side = getattr(config, "image_size", 224)
    side = side if isinstance(side, int) else int(side[0])
    size = settings.get("size", side)
    crop = settings.get("crop_size", size) if settings.get("do_center_crop") else None
    shortest: int | None = None
    if isinstance(size, int):
        height = width = size
    elif "shortest_edge" in size:
        height = width = int(size["shortest_edge"])
        # ConvNeXt: below 384 the picture is made larger by 1/crop_pct, and its middle taken.
        shortest = (
            round(height / float(settings.get("crop_pct") or 224 / 256))
            if "crop_pct" in settings and height < 384
            else height
        )
    else:
        height, width = int(size["height"]), int(size["width"])
    if crop is not None:
        shortest = shortest or min(height, width)
        height, width = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    normal = settings.get("do_normalize", True)
    return Preparation(
        height, width, int(getattr(config, "num_channels", 3)), shortest,
        tuple(map(float, settings.get("image_mean", (0.5,)))) if normal else (0.0,),
        tuple(map(float, settings.get("image_std", (0.5,)))) if normal else (1.0,),
        float(settings.get("rescale_factor", 1 / 255)), int(settings.get("resample", 2)),
    )  # fmt: skip


def _processor(place: str) -> Mapping[str, Any]:
    name, revision = address_of(place)
    file = "preprocessor_config.json"
    try:
        if Path(name).is_dir():
            return LocalFolder(name).json(file)
        from huggingface_hub import hf_hub_download

        processor: Mapping[str, Any] = json_of(read_text(hf_hub_download(name, file, revision=revision)))
    except Exception:  # a model may come without one: its config says the rest
        return {}
    return processor
