"""Too little or too much training."""

from __future__ import annotations

from statistics import median

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, has, ratio_to_noise, value
from tailwise.judging.diagnosis.finding import Evidence, Severity
from tailwise.judging.diagnosis.medians import adjusted, p_above
from tailwise.judging.diagnosis.noise import (
    METRICS,
    alone_in_noise,
    bound_on_z,
    bulk_z,
    in_no_order,
    learned,
    noise_in_health,
    noise_like,
    order_known,
)
from tailwise.judging.diagnosis.rule import Cannot, RuleHit, Verdict, rule
from tailwise.judging.diagnosis.wording import (
    alpha_in_words,
    count,
    evals,
    fit_in_words,
    named,
    rounding_in_words,
    verb,
)
from tailwise.spectrum.trust import NOISE_SDS, largest_distance

_HTSR = "Martin, Peng & Mahoney 2021, Nature Communications 12:4122"
_MANUAL = "the HT-SR alpha manual"
_FIT = ("alpha", "alpha_sigma", "ks_distance", "num_pl_spikes")
_FEW = "no matrix has {least:.0f} eigenvalues or more"


_UNMOVED = (
    "the layer was frozen, or left out of the optimizer",
    "no gradient reaches it: nothing that the loss sees uses it",
)
_STAYED = (
    "an initialisation so large (std 1.0 for 1/√N) that training left no trace in it",
    "a learning rate too low for this layer",
)
_CHECKS = (
    "check requires_grad, the optimizer's parameter groups, and that a gradient arrives",
    "check the log of loading for missing or re-initialised keys",
)


@rule(
    "TW201",
    title="spectrum of noise",
    says=("looks like noise", "look like noise"),
    severity="warning",
    strength="theory",
    needs=METRICS,
    causes=(
        "one checkpoint cannot tell which: not moved by training, moved too little to show, re-initialised while "
        "loading, shuffled, or healthy as it is",
        "a layer that was added after training (a pooler, a head), or that nothing uses",
    ),
    remedies=(
        "give the base or the first checkpoint, which says whether it was moved at all: `--base AUDIT`",
        *_CHECKS,
    ),
    references=("Marchenko & Pastur 1967", "Martin & Mahoney 2021, JMLR 22:165"),
)
def spectrum_of_noise(case: Case) -> Verdict:
    """Tail, entropy, spikes and bulk of a matrix are all those of Gaussian noise of the same shape.

    Weights whose entries were shuffled look the same, since noise is what is left of them. It is an observation: with
    a base or a history the finding says whether the matrix was moved, and without one it claims no cause. It is only
    noted of small matrices, of dense layers outside the blocks, and where most matrices of the role are noise.
    """
    tested = case.judged(*METRICS)
    if not tested:
        return Cannot(_FEW.format(least=case.limit("min_evals")) + " and a baseline")
    noise = sorted((row for row in tested if noise_like(case, row)), key=lambda row: abs(value(row, "alpha_hill_z")))
    if not noise:
        return None
    if len(noise) >= case.limit("most_layers") * len(tested):
        evidence = tuple(_noise_evidence(case, row) for row in noise)
        message = f"{len(noise)} of the {count(len(tested), 'matrix')} tested are noise: this is how a model looks "
        return RuleHit(
            message + "that was not trained.",
            evidence,
            "error",
            tested=len(tested),
            title=f"{len(noise)} of {count(len(tested), 'matrix')} look like noise, as before training",
        )
    unmoved = [row for row in noise if case.moved(row) is False]
    rest = [row for row in noise if case.moved(row) is not False]
    odd = [row for row in rest if alone_in_noise(case, row, tested)]
    names = {row.name for row in odd}
    plain = [row for row in rest if row.name not in names]
    return (
        *_noise(case, tested, unmoved, says="was never moved by training"),
        *_noise(case, tested, odd, says=""),
        *_noise(case, tested, plain, says="", severity="info"),
    )


