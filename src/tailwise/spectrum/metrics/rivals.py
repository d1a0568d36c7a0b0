"""Whether another law describes the fitted tail better than a power law does."""

from __future__ import annotations

from collections.abc import Mapping

from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.other_laws import Law, Rival

_SOURCE = "Vuong 1989, Econometrica 57:307; Clauset, Shalizi & Newman 2009, §5"
_RATIO, _P = "Σ ln(p_PL/p)/(s·√k) over the k values of the tail, s its sd", "erfc(|ratio|/√2)"
Rivals = Mapping[Law, Rival] | None


@metric(_RATIO, source=_SOURCE, unit="sd")
def vuong_lognormal(rivals: Rivals) -> float:
    """Power law against a lognormal: above 0 the power law is the likelier, below 0 the lognormal."""
    return _ratio(rivals, "lognormal")


@metric(_P, source=_SOURCE)
def vuong_lognormal_p(rivals: Rivals) -> float:
    """Chance of such a ratio where power law and lognormal describe the tail equally well."""
    return _p(rivals, "lognormal")


@metric(_RATIO, source=_SOURCE, unit="sd")
def vuong_exponential(rivals: Rivals) -> float:
    """Power law against an exponential: above 0 the power law is the likelier, below 0 the exponential."""
    return _ratio(rivals, "exponential")


@metric(_P, source=_SOURCE)
def vuong_exponential_p(rivals: Rivals) -> float:
    """Chance of such a ratio where power law and exponential describe the tail equally well."""
    return _p(rivals, "exponential")


@metric("−√(2·Σ ln(p_TPL/p_PL))", source=_SOURCE, unit="sd")
def vuong_truncated(rivals: Rivals) -> float:
    """Power law against the truncated one, which holds it: never above 0, far below it the truncated one fits."""
    return _ratio(rivals, "truncated")


@metric("chance that χ² of one degree exceeds ratio²", source=_SOURCE)
def vuong_truncated_p(rivals: Rivals) -> float:
    """Chance of such a ratio where the tail is a pure power law."""
    return _p(rivals, "truncated")


def _ratio(rivals: Rivals, law: Law) -> float:
    return float("nan") if rivals is None else rivals[law].ratio


def _p(rivals: Rivals, law: Law) -> float:
    return float("nan") if rivals is None else rivals[law].p
