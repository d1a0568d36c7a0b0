"""What layers see: sums over the inputs of linear layers and convolutions, gathered by hooks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import unfold

from tailwise.models.activations import Activations, Need
from tailwise.models.walking.experts import ExpertStack

#: Layers whose weight is a matrix over their inputs. `Conv1D` is GPT-2's, a linear layer stored in × out. By name,
#: since other subclasses of `Linear` hold something else than one matrix.
LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear", "FalconLinear")
#: Those of them that can be made smaller: they take any sizes, and nothing else holds their weight.
PLAIN = ("Linear", "Conv1D", "FalconLinear")


#: Positions below which the norms of an expert's inputs are taken for uncertain.
FEW_TOKENS = 64
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.\w+")


def is_prunable(module: nn.Module) -> bool:
    """Whether the module's weight acts on its input as one matrix (convolutions flattened), or as one an expert."""
    return type(module).__name__ in LINEAR or isinstance(module, nn.Conv1d | nn.Conv2d | ExpertStack)


def matrices_of(module: nn.Module, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The weight as (groups, out, in): one group but for what sees other inputs, grouped convolutions and experts.

    `weight` is one of its shape in place of its own.
    """
    weight = weight_of(module) if weight is None else weight
    if isinstance(module, ExpertStack):
        return weight.mT if module.inputs_first else weight
    if type(module).__name__ == "Conv1D":
        weight = weight.T
    groups: int = module.groups if isinstance(module, nn.Conv1d | nn.Conv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def stored_from(module: nn.Module, matrices: torch.Tensor) -> torch.Tensor:
    """The inverse of `matrices_of`: (groups, out, in) → the shape of the weight."""
    if isinstance(module, ExpertStack):
        return (matrices.mT if module.inputs_first else matrices).contiguous()
    if type(module).__name__ == "Conv1D":
        return matrices[0].T.contiguous()
    return matrices.reshape(weight_of(module).shape)


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight of a layer that `is_prunable`."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - every prunable layer has one
    return weight


def inputs_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the rows of the weight are multiplied with: (groups, positions, in) float32."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return x.reshape(1, -1, x.shape[-1]).float()
    x = x.float()
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
    kernel, stride, dilation = (_pair(getattr(module, name)) for name in ("kernel_size", "stride", "dilation"))
    x = _padded(module, x)
    patches = unfold(x, kernel, dilation=dilation, stride=stride)  # (batch, channels·k, positions)
    batch, width, positions = patches.shape
    grouped = patches.reshape(batch, module.groups, width // module.groups, positions)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _padded(module: Any, x: torch.Tensor) -> torch.Tensor:
    sides = list(module._reversed_padding_repeated_twice)  # (left, right[, top, bottom]), "same" worked out
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(x, sides, mode=mode) if any(sides) else x


@dataclass
class _Sum:
    need: Need
    total: torch.Tensor  # (groups, in) float64, or (groups, in, in), float64 on a CPU and else float32
    windows: torch.Tensor  # (groups,) those of the batches in which anything was seen
    tokens: torch.Tensor  # (groups,) positions that were not zero throughout


@dataclass
class Collector:
    """Hooks on some layers of a block; call `batch_ends` after every forward pass.

    Layers that are given the very same tensor (query, key and value; gate and up) share one sum.
    """

    modules: Mapping[str, nn.Module]
    needs: Mapping[str, Need]  # those not named need nothing
    windows: int = 0  # in the batch that runs
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _owner: dict[str, str] = field(default_factory=dict)  # layer → the one that sums for it
    _seen: dict[int, tuple[torch.Tensor, str]] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> Collector:
        for name, module in self.modules.items():
            if self.needs.get(name, "none") != "none":
                self._handles.append(module.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def batch_ends(self) -> None:
        """Forget the tensors of the last pass, which the next may put others in the place of."""
        self._seen.clear()

    def found(self) -> dict[str, Activations]:
        """Layer → what its inputs were; layers that were never reached are left out."""
        made: dict[str, Activations] = {}
        for name, owner in self._owner.items():
            if owner not in self._sums:  # it was called, but with no positions
                continue
            if owner not in made:
                made[owner] = _activations(self._sums[owner])
            made[name] = made[owner]
        return made

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = given[0] if given else next(iter(named.values()))
            owner = self._owner.get(name) or self._first_to_see(name, x)
            if owner == name and x.numel():
                expert = int(given[1]) if isinstance(module, ExpertStack) else None
                with as_they_are([x]):
                    self._add(name, inputs_of(module, x.detach()), expert)

        return see

    def _first_to_see(self, name: str, x: torch.Tensor) -> str:
        other = self._seen.get(id(x))
        shared = other is not None and self.needs[other[1]] == self.needs[name] and self._alike(other[1], name)
        owner = other[1] if shared and other is not None else name
        self._owner[name] = owner
        self._seen.setdefault(id(x), (x, name))  # held, so that its id stays its own
        return owner

    def _alike(self, one: str, other: str) -> bool:
        plain = [type(self.modules[name]).__name__ in LINEAR for name in (one, other)]
        return all(plain)

    def _add(self, name: str, x: torch.Tensor, expert: int | None) -> None:
        need = self.needs[name]
        groups = len(x) if expert is None else len(weight_of(self.modules[name]))
        if name not in self._sums:
            width = x.shape[2]
            shape = (groups, width) if need == "norms" else (groups, width, width)
            # In float32, sums of many tokens move entries that lie near a threshold to its other side.
            precise = need == "norms" or x.device.type == "cpu"
            dtype = torch.float64 if precise else torch.float32
            counts = [torch.zeros(groups, dtype=torch.int64, device=x.device) for _ in range(2)]
            self._sums[name] = _Sum(need, torch.zeros(shape, dtype=dtype, device=x.device), *counts)
        sums, at = self._sums[name], slice(None) if expert is None else slice(expert, expert + 1)
        sums.windows[at] += self.windows
        sums.tokens[at] += x.any(dim=2).sum(dim=1)
        if need == "norms":
            sums.total[at] += x.square().sum(dim=1).double()
        else:
            x = x.to(sums.total.dtype)
            sums.total[at].baddbmm_(x.mT, x)


def as_they_are(tensors: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    """Without autocast for a while: a model that runs in few bits is measured and changed in many."""
    kind = tensors[0].device.type if tensors else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _activations(sums: _Sum) -> Activations:
    windows = sums.windows.clamp(min=1)
    if sums.need == "norms":
        return Activations(norms=(sums.total / windows[:, None]).sqrt().float(), tokens=sums.tokens)
    hessian = (sums.total * (2.0 / windows[:, None, None])).float()
    norms = (hessian.diagonal(dim1=1, dim2=2) / 2.0).sqrt()
    return Activations(norms=norms, hessian=hessian, tokens=sums.tokens)


def of_group(activations: Activations, group: int) -> Activations:
    """What one group of a grouped convolution or one expert of a stack sees; the others have one group."""
    parts = (activations.norms, activations.hessian, activations.tokens)
    return Activations(*(None if value is None else value[group] for value in parts))


def reaching(activations: Activations | None, group: int) -> Activations | None:
    """As `of_group`; None where nothing reached it, such as an expert that no token was sent to."""
    if activations is None:
        return None
    one = of_group(activations, group)
    return None if one.tokens is not None and not int(one.tokens) else one


def few_tokens(activations: Mapping[str, Activations]) -> tuple[int, int, int] | None:
    """(experts that saw few tokens, all that saw any, the fewest that one saw) of a block; None where none saw few.

    Few, a heuristic: less than the inputs of the layer where XᵀX is taken, which then has no full rank; else less
    than 64.
    """
    seen: dict[tuple[str, int], tuple[int, bool]] = {}
    for name, one in activations.items():
        expert = _EXPERT.match(name)
        if one.tokens is None or one.norms is None or (expert is None and len(one.tokens) == 1):
            continue
        least = one.norms.shape[-1] if one.hessian is not None else FEW_TOKENS
        for group, tokens in enumerate(one.tokens.tolist()):
            key = (expert[1], int(expert[2])) if expert else (name.rpartition(".")[0], group)
            before = seen.get(key, (tokens, False))
            seen[key] = (min(tokens, before[0]), before[1] or tokens < least)
    few = [tokens for tokens, lacking in seen.values() if lacking]
    return (len(few), len(seen), min(few)) if few else None
