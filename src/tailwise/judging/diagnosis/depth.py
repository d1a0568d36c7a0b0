"""Along depth: what changes from the blocks near the data to those near the labels."""

from __future__ import annotations

import math
from statistics import median

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, ratio_to_noise, share_of_noise_rank, value
from tailwise.judging.diagnosis.finding import Evidence
from tailwise.judging.diagnosis.medians import Trend, adjusted, against_neighbours, p_above, rising, robust_scale
from tailwise.judging.diagnosis.noise import METRICS, noise_like
from tailwise.judging.diagnosis.rule import Cannot, RuleHit, Verdict, rule
from tailwise.judging.diagnosis.wording import alpha_in_words, count, entropy_in_words, named

_HILL = ("alpha_hill", "alpha_hill_sigma", "alpha_hill_baseline")
_ENTROPY = ("singular_entropy", "singular_entropy_baseline")
_CURSE = "Sun et al. 2025, The Curse of Depth in Large Language Models, arXiv:2502.05795"
_TOO_SHALLOW = "no role has {least:.0f} blocks of one shape with enough eigenvalues"

Chain = list[LayerRow]


@rule(
    "TW101",
    title="depth curse",
    severity="warning",
    strength="published",
    needs=_HILL,
    causes=(
        "the signal is attenuated along depth: in Pre-LN models deep blocks change the residual stream less",
        "deep blocks receive small gradients or a small learning rate",
    ),
    remedies=(
        "scale each block's output by 1/√L (L: its number), as LayerNorm Scaling does",
        "check the placement of the norms: Pre-LN with scaled residuals, or a norm on both sides",
        "raise the learning rate of the deep blocks",
    ),
    functions=("scale_residual_branches", "check_pre_norm", "layerwise_learning_rates"),
    references=(_CURSE, "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv:2002.04745"),
)
def depth_curse(case: Case) -> Verdict:
    """alpha_hill rises with depth in the roles, as a trend (Kendall) or as a step beyond its errors, and the deepest
    third is near noise, if not wholly noise.

    A trend alone is common in healthy models and is not reported.
    """
    chains = case.chains(case.judged(*_HILL))
    if not chains:
        return Cannot(_TOO_SHALLOW.format(least=case.limit("min_blocks")))
    cursed = _cursed(case, chains)
    if len(cursed) < case.limit("most_roles") * len(chains):
        return None
    tau, worst_p = median(trend.tau for _, trend, _ in cursed), max(p for *_, p in cursed)
    layers = sorted((row for chain, *_ in cursed for row in _deep(case, chain)), key=ratio_to_noise, reverse=True)
    heavy = median(value(row, "alpha_hill") for chain, *_ in cursed for row in ends(chain)[0])
    light = median(value(row, "alpha_hill") for row in layers)
    bound = min(case.limit("light_alpha_hill"), case.limit("step_alpha_hill"))
    evidence = [Evidence("", "kendall_tau", tau, 0.0, f"median Kendall τ {tau:.2f}, adjusted p at most {worst_p:.2g}")]
    evidence += [
        Evidence(row.name, "alpha_hill", value(row, "alpha_hill"), bound, f"{alpha_in_words(row)} > {bound:g}")
        for row in layers if value(row, "alpha_hill") > bound
    ]  # fmt: skip
    return RuleHit(
        f"alpha_hill rises with depth in {len(cursed)} of {count(len(chains), 'role')} (median τ {tau:.2f}, adjusted "
        f"p ≤ {worst_p:.2g}), from {heavy:.1f} in the first third to {light:.1f} in the last.",
        tuple(evidence),
        title=f"in {len(cursed)} of {count(len(chains), 'role')} the tails grow light with depth",
    )


def _cursed(case: Case, chains: list[Chain]) -> list[tuple[Chain, Trend, float]]:
    """Chains that rise significantly from a heavy to a light tail, with adjusted p."""
    trends = [rising([ratio_to_noise(row) for row in chain]) for chain in chains]
    # Two tests are tried on each chain, hence the factor.
    corrected = adjusted([min(1.0, 2 * min(trend.p, _p_of_step(chain)))
                          for chain, trend in zip(chains, trends, strict=True)])  # fmt: skip
    return [
        (chain, trend, p)
        for chain, trend, p in zip(chains, trends, corrected, strict=True)
        if p <= case.limit("significance") and (_ends_light(case, chain) or _steps(case, chain))
    ]


