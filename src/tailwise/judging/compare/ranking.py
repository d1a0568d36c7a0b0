"""`rank()`: many models of one family in the order of one number, and that number against their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tailwise.audits.audit import Audit, AuditLike
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.shown import Brief, Shown
from tailwise.core.synonyms import known_name
from tailwise.core.validation import checked
from tailwise.judging.compare.compare_audits import TESTED
from tailwise.judging.compare.correlation import MIN_MODELS, Correlation, correlation
from tailwise.judging.compare.stability import SURE, Stability, stability, values_by_layer
from tailwise.judging.compare.summary import SUMMARIES, model_numbers

_MARTIN = (
    "Martin, Peng & Mahoney 2021 (Nature Communications 12:4122) found smaller values together with better test "
    "accuracy among models of one architecture family; across families it does not hold, and other sources disagree"
)
#: Numbers for which publications state a direction, all of them the same.
_SMALLER_IS_BETTER = {
    "mean_alpha",
    "mean_alpha_weighted",
    "mean_log_alpha_norm",
    "mean_log_norm",
    "mean_log_spectral_norm",
}
_HELP = "WeightWatcher's help page"
#: Number → what is said of it; of those in `_LARGEST_FIRST` more is better, of the others less.
_SAID = {
    "mean_alpha_2_6": f"{_HELP} reads a smaller mean as better trained, and as much in how many layers it stands on "
                      "(layers_2_6)",
    "share_2_4": f"{_HELP} calls layers within 2 to 4 well trained, so the larger share is the better",
    "layers_2_6": f"{_HELP} trusts a mean of alpha that stands on more layers",
    "mean_effective_rank": f"{_HELP} prefers the smaller, if accuracy holds: fewer directions do the same; against "
                           "an untrained model of the same shapes it is to be smaller in any case",
    "mean_num_traps": f"{_HELP} and rule TW205: fewer is better",
    "mean_one_minus_rd": f"sources disagree: {_HELP} calls a high 1 − RD good, WeightWatcher's README a high RD; rank "
                         "nothing by it alone",
}  # fmt: skip
_LARGEST_FIRST = frozenset({"share_2_4", "layers_2_6"})


@dataclass(frozen=True, repr=False)
class ModelNumbers(Brief):
    """What a ranking needs of an audit: a few numbers in place of its rows and spectra."""

    model: str
    values: Mapping[str, float | None]  # of SUMMARIES
    recipe: Mapping[str, Any]
    model_type: str | None = None  # None: the model does not say
    source: str | None = None  # the audit's own file, which tells audits of one model apart


def numbers_of(audit: Audit, min_evals: int | None = None, source: str | None = None) -> ModelNumbers:
    """The numbers of one audit; `min_evals` as for `rank`."""
    facts = audit.provenance
    family = str(facts.config.get("model_type")) if facts.config else None
    return ModelNumbers(audit.model, model_numbers(audit, min_evals), facts.recipe, family, source)


@dataclass(frozen=True, repr=False)
class RankedModel(Brief):
    """One model of a ranking."""

    name: str  # the shortest ending of its path that no other model has
    model: str
    values: Mapping[str, float | None]  # of SUMMARIES
    score: float | None = None


@dataclass(frozen=True, repr=False)
class Ranking(Brief):
    """Models in order, the best by what is said of the number first; models without a value last."""

    by: str
    direction: str  # what publications say of small values, or that they say nothing
    models: tuple[RankedModel, ...]
    correlations: tuple[Correlation, ...] = ()  # with the scores, where there are any
    notes: tuple[str, ...] = ()
    stability: Stability | None = None  # where the audits themselves were given

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def __repr__(self) -> str:
        order = ", ".join(model.name for model in self.models[:3])
        more = f", … {len(self.models) - 3} more" if len(self.models) > 3 else ""
        return f"Ranking(by {self.by}, {self.direction.partition(':')[0]}: {order}{more})"

    def _shown(self) -> Shown:
        scored = any(model.score is not None for model in self.models)
        rows = [
            (place, one.name, one.values.get(self.by), *((one.score,) if scored else ()))
            for place, one in enumerate(self.models, 1)
        ]
        heads = ("", "model", self.by, *(("score",) if scored else ()))
        return Shown(f"by {self.by}, {self.direction}", heads, rows, "`to_json()`", self.notes)


@checked
def rank(
    audits: Sequence[AuditLike] | Mapping[str, AuditLike],
    *,
    by: str = "alpha_weighted",
    scores: Mapping[str, float | None] | None = None,
    min_evals: int | None = None,
    names: Sequence[str] | None = None,
) -> Ranking:
    """Order models by one number.

    Parameters
    ----------
    audits
        Two or more, or their paths, best of one architecture family and one recipe; or by the names that they are to
        have.
    by
        A key of `SUMMARIES`, with or without `mean_`.
    scores
        Model → a score of the user's own, e.g. test accuracy; None leaves a model out. Names may be the models' paths
        or any ending of them. With scores, every number gets Kendall's τ and Spearman's ρ, with a 95 % interval from
        five models on.
    min_evals
        Fewest eigenvalues of a matrix whose fit may be trusted, in place of 50.
    names
        What tells audits of one path apart, as their own files; they are numbered where it is not given.

    >>> import numpy as np, tailwise as tw
    >>> noise, names = np.random.default_rng(0), ("small", "large")
    >>> audits = [tw.audit({"up.weight": size * noise.standard_normal((96, 64))}, use_cache=False) for size in (1, 10)]
    >>> [model.name for model in tw.rank(audits, by="log_norm", names=names).models]
    ['small', 'large']
    """
    if isinstance(audits, Mapping):
        names, audits = names or [str(name) for name in audits], list(audits.values())
    given = [Audit.of(one) for one in audits]
    if names is not None and len(names) != len(given):
        raise UsageError(f"{len(names)} names for {len(given)} audits", fix="give one name for each audit")
    sources: Sequence[str | None] = names or [None] * len(given)
    numbers = [numbers_of(audit, min_evals, source) for audit, source in zip(given, sources, strict=True)]
    return with_stability(rank_numbers(numbers, by=by, scores=scores), numbers, given, min_evals)


def with_stability(
    ranking: Ranking, given: Sequence[ModelNumbers], audits: Sequence[Audit], min_evals: int | None = None
) -> Ranking:
    """The same, with how stable its order is, where it is by a mean over layers and `audits` are those of `given`."""
    key = ranking.by
    if not _is_mean(key) or len(audits) < len(given):
        return ranking
    by_name = dict(zip(_names(given), audits, strict=True))
    ordered = [by_name[model.name] for model in ranking.models]
    layers = [values_by_layer(audit, key, min_evals) for audit in ordered]
    others = [name for name in SUMMARIES if _is_mean(name) and name != key and not name.endswith("_all")]
    numbers = {name: [model.values[name] for model in ranking.models] for name in others}
    found = stability([model.name for model in ranking.models], layers, numbers)
    if found is None:
        return ranking
    return replace(ranking, stability=found, notes=(*ranking.notes, *_in_words(ranking, found)))


def _is_mean(key: str) -> bool:
    return key.startswith("mean_") and key not in ("mean_alpha_2_6",)


def _in_words(ranking: Ranking, found: Stability) -> list[str]:
    """How far the order can be believed; nothing is crowned that other layers, roles or numbers would not crown."""
    best = max(found.first, key=lambda name: found.first[name])
    said = [f"resampling layers, {best} comes first in {found.first[best]:.0%} of the draws"]
    loose = [
        f"{one.name} / {other.name} {share:.0%}"
        for one, other, share in zip(ranking.models, ranking.models[1:], found.neighbours, strict=False) if share < SURE
    ]  # fmt: skip
    if loose:
        more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
        said.append(f"neighbours whose order is open (share of draws in this order): {', '.join(loose[:5])}{more}")
    against = [f"{role} {tau:+.2f}" for role, tau in found.roles.items() if tau is not None and tau < 0.5]
    if against:
        said.append(f"roles that order the models otherwise (Kendall τ with this order): {', '.join(against[:8])}")
    numbers = [f"{name.removeprefix('mean_')} {tau:+.2f}" for name, tau in found.metrics.items() if tau is not None]
    if numbers:
        said.append(f"the order by other numbers (τ with this one): {', '.join(numbers)}; no number is the right one")
    return said


def rank_numbers(
    given: Sequence[ModelNumbers], *, by: str = "alpha_weighted", scores: Mapping[str, float | None] | None = None
) -> Ranking:
    """As `rank`, from the numbers alone: of a hundred thousand models the audits do not fit into memory."""
    if len(given) < 2:
        raise UsageError("a ranking takes two models or more", fix="give more audits")
    key = _summary_name(by)
    names = _names(given)
    matched, notes = _match_scores(scores, names, _paths(given))
    models = [
        RankedModel(name, one.model, one.values, score) for name, one, score in zip(names, given, matched, strict=True)
    ]
    ordered = sorted(models, key=lambda model: _order(model.values[key], key))
    found = _correlations(ordered) if scores is not None else ()
    known = sum(model.score is not None for model in models)
    if scores is not None and known < MIN_MODELS:
        notes.append(f"{known} scored models are too few for an interval; even perfect order of four has p = 8 %")
    notes = [*_empty(key, models), *_broken(models), *_left_out(key, models), *notes]
    return Ranking(key, _direction(key), tuple(ordered), found, (*_recipe_notes(given), *notes))


def _empty(key: str, models: Sequence[RankedModel]) -> list[str]:
    """Models that stand last for want of the number."""
    lost = [model.name for model in models if model.values[key] is None]
    if not lost:
        return []
    who = "no model has one" if len(lost) == len(models) else f"not known of {', '.join(lost[:8])}"
    more = f" and {len(lost) - 8} more models" if 8 < len(lost) < len(models) else ""
    return [f"{key}: {who}{more}, and where it is not known there is no order"]


def _broken(models: Sequence[RankedModel]) -> list[str]:
    """Models that look healthy for want of numbers."""
    said = [f"{model.name} {lost:.0f}" for model in models if (lost := model.values.get("unmeasured"))]
    more = f" and {len(said) - 8} more models" if len(said) > 8 else ""
    return [f"matrices that could not be measured and are in no number: {', '.join(said[:8])}{more}"] if said else []


#: Numbers that are means over trusted fits of alpha.
_OF_FITS = ("mean_alpha", "mean_alpha_2_6", "share_2_4", "mean_alpha_weighted", "mean_log_alpha_norm")


def _left_out(key: str, models: Sequence[RankedModel]) -> list[str]:
    """How many matrices a mean leaves out, model by model."""
    if key not in _OF_FITS:
        return []
    counts = [(model.name, model.values.get("trusted_fits"), model.values["layers"]) for model in models]
    lost = [(name, layers - fits, layers) for name, fits, layers in counts if fits is not None and layers is not None]
    said = [f"{name} {gone:.0f} of {layers:.0f}" for name, gone, layers in lost if gone]
    more = f" and {len(said) - 8} more models" if len(said) > 8 else ""
    if not said:
        return []
    named = ", ".join(said[:8]) + more
    return [f"matrices left out, whose fit of alpha is not trusted: {named}; --min-evals takes smaller ones"]


def _summary_name(by: str) -> str:
    known = known_name(by, [name.removeprefix("mean_") for name in SUMMARIES])
    for name in (by, known, f"mean_{known}"):
        if name in SUMMARIES:
            return name
    raise unknown_name("number to rank by", by, [name.removeprefix("mean_") for name in SUMMARIES])


def _order(value: float | None, key: str) -> tuple[bool, float]:
    return value is None, -(value or 0.0) if key in _LARGEST_FIRST else value or 0.0


def _direction(key: str) -> str:
    first = "largest first" if key in _LARGEST_FIRST else "smallest first"
    if key in _SMALLER_IS_BETTER:
        return f"{first}: {_MARTIN}"
    return f"{first}: {_SAID[key]}" if key in _SAID else f"{first}; no source says which is better"


def _paths(given: Sequence[ModelNumbers]) -> list[str]:
    """The path of each model; of those that have one path, the audit's own file, or a number beside it."""
    counts = Counter(one.model for one in given)
    files = [one.source.removesuffix(".audit") if one.source else one.model for one in given]
    paths = [file if counts[one.model] > 1 else one.model for one, file in zip(given, files, strict=True)]
    seen: Counter[str] = Counter()
    for index, path in enumerate(paths):
        seen[path] += 1
        if seen[path] > 1:
            paths[index] = f"{path} ({seen[path]})"
    return paths


