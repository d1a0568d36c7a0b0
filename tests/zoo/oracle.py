"""What the layers of a live model do, without tailwise: the linear map of every weight, fed with unit vectors.

A map is a float64 matrix, outputs × inputs. Its key is the name of the module, or of the parameter where a module has
several; an expert of a stack is `name[e]`. Kernels are unfolded: outputs × (inputs · positions), inputs of their own
group alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Maps = dict[str, torch.Tensor]


def maps_of(model: nn.Module, run: Callable[[], object] | None = None) -> Maps:
    """The map of every weight whose layer says what it does. `run` calls the model once, so that products with bare
    parameters (experts, routers) are seen too."""
    found: Maps = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            for kind, maps in _RULES.items():
                if isinstance(module, kind):
                    # In torch's order the more special class stands first; the first that fits is right.
                    found.update({_key(name, part): m.double() for part, m in maps(module).items()})
                    break
        if run is not None:
            found.update(witnessed(model, run))
    return {key: matrix for key, matrix in found.items() if matrix.numel()}


def _key(module: str, part: str) -> str:
    """`layer`, or `layer.part` for a parameter that is not `weight`; `weight` for a module without a name."""
    if part.startswith("["):
        return module + part
    return ".".join(word for word in (module, part) if word) or "weight"


# --- Layers that can be fed ----------------------------------------------------------------------------------------


def _fed_linear(module: Any) -> Maps:
    inputs = module.in_features if hasattr(module, "in_features") else module.weight.shape[0]
    dtype = module.weight.dtype if module.weight.is_floating_point() else torch.float32
    try:
        with _without_bias(module):
            out = module(torch.eye(inputs, dtype=dtype))
    except (TypeError, RuntimeError, ValueError, IndexError):  # a subclass that takes more than one tensor
        return {"": module.weight}
    return {"": out.T} if isinstance(out, torch.Tensor) and out.shape[0] == inputs and out.ndim == 2 else {}


def _fed_embedding(module: Any) -> Maps:
    try:
        return {"": nn.Embedding.forward(module, torch.arange(module.num_embeddings)).T}
    except (TypeError, RuntimeError):
        return {"": module.weight.T}


def _fed_bag(module: Any) -> Maps:
    each = torch.arange(module.num_embeddings)
    return {"": module(each, each).T}


def _fed_conv(module: Any) -> Maps:
    """One window of unit inputs, no padding: its outputs are the kernel, of every group its own inputs."""
    window, groups = module.kernel_size, module.groups
    size = module.in_channels // groups * _count(window)
    plain = {"stride": _ones(window), "padding": _zeros(window), "dilation": _ones(window), "padding_mode": "zeros"}
    with _set(module, plain), _without_bias(module):
        # Unit inputs of all groups at once: outputs of a group see only their own.
        units = torch.eye(size).reshape(size, module.in_channels // groups, *window)
        units = units.repeat(1, groups, *_ones(window)).to(module.weight.dtype)
        parent = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind))
        for hook in module._forward_pre_hooks.values():  # the old weight norm's
            hook(module, ())
        out = parent.forward(module, units)
    return {"": out.reshape(size, module.out_channels).T}


def _fed_conv_transpose(module: Any) -> Maps:
    """Unit inputs at one place: what comes out is the kernel, as outputs × (inputs of the group · positions)."""
    window, groups = module.kernel_size, module.groups
    size, outs = module.in_channels // groups, module.out_channels
    plain = {"stride": _ones(window), "padding": _zeros(window), "dilation": _ones(window),
             "output_padding": _zeros(window)}  # fmt: skip
    with _set(module, plain), _without_bias(module):
        units = torch.eye(size).repeat(1, groups).reshape(size, module.in_channels, *_ones(window))
        units = units.to(module.weight.dtype)
        out = module(units)  # inputs × outputs × positions
    return {"": out.transpose(0, 1).reshape(outs, size * _count(window))}


@contextmanager
def _without_bias(module: nn.Module) -> Iterator[None]:
    """What is left of an affine layer then is the map, to the last bit."""
    bias = module._parameters.get("bias")
    kept = None if bias is None else bias.clone()
    if bias is not None:
        bias.zero_()
    try:
        yield
    finally:
        if bias is not None and kept is not None:
            bias.copy_(kept)


@contextmanager
def _set(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _ones(window: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(window)


def _zeros(window: tuple[int, ...]) -> tuple[int, ...]:
    return (0,) * len(window)


def _count(window: tuple[int, ...]) -> int:
    return int(torch.tensor(window).prod())


# --- Layers whose maps stand inside something curved: their effective weights --------------------------------------


def _attention(module: Any) -> Maps:
    if module.in_proj_weight is not None:
        return {"in_proj_weight": module.in_proj_weight}
    return {f"{part}_proj_weight": getattr(module, f"{part}_proj_weight") for part in "qkv"}


def _recurrent(module: Any) -> Maps:
    names = [name for names in module._all_weights for name in names if name.startswith("weight")]
    return {name: getattr(module, name) for name in names}


def _cell(module: Any) -> Maps:
    return {"weight_ih": module.weight_ih, "weight_hh": module.weight_hh}


def _bilinear(module: Any) -> Maps:
    """yₒ = aᵀ Wₒ b is linear in b, for every a: one matrix an output, whose inputs are those of b."""
    return {f"[{o}]": module.weight[o] for o in range(module.out_features)}


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


class _Conv1DKind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, nn.Module) and _is_conv1d(instance)


class _Conv1D(metaclass=_Conv1DKind):
    """`transformers.pytorch_utils.Conv1D`, without importing it."""


_RULES: dict[type, Callable[[Any], Maps]] = {
    _Conv1D: _fed_linear,
    nn.Linear: _fed_linear,
    nn.Embedding: _fed_embedding,
    nn.EmbeddingBag: _fed_bag,
    nn.ConvTranspose1d: _fed_conv_transpose,
    nn.ConvTranspose2d: _fed_conv_transpose,
    nn.ConvTranspose3d: _fed_conv_transpose,
    nn.Conv1d: _fed_conv,
    nn.Conv2d: _fed_conv,
    nn.Conv3d: _fed_conv,
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.Bilinear: _bilinear,
}


def _is_fed(module: nn.Module) -> bool:
    return isinstance(module, tuple(_RULES))


# --- Bare parameters: which of their axes a product sums over ------------------------------------------------------


def witnessed(model: nn.Module, run: Callable[[], object]) -> Maps:
    """Maps of parameters that the model multiplies by itself, as seen while `run` calls it."""
    owned = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim in (2, 3)}
    fed = {t.untyped_storage().data_ptr() for m in model.modules() if _is_fed(m) for t in m.parameters(recurse=False)}
    owned = {name: t for name, t in owned.items() if t.untyped_storage().data_ptr() not in fed}
    witness = _Witness({tensor.untyped_storage().data_ptr(): name for name, tensor in owned.items()})
    with witness:
        run()
    found: Maps = {}
    for name, how in witness.seen.items():
        found.update(_as_maps(name.removesuffix(".weight"), owned[name].detach().double(), how))
    return found


def _as_maps(key: str, tensor: torch.Tensor, how: str | int) -> Maps:
    """`last`, `first`: of matrices (stacked or alone) that axis is summed over. A number k: of k axes it is the first
    k, of −k the last k, and the tensor is one matrix."""
    if isinstance(how, int):
        matrix = tensor.reshape(tensor.shape[: how % tensor.ndim].numel(), -1)
        return {key: matrix.T if how > 0 else matrix}
    tensor = tensor if how == "last" else tensor.transpose(-1, -2)
    return {key: tensor} if tensor.ndim == 2 else {f"{key}[{e}]": matrix for e, matrix in enumerate(tensor)}


class _Witness(TorchFunctionMode):
    """Notes which axes of a stored tensor a product sums over."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: dict[str, str | int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = getattr(func, "__name__", "")
        if name == "einsum" and len(args) == 3 and isinstance(args[0], str):
            self._einsum(*args)
        operands = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
        for operand, axis in zip(operands, _SUMMED.get(name, ()), strict=False):
            if axis is not None and isinstance(operand, torch.Tensor) and operand.ndim >= 2:
                self._product(operand, axis)
        return func(*args, **(kwargs or {}))

    def _name(self, operand: torch.Tensor) -> str | None:
        return self._names.get(operand.untyped_storage().data_ptr())

    def _product(self, operand: torch.Tensor, axis: int) -> None:
        name = self._name(operand)
        if name is not None and 1 in operand.stride()[-2:] and 1 not in operand.shape[-2:]:
            self.seen[name] = "last" if operand.stride(axis) == 1 else "first"

    def _einsum(self, equation: str, left: torch.Tensor, right: torch.Tensor) -> None:
        inputs, _, output = equation.replace(" ", "").partition("->")
        for letters, operand in zip(inputs.split(","), (left, right), strict=True):
            name, summed = self._name(operand), [letter not in output for letter in letters]
            if name is not None and operand.is_contiguous() and any(summed) and not all(summed):
                k = sum(summed)
                if all(summed[:k]) or all(summed[-k:]):
                    self.seen[name] = k if all(summed[:k]) else -k


#: Function → the axis of its first factor and of its second that is summed over.
_SUMMED: dict[str, tuple[int | None, int | None]] = {
    "linear": (None, -1),
    **dict.fromkeys(("matmul", "mm", "bmm", "__matmul__", "_grouped_mm", "grouped_mm", "addmm", "baddbmm"), (-1, -2)),
}
