"""The size of the weights, and the balance of tail and volume."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, has, value
from tailwise.judging.diagnosis.finding import Evidence
from tailwise.judging.diagnosis.medians import robust_scale
from tailwise.judging.diagnosis.rule import Cannot, RuleHit, Verdict, rule
from tailwise.judging.diagnosis.training import well_fitted
from tailwise.judging.diagnosis.wording import alpha_in_words, count, evals, named

#: Steps of log10 λ_max that every chain is allowed, however smooth it is.
_FLOOR = 0.05
#: Scatter of log10 λ_max among matrices of a role that never counts.
_PEERS_FLOOR = 0.15
#: Roles whose scale is not compared with that of the others.
_OWN_SCALE = ("embed", "pos_embed", "codebook")
_MANY = 64  # matrices of a group whose middle no single one moves
_ERG = ("detX_delta", "detX_num", "alpha", "ks_distance", "num_pl_spikes")


@rule(
    "TW401",
    title="scale jump",
    says=("breaks in scale with the blocks beside it", "break in scale with the blocks beside them"),
    severity="warning",
    strength="heuristic",
    needs=("log_spectral_norm",),
    causes=(
        "the block was initialised at another scale, or multiplied by a constant",
        "a learning rate too high for this layer: its weights blew up",
        "a merge or an edit of the weights",
    ),
    remedies=(
        "compare the initialisation of the blocks",
        "lower the learning rate or clip gradients where the norm jumps",
        "if a norm layer or a quantization scale takes up the factor, mute this rule for the layer",
    ),
    functions=("AdaptiveClip",),
    references=("the HT-SR scale manual", "Yang et al. 2022, Tensor Programs V (μP), arXiv:2203.03466"),
)
def scale_jump(case: Case) -> Verdict:
    """log₁₀ λ_max jumps from one block to the next of the same role and shape, against the steps of that chain. The
    first and the last block are held to a larger step, as is what is far above all matrices of its role and shape.
    Entries far larger than those of the role, or of the model, relative to 1/√inputs, count too."""
    rows = case.judged("log_spectral_norm")
    chains, groups = case.chains(rows), case.peers(rows)
    if not chains and not groups and len(rows) < case.limit("scale_model_least"):
        return Cannot(f"no role has {case.limit('min_blocks'):.0f} blocks of one shape with enough eigenvalues")
    found = [item for group in groups for item in _above_peers(case, group)]
    found += _above_model(case, rows)
    jumps = {row.name: (row, above, says) for row, above, says in found}
    for chain in chains:
        for row, step, says in _jumps(case, chain):
            if row.name not in jumps or abs(step) > abs(jumps[row.name][1]):
                jumps[row.name] = (row, step, says)
    if not jumps:
        return None
    hit = sorted(jumps.values(), key=lambda item: abs(item[1]), reverse=True)
    bound = case.limit("scale_jump")
    evidence = tuple(
        Evidence(row.name, "log_spectral_norm", value(row, "log_spectral_norm"), bound, says) for row, _, says in hit
    )
    largest = 10 ** abs(hit[0][1])
    return RuleHit(
        f"The scale of {named([row for row, *_ in hit])} breaks with the blocks beside, or with its role: λ_max "
        f"changes up to {largest:.3g}-fold.",
        evidence,
        tested=len(rows),
    )


def _above_peers(case: Case, group: list[LayerRow]) -> list[tuple[LayerRow, float, str]]:
    """Matrices far above the others of their role and shape; far below lies what decayed because nothing uses it."""
    found = []
    norms = [value(row, "log_spectral_norm") for row in group]
    for row, (middle, scatter) in zip(group, _beside(norms), strict=True):
        above = value(row, "log_spectral_norm") - middle
        if above >= max(case.limit("scale_jump"), case.limit("scale_jump_end")) and above / scatter >= case.limit(
            "scale_jump_z"
        ):
            says = f"log10 λ_max {above + middle:.2f}, {middle:.2f} at the median of the other {len(group) - 1} of its"
            found.append((row, above, f"{says} role and shape: {above / scatter:.0f} robust sd"))
    return found


def _above_model(case: Case, rows: list[LayerRow]) -> list[tuple[LayerRow, float, str]]:
    """Matrices whose entries, relative to 1/√inputs, are far larger than those of their role, or of the model where the
    role has too few.

    Embeddings, whose inputs are no sum, have a scale of their own; what one direction made large is TW301's.
    """
    known = [row for row in rows if row.role not in _OWN_SCALE and row.kind != "lora" and has(row, "log_norm")]
    roles: dict[str, list[LayerRow]] = {}
    for row in known:
        roles.setdefault(row.role, []).append(row)
    large = {role for role, group in roles.items() if len(group) > case.limit("min_peers")}
    found = [item for role in large for item in _above(case, roles[role], roles[role])]
    rest = [row for row in known if row.role not in large]
    return found + (_above(case, rest, known) if len(known) >= case.limit("scale_model_least") else [])


def _above(case: Case, rows: list[LayerRow], among: list[LayerRow]) -> list[tuple[LayerRow, float, str]]:
    """Those of `rows` that are far above the others of `among`."""
    found, wanted = [], {row.name for row in rows}
    gains = [_gain(row) for row in among]
    where = "its role" if len(rows) == len(among) else "the model"
    for row, gain, (middle, scatter) in zip(among, gains, _beside(gains), strict=True):
        above = gain - middle
        if row.name in wanted and above >= case.limit("scale_model") and above / scatter >= case.limit("scale_model_z"):
            says = f"entries of {10**gain:.3g}/√inputs at the root mean square, {10**middle:.3g}/√inputs at the median "
            says += f"of the other {len(among) - 1} of {where}: {above / scatter:.1f} robust sd"
            found.append((row, 2 * above, says))
    return found


def _beside(values: list[float]) -> list[tuple[float, float]]:
    """For each value the middle and the scatter of the others; of many, of all, which one value does not move."""
    if len(values) > _MANY:
        return [robust_scale(values, _PEERS_FLOOR)] * len(values)
    return [robust_scale([*values[:index], *values[index + 1 :]], _PEERS_FLOOR) for index in range(len(values))]


def _gain(row: LayerRow) -> float:
    """log10 of the entries' root mean square times √inputs: ‖W‖ over the root of the number of outputs."""
    outputs = row.cols if row.input_axis == 0 else row.rows
    return 0.5 * (value(row, "log_norm") - math.log10(outputs * row.slices))


