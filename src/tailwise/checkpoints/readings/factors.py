"""Pairs of low-rank factors as the change that they make: LoRA in the namings that people have.

    ΔW = s · up · down,   down (r × in), up (out × r),   s = alpha / r

Names: peft's `lora_A`, `lora_B` (with or without the adapter's name), `lora_down`, `lora_up` with `alpha` (kohya,
LoCon), diffusers' `lora.down`, `to_q_lora.down`, llama.cpp's `weight.lora_a`, Megatron's `adapter.linear_in`, Meta's
`adaptor.A`, `up` and `down` of a Control-LoRA. MLX and others that hold bare parameters store both transposed:
ΔW = s · (a · b)ᵀ with a (in × r), b (r × out); for experts they store a (E × r × in), b (E × out × r). Where alpha is
stored nowhere, s is 1 and the row says so. Factors of convolutions are multiplied as 1 × 1 after the first. Kinds whose
change is not such a product are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from tailwise.checkpoints.formats.lora_names import scale_of
from tailwise.checkpoints.formats.repeated import check_product
from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

MARKS = ("lora", "hada_", "lokr_", "oft_", "boft_", "ia3_", "vera_", "loha_", "glora_", "down.weight", "up.weight",
         "dora_scale", "down", "up", "linear_in", "linear_out", "adaptor.", "a1.weight", "b1.weight",
         "trainable_tokens_")  # fmt: skip

_FACTOR = re.compile(
    r"^(?:(?:weight\.)?lora_(?P<peft>[ABab]|embedding_[AB])"
    r"|(?:lora|adaptor)\.(?P<short>[AB])|linear_(?P<linear>in|out)"
    r"|(?:lora_|lora_linear_layer\.|lora\.|)(?P<other>down|up))"
    r"(?:\.(?!weight$)(?P<adapter>[\w-]+))?(?:\.weight)?$"
)
_SIDES = {
    "A": "down", "a": "down", "embedding_A": "down", "in": "down", "down": "down",
    "B": "up", "b": "up", "embedding_B": "up", "out": "up", "up": "up",
}  # fmt: skip
#: Factors that are parameters of their own, not weights of a Linear: tools differ in which axis is the rank.
_BARE = re.compile(r"^lora[_.][ABab]$")
_MLX = ("lora_a", "lora_b")
_GLORA = frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"})
_OTHER_KINDS = (
    ("hada_", "LoHa"), ("lokr_", "LoKr"), ("boft_", "BOFT"), ("oft_", "OFT"), ("ia3_", "IA³"), ("vera_", "VeRA"),
    ("glora_", "GLoRA"), ("lora_mid", "LoCon with a Tucker core"), ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
)  # fmt: skip
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class LowRankFactors:
    """The change of one module, computed in float64 from the stored factors."""

    shape: tuple[int, ...]
    down: str
    up: str
    scale: float | str  # s, or the tensor that holds alpha
    rank: int
    dtype: str
    flip: bool = False  # an embedding: the change is (up · down)ᵀ, a row per token
    swapped: bool = False  # down is (in × r), up is (r × out)
    by_rows: bool = True
    beside: int = field(default=0, repr=False)  # entries of the weight that is changed, where it is here too

    def factors(self, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows × r) and (r × cols) whose product the change is, float64."""
        import torch

        down = checkpoint.read(self.down).to(torch.float64).flatten(1)
        up = checkpoint.read(self.up).to(torch.float64).flatten(1)
        if self.swapped:
            down, up = down.T.contiguous(), up.T.contiguous()
        up = up * _scale(checkpoint, self.scale, self.rank)
        return (down.T.contiguous(), up.T.contiguous()) if self.flip else (up, down)

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of the change, float64."""
        held = self.beside + sum(checkpoint.tensors[name].numel for name in (self.down, self.up))
        check_product(self.shape, held, f"{checkpoint.uri}, {self.up}")
        left, right = self.factors(checkpoint)
        return (left[start:stop] @ right).reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True)
class LowRankExperts:
    """The changes of a stack of experts (E × out × in), of down (E × r × in) and up (E × out × r), in float64."""

    shape: tuple[int, ...]
    down: str
    up: str
    scale: float
    dtype: str
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """The changes of experts `start:stop`, float64."""
        import torch

        held = sum(checkpoint.tensors[name].numel for name in (self.down, self.up))
        check_product(self.shape[1:], held, f"{checkpoint.uri}, {self.up}")  # experts are made one after the other
        down = checkpoint.read_rows(self.down, start, stop).to(torch.float64)
        up = checkpoint.read_rows(self.up, start, stop).to(torch.float64)
        return self.scale * (up @ down)


def _scale(checkpoint: Checkpoint, scale: float | str, rank: int) -> float:
    return scale if isinstance(scale, float) else float(checkpoint.read(scale).reshape(-1)[0]) / rank


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """The changes of a module, one an adapter; other kinds of adapters refused."""
    if checkpoint.factors_apart:
        return
    own = _parts(group, "lora_controlnet" in checkpoint.tensors)
    strange = _strange(group)
    if strange is not None:
        known = ("alpha", "m", *_GLORA)
        extra = [leaf for leaf in group.leaves if any(mark in leaf for mark, _ in _OTHER_KINDS) or leaf in known]
        leaves = dict.fromkeys([*extra, *(leaf for parts in own.values() for leaf in parts.values())])
        yield Refused(group.pick(*leaves), _refusal(strange))
        return
    if own and _STACKED.search(group.module):
        yield Refused(group.pick(*(leaf for parts in own.values() for leaf in parts.values())), _TARGET_PARAMETERS)
        return
    if tokens := [leaf for leaf in group.leaves if leaf.startswith("trainable_tokens_")]:
        yield Refused(group.pick(*tokens), _TOKENS)
    for adapter, parts in own.items():
        yield _pair(group, checkpoint, adapter, parts)


#: Where peft hangs the factors of parameters rather than of a layer: `target_parameters`.
_STACKED = re.compile(r"(?:^|\.)experts(?:\.base_layer)*$|\.base_layer$")
_TARGET_PARAMETERS = (
    "LoRA factors of a parameter that holds all experts (peft's target_parameters), whose rank is stored in "
    "adapter_config.json: give the folder with it, or merge it (merge_and_unload) and audit the saved model"
)
_TOKENS = (
    "rows that replace rows of a table (peft's trainable tokens), which ones is stored elsewhere: give the folder with "
    "adapter_config.json and the base, or merge it (merge_and_unload) and audit the saved model"
)


def _strange(group: Siblings) -> str | None:
    """The kind of a module's factors where their change is no product of two."""
    if len(_GLORA & group.leaves.keys()) > 1:
        return "GLoRA"
    if "m" in group.leaves and all(leaf in group.leaves for leaf in _MLX):
        return "DoRA of MLX"
    return next((kind for mark, kind in _OTHER_KINDS if any(mark in leaf for leaf in group.leaves)), None)


