"""What spectra do over time: rank, entropy, exponents and traps."""

from __future__ import annotations

import math
from itertools import islice
from statistics import median

from tailwise.spectrum.trust import largest_distance
from tailwise.training.alarm_rule import Sign, Signs, alarm_rule
from tailwise.training.alarm_watch import SPAN, AlarmWatch, Track, change

_FLOOR = 0.05  # of ln(stable rank): changes that any layer is allowed
_ENTROPY_FLOOR = 0.005  # nats
_FEWEST = 3  # earlier changes: points with spectra are rare
_CURSE = "Sun et al. 2025, The Curse of Depth in Large Language Models, arXiv:2502.05795"
_TEMPBALANCE = "Zhou et al. 2023, Temperature Balancing, arXiv:2312.00359"


@alarm_rule(
    "TW706",
    title="stable rank falling",
    severity="warning",
    strength="published",
    needs=("stable_rank",),
    causes=("single directions run away: the learning rate is too high", "over-compression of the representation"),
    remedies=("penalise the largest singular values", "lower the learning rate, clip gradients per tensor"),
    functions=("spectral_penalty", "AdaptiveClip"),
    references=("Yoshida & Miyato 2017, Spectral Norm Regularization, arXiv:1705.10941",),
)
def rank_falling(watch: AlarmWatch) -> Signs:
    """The stable rank falls within three points far more than it used to, or to where one direction has most of W.

    It falls from where the layer had a gain of one or more: smaller weights are noise, which any learning outgrows. The
    second is an error.
    """
    signs = {}
    for layer, (track,) in watch.now("stable_rank", inside=True).items():
        seen = change(track, _FLOOR, int(watch.limit("fewest_changes")), lambda value: math.log(max(value, 1e-30)))
        fell = (
            seen is not None and seen.z <= -watch.limit("change_z") and seen.size <= -math.log(watch.limit("rank_fall"))
        )
        fell = fell and watch.gain(layer, SPAN) >= watch.limit("unit_gain")
        bound = watch.limit("collapse_stable_rank")
        collapsed = track.last <= bound and _highest(watch, layer, track) >= watch.limit("rank_fall") * bound
        if watch.adapts(layer):
            continue
        if fell or collapsed:
            before = track.ago(SPAN) if fell else _highest(watch, layer, track)
            evidence = {"stable_rank": track.last, "before": before}
            signs[layer] = Sign(f"from {before:.3g} to {track.last:.3g}", before / max(track.last, 1e-30), evidence,
                                "stable_rank", "turn", "error" if collapsed else None)  # fmt: skip
    return signs


def _highest(watch: AlarmWatch, layer: str, track: Track) -> float:
    """The highest value at a step at which the layer had a gain of one; of all steps where its gain is not known."""
    if not math.isfinite(watch.gain(layer)):
        return max(track.values)
    grown = watch.grown(layer)
    return max((value for step, value in zip(track.steps, track.values, strict=True) if step in grown), default=0.0)


@alarm_rule(
    "TW707",
    title="singular entropy rising",
    severity="warning",
    strength="published",
    needs=("singular_entropy",),
    causes=(
        "the data became too hard, or noise", "the layer is out of capacity", "the learning rate is too high",
        "late memorising: training goes on after the loss on unseen text has stopped falling",
    ),
    remedies=(
        "stop early, at the checkpoint with the lowest loss on unseen text", "a curriculum: easier data first",
        "a larger hidden size", "regularise the spectrum, and raise weight decay on this layer",
    ),
    functions=("CurriculumSampler", "spectral_penalty", "layerwise_weight_decay"),
    references=("the HT-SR singular-entropy manual",
                "Godey et al. 2024, Why do small language models underperform?, arXiv:2404.07647"),
)  # fmt: skip
def entropy_rising(watch: AlarmWatch) -> Signs:
    """Singular entropy rises within three points far more than it used to, from where the layer had a gain of one."""
    signs = {}
    for layer, (track,) in watch.now("singular_entropy", inside=True).items():
        seen = change(track, _ENTROPY_FLOOR, _FEWEST)
        if (
            watch.adapts(layer)
            or seen is None
            or seen.z < watch.limit("change_z")
            or seen.size < watch.limit("entropy_rise")
            or watch.gain(layer, SPAN) < watch.limit("unit_gain")
        ):
            continue
        evidence = {"singular_entropy": track.last, "before": track.ago(SPAN), "z": seen.z}
        signs[layer] = Sign(f"from {track.ago(SPAN):.3f} to {track.last:.3f} nats", seen.size, evidence,
                            "singular_entropy", "turn")  # fmt: skip
    return signs