def _noise(
    case: Case, tested: list[LayerRow], rows: list[LayerRow], *, says: str, severity: Severity | None = None
) -> tuple[RuleHit, ...]:
    """The finding of these rows, with what is known of them."""
    if not rows:
        return ()
    evidence = tuple(_noise_evidence(case, row) for row in rows)
    message = f"{named(rows)} cannot be told from random matrices of the same shape, and "
    message += f"{len(tested) - len(rows)} of {count(len(tested), 'matrix')} can."
    if says:
        unused = "if it is not used at inference, remove it"
        return (
            RuleHit(f"{message} They are what they were in the base, to the byte.", evidence, severity, _UNMOVED,
                  len(tested), remedies=(*_CHECKS, unused), functions=("reinitialize_dead_layers",),
                  title=f"{len(rows)} of {count(len(tested), 'matrix')} {verb(len(rows), 'was', 'were')} never moved "
                        "and look like noise"),
        )  # fmt: skip
    moved = [row for row in rows if case.moved(row)]
    if moved:
        message += f" {len(moved)} of them differ from the base, so training moved them."
    return (RuleHit(message, evidence, severity, _STAYED if moved else (), len(tested)),)


@rule(
    "TW206",
    title="entries in no order",
    says=("has its entries in no order", "have their entries in no order"),
    severity="warning",
    strength="theory",
    needs=METRICS,
    causes=(
        "the entries were shuffled: a tensor read with another shape or layout than it was written with",
        "re-initialised from a heavy-tailed distribution",
    ),
    remedies=(
        "compare the layer with the file that it was converted from, entry by entry",
        *_CHECKS,
    ),
    references=("Fisher 1925, one-way analysis of variance", "Wilson & Hilferty 1931, PNAS 17:684"),
)
def entries_in_no_order(case: Case) -> Verdict:
    """Rows and columns are as even as those of the same entries in random order, in their means and in their sizes,
    though the spectrum is not that of noise. Training gives rows and columns sizes of their own.

    It is only noted where it is not rare in the model: training that has just begun has moved single directions.
    """
    tested = [row for row in case.judged(*METRICS) if order_known(case, row) is not None]
    if not tested:
        return Cannot("the audit is older than the look at rows and columns; audit again")
    hit = [row for row in tested if in_no_order(case, row) and not noise_like(case, row)]
    if not hit:
        return None
    noise = sum(noise_like(case, row) for row in tested)
    rare = len(hit) + noise <= max(1.0, case.limit("no_order_share") * len(tested))
    hit.sort(key=lambda row: order_known(case, row) or 0.0)
    bound = case.limit("order_z")
    evidence = tuple(
        Evidence(row.name, "order_z", order_known(case, row) or 0.0, bound,
                 f"rows and columns {order_known(case, row):.1f} sd from those of entries in random order, within "
                 f"{bound:g}; {alpha_in_words(row)}{rounding_in_words(row)}")
        for row in hit
    )  # fmt: skip
    return RuleHit(
        f"In {named(hit)} no row and no column differs from the others more than entries in random order do; "
        f"{len(tested) - len(hit) - noise} of {count(len(tested), 'matrix')} have an order.",
        evidence,
        None if rare else "info",
        tested=len(tested),
    )


def _noise_evidence(case: Case, row: LayerRow) -> Evidence:
    entropy, spikes, bound = value(row, "singular_entropy_z"), int(value(row, "num_spikes")), bound_on_z(case, row)
    says = f"{alpha_in_words(row)}, singular_entropy z {entropy:z.1f}, both within ±{bound:.1f}; "
    says += f"bulk z {bulk_z(row):z.1f} ≤ {case.limit('noise_mp_z'):g}; "
    says += f"{count(spikes, 'eigenvalue')} above the edge of noise{noise_in_health(case, row)}{rounding_in_words(row)}"
    return Evidence(row.name, "alpha_hill_z", value(row, "alpha_hill_z"), bound, says)


@rule(
    "TW202",
    title="global under-training",
    says=("in the blocks is light-tailed", "in the blocks are light-tailed"),
    severity="error",
    strength="published",
    needs=(*METRICS, "alpha_hill_baseline"),
    causes=(
        "too little or weak data",
        "the learning rate is too low",
        "training ended too early",
        "a bad initialisation (std 1.0 for 1/√N): what was learned is lost in it",
    ),
    remedies=(
        "raise the learning rate, or train longer",
        "curate the data: code and logic-dense text give heavier tails",
    ),
    references=(_MANUAL, "Gunasekar et al. 2023, Textbooks Are All You Need, arXiv:2306.11644"),
)
def global_under_training(case: Case) -> Verdict:
    """alpha_hill of nearly all matrices in the blocks is above 5 and close to that of noise, yet they are not noise."""
    rows = [row for row in case.judged(*METRICS, "alpha_hill_baseline") if row.block is not None]
    if not rows:
        return Cannot("no matrix inside a block has enough eigenvalues and a baseline")
    light = [row for row in rows if _is_light(case, row)]
    noise = [row for row in rows if noise_like(case, row)]
    most = case.limit("most_layers") * len(rows)
    if len(light) < most or len(noise) >= most:
        return None
    light.sort(key=ratio_to_noise, reverse=True)
    bound = case.limit("light_alpha_hill")
    evidence = tuple(
        Evidence(row.name, "alpha_hill", value(row, "alpha_hill"), bound, f"{alpha_in_words(row)} > {bound:g}")
        for row in light
    )
    return RuleHit(
        f"{len(light)} of the {count(len(rows), 'matrix')} in the blocks are light-tailed: median alpha_hill "
        f"{median(value(row, 'alpha_hill') for row in rows):.1f} against {bound:g}, and "
        f"{median(map(ratio_to_noise, rows)):.0%} of what noise gives.",
        evidence,
        tested=len(rows),
    )


