"""Low rank in two factors: W ≈ A·B is stored as two linear layers, and the model gets smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.compression.operators.operator import Amount
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.taking import LowRank, saved_by_rank
from tailwise.compression.shrinking.remade import Made, RemadeTensor, resized
from tailwise.compression.shrinking.structured import Origin
from tailwise.compression.shrinking.structured_groups import layer_of_decision, sizes_of_layer
from tailwise.compression.treating.treated import as_matrices
from tailwise.core.errors import UsageError
from tailwise.models.walking.shapes import Shapes, Sizes

Change = Callable[[str], "torch.Tensor | None"]


def factored(plan: Plan, origin: Origin, change: Change) -> Made:
    """The checkpoint with two tensors for each matrix of the plan.

    `change` gives the matrices that calibration has made, in float32 and of the rank that was asked for; without one,
    the stored matrix is factored. A matrix whose factors would be larger than itself is an error: its rank saves
    nothing.
    """
    named = {origin.written(decision.tensor): decision for decision in plan if isinstance(decision.treatment, LowRank)}
    jobs = jobs_in_factors(plan, origin)
    source = _Source(origin, lambda written: change(named[written].tensor))
    biases = {origin.stored(layer, "bias"): layer for layer, _ in jobs.values()}
    entries: list[RemadeTensor] = []
    for spec in (spec for shard in origin.layout.shards for spec in shard.specs):
        if spec.name in jobs:
            entries += _factors(spec, jobs[spec.name][1], source, _prefix(spec.name, "weight"))
        elif spec.name in biases:
            entries.append(RemadeTensor(_named(spec, f"{_prefix(spec.name, 'bias')}.second.bias"), spec.name))
        else:
            entries.append(RemadeTensor(spec, spec.name))
    left = {named[written].tensor: (_size(sizes), sizes.rank) for written, (_, sizes) in jobs.items()}
    note = "its matrices are stored as two factors each: load it with tailwise.load_pruned"
    return Made(tuple(entries), {}, Shapes(dict(jobs.values())), left, (note,))


def jobs_in_factors(plan: Plan, origin: Origin) -> dict[str, tuple[str, Sizes]]:
    """Stored tensor → its layer, and the sizes of the factors. `UsageError` where one cannot be stored as two."""
    return {
        origin.written(decision.tensor): _job(decision, origin)
        for decision in plan
        if isinstance(decision.treatment, LowRank)
    }


def _job(decision: Decision, origin: Origin) -> tuple[str, Sizes]:
    if len(decision.shape) == 3:
        raise UsageError(
            "is a stack of experts, which transformers multiplies with as one tensor; two factors have no place there",
            where=decision.tensor,
            fix="apply without --factored, or plan without it: --layers",
        )
    layer = layer_of_decision(origin.model, origin.places, decision)
    inputs, outputs = sizes_of_layer(origin.model, layer)
    rank = decision.rank or 0
    if saved_by_rank(rank, outputs, inputs) <= 0.0:
        most = (inputs * outputs - 1) // (inputs + outputs)
        raise UsageError(
            f"factors of rank {rank} are as large as the matrix or larger",
            where=decision.tensor,
            fix=f"write a rank of {most} or less, or take the entry out of the plan",
        )
    return layer, Sizes(inputs, outputs, rank)


def _size(sizes: Sizes) -> int:
    return (sizes.rank or 0) * (sizes.inputs + sizes.outputs)


def _prefix(stored: str, what: str) -> str:
    return stored.removesuffix(f".{what}")


def _named(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, spec.dtype, spec.shape, spec.nbytes)


class _Source:
    """The factors of one matrix at a time, for the two reads that come one after the other."""

    def __init__(self, origin: Origin, change: Change) -> None:
        self._origin, self._change = origin, change
        self._kept: tuple[str, tuple[torch.Tensor, torch.Tensor]] | None = None

    def __call__(self, stored: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(out × r), (r × in) float32."""
        if self._kept is None or self._kept[0] != stored:
            config: Mapping[str, object] = self._origin.checkpoint.config
            W = self._change(stored)
            W = self._origin.checkpoint.read(stored) if W is None else W
            (matrix,) = as_matrices(W, stored, config)
            factors = OPERATORS["low_rank"](matrix, Amount(rank=rank)).factors
            assert factors is not None  # noqa: S101 - the operator low_rank gives them
            self._kept = (stored, factors)
        return self._kept[1]


def _factors(spec: TensorSpec, sizes: Sizes, source: _Source, prefix: str) -> list[RemadeTensor]:
    rank, dtype = sizes.rank or 0, torch_dtype(spec.dtype, where=spec.name)

    def made(which: int) -> Callable[[], torch.Tensor]:
        return lambda: source(spec.name, rank)[which].to(dtype)

    first = resized(spec, f"{prefix}.first.weight", (rank, sizes.inputs))
    second = resized(spec, f"{prefix}.second.weight", (sizes.outputs, rank))
    return [RemadeTensor(first, spec.name, made(1)), RemadeTensor(second, spec.name, made(0))]
