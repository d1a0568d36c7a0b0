"""What a precision study says, in sentences; a sentence is a plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tailwise.audits.precision.prediction import Prediction
from tailwise.audits.precision.study import MEASURES
from tailwise.audits.precision.verdict import DEFAULT_BOUND, Bound, sensitivities, variations
from tailwise.report.precision.precision_summary import FormatSummary, shown
from tailwise.report.precision.precision_view import StudyView

#: Layers named in a sentence before the rest is counted.
_NAMED = 5
#: Formats with a sentence of their own on whether alpha predicts.
_SPOKEN = 6
_TITLES = {"relative_error": "relative error", "alpha_shift": "shift of α", "spectral_distance": "spectral distance",
           "stable_rank_change": "change of the stable rank", "overlap": "loss of overlap"}  # fmt: skip


def title_of(measure: str) -> str:
    """A measure as prose has it."""
    return _TITLES.get(measure, measure.replace("_", " "))


def bound_of(bounds: Sequence[Bound]) -> str:
    """The bounds in words."""
    chosen = bounds or (Bound.parse(DEFAULT_BOUND),)
    return " and ".join(bound.text for bound in chosen)


def counted(names: Sequence[str]) -> str:
    """`a, b and 3 more`."""
    rest = len(names) - _NAMED
    text = ", ".join(names[:_NAMED])
    return text if rest <= 0 else f"{text} and {rest} more"


def _bits(view: StudyView, name: str) -> float | None:
    return next((item.bits for item in view.summaries if item.format == name), None)


def on_verdicts(view: StudyView) -> list[str]:
    """How many layers go to which format, their mean bits, and which need most."""
    verdicts = view.verdicts
    counts = Counter(item.format for item in verdicts)
    alone = "all " if len(counts) == 1 and len(verdicts) > 1 else ""
    parts = [
        f"{alone}{counts[name]} {_verb('need', counts[name])} {name} ({shown(_bits(view, name))} bits)"
        for name in reversed(view.formats)
        if counts[name]
    ]
    if counts[None]:
        parts.append(f"{counts[None]} {_verb('keep', counts[None])} it in none of the formats studied")
    sentences = [
        f"To stay within {bound_of(view.bounds)}, "
        f"{f'of {len(verdicts)} layers ' if not alone else ''}{', '.join(parts)}."
    ]
    size = {layer.name: layer.numel for layer in view.study}
    borne = [(item.bits, size[item.layer]) for item in verdicts if item.bits is not None]
    if borne:
        mean = sum(bits * weights for bits, weights in borne) / sum(weights for _, weights in borne)
        sentences.append(f"That is {mean:.2f} bits per weight on the mean, over the layers with a format.")
    return [*sentences, *_greediest(view)]


def _verb(plural: str, count: int) -> str:
    return f"{plural}s" if count == 1 else plural


def _greediest(view: StudyView) -> list[str]:
    out = [item.layer for item in view.verdicts if item.format is None]
    if out:
        return [f"No format studied is enough for {counted(out)}."]
    most = max(item.bits or 0.0 for item in view.verdicts)
    needy = [item.layer for item in view.verdicts if item.bits == most]
    if len(needy) == len(view.verdicts):
        return []
    return [f"Most bits ({shown(most)}) are needed by {counted(needy)}."]


def on_sensitivity(view: StudyView) -> str:
    """Roles with the layer that suffers most in each."""
    roles: dict[str, list[float]] = {}
    first: dict[str, str] = {}
    for item in sensitivities(view.study):
        roles.setdefault(item.category, []).append(item.value)
        if item.rank == 1 and item.of > 1:
            first[item.category] = item.layer
    spread = {role: max(values) / min(values) for role, values in roles.items() if len(values) > 1 and min(values) > 0}
    if not spread:
        return ""
    widest = max(spread, key=lambda role: spread[role])
    return (
        f"Within a role the relative error differs between layers by a factor of up to {spread[widest]:.2f} "
        f"({widest}, where {first[widest]} suffers most)."
    )


def on_variation(view: StudyView) -> list[str]:
    """Layers whose α moves further than was allowed; nothing where no bound was set on it."""
    spreads = variations(view.study, view.bounds)
    if not spreads or spreads[0].sensitive is None:
        return []
    hit = sorted((item for item in spreads if item.sensitive), key=lambda item: -abs(item.shift))
    limit = min(bound.limit for bound in view.bounds if bound.measure == "alpha_shift")
    if not hit:
        return [f"No layer is sensitive: no format moves an α by more than {limit:g}."]
    worst = ", ".join(f"{item.layer} ({item.shift:+.2g} in {item.format})" for item in hit[:3])
    more = f" and {len(hit) - 3} more" if len(hit) > 3 else ""
    return [f"Sensitive, α moving by more than {limit:g}: {len(hit)} of {len(spreads)} layers: {worst}{more}."]


def on_tails(view: StudyView) -> list[str]:
    """Where alpha left its error bar, and where it did not."""
    moved = [item for item in view.summaries if item.moved]
    still = [item.format for item in view.summaries if not item.moved]
    sentences = []
    if still:
        sentences.append(f"α stays within twice its own standard error in every layer under {', '.join(still)}.")
    if moved:
        parts = ", ".join(f"{item.format} in {item.moved} of {item.layers} layers" for item in reversed(moved))
        sentences.append(f"It moves beyond that under {parts}.")
        worst = max(moved, key=lambda item: item.moved).format
        names = [layer.name for layer in view.study if worst in layer.readings and layer.readings[worst].tail_moved]
        sentences.append(f"Under {worst} these are {counted(names)}.")
    return sentences


def on_reach(view: StudyView) -> list[str]:
    """Overflow, underflow, and readings without an exponent."""
    sentences = []
    for item in view.summaries:
        if item.overflow:
            sentences.append(f"{item.format}: {item.overflow:,} entries beyond its reach, in {_layers(item)}.")
        if item.troubles:
            parts = ", ".join(f"{count} {word}" for word, count in item.troubles.items())
            sentences.append(f"{item.format}: no α in some layers ({parts}).")
    under = [item for item in view.summaries if item.underflow]
    if under:
        parts = ", ".join(f"{item.format} {_share(view, item)}" for item in under)
        sentences.append(f"Weights that became zero: {parts}.")
    exact = [item.format for item in view.summaries if item.lossless]
    if exact:
        sentences.append(f"Half of the layers or more are held exactly by {', '.join(exact)}.")
    return sentences


def _layers(item: FormatSummary) -> str:
    names = item.overflow_layers
    if len(names) == item.layers > 1:
        return f"all {item.layers} layers"
    return f"{len(names)} {'layer' if len(names) == 1 else 'layers'} ({counted(names)})"


def _share(view: StudyView, item: FormatSummary) -> str:
    weights = sum(layer.numel for layer in view.study if item.format in layer.readings)
    return f"{100 * item.underflow / weights:.2g} %" if item.underflow * 1000 > weights else f"{item.underflow:,}"


# ---- does alpha predict it?


def interval(prediction: Prediction | None) -> str:
    """`0.08 [−0.20, 0.35]`."""
    if prediction is None or prediction.rho is None:
        return "–"
    if prediction.low is None or prediction.high is None:
        return _two(prediction.rho)
    return f"{_two(prediction.rho)} [{_two(prediction.low)}, {_two(prediction.high)}]"


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def of(predictions: Sequence[Prediction], predictor: str, measure: str, name: str, scope: str) -> Prediction | None:
    """The one correlation of that kind."""
    key = (predictor, measure, name, scope)
    return next((item for item in predictions if (item.predictor, item.measure, item.format, item.scope) == key), None)


def on_prediction(view: StudyView) -> list[str]:
    """Whether alpha says which layers suffer, format by format and over all."""
    low = [item.format for item in view.lossy if item.bits is not None and item.bits < 9]
    low = sorted(low, key=lambda name: _bits(view, name) or 0.0)[:_SPOKEN]
    spoken = [text for name in low if (text := _sentence(view, name))]
    return [*_overall(view), *spoken, *on_left_out(view)]


def on_prediction_in_short(view: StudyView) -> list[str]:
    """The same, of one format."""
    one = _sentence(view, view.low) if view.low else ""
    return [*([one] if one else []), *_overall(view), *on_left_out(view)]


def on_left_out(view: StudyView) -> list[str]:
    """How many layers have no exponent to correlate."""
    inside = [layer for layer in view.study if layer.block is not None]
    lost = [layer.name for layer in inside if layer.alpha is None]
    if not lost:
        return []
    are = "is" if len(lost) == 1 else "are"
    return [f"Of {len(inside)} layers inside blocks {len(lost)} {are} left out, without an α: {counted(lost)}."]


def _sentence(view: StudyView, name: str) -> str:
    alpha, depth, pooled = (
        of(view.predictions, predictor, "relative_error", name, scope)
        for predictor, scope in (("alpha", "within roles"), ("depth", "within roles"), ("alpha", "pooled"))
    )
    if alpha is None or depth is None or alpha.rho is None:
        return ""
    if alpha.low is None:
        return f"{name}: {alpha.n} layers are too few to tell whether α predicts the relative error."
    # Signs are left to the numbers: which way it goes is what the sources disagree on.
    more = "more" if alpha.rho > 0 else "less"
    says = f"layers with a higher α suffer {more} from" if alpha.seen else "α does not predict the relative error of"
    text = (
        f"Within roles, {says} {name} (ρ = {interval(alpha)}); depth {_beside(alpha, depth)} (ρ = {interval(depth)})."
    )
    if pooled is not None and pooled.seen and not (alpha.seen and _same_sign(alpha, pooled)):
        text += f" Pooled over roles ρ is {interval(pooled)}, which mixes in how roles differ."
    return text


def _beside(alpha: Prediction, depth: Prediction) -> str:
    if not alpha.seen:
        return "does" if depth.seen else "does not either"
    if not depth.seen:
        return "does not say so"
    return "says as much or more" if abs(depth.rho or 0.0) >= abs(alpha.rho or 0.0) else "says less"


def _same_sign(one: Prediction, other: Prediction) -> bool:
    return (one.rho or 0.0) * (other.rho or 0.0) > 0


def _overall(view: StudyView) -> list[str]:
    sentences = []
    for predictor, name in (("alpha", "α"), ("depth", "depth, the control,")):
        tried = [item for item in view.predictions
                 if item.predictor == predictor and item.scope == "within roles" and item.low is not None]  # fmt: skip
        if not tried:
            continue
        seen = [item for item in tried if item.seen]
        up = sum((item.rho or 0.0) > 0 for item in seen)
        parts = f" ({up} positive, {len(seen) - up} negative)" if seen else ""
        sentences.append(f"Within roles, {name} has {len(seen)} of {len(tried)} rank correlations with a distortion "
                         f"whose 95 % interval excludes 0{parts}.")  # fmt: skip
    if sentences:
        sentences.append("With no relation at all about 1 in 20 would; formats are not independent of each other.")
        return sentences
    return ["There are too few layers inside blocks to correlate anything."]


def definitions() -> list[tuple[str, str]]:
    """Every measure, and the words around it."""
    return [
        ("alpha", "tail exponent of the largest k eigenvalues by Hill's estimator: 1 + k / Σ ln(λ / λ_min)"),
        ("alpha_sigma", "its standard error, (α − 1)/√k: what α is uncertain by, whatever the format"),
        ("alpha_shift_se", "standard error of the change of α, of both tails together: they are of one layer"),
        ("tail moved", "|change of α| above 2 standard errors of α: more than noise"),
        ("bits_per_weight", "bits that a stored weight takes, scales and zero points counted"),
        *MEASURES.items(),
        (
            "sensitivity",
            "geometric mean of the relative error over the formats that change the layer; ranked in a role",
        ),
        ("ρ", "Spearman's rank correlation; within roles, of ranks taken in each role by itself"),
    ]
