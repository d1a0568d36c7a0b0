"""How many directions a layer uses: collapse, saturation, and spectra as flat as noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, has, noise_stable_rank, share_of_noise_rank, value
from tailwise.judging.diagnosis.finding import Evidence, Severity
from tailwise.judging.diagnosis.medians import adjusted, rising, robust_scale
from tailwise.judging.diagnosis.noise import (
    METRICS,
    alone_in_noise,
    bulk_of_noise,
    bulk_z,
    in_no_order,
    learned,
    noise_like,
    order_known,
)
from tailwise.judging.diagnosis.rule import Cannot, Partly, RuleHit, Verdict, by_severity, rule
from tailwise.judging.diagnosis.wording import alpha_in_words, count, entropy_in_words, named, rounding_in_words, verb

_ENTROPY = ("singular_entropy", "singular_entropy_baseline")
_COLLAPSE = ("log_spectral_norm", "stable_rank")
_SATURATION = (*_ENTROPY, "stable_rank")
_FEW = "no matrix has {least:.0f} eigenvalues or more"
#: Scatter of log10 λ_max among peers that never counts as an anomaly.
_FLOOR = 0.05
#: Roles whose matrices are smooth, small or narrow by design; only their peers can say what is odd.
_LOW_BY_DESIGN = ("pos_embed", "ssm_state", "rwkv_mix", "router")
#: Roles in which one strong direction of all rows does no harm.
_MEAN_DIRECTION = ("embed", "pos_embed", "lm_head", "classifier")
#: Inputs that are never negative leave convolutions one mean direction, down to a stable rank of 1.1 in healthy models.
_OF_POSITIVE_INPUTS = (*_MEAN_DIRECTION, "conv")
_BOTTLENECK = "softmax bottleneck: the output layer is wider than the hidden state can express"


@rule(
    "TW301",
    title="rank collapse",
    says=("collapsed towards rank one", "collapsed towards rank one"),
    severity="error",
    strength="published",
    needs=_COLLAPSE,
    causes=(
        "over-compression: the layer maps nearly everything to one direction",
        "a learning rate so high that single directions ran away",
        "a constant or an outer product in place of weights: an initialisation or an edit that left one direction",
    ),
    remedies=(
        "go back to the checkpoint before it, or of a fine-tune to its base: what has collapsed is not trained back",
        "then a lower learning rate (of an adapter also a lower alpha), and gradients clipped per tensor",
        "where it returns: weight decay on this layer, dropout before it",
    ),
    functions=("AdaptiveClip", "layerwise_weight_decay", "spectral_penalty"),
    references=("the HT-SR alpha manual", "Yoshida & Miyato 2017, Spectral Norm Regularization, arXiv:1705.10941"),
)
def rank_collapse(case: Case) -> Verdict:
    """One direction carries the matrix: a stable rank near 1, or a spectral norm far above and a stable rank far below
    those of its role and of noise.

    alpha_hill near 1 makes smaller departures count, and none is needed: one giant direction adds one logarithm to the
    mean of m/10, so alpha_hill sees it in small matrices only.
    """
    rows = [row for row in case.judged(*_COLLAPSE) if not _adapter_without_tail(row)]
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")))
    groups = case.peers(rows)
    grouped = {row.name for group in groups for row in group}
    hit = [item for group in groups for item in _collapsed(case, group)]
    hit += [item for row in rows if row.name not in grouped for item in _collapsed_alone(case, row)]
    if not hit:
        return None
    hit.sort(key=lambda item: value(item[0], "stable_rank"))
    evidence = tuple(
        Evidence(row.name, "stable_rank", value(row, "stable_rank"), case.limit("collapse_stable_rank"), why)
        for row, why in hit
    )
    hit_rows = [row for row, _ in hit]
    message = f"{count(len(hit_rows), 'matrix')} collapsed towards rank one: {named(hit_rows)}."
    return RuleHit(message, evidence, tested=len(rows))


def _adapter_without_tail(row: LayerRow) -> bool:
    """An adapter's change has few directions by design; one with too few for a tail says nothing."""
    return row.kind == "lora" and (not has(row, "alpha_hill") or "alpha_hill" in row.degenerate)


