"""The run as a whole: numbers that are not finite, and the loss."""

from __future__ import annotations

import math
import re
from itertools import islice
from statistics import median

from tailwise.judging.diagnosis.medians import robust_scale
from tailwise.training.alarm_rule import Sign, Signs, alarm_rule
from tailwise.training.alarm_watch import AlarmWatch

_RECENT = 8  # losses that a spike is held against: more of them would hold its fall too
_FEWEST = 5
_NORMS = ("loss", "spectral_norm", "frobenius", "frobenius_norm", "log_spectral_norm", "log_norm")
#: What a point says of a layer that has no spectrum.
_NOTE = re.compile(r"(\S+) is not measured: (.*\b(?:NaN|Inf)\b.*)")
_FLOOR = 0.02  # share of the loss below which its scatter is never taken to be


@alarm_rule(
    "TW701",
    title="not finite",
    severity="error",
    strength="theory",
    causes=("training diverged", "an overflow in half precision"),
    remedies=("stop, go back to the last finite checkpoint, lower the learning rate", "clip gradients per tensor"),
    functions=("AdaptiveClip",),
    references=("IEEE 754",),
)
def not_finite(watch: AlarmWatch) -> Signs:
    """A norm of a layer, or the loss, is NaN or infinite, or a note says that its matrix has such entries.

    Other metrics may be undefined in a healthy layer, so they do not count.
    """
    assert watch.point is not None  # noqa: S101 - rules are asked after `take`
    found = {}
    for note in watch.point.notes:
        if named := _NOTE.match(note):
            found[named[1]] = Sign(named[2], 1.0, {})
    for layer, values in {**watch.point.layers, "": watch.point.scalars}.items():
        # A zero matrix has norms of −Inf in logarithms.
        broken = [name for name in _NORMS if math.isnan(values.get(name, 0.0)) or values.get(name, 0.0) == math.inf]
        if "frobenius_norm" in broken:  # under its other name it is the same number
            broken.remove("frobenius")
        if broken:
            found[layer] = Sign(", ".join(broken), len(broken), {"numbers": float(len(broken))})
    return found


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
)
def loss_spike(watch: AlarmWatch) -> Signs:
    """The loss stands far above the median of the last points, against their scatter."""
    track = watch.scalar("loss")
    if track is None or len(track) <= _FEWEST:
        return {}
    past = list(islice(reversed(track.values), 1, 1 + _RECENT))
    middle, scatter = robust_scale(past, _FLOOR * abs(median(past)) + 1e-6)
    rise = track.last - middle
    if rise < max(watch.limit("spike_z") * scatter, watch.limit("spike_share") * abs(middle)):
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
    """The training loss has fallen to next to nothing of what it was first, at three points in a row.

    Where that is what is wanted (regression, small classification sets), mute it.
    """
    track = watch.scalar("loss")
    if track is None or len(track) <= _FEWEST or watch.first_loss is None:
        return {}
    bound = watch.limit("memorised_share") * watch.first_loss
    if max(track.last, track.ago(1), track.ago(2)) > bound:
        return {}
    says = f"loss {track.last:.2g}, from {watch.first_loss:.3g}"
    return {"": Sign(says, 1.0, {"loss": track.last, "first": watch.first_loss})}


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
    """`eval_loss` is above its lowest at three points in a row, while the training loss is not above where it was.

    The points are those with an `eval_loss`; the training loss is the last one that a point had.
    """
    held, train = watch.scalar("eval_loss"), watch.track("", "loss")
    if held is None or not train or len(held) <= _FEWEST:
        return {}
    lowest = min(held.values)
    recent = [held.ago(points) for points in range(3)]
    if min(recent) < lowest * (1 + watch.limit("eval_rise")) or train.last > median(train.values):
        return {}
    says = f"{held.last:.3g} after {lowest:.3g}, while the training loss is {train.last:.3g}"
    evidence = {"eval_loss": held.last, "lowest": lowest, "loss": train.last}
    return {"": Sign(says, 1.0, evidence, "eval_loss", "turn")}