def _ends_light(case: Case, chain: Chain) -> bool:
    """From heavy tails to light ones."""
    shallow, deep = (median(map(ratio_to_noise, end)) for end in ends(chain))
    light = median(value(row, "alpha_hill") for row in ends(chain)[1]) > case.limit("light_alpha_hill")
    return light and shallow <= case.limit("light_share_of_noise") < deep


def _steps(case: Case, chain: Chain) -> bool:
    """To tails that are not wholly light, but in every deep block far from those of every shallow one."""
    first, last = ([value(row, "alpha_hill") for row in end] for end in ends(chain))
    share = median(ratio_to_noise(row) for row in ends(chain)[1])
    return (
        min(last) >= case.limit("stagnation_ratio") * max(first)
        and median(last) > case.limit("step_alpha_hill")
        and share > case.limit("step_share_of_noise")
    )


def _p_of_step(chain: Chain) -> float:
    """Chance that the last third lies as far above the first by the errors of alpha_hill and the chain's scatter.

    A model whose last blocks alone learned nearly nothing has a step and no trend: Kendall's test sees 3 blocks against
    3 at best with p = 0.1.
    """
    first, last = ends(chain)
    logs = [[math.log(value(row, "alpha_hill")) for row in end] for end in (first, last)]
    if min(logs[1]) <= max(logs[0]):
        return 1.0
    errors = [value(row, "alpha_hill_sigma") / value(row, "alpha_hill") for row in (*first, *last)]
    scatter = max(median([abs(item - median(end)) for item in end]) for end in logs)
    # The error of a mean of a third, on both sides; errors of one layer are known, not estimated.
    spread = math.hypot(median(errors), 1.4826 * scatter) * math.sqrt(2 / len(first))
    return p_above((median(logs[1]) - median(logs[0])) / spread)


def _deep(case: Case, chain: Chain) -> Chain:
    """The last blocks, as far up as each is near noise; the last third at least."""
    start = len(chain) - len(ends(chain)[1])
    while start > 0 and ratio_to_noise(chain[start - 1]) > case.limit("step_share_of_noise"):
        start -= 1
    return chain[start:]