def _collapsed(case: Case, group: list[LayerRow]) -> list[tuple[LayerRow, str]]:
    middle, scatter = robust_scale([value(row, "log_spectral_norm") for row in group], _FLOOR)
    typical = median(value(row, "stable_rank") for row in group)
    hit = []
    for row in group:
        above, rank = value(row, "log_spectral_norm") - middle, value(row, "stable_rank")
        anomalous = above >= case.limit("collapse_scale") and above / scatter >= case.limit("peer_z")
        # A matrix that was only multiplied has the stable rank of its peers: that is TW401's.
        narrow = rank <= case.limit("collapse_rank_share") * typical
        single = rank <= case.limit("collapse_stable_rank")
        heavy = _exponent(row) <= case.limit("collapse_alpha_hill")
        far = above >= case.limit("collapse_runaway") and rank <= case.limit("collapse_noise_share") * min(
            typical, noise_stable_rank(row)
        )
        alone = rank <= case.limit("collapse_single") and row.kind != "lora"
        if alone or (single and (heavy or anomalous)) or (anomalous and narrow and (heavy or far)):
            norm = f"λ_max {10**above:.1f} times the median of its role ({above / scatter:.1f} robust sd)"
            hit.append((row, f"{_narrowness(row)}, {typical:.1f} at the median of its role; {norm}{_tail(row)}"))
    return hit


def _collapsed_alone(case: Case, row: LayerRow) -> list[tuple[LayerRow, str]]:
    """A matrix without peers is held against noise alone.

    Healthy heads and embeddings have one mean direction that no softmax sees, down to a stable rank of 1.04, and so
    have convolutions; of them, the other directions must be weak too.
    """
    if row.kind == "lora":
        return []
    if row.role in _OF_POSITIVE_INPUTS:
        known = has(row, "singular_entropy_baseline") and has(row, "singular_entropy")
        weak = known and share_of_noise_rank(row) <= case.limit("saturation_alone")
        bound = case.limit("collapse_single") if weak else case.limit("collapse_conv") if row.role == "conv" else 0.0
    else:
        heavy = _exponent(row) <= case.limit("collapse_alpha_hill")
        bound = case.limit("collapse_stable_rank" if heavy else "collapse_single")
    if value(row, "stable_rank") > bound or _ordinary(case, row, "stable_rank"):
        return []
    return [(row, f"{_narrowness(row)}{_tail(row)}{_in_health(case, row, 'stable_rank')}")]


def _ordinary(case: Case, row: LayerRow, metric: str) -> bool:
    """Whether more than one in twenty healthy matrices of the kind are as low."""
    standing = case.standing(row, metric)
    return standing is not None and standing.below > case.limit("atlas_share")


def _in_health(case: Case, row: LayerRow, metric: str) -> str:
    standing = case.standing(row, metric)
    return "" if standing is None else f"; {standing}"


def _exponent(row: LayerRow) -> float:
    """alpha_hill, or infinity where the tail has none."""
    return value(row, "alpha_hill") if has(row, "alpha_hill") and "alpha_hill" not in row.degenerate else math.inf


def _narrowness(row: LayerRow) -> str:
    rank = value(row, "stable_rank")
    return f"stable rank {rank:.4g} (noise of this shape {noise_stable_rank(row):.1f})"


def _tail(row: LayerRow) -> str:
    if math.isfinite(_exponent(row)):
        return f"; {alpha_in_words(row)}"
    return "; no tail: too few eigenvalues are above zero" if not has(row, "alpha_hill") else ""


