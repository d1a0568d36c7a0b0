"""Which experts a mixture can spare, and how a plan says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tailwise.compression.operators.registered import operator_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.fusing import expert_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.taking import Drop, DropExperts, Structured
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.compression.shrinking.experts_out import Mixtures
    from tailwise.models.walking.block_inputs import Block
    from tailwise.models.walking.hosts import Host


_SAID = "experts of each mixture go as a whole, with their rows of the router"


@dataclass(frozen=True)
class Least:
    """The experts of one mixture that go, and why."""

    numbers: tuple[int, ...]
    experts: int  # before
    why: Mapping[int, str]  # expert → what was measured of it


def how_many(asked: str, mixtures: Mixtures) -> int:
    """`2`, `25%` or `0.25` of the experts of each block as a count. `UsageError` where so many cannot go."""
    experts, groups = mixtures.experts, mixtures.groups
    try:
        number = float(asked.strip().removesuffix("%"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{asked!r} is no number of experts", where="--experts", fix="give 2, 25% or 0.25")
    share = "%" in asked or 0.0 < number < 1.0
    count = number / (100.0 if "%" in asked else 1.0) * experts if share else number
    whole = round(count / groups) * groups if share else int(count)
    most = experts - 2 * groups if groups > 1 else experts - 1
    if not share and whole != count:
        raise UsageError(f"{asked} experts cannot go", where="--experts", fix="give a whole number, or a share")
    if not 1 <= whole <= most:
        raise UsageError(
            f"{whole} of the {experts} experts of each block cannot go",
            where="--experts",
            fix=f"give a number from {groups} to {most}, or a share" if most >= groups else "none of them can",
        )
    if whole % groups:
        raise UsageError(
            f"its router chooses among {groups} groups of experts, which must stay equally large",
            where="--experts",
            fix=f"give a multiple of {groups}",
        )
    return whole


def picks(host: Host, inputs: Mapping[str, torch.Tensor], *, batch: int = 8) -> dict[str, list[int]]:
    """Mixture → how many tokens its router sends to each expert, on windows of calibration text.

    Muzio et al. 2024, SEER-MoE, arXiv:2404.05089, counts so.
    """
    from tailwise.compression.shrinking.experts_out import mixtures_of
    from tailwise.models.walking.walk import walk_blocks

    mixtures = mixtures_of(host.model)
    visitor = _Picks({name: [0] * mixtures.experts for name in mixtures.names})
    walk_blocks(host.home, inputs, visitor, batch=batch, edits=False)
    return visitor.counts


@dataclass
class _Picks:
    """Looks at one layer of every expert."""

    counts: dict[str, list[int]]
    _layers: dict[str, tuple[str, int | None]] = field(default_factory=dict)  # layer → mixture, and which expert

    def needs(self, block: Block) -> Mapping[str, Any]:
        """See `Visitor`. Where a block has no experts a layer is asked for all the same: the block has to run."""
        layers = block.layers()
        mine: dict[tuple[str, int | None], str] = {}
        for layer in layers:
            mixture = next((name for name in self.counts if layer.startswith(f"{name}.")), None)
            of = expert_of(f"{layer}.")
            if mixture is not None:
                mine.setdefault((mixture, of[1] if of else None), layer)
        self._layers |= {layer: key for key, layer in mine.items()}
        return dict.fromkeys(mine.values() or list(layers)[:1], "norms")

    def visit(self, block: Block, activations: Mapping[str, Any]) -> None:  # noqa: ARG002 - see Visitor
        """See `Visitor`."""
        for layer, seen in activations.items():
            if layer in self._layers:
                mixture, number = self._layers[layer]
                tokens = seen.tokens.tolist()
                if number is None:
                    self.counts[mixture] = tokens
                else:
                    self.counts[mixture][number] = tokens[0]


def seldom(counts: Mapping[str, Sequence[int]], count: int, groups: int) -> dict[str, Least]:
    """Mixture → the `count` experts that the fewest tokens were sent to, as many of each group."""
    least = {}
    for name, tokens in counts.items():
        total = max(sum(tokens), 1)
        why = {number: f"{seen:,} of {total:,} picks" for number, seen in enumerate(tokens)}
        least[name] = Least(_lowest(tokens, count, groups), len(tokens), why)
    return least


def small(norms: Mapping[str, Sequence[float]], count: int, groups: int) -> dict[str, Least]:
    """Mixture → the `count` experts of the smallest norms, as many of each group."""
    least = {}
    for name, sizes in norms.items():
        why = {number: f"norm {size:.4g}" for number, size in enumerate(sizes)}
        why |= {number: "entries that are not finite" for number, size in enumerate(sizes) if not math.isfinite(size)}
        least[name] = Least(_lowest(sizes, count, groups), len(sizes), why)
    return least


def _lowest(values: Sequence[float], count: int, groups: int) -> tuple[int, ...]:
    size = len(values) // groups
    lowest: list[int] = []
    for start in range(0, groups * size, size):
        broken = [not math.isfinite(value) for value in values]  # these go first
        ranked = sorted(range(start, start + size), key=lambda n: (not broken[n], 0.0 if broken[n] else values[n], n))
        lowest += ranked[: count // groups]
    return tuple(sorted(lowest))


def norms_of(checkpoint: Checkpoint, places: Mapping[str, str], mixtures: Mixtures) -> dict[str, list[float]]:
    """Mixture → of each expert the product of the norms ‖W‖_F of its matrices, without text; NaN where one has it.

    The product, since scaling one matrix up and the next one down changes nothing of what an expert computes.
    """
    norms = {name: [1.0] * mixtures.experts for name in mixtures.names}
    for tensor, place in places.items():
        name = next((name for name in mixtures.names if place.startswith(f"{name}.")), None)
        of, axes = expert_of(place), len(checkpoint.tensors[tensor].shape)
        if name is None or axes != (3 if of is None else 2):
            continue
        W = checkpoint.read(tensor).double()
        each = W.flatten(1).norm(dim=1).tolist() if of is None else [float(W.norm())]
        for number, size in zip(range(len(each)) if of is None else (of[1],), each, strict=True):
            norms[name][number] *= size
    return norms


def without_experts(plan: Plan, gone: Mapping[str, Least], places: Mapping[str, str]) -> Plan:
    """The plan in which experts go as a whole; `UsageError` where it does not name them all."""
    if operator_of(plan.operator).work is not None:
        raise UsageError(f"a plan for {plan.operator} takes no whole experts", fix="plan with --operator structured")
    decisions = tuple(_less(decision, gone, places.get(decision.tensor, "")) for decision in plan)
    named = {name for decision in plan for name in gone if places.get(decision.tensor, "").startswith(f"{name}.")}
    if lost := sorted(gone.keys() - named):
        raise UsageError(
            f"the plan has no entries for the experts of {lost[0]}",
            where=plan.model,
            fix="begin with the audit or the model in place of the plan",
        )
    smaller = plan.replace(decisions=decisions)
    share = round(smaller.taken, 9)
    one = next(iter(gone.values()))
    note = f"{len(one.numbers)} of {one.experts} {_SAID}"
    before = [
        note for note in plan.notes if not note.startswith(("asked for ", "depth", "Spearman")) and _SAID not in note
    ]
    budget = {name: value for name, value in plan.budget.items() if name != "of_model"}
    smaller = smaller.replace(budget={**budget, "requested": share, "achieved": share}, notes=(*before, note))
    smaller.validate()
    return smaller


def _less(decision: Decision, gone: Mapping[str, Least], place: str) -> Decision:
    name = next((name for name in gone if place.startswith(f"{name}.")), None)
    if name is None or isinstance(decision.treatment, Drop):
        return decision
    least, of = gone[name], expert_of(place)
    if of is not None and of[1] not in least.numbers:  # whatever an earlier choice said of it
        return replace(decision, treatment=Structured(0.0), reason=f"stays: {least.why[of[1]]}")
    if of is not None:
        return replace(decision, treatment=DropExperts(), reason=f"whole expert: {least.why[of[1]]}")
    share = round(len(least.numbers) / least.experts, 9)
    why = "; ".join(f"{number}: {least.why[number]}" for number in least.numbers)
    return replace(decision, treatment=DropExperts(share, least.numbers), reason=f"whole experts: {why}")
