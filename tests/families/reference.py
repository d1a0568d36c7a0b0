"""What operators make of a model, in a few lines each and apart from the code that is tested.

Works on a model of transformers as it is: hooks say what a layer sees, stacks of experts are cut open by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_LINEAR = ("Linear", "Conv1D", "FalconLinear")


@dataclass(frozen=True)
class Part:
    """One matrix (out × in) of a parameter: a view of it, so that writing to it writes to the model."""

    parameter: str
    W: torch.Tensor
    key: tuple[str, int, str]  # where its inputs are found


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of blocks of what decodes text, or of the whole where nothing does."""
    inside = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    mine = {id(module) for module in inside.modules()}
    found = [(name, module) for name, module in lists if id(module) in mine and ".experts" not in name]
    return max(found, key=lambda item: sum(value.numel() for value in item[1].parameters()))


def stacks_of(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """That list; of an encoder with a decoder both."""
    if not model.config.is_encoder_decoder:
        return [blocks_of(model)]
    return [("encoder.block", model.encoder.block), ("decoder.block", model.decoder.block)]


def parts_of(name: str, block: nn.Module, listed: bool) -> Iterator[Part]:
    """The matrices of a block: of stacked experts each by itself; gate and up apart where they are stored so."""
    for inner, module in block.named_modules(prefix=name):
        kind = type(module).__name__
        if kind in _LINEAR:
            W = module.weight.data
            yield Part(f"{inner}.weight", W.T if kind == "Conv1D" else W, (inner, 0, "x"))
            continue
        if module._parameters.get("down_proj") is None or module.down_proj.ndim != 3:
            continue
        swap = kind in ("GptOssExperts", "Llama4TextExperts")
        stacks = [value.data.mT if swap else value.data for value in (module.gate_up_proj, module.down_proj)]
        for expert, (into, down) in enumerate(zip(*stacks, strict=True)):
            for piece in into.chunk(2) if listed else [into]:
                yield Part(f"{inner}.gate_up_proj", piece, (inner, expert, "x"))
            yield Part(f"{inner}.down_proj", down, (inner, expert, "h"))


def seen(
    model: nn.Module, block: nn.Module, name: str, inputs: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int, str], torch.Tensor]:
    """(layer, expert, which) → what it sees, (rows, in) float32, in one run over all inputs."""
    found: dict[tuple[str, int, str], torch.Tensor] = {}
    handles = []

    def plain(key: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:
            found[key, 0, "x"] = given[0].reshape(-1, given[0].shape[-1])

        return hook

    def experts(key: str) -> Callable[..., None]:
        def hook(module: Any, given: Any, named: Mapping[str, Any]) -> None:
            values = [*given, *named.values()]
            for expert in range(module.num_experts):
                if len(values) == 1:  # Llama 4 gives every expert all tokens, zero where they are not its own
                    x = values[0].view(module.num_experts, -1, values[0].shape[-1])[expert]
                    gate, up = (x @ module.gate_up_proj[expert]).chunk(2, -1)
                    hidden = up * module.act_fn(gate)
                else:
                    states = values[0].reshape(-1, values[0].shape[-1])
                    x = states[(values[1] == expert).any(-1)]
                    hidden = module._apply_gate(_into(module, x, expert))
                found[key, expert, "x"], found[key, expert, "h"] = x, hidden

        return hook

    for inner, module in block.named_modules(prefix=name):
        if type(module).__name__ in _LINEAR:
            handles.append(module.register_forward_pre_hook(plain(inner)))
        elif module._parameters.get("down_proj") is not None:
            handles.append(module.register_forward_pre_hook(experts(inner), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**inputs, **({} if "pixel_values" in inputs else {"use_cache": False}))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _into(module: Any, x: torch.Tensor, expert: int) -> torch.Tensor:
    W = module.gate_up_proj[expert]
    if type(module).__name__ == "GptOssExperts":
        return x @ W + module.gate_up_proj_bias[expert]
    return x @ W.T


def magnitude(W: torch.Tensor, X: torch.Tensor | None) -> torch.Tensor:
    """Half of the entries of the matrix go."""
    order = W.abs().flatten().argsort()
    found = W.flatten().clone()
    found[order[: round(0.5 * W.numel())]] = 0.0
    return found.view(W.shape)


def wanda(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Half of each row goes, by |W|·‖X‖."""
    order = (W.abs() * X.double().norm(dim=0).float()).argsort(dim=1)
    return W.scatter(1, order[:, : W.shape[1] // 2], 0.0)


def damped(X: torch.Tensor) -> torch.Tensor:
    """U, upper triangular with (XᵀX + 1 % of its mean diagonal)⁻¹ = UᵀU, float64."""
    H = X.double().T @ X.double()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    return torch.linalg.cholesky(torch.linalg.inv(H), upper=True)


def sparsegpt(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Half of every 128 columns goes, chosen when they are reached, and the columns to the right make it good."""
    W, U = W.double().clone(), damped(X)
    for start in range(0, W.shape[1], 128):
        V = W[:, start : start + 128]
        gone = torch.zeros(V.numel(), dtype=torch.bool)
        gone[(V / U.diagonal()[start : start + 128]).square().flatten().argsort()[: V.numel() // 2]] = True
        for j, lost in enumerate(gone.view(V.shape).T, start):
            error = torch.where(lost, W[:, j], 0.0) / U[j, j]
            W[:, j:] -= error[:, None] * U[j, j:]
            W[:, j] = W[:, j].masked_fill(lost, 0.0)
    return W.float()


GROUP = 8


def _steps(W: torch.Tensor) -> torch.Tensor:
    """int4: the largest of a group over 7.5, kept in bfloat16."""
    steps = (W.float().abs().amax(dim=1, keepdim=True) / 7.5).bfloat16().double()
    return steps.masked_fill(steps == 0, 1.0)


def rtn(W: torch.Tensor, X: torch.Tensor | None) -> torch.Tensor:
    """Every group of 8 inputs to the nearest of 16 values."""
    groups = W.reshape(-1, GROUP)
    steps = _steps(groups)
    return ((groups.double() / steps).round().clamp(-8, 7) * steps).float().view(W.shape)


def gptq(W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Column by column, float64; the scales of a group when its first column is reached."""
    W, U = W.double().clone(), damped(X)
    for j in range(W.shape[1]):
        if j % GROUP == 0:
            steps = _steps(W[:, j : j + GROUP])[:, 0]
        rounded = (W[:, j] / steps).round().clamp(-8, 7) * steps
        lost = (W[:, j] - rounded) / U[j, j]
        W[:, j + 1 :] -= lost[:, None] * U[j, j + 1 :]
        W[:, j] = rounded
    return W.float()


OPERATORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt, "rtn": rtn, "gptq": gptq,
}  # fmt: skip


_STACKS = ("experts.gate_up_proj", "experts.up_proj", "experts.down_proj")
#: Fields of configs that count the routed experts of a block.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def gone_from(model: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """Router → numbers of the experts that a smaller model has no more, by the values of the stacks that are left."""
    found, left = {}, dict(after.named_parameters())
    for name, value in model.named_parameters():
        if name.endswith("experts.down_proj"):
            kept = [int((value - W).flatten(1).abs().sum(dim=1).nan_to_num(torch.inf).argmin()) for W in left[name]]
            mixture = model.get_submodule(name.removesuffix(".experts.down_proj"))
            router = next(key for key in ("gate", "router") if hasattr(mixture, key))
            found[name.replace("experts.down_proj", router)] = [n for n in range(len(value)) if n not in kept]
    return found


def rows_gone(model: nn.Module, after: nn.Module) -> Iterator[torch.Tensor]:
    """What the plan does not name and goes with the experts: rows of routers, biases."""
    left = after.state_dict()
    for name, value in model.state_dict().items():
        if value.shape != left[name].shape and not name.endswith(_STACKS):
            axis = next(axis for axis, size in enumerate(value.shape) if size != left[name].shape[axis])
            yield value.narrow(axis, 0, value.shape[axis] - left[name].shape[axis])


@contextmanager
def without_rows(model: nn.Module, gone: Mapping[str, list[int]]) -> Iterator[None]:
    """Routers score the experts `gone` so low that none is chosen."""
    plain, stack = nn.functional.linear, list[int]()

    def linear(*given: Any, **named: Any) -> torch.Tensor:
        scores = plain(*given, **named)
        if stack:
            scores[..., stack] = -1e9
        return scores

    for name, numbers in gone.items():
        router = model.get_submodule(name)
        for bias in (value for key, value in router.state_dict().items() if key.endswith("e_score_correction_bias")):
            bias[..., numbers] = -1e9
        router.register_forward_pre_hook(lambda *_, numbers=numbers: stack.extend(numbers))
        router.register_forward_hook(lambda *_: stack.clear())
    nn.functional.linear = linear
    try:
        yield
    finally:
        nn.functional.linear = plain
