"""Pairs of low-rank factors as the change that they make: LoRA in the namings that people have.

    ΔW = s · up · down,   down (r × in), up (out × r),   s = alpha / r

Names: peft's `lora_A`, `lora_B` (with or without the adapter's name), `lora_down`, `lora_up` with `alpha` (kohya,
LoCon),
diffusers' `lora.down`, `to_q_lora.down`, llama.cpp's `weight.lora_a`. Where alpha is stored nowhere, s is 1 and the row
says so. Factors of convolutions are multiplied as 1 × 1 after the first. Kinds whose change is not such a product are
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

MARKS = ("lora", "hada_", "lokr_", "oft_", "boft_", "ia3_", "vera_", "loha_", "glora_", "down.weight", "up.weight",
         "dora_scale")  # fmt: skip

_FACTOR = re.compile(
    r"^(?:(?:weight\.)?lora_(?P<peft>[ABab]|embedding_[AB])"
    r"|(?:lora_|lora_linear_layer\.|lora\.|)(?P<other>down|up))"
    r"(?:\.(?!weight$)(?P<adapter>[\w-]+))?(?:\.weight)?$"
)
_DOWN = {"A": "down", "a": "down", "B": "up", "b": "up", "embedding_A": "down", "embedding_B": "up"}
_OTHER_KINDS = (
    ("hada_", "LoHa"), ("lokr_", "LoKr"), ("boft_", "BOFT"), ("oft_", "OFT"), ("ia3_", "IA³"), ("vera_", "VeRA"),
    ("glora_", "GLoRA"), ("lora_mid", "LoCon with a Tucker core"), ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
)  # fmt: skip
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class LowRank:
    """The change of one module, computed in float64 from the stored factors."""

    shape: tuple[int, ...]
    down: str
    up: str
    rank: int
    alpha: str | float | None  # the tensor that holds it, its value, or None where it is not known
    dtype: str
    flip: bool = False  # an embedding: the change is (up · down)ᵀ, a row per token
    by_rows: bool = True

    def factors(self, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows × r) and (r × cols) whose product the change is, float64."""
        import torch

        down = checkpoint.read(self.down).to(torch.float64).flatten(1)
        up = checkpoint.read(self.up).to(torch.float64).flatten(1)
        up = up * self._scale(checkpoint)
        return (down.T.contiguous(), up.T.contiguous()) if self.flip else (up, down)

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of the change, float64."""
        left, right = self.factors(checkpoint)
        return (left[start:stop] @ right).reshape(stop - start, *self.shape[1:])

    def _scale(self, checkpoint: Checkpoint) -> float:
        if self.alpha is None:
            return 1.0
        alpha = self.alpha if isinstance(self.alpha, float) else float(checkpoint.read(self.alpha).reshape(-1)[0])
        return alpha / self.rank


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """The changes of a module, one an adapter; other kinds of adapters refused."""
    own = _parts(group)
    strange = next((kind for mark, kind in _OTHER_KINDS if any(mark in leaf for leaf in group.leaves)), None)
    if strange is not None:
        extra = [leaf for leaf in group.leaves if any(mark in leaf for mark, _ in _OTHER_KINDS) or leaf == "alpha"]
        leaves = dict.fromkeys([*extra, *(leaf for parts in own.values() for leaf in parts.values())])
        yield Refused(group.pick(*leaves), _refusal(strange))
        return
    for adapter, parts in own.items():
        yield _pair(group, checkpoint, adapter, parts)


def _refusal(kind: str) -> str:
    if kind == "DoRA":
        return (
            "a DoRA update, which depends on the base's weights: merge it into its base with the tool that made it, "
            "or give its folder with adapter_config.json and the base"
        )
    return (
        f"factors of {kind}, whose change is not a product of two matrices: merge it into its base with the tool that "
        "made it, and audit the merged model"
    )


def _parts(group: Siblings) -> dict[str, dict[str, str]]:
    """Adapter's name → {down, up} → leaf."""
    found: dict[str, dict[str, str]] = {}
    inside = "lora" in group.module.rpartition(".")[2]  # `processor.to_q_lora.down.weight`
    for leaf, spec in group.leaves.items():
        match = _FACTOR.match(leaf)
        if match is None or len(spec.shape) < 2 or spec.dtype not in _FLOATS:
            continue
        if leaf.startswith(("down", "up")) and not inside:
            continue
        side = _DOWN.get(match["peft"] or "", match["other"])
        found.setdefault(match["adapter"] or "", {})[side] = leaf
    return found


def _pair(group: Siblings, checkpoint: Checkpoint, adapter: str, parts: Mapping[str, str]) -> Claim:
    leaves = dict(group.leaves)
    if len(parts) < 2:
        return Refused(group.pick(*parts.values()), "only one of the two LoRA factors is here; save the adapter again")
    down, up = leaves[parts["down"]], leaves[parts["up"]]
    embedding = "embedding" in parts["down"]
    rank = down.shape[0]
    if up.shape[1] != rank or prod(up.shape[2:]) != 1 or rank == 0:
        why = f"LoRA factors of shapes {down.shape} and {up.shape}, which do not fit together"
        return Refused(group.pick(*parts.values()), f"{why}; save the adapter again")
    shape = (down.shape[1], up.shape[0]) if embedding else (up.shape[0], *down.shape[1:])
    alpha, note = _alpha(group, checkpoint, adapter)
    members = group.pick(parts["down"], parts["up"], *(["alpha"] if isinstance(alpha, str) else []))
    codec = LowRank(shape, down.name, up.name, rank, alpha, down.dtype, flip=embedding)
    return Read(_name(group, checkpoint, adapter), members, codec, note)


def _name(group: Siblings, checkpoint: Checkpoint, adapter: str) -> str:
    """The weight that is changed; where it is here too, the change has a name of its own."""
    module = group.module.removesuffix("_lora")
    base = f"{group.module}.base_layer.weight" in checkpoint.tensors
    plain = module.removeprefix("base_model.model.")
    if base or "weight" in group.leaves:
        return f"{plain}.weight#lora" + (f".{adapter}" if adapter not in ("", "default") else "")
    return f"{plain}.weight" if adapter in ("", "default") else f"{plain}.{adapter}.weight"


def _alpha(group: Siblings, checkpoint: Checkpoint, adapter: str) -> tuple[str | float | None, str]:
    """Where alpha is, and what to say where it is nowhere."""
    stored = group.leaves.get("alpha")
    if stored is not None and prod(stored.shape) == 1:
        return stored.name, ""
    live = checkpoint.module_scales.get(group.module, {}).get(adapter)
    if live is not None:
        return live, ""
    for settings in (checkpoint.metadata, checkpoint.config):
        found = _number(
            settings.get("adapter.lora.alpha", settings.get("lora_alpha", settings.get("ss_network_alpha")))
        )
        if found is not None:
            return found, ""
    if group.module.removesuffix("_lora") != group.module or any("lora_down" in leaf for leaf in group.leaves):
        return None, ""  # these tools apply the product as it is where no alpha is stored
    return None, "the scale alpha/r is stored elsewhere (adapter_config.json): the change is given with scale 1"


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
