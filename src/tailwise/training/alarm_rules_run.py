"""The run as a whole: numbers that are not finite, and the loss."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import islice
from statistics import median

from tailwise.judging.diagnosis.medians import robust_scale
from tailwise.training.alarm_rule import Sign, Signs, alarm_rule
from tailwise.training.alarm_watch import SHORT, AlarmWatch

_RECENT = 8  # losses that a spike is held against: more of them would hold its fall too
_FEWEST = 5
_HELD = 4  # evaluations that show a rise
_NORMS = ("loss", "spectral_norm", "frobenius", "frobenius_norm", "log_spectral_norm", "log_norm")
#: What a point says of a layer that has no spectrum.
_NOTE = re.compile(r"(\S+) is not measured: (.*\b(?:NaN|Inf)\b.*)")
_FLOOR = 0.02  # share of the loss below which its scatter is never taken to be


def _loss_not_finite(watch: AlarmWatch) -> Signs:
    """The loss of a step is NaN or infinite."""
    return {} if math.isfinite(watch.losses.last) else {"": Sign(f"loss is {watch.losses.last}", 1.0, {})}


def _loss_jumps(watch: AlarmWatch) -> Signs:
    """Of the last five losses four stand far above what was usual, or one stands out far more."""
    track = watch.losses
    if track.usual is None or not math.isfinite(track.last):
        return {}
    middle, scatter = track.usual
    base = max(abs(middle), watch.limit("loss_floor") * abs(track.first or 0.0))
    least = max(watch.limit("spike_z") * scatter, watch.limit("spike_share") * base)
    alone = max(watch.limit("spike_alone") * least, base, watch.limit("lone_floor") * abs(track.first or 0.0))
    if track.last - middle < least:
        return {}
    above = sum(value - middle >= least for value in track.recent)
    if above < SHORT - 1 and track.last - middle < alone:
        return {}
    z = (track.last - middle) / scatter
    says = f"{track.last:.3g} after a median of {middle:.3g} ({z:.0f} robust sd)"
    evidence = {"loss": track.last, "median": middle, "z": z, "since": float(track.began(middle + least))}
    return {"": Sign(says, track.last - middle, evidence)}


@alarm_rule(
    "TW701",
    title="not finite",
    severity="error",
    strength="theory",
    causes=("training diverged", "an overflow in half precision"),
    remedies=("stop, go back to the last finite checkpoint, lower the learning rate", "clip gradients per tensor"),
    functions=("AdaptiveClip",),
    references=("IEEE 754",),
    each_loss=_loss_not_finite,
)
def not_finite(watch: AlarmWatch) -> Signs:
    """A norm of a layer, or the loss, is NaN or infinite, or a note says that its matrix has such entries.

    Other metrics may be undefined in a healthy layer, so they do not count.
    """
    assert watch.point is not None  # noqa: S101 - rules are asked after `take`
    signs = {}
    for note in watch.point.notes:
        if named := _NOTE.match(note):
            signs[named[1]] = Sign(named[2], 1.0, {})
    for layer, values in {**watch.point.layers, "": watch.point.scalars}.items():
        # A zero matrix has norms of −Inf in logarithms.
        broken = [name for name in _NORMS if math.isnan(values.get(name, 0.0)) or values.get(name, 0.0) == math.inf]
        if "frobenius_norm" in broken:  # under its other name it is the same number
            broken.remove("frobenius")
        if broken:
            signs[layer] = Sign(", ".join(broken), len(broken), {"numbers": float(len(broken))})
    return signs


@alarm_rule(
    "TW702",
    title="loss spike",
    severity="warning",
    strength="published",
    scalars=("loss",),
    causes=("a batch of other data: noise, another language, a broken file", "updates too large for where the run is"),
    remedies=(
        "look at the batches since then",
        "clip gradients per tensor against what is usual for each (AdaGC)",
        "if it stays: go back to a checkpoint before, skip the batches, or lower the learning rate",
        "order the data from easy to hard",
    ),
    functions=("AdaptiveClip", "CurriculumSampler"),
    references=(
        "Chowdhery et al. 2022, PaLM (spikes, and skipping batches), arXiv:2204.02311",
        "Wang et al. 2025, AdaGC, arXiv:2502.11034",
    ),
    each_loss=_loss_jumps,
)
def loss_spike(watch: AlarmWatch) -> Signs:
    """The loss stands far above the median of the last ones, against their scatter.

    Of a monitor's every loss counts: four of five in a row, or one that stands out three times as far. Where only
    points are known, it is the loss of each.
    """
    track = watch.scalar("loss")
    if watch.losses.steps or track is None or len(track) <= _FEWEST:
        return {}
    past = list(islice(reversed(track.values), 1, 1 + _RECENT))
    middle, scatter = robust_scale(past, _FLOOR * abs(median(past)) + 1e-6)
    rise = track.last - middle
    base = max(abs(middle), watch.limit("loss_floor") * abs(watch.first_loss or 0.0))
    if rise < max(watch.limit("spike_z") * scatter, watch.limit("spike_share") * base):
        return {}
    says = f"{track.last:.3g} after a median of {middle:.3g} ({rise / scatter:.0f} robust sd)"
    return {"": Sign(says, rise, {"loss": track.last, "median": middle, "z": rise / scatter}, "loss")}


@alarm_rule(
    "TW711",
    title="memorising",
    severity="note",
    strength="heuristic",
    scalars=("loss",),
    causes=("the training set is tiny, or repeated", "the answer leaks into the input"),
    remedies=("more or more varied data", "stop earlier", "stronger weight decay", "look at the loss on held-out data"),
    functions=("layerwise_weight_decay",),
    references=("Zhang et al. 2017, Understanding Deep Learning Requires Rethinking Generalization, arXiv:1611.03530",),
)
def memorising(watch: AlarmWatch) -> Signs:
    """The training loss has fallen to next to nothing of what it was first, at three points in a row; or it falls on,
    far below a held-out loss that does not fall any more.

    Where a held-out loss is known, and has fallen to a small share of that too, it is learning. Where next to nothing
    is what is wanted and no held-out loss is noted (regression, small classification sets), mute it.
    """
    track = watch.scalar("loss")
    if track is None or len(track) <= _FEWEST or watch.first_loss is None:
        return {}
    held, recent = watch.track("", "eval_loss"), [track.ago(points) for points in range(3)]
    if held and held.last < watch.limit("learned_share") * watch.first_loss:
        return {}
    evidence = {"loss": track.last, "first": watch.first_loss}
    if max(recent) <= watch.limit("memorised_share") * watch.first_loss:
        return {"": Sign(f"loss {track.last:.2g}, from {watch.first_loss:.3g}", 1.0, evidence)}
    if held is None or len(held) <= _FEWEST + _HELD:
        return {}
    gap, values = held.last - max(recent), list(held.values)
    wide = max(watch.limit("held_gap") * held.last, watch.limit("loss_floor") * watch.first_loss)
    now, before = median(values[-_HELD:]), median(values[-2 * _HELD : -_HELD])
    rises = now > before * (1 + watch.limit("eval_rise") / 5)  # which is TW712's to say
    falls = min(values[-_HELD:]) < min(values[:-_HELD]) - watch.limit("held_gap") / 10 * gap
    if gap < wide or rises or falls:
        return {}
    says = f"loss {track.last:.3g}, and a held-out loss of {held.last:.3g} that does not fall any more"
    return {"": Sign(says, 1.0, {**evidence, "eval_loss": held.last})}


@alarm_rule(
    "TW712",
    title="held-out loss rising",
    severity="warning",
    strength="theory",
    scalars=("eval_loss",),
    causes=("over-fitting: too many passes over too little data",),
    remedies=("stop earlier, at the lowest held-out loss", "stronger weight decay", "more or more varied data"),
    functions=("layerwise_weight_decay",),
    references=("Prechelt 1998, Early Stopping - But When?, LNCS 1524:55",),
)
def eval_rising(watch: AlarmWatch) -> Signs:
    """`eval_loss` stands above its lowest by more than it scatters, and rises, while the training loss does not.

    The last four values against the lowest median of three before, and against what they scatter by. The points are
    those with an `eval_loss`; the training loss is the last one that a point had.
    """
    held, train = watch.scalar("eval_loss"), watch.track("", "loss")
    if held is None or not train or len(held) < _HELD + _FEWEST:
        return {}
    values = list(held.values)
    recent, past = values[-_HELD:], values[:-_HELD]
    middles = [median(past[i : i + 3]) for i in range(len(past) - 2)]
    lowest = min(middles)
    scatter = _scatter(values)
    least = max(watch.limit("eval_rise") * max(lowest, watch.limit("loss_floor") * values[0]),
                watch.limit("eval_z") * scatter)  # fmt: skip
    if min(recent) < lowest + least / 2 or median(recent) < lowest + least or train.last > median(train.values):
        return {}
    if median(recent) <= median(values[-2 * _HELD : -_HELD]):
        return {}
    says = f"{held.last:.3g} after {lowest:.3g}, while the training loss is {train.last:.3g}"
    evidence = {"eval_loss": held.last, "lowest": lowest, "loss": train.last, "scatter": scatter}
    return {"": Sign(says, 1.0, evidence, "eval_loss", "turn")}


def _scatter(values: Sequence[float]) -> float:
    """Standard deviation of a value around a line through its neighbours: of noise, whatever the trend."""
    odd = [b - (a + c) / 2 for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.4826 * median(map(abs, odd)) / math.sqrt(1.5)
