"""`compare()`: two audits to a `Comparison`. Stands on the audits alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit, AuditLike
from tailwise.audits.of_adapter import adapter_mode
from tailwise.audits.rows import Layer
from tailwise.audits.trusted import OF_FIT, doubt_of_fit, estimator_of, is_of_bulk, value_of
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.synonyms import known_name
from tailwise.core.validation import checked
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta, RoleChange
from tailwise.judging.compare.conclusion import of_change_alone
from tailwise.judging.compare.matching import Matching, Pair, match, shape_text
from tailwise.judging.compare.significance import contrasts, discoveries, rejected, signed_rank_p, z_scores
from tailwise.judging.compare.summary import BROKEN, model_numbers

#: Metrics with a standard error, and the parts of the recipe that must agree for a difference to mean anything.
TESTED: Mapping[str, tuple[str, ...]] = {
    "alpha": ("estimator", "k_frac", "max_fingers", "conv", "farms_window", "farms_windows"),
    "alpha_hill": ("hill_estimator", "k_frac", "conv"),
}
#: Metrics whose layers are tested together, role by role.
PAIRED = (
    "alpha", "alpha_hill", "alpha_weighted", "log_alpha_norm", "log_norm", "log_spectral_norm", "stable_rank",
    "effective_rank", "singular_entropy", "ks_distance", "num_spikes", "mp_softrank", "num_traps", "rand_distance",
)  # fmt: skip
#: Parts of a recipe that change what is computed at all, but no number that both audits have.
_HARMLESS = ("metrics", "randomize", "bootstrap", "rivals", "min_evals", "baseline_replicas")
_MOST_NOTES = 5
_SHOWN = 3  # names in a note


@checked
def compare(
    before: AuditLike, after: AuditLike, *, level: float = 0.05, metrics: Sequence[str] | None = None
) -> Comparison:
    """What changed from `before` to `after`, layer by layer.

    Parameters
    ----------
    before, after
        Audits or their paths, best of one recipe. Where the recipes disagree on how a tail is fitted, a note says so
        and no change of that exponent is called significant.
    level
        False discovery rate (Benjamini-Hochberg) of what is called significant: over the layers for alpha and
        alpha_hill, over roles and metrics for the paired tests.
    metrics
        Only these; all that either audit has by default.

    Layers are matched by name, then by content, then by place (`matching.match`). Identical layers take no part in
    the tests. The tests of a layer take the two spectra as independent, which errs on the cautious side for a
    fine-tuned model.

    >>> import numpy as np, tailwise as tw
    >>> base = {f"layers.{i}.up.weight": np.random.default_rng(i).standard_normal((96, 64)) for i in range(3)}
    >>> tuned = {name: W + 3 * np.outer(W[:, 0], W[0]) for name, W in base.items()}
    >>> before, after = (tw.audit(model, use_cache=False) for model in (base, tuned))
    >>> tw.compare(before, before).conclusion
    'Nothing changed: all 3 matrices are identical, to the byte.'
    >>> found = tw.compare(before, after, metrics="stable_rank")
    >>> found.layers[0].deltas["stable_rank"].change < 0
    True
    """
    before, after = Audit.of(before), Audit.of(after)
    if not 0 < level < 1:
        raise UsageError(f"the false discovery rate is {level}", fix="give a number in (0, 1), e.g. 0.05")
    names = _metric_names(before, after, metrics)
    matching = match(before, after)
    layers = _layer_deltas(before, after, matching.pairs, names, level)
    return Comparison(
        before=before.model,
        after=after.model,
        layers=layers,
        added=tuple(row.name for row in matching.added),
        missing=tuple(row.name for row in matching.missing),
        renamed=tuple((one.name, other.name) for one, other in matching.renamed),
        reshaped=tuple((other.name, shape_text(one), shape_text(other)) for one, other in matching.reshaped),
        summary=_summary(before, after),
        notes=(*_notes(before, after, matching), *_left_out(layers, matching.pairs, names)),
        roles=_role_changes(layers, [name for name in PAIRED if name in names], level),
        level=level,
        unmeasured=_unmeasured(before, after),
    )


def _unmeasured(before: Audit, after: Audit) -> tuple[str, ...]:
    lost = (row.name for audit in (before, after) for row in audit.unmeasured if row.status in BROKEN)
    return tuple(dict.fromkeys(lost))


def _metric_names(before: Audit, after: Audit, wanted: Sequence[str] | None) -> list[str]:
    present = dict.fromkeys(name for audit in (before, after) for layer in audit for name in layer.row.metrics)
    names = [known_name(name, present) for name in wanted or ()]
    for name in names:
        if name not in present:
            raise unknown_name("metric in these audits", name, present)
    return names or list(present)


def _layer_deltas(
    before: Audit, after: Audit, pairs: list[Pair], names: list[str], level: float
) -> tuple[LayerDelta, ...]:
    sides = [(before[one.name], after[other.name]) for one, other in pairs]
    kinds = estimator_of(before), estimator_of(after)
    doubts = [(bool(doubt_of_fit(old.row, kinds[0])), bool(doubt_of_fit(new.row, kinds[1]))) for old, new in sides]
    # Where one side is a power law, a change from or to it can be claimed: the F test knows how long the tails are.
    doubted = [all(both) for both in doubts]
    tested = [name for name in TESTED if name in names and comparable(name, before, after)]
    claims = {name: _claims(name, sides, level, doubted) for name in tested}
    return tuple(
        LayerDelta(
            name=new.row.name,
            name_before=old.row.name,
            role=new.row.role,
            block=new.row.block,
            identical=_identical(old, new),
            deltas={name: _delta(old, new, name, claims.get(name, {}).get(index)) for name in names},
            trusted=not any(doubts[index]),
            of_bulk=any(is_of_bulk(side.row, kind) for side, kind in zip((old, new), kinds, strict=True)),
        )
        for index, (old, new) in enumerate(sides)
    )


def comparable(metric: str, before: Audit, after: Audit) -> bool:
    """Whether both audits fit the tail of `metric` in the same way."""
    ours, theirs = before.provenance.recipe, after.provenance.recipe
    return all(ours.get(key) == theirs.get(key) for key in TESTED[metric])


def _claims(
    metric: str, sides: list[tuple[Layer, Layer]], level: float, doubted: Sequence[bool]
) -> dict[int, tuple[float, bool]]:
    """Index of the pair → (z, significant)."""
    found: dict[int, tuple[float, bool]] = {}
    tested = []
    for index, (old, new) in enumerate(sides):
        pairs = contrasts(metric, old, new)
        if pairs is None or (metric in OF_FIT and doubted[index]):
            continue
        if _identical(old, new):
            found[index] = (0.0, False)
        else:
            tested.append((index, pairs))
    z = z_scores([pairs for _, pairs in tested])
    called = discoveries(z, level)
    return found | {index: (float(z[i]), bool(called[i])) for i, (index, _) in enumerate(tested)}


def _identical(old: Layer, new: Layer) -> bool:
    return bool(old.row.digest) and old.row.digest == new.row.digest


def _delta(old: Layer, new: Layer, metric: str, claim: tuple[float, bool] | None) -> Delta:
    difference = subtract(value_of(old.row, metric), value_of(new.row, metric))
    return difference if claim is None else Delta(difference.before, difference.after, difference.change, *claim)


def subtract(before: float | None, after: float | None) -> Delta:
    """A `Delta` without significance."""
    return Delta(before, after, None if before is None or after is None else after - before)


def _summary(before: Audit, after: Audit) -> dict[str, Delta]:
    old, new = model_numbers(before), model_numbers(after)
    found = {name: subtract(old[name], new[name]) for name in old}
    return {name: delta for name, delta in found.items() if (delta.before, delta.after) != (None, None)}


def _role_changes(layers: Sequence[LayerDelta], names: list[str], level: float) -> tuple[RoleChange, ...]:
    found: list[tuple[str, str, Any, float | None]] = []
    for role in dict.fromkeys(layer.role for layer in layers):
        group = [layer for layer in layers if layer.role == role and not layer.identical]
        for name in names:
            known = [layer for layer in group if name in layer.deltas and (layer.trusted or name not in OF_FIT)]
            changes = [layer.deltas[name].change for layer in known]
            moved = np.array([change for change in changes if change])
            if len(moved):
                found.append((role, name, moved, signed_rank_p(moved)))
    tested = [index for index, item in enumerate(found) if item[3] is not None]
    called = rejected(np.array([found[index][3] for index in tested], dtype=np.float64), level)
    verdict = {index: bool(called[i]) for i, index in enumerate(tested)}
    return tuple(
        RoleChange(role, name, len(moved), float(np.median(moved)), p, verdict.get(index))
        for index, (role, name, moved, p) in enumerate(found)
    )


def _notes(before: Audit, after: Audit, matching: Matching) -> tuple[str, ...]:
    ours, theirs = before.provenance, after.provenance
    changes = [audit for audit in (before, after) if adapter_mode(audit) == "delta"]
    alone = of_change_alone(changes[0].model) if len(changes) == 1 else ""
    differ = sorted(
        key for key in {*ours.recipe, *theirs.recipe} - set(_HARMLESS) if ours.recipe.get(key) != theirs.recipe.get(key)
    )
    said = [alone] if alone else []
    said += [
        f"{audit.model} is an adapter, merged into {audit.provenance.selection['base']}"
        for audit in (before, after)
        if adapter_mode(audit) == "merged" and audit.provenance.selection.get("base")
    ]
    if _adapts(before, after):
        said.append(
            f"the first, {before.model}, is an adapter of the second, so that this is what taking it out changes: the "
            "base goes first"
        )
    said += [
        f"the recipes differ in {key}: {ours.recipe.get(key)} before, {theirs.recipe.get(key)} after" for key in differ
    ]
    said += [
        f"{metric} is fitted differently in the two audits, so no change of it is called significant"
        for metric in TESTED
        if not comparable(metric, before, after)
    ]
    parts = [str(facts.selection.get("part") or "the weights") for facts in (ours, theirs)]
    if parts[0] != parts[1]:
        said.append(f"the audits read different parts of their files: {parts[0]} and {parts[1]}")
    chosen = [(facts.selection.get("layers"), facts.selection.get("roles")) for facts in (ours, theirs)]
    if chosen[0] != chosen[1]:
        said.append("the audits took different selections of layers, so layers may look added or missing")
    if theirs.recipe.get("estimator", "ks") != "ks" or ours.recipe.get("estimator", "ks") != "ks":
        said.append("the bands 2–4 and 2–6 are meant for the ks estimator")
    if lost := _unmeasured(before, after):
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        said.append(f"not compared, since not measured in one audit or both: {', '.join(lost[:_SHOWN])}{more}")
    said += _readings(matching)
    return (*said, *_shortened(matching.notes))


def _adapts(adapter: Audit, base: Audit) -> bool:
    """Whether the first was audited with an adapter merged into the second."""
    named = adapter.provenance.selection.get("base")
    if adapter_mode(adapter) != "merged" or not named or adapter_mode(base) is not None:
        return False
    return named == base.model or Path(named).absolute() == Path(base.model).absolute()


def _readings(matching: Matching) -> list[str]:
    """Where one tensor was taken in two ways, a change may be of the reading and not of the model."""
    pairs = matching.pairs
    differ = [
        (one, other)
        for one, other in pairs
        if one.reading
        and other.reading
        and one.reading != other.reading
        and "lora-merged" not in (one.reading, other.reading)  # which is the change that is asked for
    ]
    if not differ:
        return []
    one, other = differ[0]
    more = f", and {len(differ) - 1} more" if len(differ) > 1 else ""
    return [f"read in two ways, so that a change may be of the reading alone: {other.name}, {one.reading} before and "
            f"{other.reading} after{more}"]  # fmt: skip


def _left_out(layers: Sequence[LayerDelta], pairs: Sequence[Pair], names: Sequence[str]) -> Iterator[str]:
    """How many layers have no part in what is said of exponents."""
    doubted = sum(not layer.trusted for layer in layers if not layer.identical)
    if doubted and OF_FIT & set(names):
        yield (
            f"the fit of alpha is poor on one side or both in {doubted} of {len(layers)} matrices: shown, and left out "
            "of the medians of roles"
        )
    for name in ("alpha_hill",):
        lost = sum((value_of(one, name) is None) != (value_of(other, name) is None) for one, other in pairs)
        if name in names and lost:
            yield f"{name} of {lost} layers is defined on one side alone, so that it has no change"


def _shortened(notes: list[str]) -> list[str]:
    if len(notes) <= _MOST_NOTES:
        return notes
    statuses = Counter(note.split(": ", 1)[0].rsplit(" ", 1)[-1] for note in notes[_MOST_NOTES:])
    counted = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return [
        *notes[:_MOST_NOTES],
        f"… and {len(notes) - _MOST_NOTES} more layers measured in one audit only ({counted})",
    ]