def _names(given: Sequence[ModelNumbers]) -> list[str]:
    return short_names(_paths(given))


def short_names(models: Sequence[str]) -> list[str]:
    """The shortest ending of each path that tells the models apart."""
    paths = [tuple(part for part in model.rstrip("/").split("/") if part) or (model,) for model in models]
    endings = Counter(path[-depth:] for path in paths for depth in range(1, len(path) + 1))
    names = []
    for path in paths:
        depth = 1
        while depth < len(path) and endings[path[-depth:]] > 1:
            depth += 1
        names.append("/".join(path[-depth:]))
    return names


def _match_scores(
    scores: Mapping[str, float | None] | None, names: list[str], paths: list[str]
) -> tuple[list[float | None], list[str]]:
    if scores is None:
        return [None] * len(paths), []
    used: set[str] = set()
    found = []
    for name, path in zip(names, paths, strict=True):
        keys = [key for key in scores if _is_named(path, key) or _is_named(name, key)]
        if len(keys) != 1:
            raise _no_score(name, keys, scores)
        used.add(keys[0])
        found.append(scores[keys[0]])
    idle = [key for key in scores if key not in used]
    return found, [f"scores without a model: {', '.join(idle[:5])}{' …' if len(idle) > 5 else ''}"] if idle else []


