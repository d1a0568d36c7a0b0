"""How many directions a layer uses: collapse, saturation, and spectra as flat as noise."""

from __future__ import annotations

import math
from statistics import median

from tailwise.audits.audit import LayerRow
from tailwise.diagnosis.case import Case, has, share_of_noise_rank, value
from tailwise.diagnosis.finding import Evidence
from tailwise.diagnosis.noise import METRICS, learned, noise_like
from tailwise.diagnosis.rule import Cannot, Found, Verdict, rule
from tailwise.diagnosis.statistics import adjusted, rising, robust_scale
from tailwise.diagnosis.words import alpha_in_words, count, entropy_in_words, named, verb

_ENTROPY = ("singular_entropy", "singular_entropy_baseline")
_COLLAPSE = ("alpha_hill", "log_spectral_norm", "stable_rank")
_SATURATION = (*_ENTROPY, "stable_rank")
_NO_PEERS = "no role has {least:.0f} matrices of one shape with enough eigenvalues"
#: Scatter of log10 λ_max among peers that never counts as an anomaly.
_FLOOR = 0.05


@rule(
    "TW301",
    title="rank collapse",
    severity="error",
    strength="published",
    needs=_COLLAPSE,
    causes=(
        "over-compression: the layer maps nearly everything to one direction",
        "a learning rate so high that single directions ran away",
    ),
    remedies=("weight decay on this layer, dropout before it", "lower the learning rate, clip gradients per tensor"),
    functions=("layerwise_weight_decay", "AdaptiveClip", "spectral_penalty"),
    references=("the HT-SR alpha manual", "Yoshida & Miyato 2017, Spectral Norm Regularization, arXiv:1705.10941"),
)
def rank_collapse(case: Case) -> Verdict:
    """alpha_hill near 1, with nearly all energy in one direction, or with a spectral norm far above and a stable rank
    far below those of its role.
    """
    groups = case.peers(case.judged(*_COLLAPSE))
    if not groups:
        return Cannot(_NO_PEERS.format(least=case.limit("min_peers")))
    hit = [item for group in groups for item in _collapsed(case, group)]
    if not hit:
        return None
    hit.sort(key=lambda item: value(item[0], "stable_rank"))
    bound = case.limit("collapse_alpha_hill")
    evidence = tuple(
        Evidence(row.name, "alpha_hill", value(row, "alpha_hill"), bound, f"{alpha_in_words(row)} ≤ {bound:g}; {why}")
        for row, why in hit
    )
    rows = [row for row, _ in hit]
    return Found(f"{count(len(rows), 'matrix')} collapsed towards rank one: {named(rows)}.", evidence)


def _collapsed(case: Case, group: list[LayerRow]) -> list[tuple[LayerRow, str]]:
    middle, scatter = robust_scale([value(row, "log_spectral_norm") for row in group], _FLOOR)
    typical = median(value(row, "stable_rank") for row in group)
    hit = []
    for row in group:
        above = value(row, "log_spectral_norm") - middle
        anomalous = above >= case.limit("collapse_scale") and above / scatter >= case.limit("peer_z")
        # A matrix that was only multiplied has the stable rank of its peers: that is TW401's.
        narrow = value(row, "stable_rank") <= case.limit("collapse_rank_share") * typical
        single = value(row, "stable_rank") <= case.limit("collapse_stable_rank")
        if value(row, "alpha_hill") <= case.limit("collapse_alpha_hill") and ((anomalous and narrow) or single):
            norm = f"λ_max {10**above:.1f} times the median of its role ({above / scatter:.1f} robust sd)"
            hit.append((row, f"{norm}, stable rank {value(row, 'stable_rank'):.2f}"))
    return hit


