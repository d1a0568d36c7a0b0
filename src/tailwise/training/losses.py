"""The loss of every step, kept where it is until there are enough to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Losses that wait at most, however rare points are.
MOST = 100


@dataclass
class LossJob:
    """Losses of some steps, in order; those on a device may still be on their way."""

    steps: list[int]
    values: list[float]
    landing: torch.Tensor | None = None  # in the place of `values`
    events: list[Any] = field(default_factory=list)

    def result(self) -> list[float]:
        """The numbers; waits for the device."""
        for event in self.events:
            event.synchronize()
        return self.values if self.landing is None else [float(value) for value in self.landing.tolist()]


def one_loss(loss: Any) -> Any:
    """A loss as one number: the mean of several, as DataParallel hands out one for each device."""
    several = hasattr(loss, "numel") and hasattr(loss, "detach") and loss.numel() > 1
    return loss.detach().float().mean() if several else loss


class Losses:
    """Takes a loss a step. On a GPU each is copied into a buffer there, so that no step waits for its own."""

    def __init__(self, most: int) -> None:
        self._most = max(1, min(most, MOST))
        self._steps: list[int] = []
        self._values: list[float] = []
        self._buffer: torch.Tensor | None = None
        self._on_device = False

    @property
    def full(self) -> bool:
        """Whether it is time to look."""
        return len(self._steps) >= self._most

    def add(self, step: int, loss: Any) -> LossJob | None:
        """Take the loss of a step; what is no single number is left out.

        Returns what there was where this one is on another device.
        """
        tensor = loss.detach() if hasattr(loss, "detach") else None
        if tensor is not None and hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        if tensor is not None and tensor.numel() == 0:
            return None
        device = tensor is not None and tensor.device.type not in ("cpu", "meta")
        before = self.take() if device is not self._on_device or self.full else None
        self._on_device = device
        if tensor is not None and device:
            self._put(tensor)
        else:
            try:
                self._values.append(float(loss if tensor is None else tensor.item()))
            except (TypeError, ValueError, RuntimeError):
                return before
        self._steps.append(step)
        return before

    def _put(self, tensor: torch.Tensor) -> None:
        import torch

        if self._buffer is None or self._buffer.device != tensor.device:
            self._buffer = torch.empty(self._most, dtype=torch.float32, device=tensor.device)
        # A copy: loops that replay a captured graph write every loss to one and the same place.
        self._buffer[len(self._steps)].copy_(tensor.reshape(()))

    def take(self) -> LossJob | None:
        """What came since the last time, None where that is nothing."""
        if not self._steps:
            return None
        job = LossJob(self._steps, self._values)
        if self._on_device and self._buffer is not None:
            from tailwise.training.cheap import to_host

            job.landing = to_host(self._buffer[: len(self._steps)], job.events)
        self._steps, self._values = [], []
        return job


class Summary:
    """Least, mean and largest loss since the last point."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._odd = 0

    def add(self, values: Sequence[float]) -> None:
        """Take the losses of some steps."""
        finite = [value for value in values if math.isfinite(value)]
        self._odd += len(values) - len(finite)
        self._values += finite

    def take(self) -> dict[str, float]:
        """`loss_min`, `loss_mean` and `loss_max` of those that are finite, and how many were not; begins anew."""
        numbers: dict[str, float] = {}
        if self._values:
            mean = math.fsum(self._values) / len(self._values)
            numbers = {"loss_min": min(self._values), "loss_mean": mean, "loss_max": max(self._values)}
        if self._odd:
            numbers["loss_not_finite"] = float(self._odd)
        self._values, self._odd = [], 0
        return numbers
