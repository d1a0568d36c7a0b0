"""Live models to specimens: values that no two tensors share, and a file as their library writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from zoo.entry import Specimen
from zoo.oracle import maps_of


def of_module(model: nn.Module, folder: Path, never: Iterable[str] = (), *, as_made: bool = False) -> Specimen:
    """A module of torch, saved as its state dict in two formats; `as_made` where not every value is a weight."""
    if not as_made:
        stir(model)
    settle(model)
    # What torch runs on several devices has the names that it has on one.
    maps = maps_of(model.module if isinstance(model, nn.DataParallel) else model)
    return Specimen(save(model, folder), maps, model, frozenset(never), _roles(model, maps))


def of_pretrained(model: nn.Module, folder: Path, run: Callable[[], object] | None = None) -> Specimen:
    """A model with `save_pretrained` (transformers, diffusers)."""
    stir(model)
    model.save_pretrained(folder)  # type: ignore[operator]
    maps = maps_of(model, run)
    return Specimen((folder,), maps, model, _fixed(model), _roles(model, maps))


def _fixed(model: nn.Module) -> frozenset[str]:
    """Buffers of two axes or more: nothing that is learned, but for tables of positions, which may be either."""
    found = {name for name, tensor in model.named_buffers() if tensor.ndim > 1}
    return frozenset(name for name in found if "pos_embed" not in name)


def stir(model: nn.Module) -> None:
    """Values with a full spectrum in every weight, whatever the library starts from; the model in its eval mode."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.is_floating_point():
                one = tensor.ndim < 2 and not name.endswith("bias")  # norms, gains
                noise = torch.randn(tensor.shape, generator=generator) * 0.1
                tensor.copy_(1 + noise if one else noise)
    model.eval()


def settle(model: nn.Module) -> None:
    """Let what computes weights (hooks of weight norm, spectral norm's power iteration) follow the new values."""
    model.train()
    with torch.no_grad():
        for _ in range(5):
            for module in model.modules():
                for hook in module._forward_pre_hooks.values():
                    hook(module, ())
                if is_parametrized(module):
                    [getattr(module, name) for name in module.parametrizations]
    model.eval()


def save(model: nn.Module, folder: Path) -> tuple[Path, ...]:
    """The state dict as `model.safetensors` and as `model.pt`."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    files = folder / "model.safetensors", folder / "model.pt"
    save_file(state, files[0])
    torch.save(state, files[1])
    return files


#: The end of a module's name → its role, in every family that uses the name.
_ENDS: Mapping[str, str] = {
    r"(self_attn|attention|attn)\.q_proj": "attn_q",
    r"(self_attn|attention|attn)\.k_proj": "attn_k",
    r"(self_attn|attention|attn)\.v_proj": "attn_v",
    r"self_attn\.o_proj": "attn_o",
    r"layers\.\d+\.mlp\.down_proj": "mlp_down",
    r"layers\.\d+\.mlp\.(gate_proj|c_gate)": "mlp_gate",
    r"layers\.\d+\.fc1": "mlp_up",
    r"layers\.\d+\.fc2": "mlp_down",
    r"q_proj_weight": "attn_q",
    r"k_proj_weight": "attn_k",
    r"v_proj_weight": "attn_v",
    r"weight_ih(_l\d+)?(_reverse)?": "rnn_ih",
    r"weight_hh(_l\d+)?(_reverse)?": "rnn_hh",
    r"experts\.down_proj\[\d+\]": "expert_down",
}


def _roles(model: nn.Module, maps: Mapping[str, object]) -> dict[str, str]:
    """Key → role, by what the model itself says of its ends and by names that mean one thing everywhere."""
    found = {key: role for key in maps for end, role in _ENDS.items()
             if re.search(rf"(^|\.){end}$", key) and not re.search(r"connector|projector", key)}  # fmt: skip
    names = {id(module): name for name, module in model.named_modules()}
    for ask, role in (("get_input_embeddings", "embed"), ("get_output_embeddings", "lm_head")):
        try:
            module = getattr(model, ask)()
        except (AttributeError, NotImplementedError):
            continue
        if type(module) is (nn.Embedding if role == "embed" else nn.Linear) and names.get(id(module)):
            found[names[id(module)]] = role
    return found