def _jumps(case: Case, chain: list[LayerRow]) -> list[tuple[LayerRow, float, str]]:
    """For each jump, the side that is farther from the middle of the chain."""
    norms = [value(row, "log_spectral_norm") for row in chain]
    steps = [after - before for before, after in pairwise(norms)]
    centre, scatter = robust_scale(steps, _FLOOR)
    middle, found = median(norms), []
    for index, step in enumerate(steps):
        score = abs(step - centre) / scatter
        if abs(step) >= case.limit("scale_jump") and score >= case.limit("scale_jump_z"):
            odd = index if abs(norms[index] - middle) > abs(norms[index + 1] - middle) else index + 1
            if odd in (0, len(norms) - 1) and abs(step) < case.limit("scale_jump_end"):
                continue
            other = index + 1 if odd == index else index
            says = (
                f"log10 λ_max {norms[odd]:.2f}, {norms[other]:.2f} in block {chain[other].block} beside it: a step of "
                f"{abs(step):.2f} ≥ {case.limit('scale_jump'):g}, {score:.0f} robust sd of this role's steps"
            )
            found.append((chain[odd], step, says))
    return found


@rule(
    "TW402",
    title="criticality",
    says=("is off its volume-preserving tail", "are off their volume-preserving tail"),
    severity="info",
    strength="theory",
    needs=_ERG,
    estimator="ks",
    causes=(
        "the fitted tail is shorter (negative) or longer (positive) than the one whose volume is conserved",
        "the layer has not settled, or the power law does not describe it",
    ),
    remedies=("read alpha of this layer with reserve", "compare with later checkpoints: balance comes with training"),
    references=("Martin & Hinrichs 2025, SETOL, arXiv:2507.17912",),
)
def criticality(case: Case) -> Verdict:
    """detX_delta is far from 0 in a good fit: the tail is not the one of the trace-log (ERG) condition."""
    fitted = [row for row in case.judged(*_ERG) if well_fitted(case, row)]
    if not fitted:
        return Cannot("no matrix has a good fit of alpha (D small, and a tail of less than half the spectrum)")
    bound = case.limit("erg_share")
    hit = [row for row in fitted if abs(value(row, "detX_delta")) > bound * evals(row)]
    if not hit:
        return None
    hit.sort(key=lambda row: abs(value(row, "detX_delta")) / evals(row), reverse=True)
    evidence = tuple(
        Evidence(row.name, "detX_delta", value(row, "detX_delta"), bound * evals(row),
                 f"detX_delta {value(row, 'detX_delta'):+.0f} of {evals(row)} eigenvalues, beyond "
                 f"±{bound * evals(row):.0f}; {alpha_in_words(row, 'alpha')}")
        for row in hit
    )  # fmt: skip
    return RuleHit(
        f"In {len(hit)} of {count(len(fitted), 'well-fitted matrix')} the fitted tail and the volume-preserving tail "
        f"differ by more than {bound:.0%} of the spectrum: {named(hit)}.",
        evidence,
        tested=len(fitted),
    )