@rule(
    "TW302",
    title="spectral saturation",
    severity="warning",
    strength="published",
    needs=_SATURATION,
    causes=("softmax bottleneck: the output layer is wider than the hidden state can express", "data too hard"),
    remedies=(
        "a curriculum: easier data first",
        "a larger hidden size",
        "regularise the spectrum (spectral norm or orthogonality penalties)",
    ),
    functions=("CurriculumSampler", "spectral_penalty"),
    references=(
        "Godey et al. 2024, Why do small language models underperform?, arXiv:2404.07647",
        "Yang et al. 2018, Breaking the Softmax Bottleneck, arXiv:1711.03953",
    ),
)
def spectral_saturation(case: Case) -> Verdict:
    """Singular entropy is high while the stable rank drops: over time where earlier audits are given, else against
    the matrices of the same role.
    """
    rows = case.judged(*_SATURATION)
    if len(case.history) >= case.limit("min_history"):
        return _saturated_over_time(case, rows)
    groups = case.peers(rows)
    if not groups:
        return Cannot(_NO_PEERS.format(least=case.limit("min_peers")) + ", nor are there earlier audits (--history)")
    hit = [row for group in groups for row in _saturated_among(case, group)]
    return _saturation(case, hit, "far from the other matrices of its role", {})


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


def _saturated_over_time(case: Case, rows: list[LayerRow]) -> Verdict:
    pasts = {row.name: [old[row.name] for old in case.history if row.name in old] for row in rows}
    rows = [row for row in rows if all(has(old, name) for old in pasts[row.name] for name in _SATURATION)]
    entropies = [rising([value(item, "singular_entropy") for item in [*pasts[row.name], row]]).p for row in rows]
    ranks = [rising([-value(item, "stable_rank") for item in [*pasts[row.name], row]]).p for row in rows]
    both = adjusted([max(pair) for pair in zip(entropies, ranks, strict=True)])
    starts = {row.name: value(pasts[row.name][0], "stable_rank") for row in rows if pasts[row.name]}
    hit = [
        row
        for row, p in zip(rows, both, strict=True)
        if p <= case.limit("significance")
        and share_of_noise_rank(row) <= case.limit("saturation_share")
        and value(row, "stable_rank") <= case.limit("saturation_stable_rank") * starts[row.name]
    ]
    return _saturation(case, hit, f"steadily, over {len(case.history) + 1} audits", starts)


def _saturation(case: Case, hit: list[LayerRow], how: str, starts: dict[str, float]) -> Verdict:
    if not hit:
        return None
    hit = sorted(hit, key=share_of_noise_rank)
    bound = case.limit("saturation_share")
    evidence = []
    for row in hit:
        before = f", from {starts[row.name]:.1f}" if row.name in starts else ""
        says = f"{entropy_in_words(row, share_of_noise_rank(row))} ≤ {bound:.0%}; stable rank "
        says += f"{value(row, 'stable_rank'):.1f}{before}"
        evidence.append(Evidence(row.name, "singular_entropy", value(row, "singular_entropy"), bound, says))
    return Found(f"{named(hit)}: singular entropy is high and the stable rank low, {how}.", tuple(evidence))


@rule(
    "TW303",
    title="isotropy",
    severity="warning",
    strength="theory",
    needs=(*_ENTROPY, *METRICS),
    causes=(
        "under-training: training left a few directions and did not move the rest",
        "an initialisation so large that updates do not show (std well above 1/√N)",
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
    """Singular entropy is that of a random matrix of this shape, although the matrix is not noise altogether."""
    tested = case.judged(*_ENTROPY, *METRICS)
    if not tested:
        return Cannot("no matrix has enough eigenvalues and a baseline")
    rows = learned(case, *_ENTROPY)
    bound = case.limit("isotropy_share")
    hit = sorted((row for row in rows if share_of_noise_rank(row) >= bound), key=share_of_noise_rank, reverse=True)
    if not hit:
        return None
    evidence = tuple(
        Evidence(row.name, "singular_entropy", value(row, "singular_entropy"), bound,
                 f"{entropy_in_words(row, share_of_noise_rank(row))} ≥ {bound:.0%}; {alpha_in_words(row)}")
        for row in hit
    )  # fmt: skip
    alike = sum(noise_like(case, row) for row in tested)
    beside = f" ({alike} more {verb(alike, 'is', 'are')} noise altogether: TW201)" if alike else ""
    return Found(
        f"{len(hit)} of {count(len(tested), 'matrix')} {verb(len(hit), 'is', 'are')} as isotropic as noise: "
        f"{named(hit)}{beside}.",
        evidence,
    )
