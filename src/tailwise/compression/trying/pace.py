"""How long a pass over the model takes, in which precision it is quick, and how much of a text a budget pays for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from tailwise.models.evaluation.losses import device_of, window_losses

if TYPE_CHECKING:
    from tailwise.compression.trying.stage import StageOptions

#: Products in fewer bits are taken where they need at most this part of the time,
_FASTER = 0.8
#: where a pass takes this many seconds: of less, timing says little and little is gained,
_WORTH = 0.05
#: and where the loss of a window is within this, in nats a token.
_CLOSE = 0.02
#: Shares of a budget: of one trial, of the pass that looks at inputs, and of judging one plan (inputs, then scores).
_TRIAL, _LOOK, _JUDGED_INPUTS, _JUDGED = 0.012, 0.05, 0.02, 0.04


@dataclass(frozen=True)
class Pace:
    """Seconds that a pass over one window takes."""

    exact: float  # as the weights are
    quick: float  # in `passes`
    passes: torch.dtype | None = None  # what trials multiply in; None: as the weights are


def pace_of(model: nn.Module, window: torch.Tensor, read: Callable[[], float]) -> Pace:
    """Time passes over one window, (1, length), in the model's own precision and, on a CPU that multiplies it, in bf16.

    `read` tells the time. bf16 is taken where it is faster and the loss stays close.
    """

    def timed() -> tuple[float, float]:
        window_losses(model, window)
        began = read()
        loss = float(window_losses(model, window).mean())
        return read() - began, loss

    exact, own = timed()
    if exact < _WORTH:
        return Pace(exact, exact)
    if device_of(model).type != "cpu" or next(model.parameters()).dtype != torch.float32 or not _multiplies_bf16():
        return Pace(exact, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        quick, other = timed()
    if quick <= _FASTER * exact and abs(other - own) <= _CLOSE:
        return Pace(exact, quick, torch.bfloat16)
    return Pace(exact, exact)


def _multiplies_bf16() -> bool:
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not public, and absent in some builds
    return bool(capable is not None and capable())


def sized(options: StageOptions, pace: Pace, seconds: float, *, looks: bool) -> StageOptions:
    """As many windows as a budget pays for, at most those that were asked for; `looks`: the operator needs inputs."""

    def within(share: float, each: float, least: int, most: int) -> int:
        return int(np.clip(seconds * share / max(each, 1e-9), min(least, most), most))

    search = within(_TRIAL, pace.quick, 2, options.search_windows)
    judged = within(_JUDGED_INPUTS, 2 * pace.quick, 2, options.samples) if looks else 0
    return replace(
        options,
        search_windows=search,
        samples=within(_LOOK, pace.quick, max(4, search), options.samples),
        judged_windows=judged,
        guard_windows=within(_JUDGED, pace.exact, 6, options.guard_windows),
        passes=pace.passes,
    )