def _is_light(case: Case, row: LayerRow) -> bool:
    near_noise = ratio_to_noise(row) > case.limit("light_share_of_noise")
    return noise_like(case, row) or (near_noise and value(row, "alpha_hill") > case.limit("light_alpha_hill"))


def close_fit(case: Case, row: LayerRow) -> bool:
    """Whether a power law describes the fitted tail, however long."""
    return (
        row.status == "OK"
        and value(row, "ks_distance") <= case.limit("fit_max_distance") * largest_distance(value(row, "num_pl_spikes"))
        and value(row, "num_pl_spikes") >= case.limit("fit_min_tail")
        and better_law(case, row) is None
        # Lighter than noise: equal values with some scatter, whose alpha is the inverse of that scatter.
        and not (has(row, "alpha_hill_z") and value(row, "alpha_hill_z") < -NOISE_SDS)
        and "alpha_hill" not in row.degenerate
    )


def better_law(case: Case, row: LayerRow) -> tuple[str, float, float] | None:
    """The law that describes the tail significantly better than a power law, its ratio and p; None: none, or untested.

    A truncated power law is no rival here: its exponent is one of a power law too, and `alpha_truncated` has it.
    """
    tested = [
        (law, value(row, f"vuong_{law}"), value(row, f"vuong_{law}_p"))
        for law in ("lognormal", "exponential")
        if has(row, f"vuong_{law}") and has(row, f"vuong_{law}_p")
    ]
    better = [item for item in tested if item[1] < 0 and item[2] <= case.limit("rival_p")]
    return min(better, key=lambda item: item[1], default=None)


def well_fitted(case: Case, row: LayerRow) -> bool:
    """Whether a power law describes the fitted tail, and that tail is not the bulk."""
    return close_fit(case, row) and value(row, "num_pl_spikes") <= case.limit("fit_max_share") * evals(row)


@rule(
    "TW203",
    title="under-training",
    says=("has an alpha above 6", "have an alpha above 6"),
    severity="warning",
    strength="published",
    needs=(*_FIT, *METRICS),
    estimator="ks",
    causes=("the layer has learned little: few steps, a low learning rate, or weak gradients",),
    remedies=("train longer, or raise the learning rate of these layers", "check the gradient norms of these layers"),
    functions=("layerwise_learning_rates",),
    references=(_HTSR, "Zhou et al. 2023, Temperature Balancing, arXiv:2312.00359"),
)
def under_training(case: Case) -> Verdict:
    """alpha is significantly above 6 in a good fit (D small, a tail of less than half the spectrum)."""
    rows = learned(case, *_FIT)
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")) + " and differs from noise")
    fitted = [row for row in rows if well_fitted(case, row)]
    bound = case.limit("under_trained_alpha")
    hit = _beyond(case, fitted, bound, above=True)
    if not hit:
        return None
    evidence = tuple(
        Evidence(row.name, "alpha", value(row, "alpha"), bound, _in_words(row, "above", bound, p)) for row, p in hit
    )
    return RuleHit(
        f"alpha is significantly above {bound:g} in {len(hit)} of {count(len(fitted), 'well-fitted matrix')}: "
        f"{named([row for row, _ in hit])}.",
        evidence,
        tested=len(fitted),
    )