def _refusal(kind: str) -> str:
    if kind == "DoRA":
        return (
            "a DoRA update, which depends on the base's weights: merge it into its base with the tool that made it, "
            "or give its folder with adapter_config.json and the base"
        )
    if kind == "DoRA of MLX":
        return f"a {kind}, which depends on the base's weights: merge it (mlx_lm.fuse), and audit the merged model"
    return (
        f"factors of {kind}, whose change is not a product of two matrices: merge it into its base with the tool that "
        "made it, and audit the merged model"
    )


def _parts(group: Siblings, is_control: bool) -> dict[str, dict[str, str]]:
    """Adapter's name → {down, up} → leaf."""
    parts: dict[str, dict[str, str]] = {}
    inside = is_control or "lora" in group.module.rpartition(".")[2]  # `processor.to_q_lora.down.weight`
    for leaf, spec in group.leaves.items():
        match = _FACTOR.match(leaf)
        if match is None or len(spec.shape) < 2 or spec.dtype not in _FLOATS:
            continue
        if (leaf.startswith(("down", "up")) and not inside) or leaf in ("linear_in", "linear_out"):
            continue
        side = next(match[key] for key in ("peft", "short", "linear", "other") if match[key])
        parts.setdefault(match["adapter"] or "", {})[_SIDES[side]] = leaf
    return parts


