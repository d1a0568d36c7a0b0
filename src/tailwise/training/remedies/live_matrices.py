"""Which parameters of a model are the matrices that a remedy acts on, and their exponents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.roles import classify
from tailwise.checkpoints.wrapped import plain_name, refuse_flat, unwrap, whole
from tailwise.spectrum.power_law import TailOptions, fit_tail
from tailwise.spectrum.solve import NotFiniteError, OutOfRangeError, solve

#: One row a token, class or position: their spectra are those of the vocabulary, and the papers leave them out.
OUTSIDE = frozenset({"embed", "pos_embed", "codebook", "lm_head", "classifier", "patch_out", "regressor"})


def linear_matrices(model: nn.Module, min_evals: int = 16) -> dict[str, nn.Parameter]:
    """The weights of linear layers by the name of their module, each once.

    Names are those of an audit and of alarms, without what torch.compile or DistributedDataParallel put before them;
    fused projections are whole. Left out: embeddings, heads, whatever is tied to them, norms, convolutions, stacked
    experts, and matrices with fewer than `min_evals` eigenvalues. Raises `UsageError` for FSDP1, whose weights are no
    matrices.
    """
    return {name: module.weight for name, module in linear_modules(model, min_evals).items()}


def linear_modules(model: nn.Module, min_evals: int = 16) -> dict[str, Any]:
    """The modules of `linear_matrices`."""
    refuse_flat(model)
    weighted = [(plain_name(name), module) for name, module in _weighted(unwrap(model))]
    config = _config(model)
    outside = {id(module.weight) for name, module in weighted if _is_outside(name, module, config)}
    modules: dict[int, tuple[str, Any]] = {}
    for name, module in weighted:
        weight = module.weight
        if _is_linear(module) and id(weight) not in outside and min(weight.shape) >= min_evals:
            modules.setdefault(id(weight), (name, module))
    return dict(modules.values())


def weight_matrices(model: nn.Module, min_evals: int = 16) -> dict[str, nn.Parameter]:
    """The weights of linear layers, convolutions, attention and recurrent layers, in the model's order, each once.

    Beside those of `linear_matrices`: kernels of convolutions (`conv`), the projections of `nn.MultiheadAttention`
    (`attn.in_proj_weight`), and the weights of `nn.LSTM`, `nn.GRU` and `nn.RNN` (`lstm.weight_ih_l0`). Projections and
    gates that are one parameter are one matrix; a kernel is the matrix of `as_matrix`.
    """
    linear = {id(module.weight): name for name, module in linear_modules(model, min_evals).items()}
    matrices: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in unwrap(model).named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = plain_name(f"{path}.{name}" if path else name)
            if id(parameter) in linear:
                matrices.setdefault(id(parameter), (linear[id(parameter)], parameter))
            elif _is_other(module, name) and min(as_matrix(parameter).shape) >= min_evals:
                matrices.setdefault(id(parameter), (full.removesuffix(".weight"), parameter))
    return dict(matrices.values())


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """A weight as a matrix: out × (in · kernel) of a convolution, and a matrix itself as it is."""
    return weight if weight.ndim == 2 else weight.flatten(1)


def _is_other(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a matrix of a layer that is no linear one."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    return isinstance(module, nn.RNNBase) and name.startswith("weight_")


def role_of(name: str, model: nn.Module) -> str:
    """The role that an audit gives a matrix."""
    return classify(name, 2, _config(model)).role


def exponent(weight: torch.Tensor, estimator: str, k_frac: float = 0.1) -> float | None:
    """Power-law exponent of a matrix, or None where it has none: a tail without spread, NaN, Inf.

    A sharded matrix is gathered, for which all its ranks must call this.
    """
    try:
        spectrum = solve(as_matrix(whole(weight.detach())), device=str(weight.device))
    except (NotFiniteError, OutOfRangeError):
        return None
    fit = fit_tail(spectrum.eigenvalues, estimator, TailOptions(k_frac=k_frac, floor=spectrum.error_bound))
    return fit.alpha if fit.ok else None


def _weighted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2:
            yield name, module


def _is_outside(name: str, module: nn.Module, config: Mapping[str, Any]) -> bool:
    return isinstance(module, nn.Embedding) or classify(name, 2, config).role in OUTSIDE


def _is_linear(module: nn.Module) -> bool:
    # transformers' Conv1D, as GPT-2 has it, is a linear layer whose weight is stored transposed.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _config(model: nn.Module) -> Mapping[str, Any]:
    return {"model_type": str(getattr(getattr(unwrap(model), "config", None), "model_type", ""))}
