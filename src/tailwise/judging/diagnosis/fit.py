"""Where the fitted alpha allows no verdict, which is not the same as a bad layer."""

from __future__ import annotations

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, value
from tailwise.judging.diagnosis.finding import Evidence
from tailwise.judging.diagnosis.rule import Cannot, RuleHit, Verdict, rule
from tailwise.judging.diagnosis.training import better_law
from tailwise.judging.diagnosis.wording import count, evals, fit_in_words, named
from tailwise.spectrum.trust import largest_distance

_FEW = "no matrix has {least:.0f} eigenvalues or more"
_CLAUSET = "Clauset, Shalizi & Newman 2009, SIAM Review 51:661"


@rule(
    "TW501",
    title="heavy fit error",
    says=("has a tail that is no power law", "have a tail that is no power law"),
    severity="info",
    strength="published",
    needs=("alpha", "ks_distance", "num_pl_spikes"),
    causes=("the tail is no power law: noise, a few spikes, or two regimes",),
    remedies=(
        "give no verdict on this layer's alpha; read alpha_hill with its baseline, and the entropies",
        "try --estimator ks_clip, or `--metrics alpha_truncated` for an exponential cut-off",
        "audit with --rivals: a likelihood-ratio test of lognormal, exponential and truncated tails",
    ),
    references=(_CLAUSET, "Vuong 1989, Econometrica 57:307", "WeightWatcher 0.7"),
)
def heavy_fit_error(case: Case) -> Verdict:
    """D, the distance of the tail from the fitted power law, is larger than 95 % of true power laws with a tail of that
    size have it, or (with --rivals) a lognormal or an exponential is significantly likelier: no verdict is read off
    alpha.
    """
    rows = case.judged("alpha", "ks_distance", "num_pl_spikes")
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")))
    bounds = {row.name: case.limit("fit_max_distance") * largest_distance(value(row, "num_pl_spikes")) for row in rows}
    rival = {row.name: better_law(case, row) for row in rows}
    hit = sorted(
        (row for row in rows if value(row, "ks_distance") > bounds[row.name] or rival[row.name]),
        key=lambda r: value(r, "ks_distance"),
        reverse=True,
    )
    if not hit:
        return None
    evidence = tuple(
        Evidence(
            row.name,
            "ks_distance",
            value(row, "ks_distance"),
            bounds[row.name],
            fit_in_words(row) + _poor_in_words(row, bounds[row.name]) + _rival_in_words(rival[row.name]),
        )
        for row in hit
    )  # fmt: skip
    return RuleHit(
        f"No verdict on alpha in {len(hit)} of {count(len(rows), 'matrix')}: a power law does not describe the tail of "
        f"{named(hit)}.",
        evidence,
        tested=len(rows),
    )


def _poor_in_words(row: LayerRow, bound: float) -> str:
    poor = value(row, "ks_distance") > bound
    return f"; D > {bound:.3f}, of {value(row, 'num_pl_spikes'):.0f} values" if poor else ""


def _rival_in_words(better: tuple[str, float, float] | None) -> str:
    if better is None:
        return ""
    law, ratio, p = better
    return f"; {law} likelier (Vuong {ratio:.1f} sd, p {p:.2g})"


@rule(
    "TW502",
    title="the tail is the bulk",
    says=("is fitted over its bulk", "are fitted over their bulk"),
    severity="info",
    strength="heuristic",
    needs=("alpha", "num_pl_spikes"),
    estimator="ks",
    causes=("the smallest D lies where most of the spectrum is taken for the tail",),
    remedies=("read alpha_hill beside it, which uses the largest 10 % only",),
    references=(_CLAUSET, "this project's limits page"),
)
def tail_is_bulk(case: Case) -> Verdict:
    """The fit takes in more than half of the eigenvalues, so alpha describes the bulk. TW203 and TW402 leave it out."""
    rows = case.judged("alpha", "num_pl_spikes")
    if not rows:
        return Cannot(_FEW.format(least=case.limit("min_evals")))
    bound = case.limit("fit_max_share")
    shares = {row.name: value(row, "num_pl_spikes") / evals(row) for row in rows}
    hit = sorted((row for row in rows if shares[row.name] > bound), key=lambda row: shares[row.name], reverse=True)
    if not hit:
        return None
    evidence = tuple(
        Evidence(row.name, "num_pl_spikes", value(row, "num_pl_spikes"), bound * evals(row),
                 f"{fit_in_words(row)}: {shares[row.name]:.1%} > {bound:.0%}")
        for row in hit
    )  # fmt: skip
    return RuleHit(
        f"alpha describes the bulk rather than a tail in {len(hit)} of {count(len(rows), 'matrix')}: the fit has more "
        f"than {bound:.0%} of the spectrum of {named(hit)}.",
        evidence,
        tested=len(rows),
    )
