"""`difference()`: W − W₀ of two models, read from their checkpoints: how large, of what rank, which directions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tailwise.audits.audit import Audit
from tailwise.audits.of_adapter import adapter_mode
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.audits.work import HOLD_BYTES, HashedMatrix
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import TailwiseError, UnreadableError, UsageError, lacks_memory
from tailwise.core.execution.executor import default_workers, map_unordered
from tailwise.core.recipe import Recipe
from tailwise.core.shown import Brief
from tailwise.core.validation import check_fields, check_least, checked
from tailwise.judging.compare.compare_audits import compare
from tailwise.judging.compare.comparison import Comparison, LayerDelta
from tailwise.spectrum.metrics.facts import Facts, Spectra, metrics_of, selected
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import RowBlocks, gram, long_side_blocks
from tailwise.spectrum.spectrum import Spectrum, pool
from tailwise.spectrum.trust import edge, unit_of

if TYPE_CHECKING:
    from tailwise.audits.run import Model

#: A tensor of one axis that is longer is a matrix or a table laid flat.
_LONGEST_VECTOR = 1 << 20
#: Of the audit of W − W₀, what `LayerDelta.weights` repeats.
_REPEATED = {"stable_rank": "change_stable_rank", "effective_rank": "change_effective_rank",
             "num_spikes": "change_num_spikes", "matrix_rank": "change_rank"}  # fmt: skip


@dataclass(frozen=True)
class DifferenceOptions:
    """How W − W₀ is looked at."""

    directions: int = 16  # leading singular directions whose subspaces are compared
    device: str = "cpu"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, directions=1, workers=1)


@dataclass(frozen=True, repr=False)
class Difference(Brief):
    """What the checkpoints add to a comparison of two audits."""

    comparison: Comparison  # its layers carry `weights`
    audit: Audit  # of the matrices W − W₀


@checked
def difference(
    before: Audit,
    after: Audit,
    *,
    models: tuple[Model, Model] | None = None,
    comparison: Comparison | None = None,
    options: DifferenceOptions | None = None,
) -> Difference:
    """Read both checkpoints and measure W − W₀ of every layer that the two audits share.

    Parameters
    ----------
    models
        The checkpoints; where the audits say they were by default.
    comparison
        `compare(before, after)`, if it is there already.

    `weights` of each layer gets `relative_change` = ‖W − W₀‖_F / ‖W₀‖_F; rank, stable rank, effective rank and number
    of spikes of W − W₀ (`change_…`); `cka`; and `overlap_input`, `overlap_output` of the leading `directions`.
    Of vectors (norms, biases) a note says how many changed, and which the most. Matrices are streamed, one pair per
    worker. A layer that cannot be read gets a note and no `weights`. Raises
    `UsageError` where one audit is of an adapter's change and the other of a model; `UnreadableError` where a
    checkpoint is not there, or a matrix is no longer the one that was audited.
    """
    if models is not None and not (isinstance(models, tuple | list) and len(models) == 2):
        raise UsageError("models are two", fix="give models=(before, after), as `tw.audit` takes them")
    found = comparison or compare(before, after)
    chosen = options or DifferenceOptions()
    if chosen.directions < 1:
        raise UsageError(f"{chosen.directions} directions", fix="give one or more")
    audits = (before, after)
    _check_alike(audits)
    named = models or (before.model, after.model)
    opened = [_opened(model, audit) for model, audit in zip(named, audits, strict=True)]
    try:
        sides = _Side(opened[0], before), _Side(opened[1], after)
        rows, layers, weights = _measure_all(sides, found, chosen)
        vectors = _of_vectors(opened[0][0], opened[1][0])
    finally:
        for checkpoint, own in opened:
            if own:
                checkpoint.close()
    failed = tuple(f"W − W₀ of {row.name}: {row.reason}" for row in rows if not row.measured)
    enriched = tuple(replace(layer, weights=weights.get(layer.name, {})) for layer in found.layers)
    return Difference(
        replace(found, layers=enriched, notes=(*found.notes, *vectors, *failed)),
        Audit(rows, layers, _provenance(before, after, rows)),
    )


def _check_alike(audits: tuple[Audit, Audit]) -> None:
    """Refuse W − W₀ of a model and an adapter's change: it would be ΔW − W₀."""
    changes = [audit for audit in audits if adapter_mode(audit) == "delta"]
    if len(changes) == 1:
        raise UsageError(
            "is an audit of an adapter's change alone, and W − W₀ takes the model with it",
            where=changes[0].model,
            fix="audit it again with --adapter merged, and give that audit",
        )


