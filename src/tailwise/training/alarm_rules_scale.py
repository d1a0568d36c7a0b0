"""How large the weights are, and how far a step moves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from tailwise.training.alarm_rule import Sign, Signs, alarm_rule
from tailwise.training.alarm_watch import SPAN, AlarmWatch, Track, change, outside

_FLOOR = 0.05  # of ln σ: changes that any layer is allowed
_ROW = 2  # points in a row, since a single step may be odd
_USUAL = 10  # steps between the points that the bounds are from
PAST = 10  # points that a jump of the updates is held against


@alarm_rule(
    "TW703",
    title="scale blow-up",
    severity="error",
    strength="heuristic",
    needs=("spectral_norm", "frobenius"),
    causes=("the learning rate is too high for this layer", "weight decay is off or too weak", "a burst of gradients"),
    remedies=("lower the learning rate", "clip gradients per tensor", "penalise the largest singular value",
              "scale the residual branches"),
    functions=("AdaptiveClip", "spectral_penalty", "layerwise_learning_rates", "scale_residual_branches"),
    references=(
        "the HT-SR scale manual",
        "Yoshida & Miyato 2017, Spectral Norm Regularization, arXiv:1705.10941",
    ),
)  # fmt: skip
def blow_up(watch: AlarmWatch) -> Signs:
    """The norm grows within three points far more than it used to, or many times over with all of W.

    Of matrices the spectral norm, of embeddings and heads ‖W‖_F: one direction of theirs, which all tokens share, grows
    while all is well. More steps between points are more time to grow, and so is the youth of what began at zero. It is
    a warning where the layer still has a gain of about one or less, and may only begin to learn.
    """
    signs = {}
    for layer, (spectral, frobenius) in watch.now("spectral_norm", "frobenius").items():
        name, track = ("frobenius norm", frobenius) if outside(layer) else ("spectral norm", spectral)
        before = track.ago(SPAN)
        if not 0 < before < track.last:
            continue
        times, whole = track.last / before, frobenius.last / max(frobenius.ago(SPAN), 1e-30)
        slack = _slack(watch, layer, track.steps_since(SPAN))
        seen = change(track, _FLOOR, int(watch.limit("fewest_changes")), _log)
        size = watch.limit("growth" if watch.age(layer) is None else "young_growth") * slack
        faster = seen is not None and seen.z >= watch.limit("change_z") and times >= size
        many = times >= watch.limit("blow_up") * slack and whole >= watch.limit("blow_up_frobenius") * slack
        if faster or many:
            evidence = {name.replace(" ", "_"): track.last, "before": before, "times": times}
            begins = track.last < size * _unit(watch, layer)
            signs[layer] = Sign(f"{name} from {before:.3g} to {track.last:.3g}", times, evidence,
                                "frobenius" if track is frobenius else "spectral_norm", "turn",
                                "warning" if begins else None)  # fmt: skip
    return signs


def _unit(watch: AlarmWatch, layer: str) -> float:
    """The norm that TW703 looks at, at a gain of one and as evenly spread as it ever was; 0 of adapters.

    An adapter is added to weights that are there already, and has its age instead.
    """
    if watch.adapts(layer):
        return 0.0
    ranks = watch.track(layer, "stable_rank") if outside(layer) else None
    return watch.limit("unit_gain") * math.sqrt(max(ranks.values) if ranks else 1.0)


def _slack(watch: AlarmWatch, layer: str, steps: int) -> float:
    """By how much more a layer may grow than within three points ten steps apart, from which the bounds are."""
    age = watch.age(layer)
    if age is not None:  # at a rate that rises with the steps, as in a warm-up, it grows as the square of its age
        return max(age / max(age - steps, 1), 1.0) ** 2
    return math.sqrt(max(1.0, steps / (SPAN * _USUAL)))


@alarm_rule(
    "TW713",
    title="weights lost",
    severity="error",
    strength="theory",
    needs=("frobenius",),
    causes=("the layer was set to zero or drawn anew", "a checkpoint that lacks it was loaded",
            "weight decay that is far too strong"),
    remedies=("compare with the last checkpoint, and load the layer from there", "lower weight decay on this layer"),
    functions=("reinitialize_dead_layers",),
    references=("Lu et al. 2020, Dying ReLU and Initialization, arXiv:1903.06733",),
)  # fmt: skip
def lost(watch: AlarmWatch) -> Signs:
    """‖W‖_F falls within three points to a small part of what it was; weights that are trained fall slowly."""
    signs = {}
    for layer, (track,) in watch.now("frobenius").items():
        before = max(track.ago(points) for points in range(SPAN + 1))
        if before > 0 and track.last <= watch.limit("lost_share") * before:
            says = f"‖W‖_F from {before:.3g} to {track.last:.3g}"
            signs[layer] = Sign(says, before / max(track.last, 1e-30), {"frobenius": track.last, "before": before},
                                "frobenius", "jump")  # fmt: skip
    return signs


@alarm_rule(
    "TW704",
    title="updates too large",
    severity="error",
    strength="heuristic",
    needs=("update_ratio",),
    causes=("the learning rate is too high", "no warm-up, or moments of the optimizer that were lost"),
    remedies=("lower the learning rate, or warm up for longer", "clip gradients per tensor"),
    functions=("AdaptiveClip", "layerwise_learning_rates"),
    references=("You et al. 2017, Large Batch Training of Convolutional Networks (LARS), arXiv:1708.03888",),
)
def large_updates(watch: AlarmWatch) -> Signs:
    """One step moves a matrix by a large share of its norm, or by far more than it used to, at two points in a row.

    What began at zero moves by a few parts in its age while all is well, or in the root of its age where it goes to and
    fro; a layer that makes what it is given smaller is held against the norm at which it would not. The second is a
    warning.
    """
    signs = {}
    for layer, (track,) in watch.now("update_ratio").items():
        if len(track) < _ROW:
            continue
        large, bound, now = watch.limit("large_update"), _most(watch, layer), _moved(watch, layer, track)
        if now >= bound:
            says = f"‖ΔW‖/‖W‖ of {track.last:.3g} ≥ {bound:.3g} a step"
            evidence = {"update_ratio": track.last, "bound": bound}
            signs[layer] = Sign(
                says, track.last, evidence, "update_ratio", severity=None if now >= large else "warning"
            )
            continue
        past, least = list(track.values)[-_ROW - PAST : -_ROW], min(track.last, track.ago(1))
        if len(past) < watch.limit("fewest_changes") or now < watch.limit("jump_floor"):
            continue
        if least >= watch.limit("update_jump") * max(past) > 0:
            says = f"‖ΔW‖/‖W‖ of {track.last:.3g} a step, {least / max(past):.0f} times what it was at most"
            evidence = {"update_ratio": track.last, "before": max(past)}
            signs[layer] = Sign(says, least, evidence, "update_ratio", severity="warning")
    return signs


def _moved(watch: AlarmWatch, layer: str, track: Track) -> float:
    """The least of the last two updates, of ‖W‖ or, of what makes its input smaller, of ‖W‖ at a gain of one."""
    parts = (1.0,) * _ROW
    if not watch.adapts(layer):
        parts = tuple(min(watch.gain(layer, points) / watch.limit("unit_gain"), 1.0) for points in range(_ROW))
    return min(track.ago(points) * part for points, part in enumerate(parts))


def _most(watch: AlarmWatch, layer: str) -> float:
    """What a step may move a layer by while all is well, of ‖W‖."""
    age = watch.age(layer)
    if age is None:
        return watch.limit("large_update")
    return max(watch.limit("young_update") / age, watch.limit("young_walk") / math.sqrt(age),
               watch.limit("young_floor"))  # fmt: skip


@alarm_rule(
    "TW705",
    title="stopped moving",
    severity="warning",
    strength="theory",
    needs=("update_ratio",),
    causes=("the layer was frozen, or left out of the optimizer, on the way", "no gradient reaches it any more",
            "dead units"),
    remedies=(
        "check requires_grad, the optimizer's groups, and that a gradient arrives",
        "re-initialise a dead layer",
        "give the layer a learning rate of its own",
    ),
    functions=("reinitialize_dead_layers", "layerwise_learning_rates"),
    references=("Lu et al. 2020, Dying ReLU and Initialization, arXiv:1903.06733",),
)  # fmt: skip
def stopped(watch: AlarmWatch) -> Signs:
    """A layer that used to move does not any more, at two points in a row, while the median of its like does.

    The factors of adapters are held against one another: the first moves far less than the second.
    """
    every = {layer: track for layer, (track,) in watch.now("update_ratio").items() if len(track) > _ROW}
    kinds: dict[str, dict[str, Track]] = {}
    for layer, track in every.items():
        kinds.setdefault(_kind(watch, layer), {})[layer] = track
    return {layer: sign for tracks in kinds.values() for layer, sign in _still(watch, tracks, every).items()}


def _kind(watch: AlarmWatch, layer: str) -> str:
    return "A" if ".lora_A" in layer else "B" if ".lora_B" in layer else "change" if watch.adapts(layer) else ""


def _still(watch: AlarmWatch, tracks: Mapping[str, Track], every: Mapping[str, Track]) -> Signs:
    peers = tracks if len(tracks) >= watch.limit("fewest_layers") else every
    if len(peers) < watch.limit("fewest_layers"):
        return {}
    typical = [median(track.ago(points) for track in peers.values()) for points in range(_ROW)]
    ever = median(max(track.values) for track in peers.values())
    signs = {}
    for layer, track in tracks.items():
        still = all(track.ago(i) < watch.limit("still_share") * typical[i] for i in range(_ROW))
        if still and max(track.values) >= watch.limit("moved_share") * ever:
            says = f"‖ΔW‖/‖W‖ of {track.last:.2g} while the median is {typical[0]:.2g}"
            signs[layer] = Sign(says, -track.last, {"update_ratio": track.last, "median": typical[0]}, "update_ratio")
    return signs


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
