"""The residual stream: how large its branches start, and where the norms stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from tailwise.checkpoints.blocks import number_blocks
from tailwise.core.errors import UsageError
from tailwise.training.remedies.live_matrices import linear_modules, role_of

#: Roles whose output is added to the residual stream.
BRANCHES = frozenset({"attn_o", "mlp_down", "expert_down", "shared_down", "ssm_out", "rwkv_o", "rwkv_ffn_v"})

Placement = Literal["pre", "post", "both", "none"]


@torch.no_grad()
def scale_residual_branches(model: nn.Module, factor: float | None = None) -> dict[str, float]:
    """Multiply the output projection of every residual branch by 1/√(2L), L blocks, in place; before training.

    So the residual stream keeps its variance however deep the model is: each block adds two branches. Returns the
    factor by matrix. A model that is initialised so already (GPT-2 in transformers is) must not be scaled again.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, §2.3; Shoeybi et al. 2019,
    Megatron-LM, arXiv:1909.08053.
    """
    found = {name: module for name, module in linear_modules(model, 1).items() if role_of(name, model) in BRANCHES}
    blocks = set(number_blocks(found).values())
    if not blocks:
        raise UsageError("no output projection inside a numbered block was found", fix="scale the weights by hand")
    by = factor if factor is not None else 1 / math.sqrt(2 * len(blocks))
    for module in found.values():
        module.weight.mul_(by)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.mul_(by)
    return dict.fromkeys(found, by)


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