def _is_named(path: str, key: str) -> bool:
    """Whether a score's name is a model's, or an ending of it; an audit's file may keep its `.audit`."""
    return any(path.rstrip("/") == one or path.rstrip("/").endswith("/" + one.lstrip("/"))
               for one in (key.rstrip("/"), key.removesuffix(".audit")) if one)  # fmt: skip


def _no_score(name: str, keys: list[str], scores: Mapping[str, float | None]) -> UsageError:
    if keys:
        return UsageError(f"{name} has several scores: {', '.join(keys)}", fix="keep one of them")
    error = unknown_name("score for the model", name, scores)
    leave_out = "an empty score leaves a model out"
    return UsageError(f"there is no score for {name!r}", fix=f"{error.fix}; {leave_out}")


def _correlations(models: Sequence[RankedModel]) -> tuple[Correlation, ...]:
    found = []
    for name in SUMMARIES:
        both = [(model.values[name], model.score) for model in models]
        known = [(value, score) for value, score in both if value is not None and score is not None]
        values, scores = [value for value, _ in known], [score for _, score in known]
        if len(set(values)) > 1:
            found += [correlation(name, kind, values, scores) for kind in ("kendall", "spearman")]
    return tuple(found)


def _recipe_notes(given: Sequence[ModelNumbers]) -> tuple[str, ...]:
    notes = []
    for metric, keys in TESTED.items():
        kinds = {tuple(map(str, map(one.recipe.get, keys))) for one in given}
        if len(kinds) > 1:
            notes.append(f"{metric} is fitted differently among these audits, so it does not rank them")
    families = {one.model_type for one in given if one.model_type is not None}
    if len(families) > 1:
        notes.append(f"these are several architectures ({', '.join(sorted(families))}): the order means little")
    return tuple(notes)
