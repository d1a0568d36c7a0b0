"""How large the weights are, and how far a step moves them."""

from __future__ import annotations

import math
from statistics import median

from tailwise.training.alarm_rule import Sign, Signs, alarm_rule
from tailwise.training.alarm_watch import SPAN, AlarmWatch, change

_FLOOR = 0.05  # of ln σ: changes that any layer is allowed
_ROW = 2  # points in a row, since a single step may be odd


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
    """The spectral norm grows within three points far more than it used to, or many times over with all of W."""
    found = {}
    for layer, (spectral, frobenius) in watch.now("spectral_norm", "frobenius", inside=True).items():
        before = spectral.ago(SPAN)
        if not 0 < before < spectral.last:
            continue
        times, whole = spectral.last / before, frobenius.last / max(frobenius.ago(SPAN), 1e-30)
        seen = change(spectral, _FLOOR, int(watch.limit("fewest_changes")), _log)
        faster = seen is not None and seen.z >= watch.limit("change_z") and seen.size >= math.log(watch.limit("growth"))
        if faster or (times >= watch.limit("blow_up") and whole >= watch.limit("blow_up_frobenius")):
            evidence = {"spectral_norm": spectral.last, "before": before, "times": times}
            found[layer] = Sign(f"spectral norm from {before:.3g} to {spectral.last:.3g}", times, evidence,
                                "spectral_norm", "turn")  # fmt: skip
    return found


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
    """One step moves a matrix by a large share of its norm, at two points in a row."""
    bound, found = watch.limit("large_update"), {}
    for layer, (track,) in watch.now("update_ratio").items():
        if len(track) >= _ROW and min(track.last, track.ago(1)) >= bound:
            says = f"‖ΔW‖/‖W‖ of {track.last:.3g} ≥ {bound:g} a step"
            found[layer] = Sign(says, track.last, {"update_ratio": track.last, "bound": bound}, "update_ratio")
    return found


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
    """A layer that used to move does not any more, at two points in a row, while the median layer does."""
    tracks = {layer: track for layer, (track,) in watch.now("update_ratio").items() if len(track) > _ROW}
    if len(tracks) < watch.limit("fewest_layers"):
        return {}
    typical = [median(track.ago(points) for track in tracks.values()) for points in range(_ROW)]
    ever = median(max(track.values) for track in tracks.values())
    found = {}
    for layer, track in tracks.items():
        still = all(track.ago(i) < watch.limit("still_share") * typical[i] for i in range(_ROW))
        if still and max(track.values) >= watch.limit("moved_share") * ever:
            says = f"‖ΔW‖/‖W‖ of {track.last:.2g} while the median is {typical[0]:.2g}"
            found[layer] = Sign(says, -track.last, {"update_ratio": track.last, "median": typical[0]}, "update_ratio")
    return found


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