def ends(chain: Chain) -> tuple[Chain, Chain]:
    """The first and the last third of a chain."""
    third = max(1, len(chain) // 3)
    return chain[:third], chain[-third:]


@rule(
    "TW102",
    title="layer imbalance",
    severity="warning",
    strength="published",
    needs=_ENTROPY,
    causes=("curse of depth: shallow blocks learn, deep ones stay as they were initialised",),
    remedies=(
        "scale residuals by 1/√L",
        "give layers learning rates of their own: higher where the spectrum is still flat",
        "if the deep blocks are useless, train a shallower model or prune them",
    ),
    functions=("scale_residual_branches", "layerwise_learning_rates"),
    references=(_CURSE, "the HT-SR singular-entropy manual"),
)
def layer_imbalance(case: Case) -> Verdict:
    """Singular entropy has moved off its noise value in the first third and not in the last, with a falling trend."""
    chains = case.chains(case.judged(*_ENTROPY))
    if not chains:
        return Cannot(_TOO_SHALLOW.format(least=case.limit("min_blocks")))
    # A rising share of noise's effective rank is a falling entropy.
    corrected = adjusted([rising([share_of_noise_rank(row) for row in chain]).p for chain in chains])
    stuck: list[Chain] = []
    for chain, p in zip(chains, corrected, strict=True):
        shallow, deep = (median(map(share_of_noise_rank, end)) for end in ends(chain))
        moved = shallow <= case.limit("evolved_share") and deep >= case.limit("isotropy_share")
        if moved and p <= case.limit("significance"):
            stuck.append(chain)
    if len(stuck) < case.limit("most_roles") * len(chains):
        return None
    bound = case.limit("isotropy_share")
    layers = sorted((row for chain in stuck for row in ends(chain)[1]), key=share_of_noise_rank, reverse=True)
    evidence = tuple(
        Evidence(row.name, "singular_entropy", value(row, "singular_entropy"), bound,
                 f"{entropy_in_words(row, share_of_noise_rank(row))} ≥ {bound:.0%}")
        for row in layers if share_of_noise_rank(row) >= bound
    )  # fmt: skip
    shallow = median(share_of_noise_rank(row) for chain in stuck for row in ends(chain)[0])
    return RuleHit(
        f"In {len(stuck)} of {count(len(chains), 'role')} the last third of the blocks is still as flat as noise "
        f"(effective rank ≥ {bound:.0%} of noise's), while the first third has moved to {shallow:.0%}.",
        evidence,
        title=f"in {len(stuck)} of {count(len(chains), 'role')} the deep blocks are still as flat as noise",
    )


@rule(
    "TW103",
    title="local stagnation",
    says=("stayed behind the blocks around it", "stayed behind the blocks around them"),
    severity="warning",
    strength="heuristic",
    needs=(*_HILL, *METRICS),
    causes=("optimisation failed locally: vanishing, clipped or spiking gradients in one matrix",),
    remedies=(
        "give the layer a learning rate of its own (TempBalance)",
        "clip gradients per tensor instead of globally (AdaGC)",
        "look at this layer's gradient norms over training",
    ),
    functions=("layerwise_learning_rates", "AdaptiveClip"),
    references=(
        "Wang et al. 2025, AdaGC, arXiv:2502.11034",
        "Zhou et al. 2023, Temperature Balancing, arXiv:2312.00359",
    ),
)
def local_stagnation(case: Case) -> Verdict:
    """alpha_hill of a middle block far above its two neighbours on either side, of the same role and shape.

    The first and last block behave differently in healthy models and are not judged; nor is a matrix that is
    noise, which TW201 reports.
    """
    chains = case.chains(case.judged(*_HILL, *METRICS))
    if not chains:
        return Cannot(_TOO_SHALLOW.format(least=case.limit("min_blocks")))
    tested = [item for chain in chains for item in _against_neighbours(case, chain)]
    corrected = adjusted([p_above(z) for _, _, z in tested])
    least = math.log(case.limit("stagnation_ratio"))
    hit = [
        (row, math.exp(excess), z)
        for (row, excess, z), p in zip(tested, corrected, strict=True)
        if p <= case.limit("significance") and excess >= least
    ]
    if not hit:
        return None
    hit.sort(key=lambda item: item[2], reverse=True)
    evidence = tuple(
        Evidence(row.name, "alpha_hill", value(row, "alpha_hill"), value(row, "alpha_hill") / ratio * math.exp(least),
                 f"{alpha_in_words(row)}: {ratio:.1f} times its neighbours, {z:.1f} sd above them")
        for row, ratio, z in hit
    )  # fmt: skip
    rows = [row for row, *_ in hit]
    return RuleHit(
        f"{count(len(rows), 'matrix')} stayed behind the blocks around: alpha_hill of {named(rows)} is up to "
        f"{max(ratio for _, ratio, _ in hit):.1f} times that of its neighbours.",
        evidence,
        tested=len(tested),
    )


def _against_neighbours(case: Case, chain: Chain) -> list[tuple[LayerRow, float, float]]:
    """Middle rows with the log-ratio of alpha_hill to their neighbours, and how many sd that is."""
    excess = against_neighbours([math.log(value(row, "alpha_hill")) for row in chain])
    # The chain's own scatter counts where it is larger than the standard error.
    _, scatter = robust_scale(excess)
    tested = []
    for row, above in list(zip(chain, excess, strict=True))[1:-1]:
        error = value(row, "alpha_hill_sigma") / value(row, "alpha_hill")
        if not noise_like(case, row):
            tested.append((row, above, above / math.hypot(scatter, error)))
    return tested
