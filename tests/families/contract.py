"""The contract of a family and an operator: what is planned, applied and loaded is what a reference makes of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from families.kinds import FAMILIES, Family, inputs_of, loaded, outputs, saved
from families.reference import (
    EXPERT_COUNTS,
    OPERATORS,
    blocks_of,
    gone_from,
    parts_of,
    rows_gone,
    seen,
    stacks_of,
    without_rows,
)
from tailwise.audits.run import audit
from tailwise.compression.applying.apply import ApplyOptions, apply
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks
from tailwise.compression.trying.drop import DropOptions, fewer_experts
from tailwise.core.errors import TailwiseError
from tailwise.models.walking.load_pruned import load_pruned
from tailwise.models.walking.shapes import PRUNED_FILE

ENTRYWISE = tuple(OPERATORS)
SMALLER = ("low_rank", "structured", "drop", "experts")
ALL = (*ENTRYWISE, *SMALLER)
_NEED_INPUTS = ("wanda", "sparsegpt", "gptq")


@dataclass
class Made:
    """A family's model, saved and audited once."""

    family: Family
    model: nn.Module
    folder: Path
    audited: Any
    inputs: Mapping[str, torch.Tensor]
    listed: bool  # experts are stored one by one
    done: dict[str, Any] = field(default_factory=dict)


def made(name: str, folder: Path) -> Made:
    family = FAMILIES[name]
    model = saved(family, folder)
    stored = load_file(folder / "model.safetensors")
    return Made(
        family, model, folder, audit(folder, workers=1), inputs_of(family), any(".experts.0." in key for key in stored)
    )


def outcome(found: Made, operator: str, folder: Path) -> str:
    """`holds`, or `refused: ` and why. `AssertionError` where the contract is broken."""
    try:
        plan = plan_for(found, operator)
        options = {"calibration": found.inputs} if operator in _NEED_INPUTS else {}
        done = apply(plan, found.folder, folder, options=ApplyOptions(multiple=1, factored=in_factors(plan), **options))
    except TailwiseError as error:
        if "error of tailwise" in str(error) or not error.fix or folder.exists():
            raise AssertionError(str(error)) from error
        return f"refused: {error.what}"
    if operator in ENTRYWISE:
        check_entries(found, operator, folder, plan, done)
    else:
        {
            "low_rank": check_factors,
            "structured": check_structured,
            "drop": check_dropped,
            "experts": check_fewer_experts,
        }[operator](found, folder, plan, done)
    return "holds"


def plan_for(found: Made, operator: str) -> Plan:
    if operator in ("rtn", "gptq"):
        return plan_quantize(
            found.audited, QuantizeRequest(formats=("int4-g8",), bits=None, allocator="uniform", operator=operator)
        )
    if operator == "drop":
        plan = plan_prune(found.audited, Request(0.0, "uniform", "structured"))
        return without_blocks(plan, named_blocks([min(item.block for item in plan)]))
    if operator == "experts":
        plan = plan_prune(found.audited, Request(0.0, "uniform", "structured"))
        return fewer_experts(plan, str(found.folder), "1", DropOptions(None))
    return plan_prune(found.audited, Request(0.5, "uniform", operator))


