"""From an audit's rows to the tensors that a plan may touch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import doubt, value_of
from tailwise.checkpoints.beside import TOWERS, tower_beside
from tailwise.checkpoints.orientation import INPUTS, OUTPUTS
from tailwise.compression.plans.bits import is_packed, tensor_of
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.site import Site
from tailwise.core.errors import AS_NUMBERS, UsageError, unknown_name
from tailwise.core.recipe import Recipe
from tailwise.core.validation import check_fields
from tailwise.spectrum.metrics.facts import fit
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.trust import SEARCHED, doubt_of_tail, resolved, unit_of

#: Kinds of matrix that the operators work on.
KINDS = frozenset({"dense", "conv", "expert"})
#: Out unless they are named: looked up rather than multiplied, or few and dear.
LEFT_OUT = frozenset({*INPUTS, *OUTPUTS, "projector", "router", "norm", "bias", "ssm_state", "rwkv_mix", "codebook",
                      "modulation", "residual_mix", "attn_pos"})  # fmt: skip
#: Metrics that the allocators read, beside α.
READ = ("alpha_hill", "alpha_hill_z", "singular_entropy_normalized", "stable_rank", "log_norm", "log_spectral_norm")
#: Why a matrix was not measured where nothing can be done to it.
_BROKEN = ("NOT_FINITE", "UNREADABLE", "FAILED")
_FUSED = {
    frozenset({"attn_q", "attn_k", "attn_v"}): "attn_qkv",
    frozenset({"attn_k", "attn_v"}): "attn_kv",
    frozenset({"mlp_gate", "mlp_up"}): "mlp_gate_up",
    frozenset({"shared_gate", "shared_up"}): "shared_gate_up",
    frozenset({"expert_gate", "expert_up"}): "expert_gate_up",
}


@dataclass(frozen=True)
class Candidate:
    """One stored tensor that a plan may touch, with what is known of it."""

    tensor: str
    matrix: str
    role: str
    block: int | None
    n_params: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)  # None: not defined, or a degenerate tail
    parts: tuple[tuple[int, int, int], ...] = ()  # (rows, cols, slices) of each matrix in it
    kind: str = "dense"  # or conv, expert
    matrices: int = 1  # that are worked on one by one: experts of a stack, with gate and up of one together

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols) where the tensor holds one matrix; empty where it holds several."""
        return self.parts[0][:2] if len(self.parts) == 1 and self.parts[0][2] == 1 else ()

    @property
    def site(self) -> Site:
        """Where it is."""
        return Site(self.tensor, self.matrix, self.role, self.block, self.n_params, self.shape)

    def value(self, metric: str) -> float | None:
        """A metric, or None."""
        return self.metrics.get(metric)


@dataclass(frozen=True)
class TensorChoice:
    """Which tensors: by role, by name, and which of those that are left out by default."""

    roles: tuple[str, ...] = ()
    layers: str | None = None  # regular expression, searched in the tensor's name
    also: tuple[str, ...] = ()  # roles of LEFT_OUT, and towers beside the text, to take all the same

    def __post_init__(self) -> None:
        check_fields(self)


