"""Tensor types for `llama-quantize`."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from tailwise.checkpoints.checkpoint import tower_of
from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import Refusals, integers
from tailwise.compression.plans.bits import bits_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get
from tailwise.number_formats.formats import parse_format

#: What a plan does not name. Most checkpoints are stored so, and then it changes nothing.
REST = "bf16"
SAME = "the same"
OWN_SCALES = "the same codes and groups; llama.cpp chooses its own scales"
NEAREST = "only the nearest by bits"
#: type → (inputs in a block, bits per weight).
_TYPES = {
    "f32": (1, 32.0), "f16": (1, 16.0), "bf16": (1, 16.0), "q8_0": (32, 8.5), "q6_k": (256, 6.5625),
    "q5_0": (32, 5.5), "q5_1": (32, 6.0), "q4_0": (32, 4.5), "q4_1": (32, 5.0), "iq4_nl": (32, 4.5),
    "mxfp4": (32, 4.25), "nvfp4": (64, 4.5), "q3_k": (256, 3.4375), "q2_k": (256, 2.625), "q4_k": (256, 4.5),
    "q5_k": (256, 5.5), "iq4_xs": (256, 4.25),
}  # fmt: skip
_OWN = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "bf16", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
)  # fmt: skip
_SAME = {
    **{name: name for name in _OWN},
    "fp16": "f16",
    "fp32": "f32",
}
_OWN_SCALES = {"int4-g32": "q4_0", "int8-g32": "q8_0"}
#: Base name, or bits of an integer format → types, the first whose blocks divide the inputs is taken.
_NEAREST: dict[str | int, tuple[str, ...]] = {
    2: ("q2_k", "q4_0"),
    3: ("q3_k", "q4_0"),
    4: ("q4_0",),
    8: ("q8_0",),
    "fp64": ("f32",),
    "fp8_e4m3": ("q8_0",),
    "fp8_e5m2": ("q8_0",),
    "mxfp8": ("q8_0",),
    "mxfp6": ("q6_k", "q8_0"),
    "nvfp4": ("nvfp4", "q4_0"),
    "nf4": ("iq4_nl",),
}


@dataclass(frozen=True)
class GgufType:
    """A type as `llama-quantize` names it."""

    name: str
    bits: float  # per weight, scales counted
    nearness: str  # SAME, OWN_SCALES or NEAREST


@lru_cache(maxsize=256)
def gguf_type(name: str, shape: tuple[int, ...]) -> GgufType | None:
    """The type for a format on a tensor of `shape`, inputs last; None where no block divides the inputs."""
    chosen = parse_format(name)
    # llama.cpp would fall back by itself; the notes then say which type it is.
    canonical = (chosen.fitting(shape[-1]) if shape else chosen).name
    for table, nearness in ((_SAME, SAME), (_OWN_SCALES, OWN_SCALES)):
        if canonical in table:
            return _fitting((table[canonical],), shape, nearness)
    parts = integers(parse_format(canonical))
    if parts is not None and parts.bits == 4 and not parts.symmetric:
        return _fitting(("q4_1",), shape, NEAREST)
    key = canonical.partition("-")[0] if parts is None else parts.bits
    return _fitting(_NEAREST.get(key, ()), shape, NEAREST)


def _fitting(types: tuple[str, ...], shape: tuple[int, ...], nearness: str) -> GgufType | None:
    for kind in types:
        block, bits = _TYPES[kind]
        if not shape or shape[-1] % block == 0:
            return GgufType(kind, bits, nearness)
    return None


#: `llama-quantize` leaves these as they are, whatever the file says.
_LEFT = frozenset({"pos_embed", "patch_embed", "codebook", "router", "conv", "norm", "bias"})
_TAKES = "every format whose groups fit blocks of 32 inputs; some only by the nearest type"
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"(?<=experts)\.\d+(?=\.)")
#: What composite models put before the names of their text tower; the converter takes it off.
_TOWER = re.compile(r"^thinker\.|(?:language_model|text_model)\.(?:model\.(?=layers|embed))?")
#: What the converter cuts apart → its parts: DeepSeek's keys and values by head, gate and up of stacked experts, and
#: the gate of Qwen3-Next's linear attention.
_SPLIT = {
    ".kv_b_proj": (".k_b_proj", ".v_b_proj"),
    ".linear_attn.in_proj_qkvz": (".linear_attn.in_proj_qkv", ".linear_attn.in_proj_z"),
    ".experts.gate_up_proj": (".experts.gate_proj", ".experts.up_proj"),
    ".block_sparse_moe.input_linear": (".mlp.experts.gate_proj", ".mlp.experts.up_proj"),
    ".shared_mlp.input_linear": (".mlp.shared_experts.gate_proj", ".mlp.shared_experts.up_proj"),
}


@exporter("llamacpp", source="llama.cpp, `llama-quantize --tensor-type-file`", suffixes=(".txt",), kinds=("quantize",))
def tensor_types(plan: Plan) -> Files:
    """Lines `name=type` with GGUF's names; beside it, in NAME.notes.json, how near each type is to the plan's format.

    The last line leaves all else in bfloat16. llama.cpp takes the first pattern that is found in a name, and looks at
    the file only where the type on its command line is a quantized one.
    """
    chosen = _types(plan)
    names, otherwise = _names(plan.decisions)
    types: dict[str, GgufType] = {}
    clashes: list[str] = []
    for tensor, name in ((tensor, name) for tensor, several in names.items() for name in several):
        if types.setdefault(name, chosen[tensor]) != chosen[tensor] and name not in clashes:
            clashes.append(name)
    if clashes:
        raise UsageError(
            "GGUF holds the experts of a block in one tensor, and the plan gives them several formats: "
            + listed(clashes),
            fix="plan without --per-expert",
        )
    lines = [f"^{re.escape(name)}$={kind.name}" for name, kind in types.items()]
    about = {**_facts(plan, chosen), "named_otherwise_by": otherwise}
    if turned := [name for name in types if ".attn_k_b." in name]:
        about["transposed"] = {"tensors": turned, "so": "groups run along the other axis than in the plan"}
    return {
        ".txt": "\n".join([*lines, f".*={REST}", ""]).encode(),
        ".notes.json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode(),
    }


def _types(plan: Plan) -> dict[str, GgufType]:
    refusals, types = Refusals("llama.cpp", _TAKES), dict[str, GgufType]()
    for decision in plan:
        if decision.role in _LEFT:
            refusals.add("llama-quantize never quantizes such tensors", decision.tensor)
        elif (kind := gguf_type(decision.treatment.words(), decision.shape)) is None:
            known = gguf_type(decision.treatment.words(), ()) is not None
            why = " where 32 does not divide the inputs" if known else ", which is near no type of GGUF"
            refusals.add(f"{decision.format}{why}", decision.tensor)
        else:
            types[decision.tensor] = kind
    refusals.tell()
    return types


def _names(entries: tuple[Decision, ...]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Stored tensor → names in GGUF, as most architectures have them; and the architectures that have other names."""
    _check_towers(entries)
    votes: dict[tuple[tuple[str, ...] | None, ...], list[str]] = {}
    for architecture, names in _maps():
        listed = tuple(_named(decision, names) for decision in entries)
        votes.setdefault(listed, []).append(architecture)
    whole = {names: kinds for names, kinds in votes.items() if None not in names}
    if not whole:
        most = max(votes, key=lambda names: sum(name is not None for name in names))
        refusals = Refusals("llama.cpp", "the names of transformers and of GGUF")
        for decision, name in zip(entries, most, strict=True):
            if name is None:
                refusals.add("no architecture of llama.cpp has such a tensor", decision.tensor)
        refusals.tell()
    names = max(whole, key=lambda names: len(whole[names]))
    others = sorted(kind for listed, kinds in whole.items() if listed != names for kind in kinds)
    return {decision.tensor: name or () for decision, name in zip(entries, names, strict=True)}, others