def check_entries(found: Made, operator: str, folder: Path, plan: Plan, done: Any) -> None:
    """Every matrix of every block, from the first to the last, each block's inputs from the changed ones before."""
    after = loaded(found.model, folder)
    model = copy.deepcopy(found.model)
    new, old = dict(after.named_parameters()), dict(model.named_parameters())
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    apart, entries, wrong, zeros = set(changed), 0, 0, 0
    unseen = {note.partition(":")[0] for note in done.notes if "no input reached it" in note}
    pairs = zip(all_blocks(model), all_blocks(after), strict=True)
    for (place, block), (_, other) in pairs:
        x = seen(model, block, place, found.inputs) if operator in _NEED_INPUTS else {}
        both = (parts_of(place, one, found.listed) for one in (block, other))
        for part, theirs in zip(*both, strict=True):
            if part.parameter not in changed:
                continue
            apart.discard(part.parameter)
            X = x.get(part.key)
            told = X is None or not X.any()
            way = operator
            if operator in _NEED_INPUTS and told:  # said in a note, and done without inputs
                assert unseen, part
                way = {"wanda": "magnitude", "sparsegpt": "magnitude", "gptq": "rtn"}[operator]
            expected = OPERATORS[way](part.W, X)
            entries, zeros = entries + part.W.numel(), zeros + int((theirs.W == 0).sum())
            wrong += compare(way, part.W, theirs.W, expected, X)
            part.W.copy_(theirs.W)
    assert wrong <= 1e-4 * entries, f"{wrong} of {entries} entries"
    for parameter in apart:  # matrices that no layer multiplies with, such as a kernel of a convolution
        zeros += int((new[parameter] == 0).sum())
        entries += new[parameter].numel()
    assert entries == plan.n_params
    assert torch.isfinite(outputs(after, found.inputs)).all()
    if operator in ("magnitude", "wanda", "sparsegpt"):
        assert abs(zeros / entries - done.achieved) < 1e-9
        assert abs(done.achieved - 0.5) < 0.02


