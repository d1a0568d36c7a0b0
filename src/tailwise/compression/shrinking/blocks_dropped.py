"""Whole blocks that go: which change the hidden state least, and how a plan says it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tailwise.compression.operators.registered import operator_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.taking import Drop
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tailwise.models.walking.block_inputs import Block
    from tailwise.models.walking.hosts import Host


def block_influence(
    host: Host,
    inputs: Mapping[str, torch.Tensor],
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Module of each block → 1 − mean cosine of a token's state before and after it, in [0, 2].

    Men et al. 2024, ShortGPT, arXiv:2403.03853. Near 0: the block hardly turns the state, and can be spared first.
    """
    from tailwise.models.walking.walk import walk_blocks

    visitor = _Influence()
    walk_blocks(host.home, inputs, visitor, batch=batch, edits=False, progress=progress)
    return {name: 1.0 - total / count for name, (total, count) in visitor.cosines.items()}


@dataclass
class _Influence:
    """Looks at what goes into each block and comes out of it; the weights stay."""

    cosines: dict[str, tuple[float, int]] = field(default_factory=dict)

    def needs(self, block: Block) -> Mapping[str, Any]:
        """See `Visitor`. One layer's inputs are asked for, so that the last block runs too."""
        block.module.register_forward_hook(self._hook(block.name))
        return {next(iter(block.layers())): "norms"} if block.layers() else {}

    def visit(self, block: Block, activations: Mapping[str, Any]) -> None:
        """See `Visitor`."""

    def _hook(self, name: str) -> Callable[..., None]:
        def see(module: object, given: tuple[Any, ...], out: Any) -> None:  # noqa: ARG001 - of hooks
            import torch

            before, after = given[0], out[0] if isinstance(out, tuple) else out
            similarity = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            total, count = self.cosines.get(name, (0.0, 0))
            self.cosines[name] = (total + float(similarity.sum()), count + similarity.numel())

        return see


def least_influence(
    plan: Plan, places: Mapping[str, str], influence: Mapping[str, float], count: int
) -> dict[int, str]:
    """The `count` blocks of least influence, and why. `places`: stored tensor → parameter."""
    of_block: dict[int, float] = {}
    for decision in plan:
        place = places.get(decision.tensor, "")
        for name, value in influence.items():
            if decision.block is not None and place.startswith(f"{name}."):
                of_block[decision.block] = value
    if not 1 <= count < len(of_block):
        raise UsageError(
            f"{count} of {len(of_block)} blocks cannot go", fix=f"give a number from 1 to {len(of_block) - 1}"
        )
    ranked = sorted(of_block, key=lambda block: (of_block[block], block))
    return {
        block: f"whole block: influence {of_block[block]:.4f} (1 − cosine of its states), {place + 1} of {len(ranked)}"
        for place, block in enumerate(ranked[:count])
    }


def named_blocks(blocks: Collection[int]) -> dict[int, str]:
    """Blocks that a person named."""
    return dict.fromkeys(sorted(blocks), "whole block: named")


def without_blocks(plan: Plan, blocks: Mapping[int, str]) -> Plan:
    """The plan in which `blocks` (number → reason) go as a whole; `UsageError` for blocks that it does not name."""
    if operator_of(plan.operator).work is not None:
        raise UsageError(f"a plan for {plan.operator} takes no whole blocks", fix="plan with --operator structured")
    known = {decision.block for decision in plan if decision.block is not None}
    if lost := sorted(set(blocks) - known):
        raise UsageError(f"the plan names no block {lost[0]}", fix=f"it has {', '.join(map(str, sorted(known)))}")
    shorter = plan.replace(decisions=tuple(_gone(decision, blocks) for decision in plan))
    share = round(shorter.taken, 9)
    before = [note for note in plan.notes if not note.startswith(("asked for ", "depth", "Spearman"))]
    note = f"blocks {', '.join(map(str, sorted(blocks)))} go as a whole, with norms and biases that no entry names"
    budget = {name: value for name, value in plan.budget.items() if name != "of_model"}
    shorter = shorter.replace(budget={**budget, "requested": share, "achieved": share}, notes=(*before, note))
    shorter.validate()
    return shorter


def _gone(decision: Decision, blocks: Mapping[int, str]) -> Decision:
    if decision.block is None or decision.block not in blocks:
        return decision
    return replace(decision, treatment=Drop(), reason=blocks[decision.block])