@rule(
    "TW204",
    title="over-training",
    says=("has an alpha below 2", "have an alpha below 2"),
    severity="warning",
    strength="published",
    needs=_FIT,
    estimator="ks",
    causes=("memorisation: too many passes over too little data", "too high a learning rate for too long"),
    remedies=("stop earlier", "regularise: weight decay, dropout", "more or more varied data"),
    functions=("layerwise_weight_decay",),
    references=(_HTSR, "Martin & Hinrichs 2025, SETOL, arXiv:2507.17912"),
)
def over_training(case: Case) -> Verdict:
    """alpha is significantly below 2 in a good fit (D small). A few such layers are a note, many a warning.

    Where the fitted tail is more than half of the spectrum, alpha describes the bulk (TW502): such layers are named,
    but only the others decide between note and warning, since healthy small models show them too.
    """
    # No pooling of a role's layers: a mean of 1.95 is significant over many layers and is found in healthy models.
    fitted = [row for row in case.judged(*_FIT) if close_fit(case, row)]
    if not fitted:
        return Cannot("no matrix has a good fit of alpha (a small D, and a tail of a few eigenvalues)")
    bound = case.limit("over_trained_alpha")
    hit = _beyond(case, fitted, bound, above=False)
    if not hit:
        return None
    evidence = tuple(
        Evidence(row.name, "alpha", value(row, "alpha"), bound, _in_words(row, "below", bound, p)) for row, p in hit
    )
    tails = [row for row, _ in hit if well_fitted(case, row)]
    few = len(tails) < max(
        case.limit("over_trained_share") * len(case.judged("alpha")), case.limit("over_trained_least")
    )
    bulk = (
        f" In {len(hit) - len(tails)} of them the fit has most of the spectrum (TW502)."
        if len(tails) < len(hit)
        else ""
    )
    usual = " Healthy models have a few such layers: noted, no reason to act." if few else ""
    return RuleHit(
        f"alpha is significantly below {bound:g} in {len(hit)} of {count(len(fitted), 'well-fitted matrix')}: "
        f"{named([row for row, _ in hit])}.{bulk}{usual}",
        evidence,
        "info" if few else None,
        tested=len(fitted),
    )


def _beyond(case: Case, rows: list[LayerRow], bound: float, *, above: bool) -> list[tuple[LayerRow, float]]:
    """The rows whose alpha is significantly beyond `bound`, with adjusted p, worst first."""
    sign = 1.0 if above else -1.0
    p_values = [p_above(sign * (value(row, "alpha") - bound) / value(row, "alpha_sigma")) for row in rows]
    pairs = [(row, p) for row, p in zip(rows, adjusted(p_values), strict=True) if p <= case.limit("significance")]
    return sorted(pairs, key=lambda pair: sign * value(pair[0], "alpha"), reverse=True)


def _in_words(row: LayerRow, side: str, bound: float, p: float) -> str:
    return f"{fit_in_words(row)}; {side} {bound:g} by more than its error (adjusted p {p:.2g})"


@rule(
    "TW205",
    title="correlation traps",
    says=("keeps spikes when its entries are shuffled", "keep spikes when their entries are shuffled"),
    severity="warning",
    strength="published",
    needs=("num_traps",),
    causes=(
        "single very large weights, as over-fitting and too large learning rates leave them",
        "heavy-tailed entries by design (a sparse or a factorised layer)",
    ),
    remedies=(
        "stop earlier, lower the learning rate, add weight decay or clip gradients",
        "see whether the large weights belong to outlier features that the model needs",
    ),
    functions=("AdaptiveClip", "layerwise_weight_decay"),
    references=("WeightWatcher 0.7", "Martin & Mahoney 2021, JMLR 22:165"),
)
def correlation_traps(case: Case) -> Verdict:
    """Eigenvalues stick out of the noise bulk even after the entries of W were put in random order."""
    rows = case.judged("num_traps")
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")))
    bound = case.limit("traps")
    hit = sorted(
        (row for row in rows if value(row, "num_traps") >= bound), key=lambda r: value(r, "num_traps"), reverse=True
    )
    if not hit:
        return None
    evidence = tuple(
        Evidence(row.name, "num_traps", value(row, "num_traps"), bound,
                 f"{value(row, 'num_traps'):.1f} traps ≥ {bound:g}"
                 + (f"; {alpha_in_words(row)}" if has(row, "alpha_hill") else ""))
        for row in hit
    )  # fmt: skip
    return RuleHit(
        f"{len(hit)} of {count(len(rows), 'matrix')} {verb(len(hit), 'keeps', 'keep')} spikes when the entries are "
        f"shuffled, so single large weights make them: {named(hit)}.",
        evidence,
        tested=len(rows),
    )