def _pair(group: Siblings, checkpoint: Checkpoint, adapter: str, parts: Mapping[str, str]) -> Claim:
    if len(parts) < 2:
        return Refused(group.pick(*parts.values()), "only one of the two LoRA factors is here; save the adapter again")
    down, up = group.leaves[parts["down"]], group.leaves[parts["up"]]
    name = _name(group, checkpoint, adapter)
    how = _fit(parts, down.shape, up.shape)
    if how is None:
        return Refused(group.pick(*parts.values()), _misfit(down.shape, up.shape))
    rank = down.shape[-1] if how == "swapped" else down.shape[-2] if how == "experts" else down.shape[0]
    scale, note = _scaling(group, checkpoint, adapter, rank)
    members = group.pick(parts["down"], parts["up"], *(["alpha"] if isinstance(scale, str) else []))
    if how == "experts":
        shape: tuple[int, ...] = (down.shape[0], up.shape[1], down.shape[2])
        if isinstance(scale, str):
            return Refused(members, "LoRA factors of experts with a stored alpha, which no known tool writes")
        return Read(name, members, LowRankExperts(shape, down.name, up.name, scale, down.dtype), note)
    embedding = "embedding" in parts["down"] or (how == "swapped" and _TABLE.search(group.module) is not None)
    inputs, outputs = (down.shape[:1], up.shape[1]) if how == "swapped" else (down.shape[1:], up.shape[0])
    shape = (inputs[0], outputs) if embedding else (outputs, *inputs)
    codec = LowRankFactors(
        shape, down.name, up.name, scale, rank, down.dtype, embedding, how == "swapped",
        beside=_entries_of_the_weight(group, checkpoint),
    )  # fmt: skip
    return Read(name, members, codec, note)


def _entries_of_the_weight(group: Siblings, checkpoint: Checkpoint) -> int:
    names = (f"{group.module}.{inner}weight" for inner in ("", "base_layer.", "to_wrap."))
    return max((checkpoint.tensors[name].numel for name in names if name in checkpoint.tensors), default=0)


#: Modules whose rows are tokens. MLX stores their change as a · b, a row per token.
_TABLE = re.compile(r"(?:^|[._])(?:embed(?:dings?)?|wte|wpe)(?:_|$)[^.]*$")


def _fit(
    parts: Mapping[str, str], down: tuple[int, ...], up: tuple[int, ...]
) -> Literal["usual", "swapped", "experts"] | None:
    """How the factors are laid out; None where they do not fit together."""
    if 0 in down or 0 in up:
        return None
    mlx = (parts["down"], parts["up"]) == _MLX
    if mlx and len(down) == len(up) == 3:
        return "experts" if (down[0], down[1]) == (up[0], up[2]) else None
    usual = up[1] == down[0] and prod(up[2:]) == 1
    swapped = bool(_BARE.match(parts["down"]) and len(down) == len(up) == 2 and down[1] == up[0])
    if swapped and down[1] > min(down[0], up[1]):
        swapped = False  # a rank above both sides would be no low rank
    if usual and swapped:  # a square weight: the rank is the short side
        swapped = down[1] < down[0] or (mlx and down[1] == down[0])
    return "swapped" if swapped else "usual" if usual else None