@rule(
    "TW302",
    title="spectral saturation",
    says=("has a high entropy and a low stable rank", "have a high entropy and a low stable rank"),
    severity="warning",
    strength="published",
    needs=_SATURATION,
    causes=("data too hard for the layer's width", "too little weight decay: single directions grow without end"),
    remedies=(
        "a curriculum: easier data first",
        "a larger hidden size",
        "regularise the spectrum (weight decay, spectral norm or orthogonality penalties)",
    ),
    functions=("CurriculumSampler", "spectral_penalty", "layerwise_weight_decay"),
    references=(
        "the HT-SR singular-entropy manual",
        "Godey et al. 2024, Why do small language models underperform?, arXiv:2404.07647",
        "Yang et al. 2018, Breaking the Softmax Bottleneck, arXiv:1711.03953",
    ),
)
def spectral_saturation(case: Case) -> Verdict:
    """Singular entropy is high while the stable rank is low (noted from 60 % of noise's effective rank, a warning from
    a quarter): over time where earlier audits are given, else against
    the matrices of the same role, or, for a head, an embedding and whatever has no peers, against noise of its shape.
    """
    rows = case.judged(*_SATURATION)
    judged = {row.name for row in rows}
    few = tuple(
        row.name for row in case.measured if row.name not in judged and all(has(row, name) for name in _SATURATION)
    )
    left = {f"fewer than {case.limit('min_evals'):.0f} eigenvalues": few}
    if len(case.history) >= case.limit("min_history"):
        found, new = _saturated_over_time(case, rows)
        return Partly(found, {**left, "an earlier audit lacks it": new})
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")) + " and a baseline")
    groups = case.peers(rows)
    grouped = {row.name for group in groups for row in group}
    hit = [row for group in groups for row in _saturated_among(case, group)]
    alone = [row for row in rows if row.name not in grouped]
    odd = tuple(row.name for row in alone if _is_low_by_design(row))
    single = [row for row in alone if not _is_low_by_design(row) and _saturated_alone(case, row)]
    how = "far from the other matrices of its role, or from noise where it has none"
    bounds = {row.name: case.limit("saturation_alone") for row in single}
    far = [row for row in hit if share_of_noise_rank(row) <= case.limit("saturation_clear")]
    found = (
        *_saturation(case, [*far, *single], how, bounds=bounds),
        *_saturation(case, [row for row in hit if row.name not in {one.name for one in far}], how, severity="info"),
    )
    return Partly(found, {**left, "low in rank by design, and without peers to compare with": odd})


def _is_low_by_design(row: LayerRow) -> bool:
    return row.role in _LOW_BY_DESIGN or row.kind == "lora"


def _saturated_alone(case: Case, row: LayerRow) -> bool:
    return (
        share_of_noise_rank(row) <= case.limit("saturation_alone")
        and value(row, "stable_rank") <= case.limit("saturation_noise_share") * noise_stable_rank(row)
        and not _ordinary(case, row, "effective_rank")
    )  # fmt: skip


def _saturated_among(case: Case, group: list[LayerRow]) -> list[LayerRow]:
    shares = [math.log(share_of_noise_rank(row)) for row in group]
    middle, scatter = robust_scale(shares, _FLOOR)
    typical = median(value(row, "stable_rank") for row in group)
    return [
        row
        for row, share in zip(group, shares, strict=True)
        if math.exp(share) <= case.limit("saturation_share")
        and (middle - share) / scatter >= case.limit("peer_z")
        and value(row, "stable_rank") <= case.limit("saturation_stable_rank") * typical
    ]


def _saturated_over_time(case: Case, rows: list[LayerRow]) -> tuple[tuple[RuleHit, ...], tuple[str, ...]]:
    """What saturated, and the layers that an earlier audit lacks."""
    pasts = {row.name: [old[row.name] for old in case.history if row.name in old] for row in rows}
    known = [
        row
        for row in rows
        if len(pasts[row.name]) >= case.limit("min_history")
        and all(has(old, name) for old in pasts[row.name] for name in _SATURATION)
    ]
    starts = {row.name: value(pasts[row.name][0], "stable_rank") for row in known}
    both = adjusted([_p_of_saturation(case, pasts[row.name], row) for row in known])
    hit = [
        row
        for row, p in zip(known, both, strict=True)
        if p <= case.limit("significance")
        and share_of_noise_rank(row) <= case.limit("saturation_share")
        and value(row, "stable_rank") <= max(
            case.limit("saturation_stable_rank") * starts[row.name], case.limit("saturation_floor")
        )
    ]  # fmt: skip
    old = {row.name for row in known}
    new = tuple(row.name for row in rows if row.name not in old)
    return _saturation(case, hit, f"steadily, over {len(case.history) + 1} audits", starts=starts), new


def _p_of_saturation(case: Case, past: list[LayerRow], row: LayerRow) -> float:
    """Kendall's p of a rising entropy, and of a falling stable rank unless that began at its floor."""
    entropy = rising([value(item, "singular_entropy") for item in [*past, row]]).p
    if value(past[0], "stable_rank") <= case.limit("saturation_floor"):
        return entropy
    return max(entropy, rising([-value(item, "stable_rank") for item in [*past, row]]).p)