def _opened(model: Model, audit: Audit) -> tuple[Checkpoint, bool]:
    if isinstance(model, Checkpoint):
        return model, False
    selection = audit.provenance.selection
    base, mode = selection.get("base"), adapter_mode(audit) or "delta"
    try:
        return open_checkpoint(model, base=base, adapter_mode=mode, part=selection.get("part")), True
    except TailwiseError as error:
        fix = "give the models themselves, or audit them again where they are now"
        raise UnreadableError(
            f"the weights are not at hand ({error.what})", where=error.where or model, fix=fix
        ) from error


class _Side:
    """One checkpoint with its audit: matrices by name."""

    def __init__(self, opened: tuple[Checkpoint, bool], audit: Audit) -> None:
        self.checkpoint, self.audit = opened[0], audit
        recipe = audit.provenance.recipe
        sources, _ = group(self.checkpoint, conv=recipe["conv"], min_evals=recipe["min_evals"])
        self._sources = {source.name: source for source in sources}

    def source(self, name: str) -> MatrixSource:
        if name not in self._sources:
            raise UnreadableError(f"{name} is not in the checkpoint", where=self.checkpoint.uri, fix="audit it again")
        return self._sources[name]

    def matrices(self, name: str) -> list[HashedMatrix]:
        """The matrices of one layer, checked to be those that were audited."""
        source = self.source(name)
        hold = source.nbytes <= HOLD_BYTES or not self.checkpoint.local
        found = [HashedMatrix(matrix, hold=hold, keep=True) for matrix in load(source, self.checkpoint)]
        digests = [matrix.digest for matrix in found]
        joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        if joined != self.audit[name].row.digest:
            raise UnreadableError(
                f"{name} changed since it was audited", where=self.checkpoint.uri, fix="audit it again"
            )
        return found


Measured = tuple[LayerRow, Layer | None, dict[str, float]]


def _measure_all(
    sides: tuple[_Side, _Side], found: Comparison, options: DifferenceOptions
) -> tuple[list[LayerRow], dict[str, Layer], dict[str, dict[str, float]]]:
    def work(layer: LayerDelta) -> Measured:
        return _measure(layer, sides, options)

    # All names are looked up before anything is read.
    cost = {
        layer.name: max(s.source(n).flops for s, n in zip(sides, _names(layer), strict=True)) for layer in found.layers
    }
    largest_first = sorted(found.layers, key=lambda layer: -cost[layer.name])
    workers = options.workers or default_workers(options.device)
    results = {item[0].name: item for item in map_unordered(work, largest_first, workers)}
    ordered = [results[layer.name] for layer in found.layers]
    layers = {row.name: layer for row, layer, _ in ordered if layer is not None}
    return [row for row, _, _ in ordered], layers, {row.name: numbers for row, _, numbers in ordered if numbers}


def _names(layer: LayerDelta) -> tuple[str, str]:
    return layer.name_before, layer.name