def all_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every block, in order."""
    return [(f"{name}.{index}", block) for name, blocks in stacks_of(model) for index, block in enumerate(blocks)]


def compare(operator: str, W: torch.Tensor, got: torch.Tensor, expected: torch.Tensor, X: torch.Tensor | None) -> int:
    """Entries that differ: none of a mask, few of the codes."""
    if operator in ("magnitude", "wanda", "rtn"):
        assert torch.equal(got, expected)
        return 0
    if operator == "sparsegpt":
        assert torch.equal(got == 0, expected == 0), f"{int(((got == 0) != (expected == 0)).sum())} of {got.numel()}"
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4)
        return 0
    assert X is not None
    errors = [float(((V - W).double() @ X.double().T).square().sum()) for V in (got, expected)]
    assert abs(errors[0] - errors[1]) <= 1e-5 * errors[1]
    return int((got != expected).sum())


def in_factors(plan: Plan) -> bool:
    """Stacks of experts have no place for two factors, and are stored as their product."""
    return plan.operator == "low_rank" and not any(len(item.shape) == 3 for item in plan)


def check_products(found: Made, folder: Path, plan: Plan, done: Any) -> None:
    """Each matrix of each stored tensor is its best approximation of that rank."""
    before, after = (load_file(at / "model.safetensors") for at in (found.folder, folder))
    saved = 0.0
    for item in plan:
        W, V = before[item.tensor], after[item.tensor]
        U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        best = (U[..., : item.rank] * s[..., None, : item.rank]) @ Vh[..., : item.rank, :]
        assert torch.allclose(V.double(), best, atol=1e-5)
        saved += W.numel() * (1 - item.rank * sum(W.shape[-2:]) / (W.shape[-2] * W.shape[-1]))
    assert abs(saved / plan.n_params - done.achieved) < 1e-9
    assert torch.isfinite(outputs(loaded(found.model, folder), found.inputs)).all()


def check_factors(found: Made, folder: Path, plan: Plan, done: Any) -> None:
    """Two layers for each matrix compute what the best approximation of that rank does."""
    if not in_factors(plan):
        check_products(found, folder, plan, done)
        return
    after = load_pruned(folder).float().eval()
    assert (folder / PRUNED_FILE).is_file()
    modules = dict(after.named_modules())
    factored = {name: modules[name] for name in modules if type(modules[name]).__name__ == "Factored"}
    assert len(factored) == len(plan)
    saved_parameters = sum(value.numel() for value in load_file(found.folder / "model.safetensors").values())
    left = sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    assert abs((saved_parameters - left) / plan.n_params - done.achieved) < 1e-9
    model = copy.deepcopy(found.model)
    by_shape = {}
    for place, block in all_blocks(model):
        for part in parts_of(place, block, found.listed):
            by_shape.setdefault(tuple(part.W.shape), []).append(part.W)
    for layer in factored.values():
        product, rank = layer.weight.detach(), layer.first.weight.shape[0]
        near = min(by_shape[tuple(product.shape)], key=lambda W: float((W - product).norm()))
        U, s, V = torch.linalg.svd(near.double(), full_matrices=False)
        best = ((U[:, :rank] * s[:rank]) @ V[:rank]).float()
        assert torch.allclose(product, best, atol=1e-5)
        near.copy_(product)
    assert torch.allclose(outputs(after, found.inputs), outputs(model, found.inputs), rtol=1e-3, atol=1e-4)


def check_structured(found: Made, folder: Path, plan: Plan, done: Any) -> None:
    """The smaller model computes what the whole one does without the units that went."""
    after = load_pruned(folder).float().eval() if (folder / PRUNED_FILE).is_file() else loaded(found.model, folder)
    model = copy.deepcopy(found.model)
    _, blocks = blocks_of(model)
    small = dict(blocks_of(after)[1].named_modules())
    removed = 0
    for inner, module in blocks.named_modules():
        if type(module).__name__ not in ("Linear", "Conv1D", "FalconLinear"):
            continue
        W, V = (
            item.weight.data.T if type(item).__name__ == "Conv1D" else item.weight.data
            for item in (module, small[inner])
        )
        removed += W.numel() - V.numel()
        if len(V) == len(W) and V.shape[1] < W.shape[1]:  # what reads the units that are left
            kept = [int((W - V[:, j : j + 1]).abs().sum(dim=0).argmin()) for j in range(V.shape[1])]
            assert torch.equal(W[:, kept], V)
            gone = torch.ones(W.shape[1], dtype=torch.bool)
            gone[kept] = False
            W[:, gone] = 0.0
    assert removed
    assert abs(removed / plan.n_params - done.achieved) < 1e-9
    assert torch.allclose(outputs(after, found.inputs), outputs(model, found.inputs), rtol=1e-3, atol=1e-4)


def check_dropped(found: Made, folder: Path, plan: Plan, done: Any) -> None:
    """The model without a block computes what the whole one does where the block passes its states on."""
    after = loaded(found.model, folder)
    model = copy.deepcopy(found.model)
    _, blocks = blocks_of(model)
    assert len(blocks_of(after)[1]) == len(blocks) - 1
    first = blocks[0]
    kind: list[bool] = []
    handle = first.register_forward_hook(lambda module, given, out: kind.append(isinstance(out, tuple)))
    dense = outputs(model, found.inputs)
    handle.remove()
    first.forward = lambda *given, **named: _passed(given, named, kind[0])
    masked = outputs(model, found.inputs)
    assert not torch.allclose(masked, dense, atol=1e-3)
    assert torch.allclose(outputs(after, found.inputs), masked, rtol=1e-3, atol=1e-4)
    gone = sum(item.n_params for item in plan if item.sparsity == 1.0)
    assert abs(gone / plan.n_params - done.achieved) < 1e-9


def check_fewer_experts(found: Made, folder: Path, plan: Plan, done: Any) -> None:
    """The model with fewer experts computes what the whole one does where its routers may not choose the others."""
    after = loaded(found.model, folder)
    text, before = (model.config.get_text_config() for model in (after, found.model))
    counts = {name: value for name, value in text.to_dict().items() if name in EXPERT_COUNTS}
    assert counts == {name: getattr(before, name) - 1 for name in counts}
    assert counts
    model = copy.deepcopy(found.model)
    dense = outputs(model, found.inputs)
    with without_rows(model, gone_from(found.model, after)):
        masked = outputs(model, found.inputs)
    assert not torch.allclose(masked, dense, atol=1e-3)
    assert torch.allclose(outputs(after, found.inputs), masked, rtol=1e-3, atol=1e-4)
    sizes = [
        sum(value.numel() for value in load_file(at / "model.safetensors").values()) for at in (found.folder, folder)
    ]
    routers = sum(row.numel() for row in rows_gone(found.model, after))
    assert abs((sizes[0] - sizes[1] - routers) / plan.n_params - done.achieved) < 1e-9


def _passed(given: Any, named: Mapping[str, Any], is_tuple: bool) -> Any:
    state = given[0] if given else named["hidden_states"]
    return (state, *[None] * 2) if is_tuple else state
