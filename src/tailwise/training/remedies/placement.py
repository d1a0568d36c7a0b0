"""The residual stream: how large its branches start, and where the norms stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.wrapped import whole
from tailwise.core.errors import UsageError
from tailwise.training.remedies.live_matrices import linear_modules, role_of

#: Roles whose output is added to the residual stream.
BRANCHES = frozenset({"attn_o", "mlp_down", "expert_down", "shared_down", "ssm_out", "rwkv_o", "rwkv_ffn_v"})

_NEAR = 0.1  # what deviations of random matrices differ by, and more
Placement = Literal["pre", "post", "both", "none"]


@torch.no_grad()
def scale_residual_branches(model: nn.Module, factor: float | None = None) -> dict[str, float]:
    """Multiply the output projection of every residual branch by 1/√(2L), L blocks, in place; before training.

    So the residual stream keeps its variance however deep the model is: each block adds two branches. Returns the
    factor by matrix. A model that is initialised so already (GPT-2 in transformers is) raises `UsageError`, unless
    `factor` says by how much to scale it.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, §2.3; Shoeybi et al. 2019,
    Megatron-LM, arXiv:1909.08053.
    """
    branches = {name: module for name, module in linear_modules(model, 1).items() if role_of(name, model) in BRANCHES}
    blocks = set(number_blocks(branches).values())
    if not blocks:
        raise UsageError("no output projection inside a numbered block was found", fix="scale the weights by hand")
    by = factor if factor is not None else 1 / math.sqrt(2 * len(blocks))
    if factor is None and _scaled_already(model, branches, by):
        raise UsageError(
            f"the residual branches start {by:.2g} times as large as other matrices: they are scaled already",
            fix="leave them; or give factor=, to scale them all the same",
        )
    for module in branches.values():
        module.weight.mul_(by)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.mul_(by)
    return dict.fromkeys(branches, by)


def _scaled_already(model: nn.Module, branches: Mapping[str, Any], by: float) -> bool:
    """Whether output projections are smaller than the other matrices by just this factor.

    Of the entries, as where all begin with one deviation; or of the entries times the root of the inputs.
    """
    others = {name: one for name, one in linear_modules(model, 1).items() if name not in branches}
    inside = {name: others[name] for name in number_blocks(others)}
    if not inside:
        return False
    ratios: list[list[float]] = []
    for size in (_deviation, lambda module: _deviation(module) * math.sqrt(_inputs(module))):
        usual = median(size(module) for module in inside.values())
        ratios.append([size(module) / max(usual, 1e-30) for module in branches.values()])
    near = [[abs(ratio / aim - 1) < _NEAR for ratio in row] for row in ratios for aim in (by, 1.0)]
    scaled, plain = (near[0], near[2]), (near[1], near[3])
    return any(map(all, scaled)) and not any(map(all, plain))


def _deviation(module: Any) -> float:
    return float(whole(module.weight.detach()).float().std())


def _inputs(module: Any) -> int:
    return int(module.weight.shape[1 if isinstance(module, nn.Linear) else 0])


def check_pre_norm(model: nn.Module, *inputs: Any, **named: Any) -> dict[str, Placement]:
    """Where each block has its norms, seen in one forward pass with these inputs.

    `pre`: a norm is the first thing in the block, before any matrix (Pre-LN); `post`: one is the last (Post-LN);
    `both`: sandwiched; `none`. Pre-LN trains without warm-up, and its deep blocks change the stream less (the curse of
    depth); Post-LN is the reverse.

    Source: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv:2002.04745.
    """
    seen: dict[str, list[bool]] = {name: [] for name, _ in _blocks(model)}  # whether each module called is a norm

    def note(name: str, norm: bool) -> Callable[..., None]:
        return lambda *_: seen[name].append(norm)

    hooks = [
        inner.register_forward_hook(note(name, _is_norm(inner)))
        for name, block in _blocks(model)
        for inner in block.modules()
        if _is_norm(inner) or any(parameter.ndim == 2 for parameter in inner.parameters(recurse=False))
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs, **named)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: _placed(order) for name, order in seen.items() if order}


def _placed(order: list[bool]) -> Placement:
    first, last = order[0], order[-1]
    if first and last and not all(order):
        return "both"
    return "pre" if first else "post" if last else "none"


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of the outermost lists of modules that hold a matrix."""
    outer: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{o}.") for o in outer):
            continue
        children = [(f"{name}.{key}", child) for key, child in module.named_children()]
        blocks = [(path, child) for path, child in children if next(child.children(), None) is not None]
        if isinstance(module, nn.ModuleList) or (name and blocks):
            outer.append(name)
            yield from blocks


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None