def candidates(
    audit: Audit, choice: TensorChoice, estimator: str | None, *, packed: bool = False
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The tensors that a plan may touch, in the audit's order, and notes on what was left out and why.

    Matrices of one tensor become one candidate whose metrics are the means weighted by parameters. α is that of
    `estimator`, fitted to the kept spectra; the checkpoint is not read. Without an estimator there is no α. With
    `packed`, weights of codes and scales are candidates too, by the names that they have once they are dequantized.
    """
    choice, tied = _untied(audit, choice)
    _check_roles(audit, (*choice.roles, *(name for name in choice.also if name not in TOWERS)))
    pattern = _compiled(choice.layers)
    grouped: dict[str, list[LayerRow]] = {}
    composed: list[str] = []
    beside: dict[str, int] = {}
    for row in audit.rows:
        if not (row.measured and _wanted(row, choice) and pattern.search(tensor_of(row))):
            continue
        tower = tower_beside(tensor_of(row), audit.provenance.config)
        if tower is not None and tower not in choice.also:
            beside[tower] = beside.get(tower, 0) + 1
            continue
        if len(row.tensors) > 1 and not (packed and is_packed(row)):
            composed.append(row.name)
            continue
        grouped.setdefault(tensor_of(row), []).append(row)
    beside_it = _unmeasured(audit, grouped)
    for tensor in [tensor for tensor, rows in beside_it.items() if any(row.status in _BROKEN for row in rows)]:
        del grouped[tensor]  # of a stack, say, in which one expert is not finite
    chosen = [row for rows in grouped.values() for row in rows]
    fits = _fits(audit, chosen, estimator) if estimator else None
    moved = _medians(fits or {}, estimator or "")
    alphas = None if fits is None else {name: row.metrics.get("alpha") for name, row in fits.items()} | moved
    found = tuple(_candidate(tensor, rows, beside_it.get(tensor, ()), alphas) for tensor, rows in grouped.items())
    if not found and not packed and any(is_packed(row) for row in audit.rows if row.measured):
        raise UsageError("its weights are quantized", where=audit.model, fix=AS_NUMBERS)
    if not found:
        raise UsageError(
            "no tensor is left to plan for",
            where=audit.model,
            fix="loosen --roles or --layers, or name roles outside the blocks (or vision, audio) with --also",
        )
    left = [
        f"left as it is, the {tower} tower ({count} matrices): --also {tower} takes it"
        for tower, count in sorted(beside.items())
    ]
    said = [*tied, *left, *_notes(audit, choice, composed), *_said_of(fits, estimator, moved)]
    return found, tuple(said)


def _unmeasured(audit: Audit, tensors: Collection[str]) -> dict[str, list[LayerRow]]:
    """Tensor → the matrices in it that were not measured, where others were."""
    found: dict[str, list[LayerRow]] = {}
    for row in audit.unmeasured:
        base = row.name.partition("#")[0].partition("[")[0]  # what was skipped names its part and not its tensor
        tensor = next((name for name in (*row.tensors[:1], base, f"{base}.weight") if name in tensors), None)
        if tensor is not None and len(row.tensors) <= 1:
            found.setdefault(tensor, []).append(row)
    return found


def _compiled(pattern: str | None) -> re.Pattern[str]:
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--layers is no regular expression: {error}", where=pattern) from error


def _untied(audit: Audit, choice: TensorChoice) -> tuple[TensorChoice, tuple[str, ...]]:
    """The same choice with `embed` for a head that is tied to it, and a note where that is so."""
    named = {*choice.roles, *choice.also}
    stored = {row.role for row in audit.rows if row.status != "SHARED"}
    if "lm_head" not in named or "lm_head" in stored or "embed" not in stored:
        return choice, ()
    roles, also = (
        tuple(dict.fromkeys("embed" if name == "lm_head" else name for name in names))
        for names in (choice.roles, choice.also)
    )
    note = "lm_head is tied to embed, and stored as one tensor: embed is taken, which changes both"
    return replace(choice, roles=roles, also=also), (note,)


def _check_roles(audit: Audit, roles: Iterable[str]) -> None:
    known = {row.role for row in audit.rows}
    for role in roles:
        if role not in known:
            raise unknown_name("role in this model", role, known)


def _wanted(row: LayerRow, choice: TensorChoice) -> bool:
    if row.role in choice.also:
        return row.kind not in ("lora", "")
    if choice.roles and row.role not in choice.roles:
        return False
    named = row.role in choice.roles
    return row.kind in KINDS and (named or (row.block is not None and row.role not in LEFT_OUT))


def _fits(audit: Audit, rows: Sequence[LayerRow], estimator: str) -> dict[str, LayerRow]:
    """Each row with α of `estimator` in place of its own; without α where its tail has no spread."""
    made_with = audit.provenance.recipe
    if estimator == made_with.get("estimator") and all("alpha" in row.metrics for row in rows):
        return {row.name: _with(row, alpha=value_of(row, "alpha")) for row in rows}
    kept = {name: made_with[name] for name in ("k_frac", "max_fingers") if name in made_with}
    recipe = Recipe(estimator=estimator, **kept)
    if recipe.uses_windows:
        raise UsageError(
            f"{estimator} needs windows of W, which this audit has not", fix=f"tailwise audit --estimator {estimator}"
        )
    return {row.name: _refitted(row, _fitted(audit, row, estimator, recipe)) for row in rows}


def _refitted(row: LayerRow, found: TailFit) -> LayerRow:
    alpha = found.alpha if found.ok else None
    return _with(row, alpha=alpha, alpha_sigma=found.sigma, ks_distance=found.ks_distance)


def _with(row: LayerRow, **metrics: float | None) -> LayerRow:
    return replace(row, metrics={**row.metrics, **metrics})


def _medians(fits: Mapping[str, LayerRow], estimator: str) -> dict[str, float | None]:
    """α of the fits whose tail says nothing: the median of the trusted ones of its role, where there are any."""
    searched = estimator.removeprefix("farms:") in SEARCHED
    lost = [name for name, row in fits.items() if _says_nothing(row, searched=searched)]
    trusted: dict[str, list[float]] = {}
    for name, row in fits.items():
        alpha = row.metrics["alpha"]
        if alpha is not None and name not in lost:
            trusted.setdefault(row.role, []).append(alpha)
    return {name: median(trusted[fits[name].role]) for name in lost if fits[name].role in trusted}


def _says_nothing(row: LayerRow, *, searched: bool) -> bool:
    alpha, sigma = row.metrics["alpha"], row.metrics.get("alpha_sigma")
    if alpha is None or not sigma:
        return False
    return bool(doubt_of_tail(((alpha - 1.0) / sigma) ** 2, row.metrics.get("ks_distance"), searched=searched))


def _said_of(fits: Mapping[str, LayerRow] | None, estimator: str | None, moved: Collection[str]) -> Iterable[str]:
    """How many exponents a plan has not, and how many it takes that nothing else would."""
    known = [row for row in (fits or {}).values() if row.metrics["alpha"] is not None]
    if lost := len(fits or {}) - len(known):
        yield f"α of {lost} of {len(fits or {})} matrices is left out (a tail without spread): a neutral amount"
    doubted = sum(bool(doubt(row, estimator or "")) for row in known if row.name not in moved)
    if moved or doubted:
        yield _whose_fit(len(known), moved, doubted)


def _whose_fit(count: int, moved: Collection[str], doubted: int) -> str:
    """One line on where each α is from: the fit of its matrix, or the median of its role."""
    own = count - len(moved)
    said = f"α of {own} of {count} matrices ({own / count:.0%}) is of their own fit"
    if doubted:
        said += f", of which {doubted} not trusted and taken all the same, as published methods do"
    if moved:
        share = f"{len(moved)} ({len(moved) / count:.0%})"
        said += f"; of {share} it is the median of their role, as their tails say nothing"
    if 2 * len(moved) > count:
        said += ": this plan is by role rather than by layer"
    return f"{said} ({listed(moved)})" if moved else said


def _fitted(audit: Audit, row: LayerRow, estimator: str, recipe: Recipe) -> TailFit:
    spectrum = audit[row.name].spectrum
    return fit(spectrum, estimator, recipe, resolved(spectrum, unit_of(row.dtype)))


def _candidate(
    tensor: str, rows: Sequence[LayerRow], beside: Sequence[LayerRow], alphas: Mapping[str, float | None] | None
) -> Candidate:
    """`beside` are too small to be measured, and change with the others."""
    first, whole = rows[0], [*rows, *beside]
    metrics = {} if alphas is None else {"alpha": _mean(rows, [alphas[row.name] for row in rows])}
    for name in READ:
        if any(name in row.metrics for row in rows):
            metrics[name] = _mean(rows, [value_of(row, name) for row in rows])
    roles = {row.role for row in rows}
    return Candidate(
        tensor=tensor,
        matrix=first.name if len(whole) == 1 else first.name.partition("#")[0],
        role=first.role if len(roles) == 1 else _FUSED.get(frozenset(roles), first.role),
        block=first.block,
        n_params=sum(row.n_params for row in whole),
        metrics=metrics,
        parts=tuple((row.rows, row.cols, row.slices) for row in whole),
        kind=first.kind,
        matrices=len({row.name.partition("#")[0] for row in whole}),
    )


def _mean(rows: Sequence[LayerRow], values: Sequence[float | None]) -> float | None:
    known = [(row.n_params, value) for row, value in zip(rows, values, strict=True) if value is not None]
    return sum(size * value for size, value in known) / sum(size for size, _ in known) if known else None


def _notes(audit: Audit, choice: TensorChoice, composed: Collection[str]) -> Iterable[str]:
    if composed:
        yield f"left as they are, each made of several tensors: {listed(composed)}"
    if missing := _not_measured(audit):
        yield f"left as they are, not measured: {listed(missing)}"
    inside = {row.role for row in audit.rows if row.measured and _wanted(row, choice)}
    if outside := sorted({row.role for row in audit.rows if row.measured and not _wanted(row, choice)}):
        named = (f"some of {role}" if role in inside else role for role in outside)
        yield f"left as they are: {', '.join(named)}"


def _not_measured(audit: Audit) -> list[str]:
    return [row.name for row in audit.unmeasured if row.status in _BROKEN]


def audited_part(audit: Audit) -> dict[str, Any]:
    """What the fingerprint is of, where it is not of all matrices; a plan keeps it, to be held against a model."""
    provenance, least = audit.provenance, Recipe().min_evals
    found = {
        "layers": provenance.selection.get("layers"),
        "roles": list(provenance.selection.get("roles") or ()),
        "min_evals": None if (chosen := provenance.recipe.get("min_evals", least)) == least else chosen,
        "not_measured": _not_measured(audit),
    }
    return {name: value for name, value in found.items() if value}


def sizes_in(audit: Audit) -> dict[str, int]:
    """Stored tensor → parameters, over the measured matrices: what `Plan.misfits` compares with."""
    found: dict[str, int] = {}
    for row in audit.rows:
        if row.measured and (len(row.tensors) <= 1 or is_packed(row)):
            tensor = tensor_of(row)
            found[tensor] = found.get(tensor, 0) + row.n_params
    for tensor, rows in _unmeasured(audit, found).items():
        found[tensor] += sum(row.n_params for row in rows)
    return found


def estimator_for(audit: Audit) -> str:
    """AlphaPruning's estimator: `peak` for language models, `mid` for vision models."""
    big = [row for row in audit.rows if min(row.rows, row.cols) >= 8]
    if any(row.role in ("embed", "lm_head") for row in big):
        return "peak"
    return "mid" if any(row.role in ("conv", "patch_embed") for row in audit.rows) else "peak"