@alarm_rule(
    "TW708",
    title="alpha stalled",
    severity="note",
    strength="heuristic",
    needs=("alpha_hill",),
    causes=("no gradient, or a very small one, reaches the layer", "its learning rate is too low"),
    remedies=("give the layer a learning rate of its own (TempBalance)", "check requires_grad and the gradient's norm"),
    functions=("layerwise_learning_rates", "reinitialize_dead_layers"),
    references=(_TEMPBALANCE, _CURSE),
)
def stalled(watch: AlarmWatch) -> Signs:
    """alpha_hill of a layer stands still over four points, though it moved before and that of the median layer does,
    and so do its weights.

    Layers that never moved are frozen on purpose or have not begun, as attention's queries and keys under SGD; those
    that a step moves as far as others have not stalled.
    """
    tracks = {layer: track for layer, (track,) in watch.now("alpha_hill", inside=True).items()
              if len(track) > SPAN and max(track.values) > min(track.values)}  # fmt: skip
    if len(tracks) < watch.limit("fewest_layers"):
        return {}
    ranges = {layer: _range(track) for layer, track in tracks.items()}
    typical, least = median(ranges.values()), watch.limit("stall_median")
    if typical < least:
        return {}
    signs = {}
    for layer, moved in ranges.items():
        still = moved <= watch.limit("stall_share") * typical and not watch.moves(layer)
        if still and _ever(tracks[layer]) >= least:
            says = f"alpha_hill {tracks[layer].last:.2f} moved by {moved:.3g}, the median by {typical:.3g},"
            evidence = {"alpha_hill": tracks[layer].last, "moved": moved, "median": typical}
            signs[layer] = Sign(says, -moved, evidence, "alpha_hill", "turn")
    return signs


def _range(track: Track, ago: int = 0) -> float:
    recent = list(islice(reversed(track.values), ago, ago + SPAN + 1))
    return max(recent) - min(recent)


def _ever(track: Track) -> float:
    """The largest range of four points before the last four."""
    return max((_range(track, ago) for ago in range(SPAN + 1, len(track))), default=0.0)


@alarm_rule(
    "TW709",
    title="alpha out of its band",
    severity="warning",
    strength="published",
    needs=("alpha", "ks_distance", "num_pl_spikes"),
    causes=("below: memorisation, or too high a learning rate for too long", "above: the layer is being unlearned"),
    remedies=("below: stop earlier, lower the rate of these layers, stronger weight decay, more varied data",
              "above: raise the learning rate of these layers"),
    functions=("layerwise_learning_rates", "layerwise_weight_decay", "spectral_penalty"),
    references=("Martin, Peng & Mahoney 2021, Nature Communications 12:4122", _TEMPBALANCE),
)  # fmt: skip
def out_of_band(watch: AlarmWatch) -> Signs:
    """alpha (of the `ks` estimator, in a good fit) is significantly below 2 or above 6, and was not before.

    At two points in a row. Below 2 counts only of a tail of at most half the spectrum: a fit to more of it is of the
    bulk (`matrix_rank`, where it is known). Parts of adapters have few directions and no band; under Muon, which
    suppresses heavy tails, the band ends at 8.
    """
    muon = "muon" in watch.optimizer.lower()
    low, bound = watch.limit("band_low"), watch.limit("band_z")
    high = watch.limit("band_high_muon" if muon else "band_high")
    signs = {}
    for layer, (alpha, distance, tail) in watch.now("alpha", "ks_distance", "num_pl_spikes", inside=True).items():
        if watch.adapts(layer):
            continue
        poor = distance.last > watch.limit("fit_max_distance") * largest_distance(tail.last)
        if poor or tail.last < watch.limit("fit_min_tail") or alpha.last <= 1.0:
            continue
        error = (alpha.last - 1.0) / math.sqrt(tail.last)
        below, above = (low - alpha.last) / error, (alpha.last - high) / error
        rank = (watch.point.layers[layer].get("matrix_rank") if watch.point else None) or math.inf
        bulk = tail.last > watch.limit("tail_share") * rank
        again = alpha.ago(1)
        drifted = (below >= bound and again < low and max(alpha.values) >= low and not bulk) or (
            above >= bound and again > high and min(alpha.values) <= high
        )
        if drifted:
            evidence = {"alpha": alpha.last, "alpha_sigma": error, "z": max(below, above)}
            side = f"below {low:g}" if below > above else f"above {high:g}"
            says = f"alpha {alpha.last:.2f} ± {error:.2f}, {side}{' (Muon)' if muon else ''},"
            signs[layer] = Sign(says, max(below, above), evidence, "alpha", "turn")
    return signs


@alarm_rule(
    "TW710",
    title="traps appearing",
    severity="warning",
    strength="published",
    needs=("num_traps",),
    causes=("single very large weights, as over-fitting and too large learning rates leave them",),
    remedies=("stop earlier, lower the learning rate, add weight decay", "clip gradients per tensor"),
    functions=("AdaptiveClip", "layerwise_weight_decay"),
    references=("WeightWatcher 0.7", "Martin & Mahoney 2021, JMLR 22:165"),
)
def traps(watch: AlarmWatch) -> Signs:
    """Correlation traps are found in a layer that had fewer than one before, in the median."""
    bound, signs = watch.limit("traps"), {}
    for layer, (track,) in watch.now("num_traps", inside=True).items():
        past = list(track.values)[:-1]
        if past and track.last >= bound and median(past) < 1.0:
            evidence = {"num_traps": track.last, "before": median(past)}
            signs[layer] = Sign(f"{track.last:.1f} traps ≥ {bound:g}", track.last, evidence, "num_traps", "turn")
    return signs