def _misfit(down: tuple[int, ...], up: tuple[int, ...]) -> str:
    if len(down) == len(up) == 2 and up[1] and down[0] in (2 * up[1], 3 * up[1]):
        return (
            f"LoRA factors of a fused projection: {down[0] // up[1]} pairs of rank {up[1]} in one, and which rows "
            "each pair changes is stored elsewhere (as LitGPT does): merge it into its base with the tool that made "
            "it, and audit the merged model"
        )
    return f"LoRA factors of shapes {down} and {up}, which do not fit together; save the adapter again"


_DEFAULT = re.compile(r"^(?:default(?:_\d+)?)?$")


def _name(group: Siblings, checkpoint: Checkpoint, adapter: str) -> str:
    """The weight that is changed; where it is here too, the change has a name of its own."""
    module = re.sub(r"\.adapter$", "", group.module)  # Megatron's
    base = any(f"{module}.{inner}.weight" in checkpoint.tensors for inner in ("base_layer", "to_wrap"))
    plain = module.removesuffix("_lora").removeprefix("base_model.model.")
    only = len({_FACTOR.sub(r"\g<adapter>", leaf) for leaf in group.leaves if _FACTOR.match(leaf)}) < 2
    usual = adapter in ("", "default") or (only and _DEFAULT.match(adapter) is not None)
    if base or "weight" in group.leaves:
        return f"{plain}.weight#lora" + ("" if usual else f".{adapter}")
    return f"{plain}.weight" if usual else f"{plain}.{adapter}.weight"


def _scaling(group: Siblings, checkpoint: Checkpoint, adapter: str, rank: int) -> tuple[float | str, str]:
    """s, or the tensor that holds alpha; and what to say where it is nowhere."""
    stored = group.leaves.get("alpha")
    if stored is not None and prod(stored.shape) == 1:
        return stored.name, ""
    told = _told(group, checkpoint, adapter, rank)
    if told is not None:
        return told, ""
    if group.module.endswith("_lora") or any("lora_down" in leaf or leaf == "down" for leaf in group.leaves):
        return 1.0, ""  # these tools apply the product as it is where no alpha is stored
    return (
        1.0,
        "the scale alpha/r is stored elsewhere (adapter_config.json): the change is given with scale 1",
    )


def _told(group: Siblings, checkpoint: Checkpoint, adapter: str, rank: int) -> float | None:
    """s from the live layer, the settings beside the file, or its header."""
    live = checkpoint.module_scales.get(group.module, {}).get(adapter)
    if live is not None:
        return live / rank
    beside = checkpoint.config.get("adapter_config")
    scale = _beside(beside, group.module, rank) if isinstance(beside, Mapping) else None
    if scale is None:
        scale = _in_header(group.module, checkpoint.metadata, rank)
    if scale is not None:
        return scale
    for settings in (checkpoint.metadata, checkpoint.config):
        alpha = _number(
            settings.get("adapter.lora.alpha", settings.get("lora_alpha", settings.get("ss_network_alpha")))
        )
        if alpha is not None:
            return alpha / rank
    return None


def _beside(settings: Mapping[str, Any], module: str, rank: int) -> float | None:
    """s from adapter_config.json: MLX's `lora_parameters`, or peft's."""
    own = settings.get("lora_parameters")
    scale = _number(own.get("scale")) if isinstance(own, Mapping) else None
    return scale_of(settings, module.removeprefix("base_model.model."), rank) if scale is None else scale


def _in_header(module: str, metadata: Mapping[str, str], rank: int) -> float | None:
    """s from the settings of peft that diffusers writes into the header, a set per component: `transformer.r`."""
    try:
        told = json_of(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    components = {str(key).rpartition(".")[0] for key in told if str(key).endswith("lora_alpha")}
    component = max((c for c in components if module.startswith(f"{c}.")), key=len, default=None)
    if component is None:
        component = components.pop() if len(components) == 1 else None
    if component is None:
        return None
    start = f"{component}." if component else ""
    settings = {key.removeprefix(start): value for key, value in told.items() if key.startswith(start)}
    return scale_of(settings, module.removeprefix(start), rank)


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