def _measure(delta: LayerDelta, sides: tuple[_Side, _Side], options: DifferenceOptions) -> Measured:
    old, new = (side.audit[name] for side, name in zip(sides, _names(delta), strict=True))
    row = replace(new.row, status="FAILED", reason="", digest="", reused=False, metrics={}, kind="difference")
    if delta.identical:
        empty = Spectrum(
            np.zeros_like(new.spectrum.eigenvalues), new.row.rows, new.row.cols, new.row.slices, "identical"
        )
        return _finished(row, empty, old, {"cka": 1.0, "overlap_input": 1.0, "overlap_output": 1.0})
    try:
        pairs = list(zip(sides[0].matrices(delta.name_before), sides[1].matrices(delta.name), strict=True))
        device = torch.device(options.device)
        spectra = [solve(Subtracted(*pair), device=options.device) for pair in pairs]
        alike = [similarity(*pair, options.directions, device) for pair in pairs]
    except TailwiseError as error:
        return replace(row, status="UNREADABLE", reason=str(error)), None, {}
    except Exception as error:
        # One bad pair must not stop the others, as in an audit.
        short = "out of memory; use fewer --workers"
        return replace(row, reason=short if lacks_memory(error) else f"{type(error).__name__}: {error}"), None, {}
    keys = [key for key in alike[0] if all(key in part for part in alike)]
    shared = {key: float(np.mean([part[key] for part in alike])) for key in keys}
    return _finished(row, pool(spectra), old, shared)


def _finished(row: LayerRow, spectrum: Spectrum, old: Layer, alike: dict[str, float]) -> Measured:
    recipe = Recipe()
    # Noise of the same shape says nothing about a difference, and costs more than the rest.
    names = tuple(metric.name for metric in selected(recipe) if "baseline" not in metric.needs)
    # Both sides were rounded, in parts of their own size.
    rounding = 2**0.5 * edge(old.spectrum, unit_of(old.row.dtype))
    facts = Facts(Spectra(spectrum, rounding=rounding), recipe.replace(metrics=names))
    metrics = metrics_of(facts)
    done = replace(row, status=facts.tail.status, reason=facts.tail.remedy, metrics=metrics)
    done = replace(done, solver=spectrum.solver, error_bound=spectrum.error_bound)
    norm, changed = float(old.spectrum.eigenvalues.sum()), float(spectrum.eigenvalues.sum())
    numbers = {"relative_change": (changed / norm) ** 0.5} if norm > 0 else {}
    if changed > 0:
        values = {name: metrics.get(metric) for metric, name in _REPEATED.items()}
        numbers |= {name: value for name, value in values.items() if value is not None}
    return done, Layer(done, spectrum), numbers | alike


def _provenance(before: Audit, after: Audit, rows: list[LayerRow]) -> Provenance:
    named = f"{after.model} − {before.model}"
    content = hashlib.sha256(f"{after.provenance.fingerprint} − {before.provenance.fingerprint}".encode()).hexdigest()
    read = sum(row.nbytes for row in rows)
    recipe = Recipe().to_json() | {"conv": after.provenance.recipe["conv"]}
    kept = replace(after.provenance, model=named, format="difference", fingerprint=content, recipe=recipe)
    return replace(kept, reused=0, bytes_read=2 * read)


def _of_vectors(before: Checkpoint, after: Checkpoint) -> list[str]:
    """What became of norms and biases, of which no audit knows: a line, or none where the two share none."""
    changes: dict[str, float] = {}
    for name, spec in after.tensors.items():
        old = before.tensors.get(name)
        if old is None or len(spec.shape) != 1 or old.shape != spec.shape or spec.numel > _LONGEST_VECTOR:
            continue
        try:
            first, second = (side.read(name) for side in (before, after))
        except TailwiseError:  # such as a type that has no numbers
            continue
        if not first.is_complex() and not second.is_complex():
            # Through float64, so that what one of the two rounded is seen as it is.
            first, second = first.to(torch.float64), second.to(torch.float64)
            size = float(first.norm())
            moved = float((second - first).norm())
            changes[name] = moved if size == 0 else moved / size
    moved_most = max(changes, key=lambda name: changes[name], default=None)
    if moved_most is None:
        return []
    count = sum(change != 0 for change in changes.values())
    of = f"of {len(changes)} vectors (norms, biases)"
    if not count:
        return [f"{of} none changed"]
    return [f"{of} {count} changed, the most {moved_most}: ‖Δ‖/‖·‖ {changes[moved_most]:.2g}"]


