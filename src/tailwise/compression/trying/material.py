"""What trials are scored on: windows of text, or images with their classes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tailwise.models.evaluation.images import image_losses
from tailwise.models.evaluation.losses import batch_for, device_of, logits_of, scoring, token_losses
from tailwise.models.walking.calibrate import Inputs

#: What a search makes small: the loss on the text, or the divergence from the dense model's predictions.
Objective = Literal["kl", "loss"]
Values = NDArray[np.float64]
#: The most likely next tokens of the dense model that are kept of each place; the others count as one.
TOP = 256
_PLACES = 64  # of a window, whose logits are widened to float32 at once


@dataclass(frozen=True)
class RowScores:
    """Of every row, (n,)."""

    losses: Values  # mean loss, nats
    divergences: Values | None = None  # mean KL(dense ‖ model), nats; None where the dense model's are not known


def products_in(passes: torch.dtype | None, model: nn.Module) -> AbstractContextManager[Any]:
    """Matrix products in this type for a while; None: as the weights are."""
    if passes is None:
        return nullcontext()
    # Casts are not kept: weights change in place while this holds.
    return torch.autocast(device_of(model).type, dtype=passes, cache_enabled=False)


class Material(Protocol):
    """Scores a model, and says what it is called with. `chosen` is a tensor whose rows are the windows or images."""

    @property
    def objective(self) -> Objective:
        """What is made small."""

    @property
    def unit(self) -> str:
        """What a loss is of: a token, an image."""

    def scores(self, model: nn.Module, chosen: torch.Tensor) -> RowScores:
        """Of every row, in batches that are the same every time."""

    def mean(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """The mean of the objective over the rows, in one batch, which gradients can be taken of."""

    def inputs(self, chosen: torch.Tensor) -> Inputs:
        """What the model's blocks are walked with."""

    def words(self, chosen: torch.Tensor) -> str:
        """How much it is: `8 windows of 512 tokens`."""


def objective_of(material: Material, model: nn.Module, chosen: torch.Tensor) -> Values:
    """What is made small, of every row, (n,)."""
    found = material.scores(model, chosen)
    if material.objective == "kl":
        assert found.divergences is not None  # noqa: S101 - chosen only where they are kept
        return found.divergences
    return found.losses


@dataclass
class Text:
    """Rows are windows of token ids, (n, length).

    With the objective `kl`, the dense model's predictions must be remembered of every window that is scored.
    """

    objective: Objective = "loss"
    unit: str = "a token"
    _dense: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def remember(self, model: nn.Module, chosen: torch.Tensor) -> None:
        """Keep what the model, dense now, predicts: the `TOP` likeliest tokens of each place and their logarithms."""
        with scoring(model), torch.no_grad():  # what is made in inference mode cannot take part in gradients
            for window in chosen:
                logits = logits_of(model, window[None].to(device_of(model)))[0, :-1]
                logs = logits.float().log_softmax(dim=-1)
                top = logs.topk(min(TOP, logs.shape[-1]), dim=-1)
                self._dense[_key(window)] = (top.indices.to(torch.int32).cpu(), top.values.cpu())

    def scores(self, model: nn.Module, chosen: torch.Tensor) -> RowScores:
        """See `Material`."""
        known = all(_key(window) in self._dense for window in chosen)
        losses, divergences = [], []
        done, size = 0, 1
        with scoring(model), torch.inference_mode():
            while done < len(chosen):
                part = chosen[done : done + size].to(device_of(model))
                logits = logits_of(model, part)
                losses.append(token_losses(logits, part).double().mean(dim=1).cpu())
                if known:
                    pairs = zip(logits, part, strict=True)
                    divergences += [self._divergence(row, window).double().mean().cpu() for row, window in pairs]
                size, done = batch_for(logits), done + len(part)
        return RowScores(torch.cat(losses).numpy(), torch.stack(divergences).numpy() if known else None)

    def mean(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """See `Material`."""
        part = chosen.to(device_of(model))
        pairs = list(zip(logits_of(model, part), part, strict=True))
        if self.objective == "kl":
            return torch.stack([self._divergence(row, window).mean() for row, window in pairs]).mean()
        return torch.stack([cross_entropy(row[:-1].float(), window[1:]) for row, window in pairs]).mean()

    def _divergence(self, logits: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """(length − 1,): KL(dense ‖ model) with all but the likeliest tokens as one, a little below the whole."""
        indices, known = (item.to(logits.device) for item in self._dense[_key(window)])
        # Split, not sliced: on the way back each slice would take a gradient of the size of all logits.
        parts = list(zip(*(torch.split(item, _PLACES) for item in (logits[:-1], indices, known)), strict=True))
        if not torch.is_grad_enabled():
            return torch.cat([_of_places(*part) for part in parts])
        # Widened logits of a few places at a time are held, and made again on the way back.
        return torch.cat([checkpoint(_of_places, *part, use_reentrant=False) for part in parts])

    def inputs(self, chosen: torch.Tensor) -> Inputs:
        """See `Material`."""
        return chosen

    def words(self, chosen: torch.Tensor) -> str:
        """See `Material`."""
        return f"{len(chosen)} windows of {chosen.shape[1]} tokens"


def _of_places(logits: torch.Tensor, indices: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(places,) divergences of (places, vocabulary) logits from `known` logarithms at `indices`, (places, top)."""
    logs = logits.float()
    found = logs.gather(1, indices.long()) - logs.logsumexp(dim=-1, keepdim=True)
    rest, of_rest = (_log_rest(item) for item in (known, found))
    return (known.exp() * (known - found)).sum(dim=-1) + rest.exp() * (rest - of_rest)


def _key(window: torch.Tensor) -> bytes:
    return window.cpu().numpy().tobytes()


def _log_rest(logs: torch.Tensor) -> torch.Tensor:
    """log(1 − Σ e^logs), over the last axis; a rest below what float32 tells from 0 counts as that."""
    return torch.log((1.0 - logs.exp().sum(dim=-1)).clamp(min=1e-6))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows are places in a set of images, (n, 1)."""

    pixels: torch.Tensor  # (N, channels, height, width)
    labels: torch.Tensor  # (N,)
    objective: Objective = "loss"
    unit: str = "an image"

    def scores(self, model: nn.Module, chosen: torch.Tensor) -> RowScores:
        """See `Material`."""
        return RowScores(image_losses(model, self.pixels[chosen[:, 0]], self.labels[chosen[:, 0]])[0])

    def mean(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """See `Material`."""
        pixels, labels = (of[chosen[:, 0]].to(device_of(model)) for of in (self.pixels, self.labels))
        return cross_entropy(model(pixel_values=pixels).logits.float(), labels)

    def inputs(self, chosen: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """See `Material`."""
        return {"pixel_values": self.pixels[chosen[:, 0]]}

    def words(self, chosen: torch.Tensor) -> str:
        """See `Material`."""
        return f"{len(chosen)} images"