def _check_towers(entries: tuple[Decision, ...]) -> None:
    refusals = Refusals("llama.cpp", "the text tower: images and sounds are in a file of their own (mmproj)")
    for decision in entries:
        if any(tower_of(decision.tensor)[:2]):
            refusals.add("not in the file that llama-quantize reads", decision.tensor)
    refusals.tell()


def _maps() -> list[tuple[str, Any]]:
    """A map of names for every architecture, of one block: the number is put in later."""
    try:
        gguf = import_module("gguf")
    except ImportError as error:
        raise UsageError("names of GGUF need the package gguf", fix=how_to_get("gguf")) from error
    maps = []
    for architecture in gguf.MODEL_ARCH:
        # The map of one architecture writes into the class; a class of its own keeps it from the next.
        own = type("Names", (gguf.TensorNameMap,), {"block_mappings_cfg": dict(gguf.TensorNameMap.block_mappings_cfg)})
        maps.append((gguf.MODEL_ARCH_NAMES[architecture], own(architecture, 1)))
    return maps


def _named(decision: Decision, names: Any) -> tuple[str, ...] | None:
    """Every tensor that the converter makes of a stored one; None where the architecture has not all of them."""
    gguf_names = [_name(key, names) for key in _as_converted(_EXPERT.sub("", decision.tensor))]
    return None if None in gguf_names else tuple(name for name in gguf_names if name is not None)


def _as_converted(key: str) -> tuple[str, ...]:
    """The names under which llama.cpp's converter looks a stored tensor up: without the tower's, and each part."""
    key = _TOWER.sub("", key)
    key = f"model.{key}" if key.startswith("layers.") else key
    for whole, parts in _SPLIT.items():
        if whole in key:
            return tuple(key.replace(whole, part) for part in parts)
    return (key,)


def _name(key: str, names: Any) -> str | None:
    block = _BLOCK.search(key)
    gguf_name = names.get_name(_BLOCK.sub("0", key, count=1), try_suffixes=(".weight",))
    if gguf_name is None:
        return None
    if block is not None:
        gguf_name = gguf_name.replace("blk.0.", f"blk.{block[0]}.", 1)
    return gguf_name if gguf_name.endswith(".weight") else f"{gguf_name}.weight"


def _facts(plan: Plan, chosen: dict[str, GgufType]) -> dict[str, Any]:
    """What becomes of the plan's formats and of its bits."""
    counts = Counter((decision.treatment.words(), chosen[decision.tensor]) for decision in plan)
    total = plan.n_params
    return {
        "use": "llama-quantize --tensor-type-file FILE.txt model-bf16.gguf out.gguf Q8_0",
        "formats": [
            {"format": name, "type": kind.name, "tensors": count, "bits": kind.bits, "is": kind.nearness}
            for (name, kind), count in counts.items()
        ],
        "bits_of_plan": sum(bits_of(decision) * decision.n_params for decision in plan) / total,
        "bits_in_gguf": sum(chosen[decision.tensor].bits * decision.n_params for decision in plan) / total,
        "all_else": REST,
    }