def _saturation(
    case: Case,
    hit: list[LayerRow],
    how: str,
    *,
    starts: Mapping[str, float] | None = None,
    bounds: Mapping[str, float] | None = None,
    severity: Severity | None = None,
) -> tuple[RuleHit, ...]:
    """The finding; `starts` are earlier stable ranks, `bounds` those of layers that are held to another."""
    if not hit:
        return ()
    hit = sorted(hit, key=share_of_noise_rank)
    evidence = []
    for row in hit:
        before = f", from {starts[row.name]:.1f}" if starts and row.name in starts else ""
        bound = (bounds or {}).get(row.name, case.limit("saturation_share"))
        says = f"{entropy_in_words(row, share_of_noise_rank(row))} ≤ {bound:.0%}; stable rank "
        says += f"{value(row, 'stable_rank'):.1f}{before} (noise {noise_stable_rank(row):.1f})"
        says += _in_health(case, row, "effective_rank")
        evidence.append(Evidence(row.name, "singular_entropy", value(row, "singular_entropy"), bound, says))
    bottleneck = (_BOTTLENECK,) if any(case.feeds_softmax(row) for row in hit) else ()
    message = f"{named(hit)}: singular entropy is high and the stable rank low, {how}."
    return (RuleHit(message, tuple(evidence), severity, bottleneck, len(case.judged(*_SATURATION))),)


@rule(
    "TW303",
    title="isotropy",
    says=("is as isotropic as noise", "are as isotropic as noise"),
    severity="warning",
    strength="theory",
    needs=(*_ENTROPY, *METRICS),
    causes=(
        "under-training: training left a few directions and did not move the rest",
        "a bad initialisation, so large that updates do not show (std 1.0 for 1/√N)",
        "the learning rate is too low",
    ),
    remedies=(
        "train longer, or raise the learning rate of these layers",
        "compare the standard deviation of the weights with 1/√N (N: inputs)",
    ),
    functions=("layerwise_learning_rates",),
    references=("the HT-SR singular-entropy manual", "Marchenko & Pastur 1967"),
)
def isotropy(case: Case) -> Verdict:
    """Singular entropy is that of a random matrix of this shape, and so is the bulk of the spectrum, although the
    matrix is not noise altogether.

    As even as noise with a bulk that noise does not have, or with rows and columns of sizes of their own, is only
    noted: healthy models have such matrices.
    """
    tested = case.judged(*_ENTROPY, *METRICS)
    if not tested:
        return Cannot("no matrix has enough eigenvalues and a baseline")
    rows = learned(case, *_ENTROPY)
    bound = case.limit("isotropy_share")
    hit = sorted((row for row in rows if share_of_noise_rank(row) >= bound), key=share_of_noise_rank, reverse=True)
    if not hit:
        return None
    left = [row for row in hit if _as_noise(case, row) and alone_in_noise(case, row, tested)]
    names = {row.name for row in left}
    noted = [row for row in hit if row.name not in names]
    return tuple(_isotropic(case, group, tested, severity) for group, severity in by_severity(left, noted))


def _as_noise(case: Case, row: LayerRow) -> bool:
    return bulk_of_noise(case, row) and (order_known(case, row) is None or in_no_order(case, row))


def _isotropic(case: Case, rows: list[LayerRow], tested: list[LayerRow], severity: Severity | None) -> RuleHit:
    bound = case.limit("isotropy_share")
    evidence = tuple(
        Evidence(row.name, "singular_entropy", value(row, "singular_entropy"), bound,
                 f"{entropy_in_words(row, share_of_noise_rank(row))} ≥ {bound:.0%}; bulk z {bulk_z(row):z.1f}; "
                 f"{alpha_in_words(row)}{rounding_in_words(row)}")
        for row in rows
    )  # fmt: skip
    alike = sum(noise_like(case, row) for row in tested)
    beside = f" ({alike} more {verb(alike, 'is', 'are')} noise altogether: TW201)" if alike else ""
    own = " Their bulk, or their rows and columns, are not those of noise." if severity else ""
    return RuleHit(
        f"{len(rows)} of {count(len(tested), 'matrix')} {verb(len(rows), 'is', 'are')} as isotropic as noise: "
        f"{named(rows)}{beside}.{own}",
        evidence,
        severity,
        tested=len(tested),
    )
