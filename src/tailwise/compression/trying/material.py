"""What trials are scored on: windows of text, or images with their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailwise.models.evaluation.images import image_losses
from tailwise.models.evaluation.losses import window_losses
from tailwise.models.walking.calibrate import Inputs


class Material(Protocol):
    """Scores a model, and says what it is called with. `chosen` is a tensor whose rows are the windows or images."""

    @property
    def unit(self) -> str:
        """What a loss is of: a token, an image."""

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss of every row, (n,), in batches that are the same every time."""

    def inputs(self, chosen: torch.Tensor) -> Inputs:
        """What the model's blocks are walked with."""

    def words(self, chosen: torch.Tensor) -> str:
        """How much it is: `8 windows of 512 tokens`."""


@dataclass(frozen=True)
class Text:
    """Rows are windows of token ids, (n, length)."""

    unit: str = "a token"

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> NDArray[np.float64]:
        """See `Material`."""
        return window_losses(model, chosen)

    def inputs(self, chosen: torch.Tensor) -> Inputs:
        """See `Material`."""
        return chosen

    def words(self, chosen: torch.Tensor) -> str:
        """See `Material`."""
        return f"{len(chosen)} windows of {chosen.shape[1]} tokens"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows are places in a set of images, (n, 1)."""

    pixels: torch.Tensor  # (N, channels, height, width)
    labels: torch.Tensor  # (N,)
    unit: str = "an image"

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> NDArray[np.float64]:
        """See `Material`."""
        return image_losses(model, self.pixels[chosen[:, 0]], self.labels[chosen[:, 0]])[0]

    def inputs(self, chosen: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See `Material`."""
        return {"pixel_values": self.pixels[chosen[:, 0]]}

    def words(self, chosen: torch.Tensor) -> str:
        """See `Material`."""
        return f"{len(chosen)} images"
