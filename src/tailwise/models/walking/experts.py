"""Stacked experts as layers of their own: what each expert is given is then seen as of any other layer.

transformers holds the experts of a block as parameters of three axes, (experts, ·, ·), which no layer multiplies with.
Here each becomes a layer for itself, or, where the file has the stack as one tensor, one layer that is called for one
expert after the other. The numbers are shared with the stack that was there, and the model computes what it did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

#: Parameters of three axes that experts multiply with, in the order of the computation.
_INTO, _OUT_OF = ("gate_up_proj", "up_proj"), "down_proj"
#: The halves of what holds gate and up.
HALVES = ("gate_proj", "up_proj")


class ExpertStack(nn.Module):
    """The matrices of all experts in one tensor (experts, out, in), or (experts, in, out) with `inputs_first`."""

    def __init__(self, weight: nn.Parameter, *, inputs_first: bool) -> None:
        super().__init__()
        self.weight = weight
        self.inputs_first = inputs_first

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """(tokens, in) → (tokens, out), by one expert."""
        W = self.weight[expert]
        return x @ W if self.inputs_first else nn.functional.linear(x, W)


@dataclass(frozen=True)
class _Kind:
    """How a class of experts lays its parameters out."""

    into: str  # the parameter that the tokens are multiplied with
    gated: bool
    inputs_first: bool
    alternating: bool = False  # gate and up alternate, column by column
    by_expert: bool = False  # called with as many rows for each expert, as Llama 4 does


def stacks_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module that holds its experts in stacks and whose computation is known."""
    for name, module in model.named_modules():
        if _kind_of(module) is not None:
            yield name, module


def _kind_of(module: nn.Module) -> _Kind | None:
    parts = module._parameters
    into = next((key for key in _INTO if _is_stack(parts.get(key))), None)
    if into is None or not _is_stack(parts.get(_OUT_OF)):
        return None
    if type(module).__name__ == "Llama4TextExperts":
        return _Kind(into, gated=True, inputs_first=True, by_expert=True)
    if not hasattr(module, "is_transposed") or not hasattr(module, "_apply_gate"):
        return None  # not of transformers' common contract
    gated = bool(getattr(module, "has_gate", True)) and into == _INTO[0]
    alternating = not getattr(module, "is_concatenated", True)
    return _Kind(into, gated, bool(module.is_transposed), alternating)


def _is_stack(value: nn.Parameter | None) -> bool:
    return value is not None and value.ndim == 3


def separate_experts(model: nn.Module, stacked: Collection[str] = ()) -> None:
    """Make layers of the experts of `model`, in place.

    Those of parameters in `stacked` become one `ExpertStack` each, under the parameter's name; of all others each
    expert has layers of its own, `experts.3.gate_proj` and so on. Classes whose computation is not known are left.
    """
    for name, module in list(stacks_in(model)):
        kind = _kind_of(module)
        assert kind is not None  # noqa: S101 - as `stacks_in` says
        whole = f"{name}.{kind.into}" in stacked
        (_stack if whole else _list)(module, kind)
        module._tailwise_kind = kind  # type: ignore[assignment]
        module.forward = MethodType(_by_expert if kind.by_expert else _forward, module)


def _stack(module: nn.Module, kind: _Kind) -> None:
    for key in (kind.into, _OUT_OF):
        weight = module._parameters.pop(key)
        assert weight is not None  # noqa: S101 - as `_kind_of` says
        module.add_module(key, ExpertStack(nn.Parameter(weight.data, False), inputs_first=kind.inputs_first))


def _list(module: nn.Module, kind: _Kind) -> None:
    into, out_of = (_out_in(module, key, kind) for key in (kind.into, _OUT_OF))
    for index, (first, last) in enumerate(zip(into, out_of, strict=True)):
        expert = nn.Module()
        if kind.gated:
            parts = (first[::2], first[1::2]) if kind.alternating else first.chunk(2)
            for key, part in zip(HALVES, parts, strict=True):
                expert.add_module(key, _linear(part))
        else:
            expert.add_module(HALVES[1], _linear(first))
        expert.add_module(_OUT_OF, _linear(last))
        module.add_module(str(index), expert)
    del module._parameters[kind.into], module._parameters[_OUT_OF]


def _out_in(module: nn.Module, key: str, kind: _Kind) -> torch.Tensor:
    weight = module._parameters[key]
    assert weight is not None  # noqa: S101 - as `_kind_of` says
    return weight.data.mT if kind.inputs_first else weight.data


def _linear(weight: torch.Tensor) -> nn.Linear:
    """A layer whose weight is a part of the stack itself."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _forward(self: Any, *given: Any, **named: Any) -> torch.Tensor:
    """States (tokens, hidden), experts of each token (tokens, k), their weights (tokens, k) → (tokens, hidden)."""
    states, chosen, weights = [*given, *named.values()][:3]
    shape = states.shape
    states = states.reshape(-1, shape[-1])
    output = torch.zeros_like(states)
    if states.is_meta:  # who is sent where cannot be told without values
        return output.reshape(shape)
    for expert in chosen.unique().tolist():
        if 0 <= expert < self.num_experts:
            token, place = torch.where(chosen == expert)
            out = _one(self, states[token], expert) * weights[token, place, None]
            output.index_add_(0, token, out.to(output.dtype))
    return output.reshape(shape)


def _by_expert(self: Any, states: torch.Tensor) -> torch.Tensor:
    """Llama 4: the states of all tokens for the first expert, then for the second, …; zero where one is not sent."""
    each = states.view(self.num_experts, -1, states.shape[-1])
    return torch.cat([_one(self, x, expert) for expert, x in enumerate(each)])


def _one(self: Any, x: torch.Tensor, expert: int) -> torch.Tensor:
    """(tokens, hidden) → (tokens, hidden) by one expert."""
    kind: _Kind = self._tailwise_kind
    inner = _gated(self, kind, _through(self, kind.into, x, expert))
    output = _through(self, _OUT_OF, inner, expert)
    return self.post_expert_norm(output) if getattr(self, "has_post_expert_norm", False) else output


def _gated(self: Any, kind: _Kind, x: torch.Tensor) -> torch.Tensor:
    if not kind.gated:
        return self.act_fn(x)  # type: ignore[no-any-return]
    if kind.by_expert:
        gate, up = x.chunk(2, dim=-1)
        return up * self.act_fn(gate)  # type: ignore[no-any-return]
    return self._apply_gate(x)  # type: ignore[no-any-return]


def _through(self: Any, key: str, x: torch.Tensor, expert: int) -> torch.Tensor:
    kind: _Kind = self._tailwise_kind
    output: torch.Tensor
    if key in self._modules:
        output = self._modules[key](x, expert)
    elif key == kind.into and kind.gated:
        layers = self._modules[str(expert)]
        gate, up = (getattr(layers, half)(x) for half in HALVES)
        output = torch.stack((gate, up), -1).flatten(-2) if kind.alternating else torch.cat((gate, up), -1)
    else:
        output = getattr(self._modules[str(expert)], HALVES[1] if key == kind.into else _OUT_OF)(x)
    bias = self._parameters.get(f"{key}_bias") if getattr(self, "has_bias", False) else None
    return output if bias is None else output + bias[expert]