class Subtracted:
    """W − W₀ as `RowBlocks`: read together, block by block, in float64."""

    def __init__(self, before: RowBlocks, after: RowBlocks) -> None:
        self._before, self._after = before, after
        self.rows, self.cols = after.rows, after.cols

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """Rows of the difference."""
        blocks = self._before.row_blocks(max_bytes), self._after.row_blocks(max_bytes)
        for old, new in _together(*blocks):
            yield new.to(torch.float64) - old.to(torch.float64)


def _together(
    first: Iterator[torch.Tensor], second: Iterator[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of equal height from two streams that cut the same rows differently."""
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        height = min(len(one), len(other))
        yield one[:height], other[:height]
        one = one[height:] if len(one) > height else next(first, None)
        other = other[height:] if len(other) > height else next(second, None)


def similarity(before: RowBlocks, after: RowBlocks, directions: int, device: torch.device) -> dict[str, float]:
    """CKA, and the overlap of the leading singular subspaces on the input and the output side.

    CKA = ⟨W₀ᵀW₀, WᵀW⟩ / (‖W₀ᵀW₀‖_F ‖WᵀW‖_F): linear CKA (Kornblith et al. 2019) of the outputs W₀x and Wx over white
    inputs x, needing no data. Overlap = ‖V₀ᵀV‖_F² / k of the k leading directions, in [0, 1]; two random subspaces of
    n dimensions have k/n (Hu et al. 2021, LoRA, eq. 4).
    """
    grams = [gram(side, torch.float64, device) for side in (before, after)]
    tall = after.rows >= after.cols
    norms = [_inner(g, g) ** 0.5 for g in grams]
    if min(norms) == 0:
        return {}
    shared = _inner(*grams) if tall else _cross_norm(before, after, device)
    numbers = {"cka": min(1.0, shared / (norms[0] * norms[1]))}
    tops = [_leading(g, directions) for g in grams]
    k = min(len(values) for values, _ in tops)
    (sigma0, short0), (sigma, short) = ((values[:k].sqrt(), vectors[:, :k]) for values, vectors in tops)
    product = torch.zeros(k, k, dtype=torch.float64, device=device)
    for old, new in _both_long(before, after, device):
        product += (old @ short0).T @ (new @ short)
    near = float((short0.T @ short).square().sum()) / k
    far = float((product / sigma0[:, None] / sigma[None, :]).square().sum()) / k
    inputs, outputs = (near, far) if tall else (far, near)
    return numbers | {"overlap_input": min(1.0, inputs), "overlap_output": min(1.0, outputs), "directions": float(k)}


def _both_long(
    before: RowBlocks, after: RowBlocks, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return _together(*(long_side_blocks(side, torch.float64, device) for side in (before, after)))


def _cross_norm(before: RowBlocks, after: RowBlocks, device: torch.device) -> float:
    """‖W₀Wᵀ‖_F² = ⟨W₀ᵀW₀, WᵀW⟩ of wide matrices, whose WᵀW would be the larger square."""
    cross = torch.zeros(after.rows, after.rows, dtype=torch.float64, device=device)
    for old, new in _both_long(before, after, device):
        cross.addmm_(old.T, new)
    return float(cross.square().sum())


def _inner(one: torch.Tensor, other: torch.Tensor) -> float:
    """Frobenius inner product of two symmetric matrices given by their lower triangles."""
    product = torch.tril(one * other)
    return float(2 * product.sum() - product.diagonal().sum())


def _leading(triangle: torch.Tensor, directions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading eigenvalues of a Gram matrix that are not rounding errors, largest first, with their vectors."""
    values, vectors = torch.linalg.eigh(triangle, UPLO="L")
    values, vectors = values.flip(0)[:directions], vectors.flip(1)[:, :directions]
    kept = int((values > values[0] * len(triangle) * torch.finfo(values.dtype).eps).sum())
    return values[:kept], vectors[:, :kept].contiguous()
