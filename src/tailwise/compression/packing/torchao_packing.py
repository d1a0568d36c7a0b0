"""The tensor classes of torchao, flattened into safetensors as torchao does: transformers loads them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.roles import classify
from tailwise.compression.packing.bit_streams import pack_bits
from tailwise.compression.packing.packing import PackingWork
from tailwise.compression.packing.shards import Members, ShardPacking
from tailwise.compression.packing.tensor_parts import Parts, cast_of, empty_parts
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.elements import Float8, Integer
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, LargestFloat32, Symmetric

_NO_LINEAR = ("embed", "pos_embed", "codebook", "norm", "bias", "lm_head")


class TorchAo(ShardPacking):
    """`_weight_qdata`, `_weight_scale` and the like for each linear layer, and their class in the header."""

    name = "torchao"
    package, extra = "torchao", "torchao"
    loads = (
        "It loads with `transformers.AutoModelForCausalLM.from_pretrained` where the package torchao is installed; the "
        "layers then hold torchao's tensors with the scales of the plan."
    )

    @override
    def instead(self) -> str:
        return "int2 … int8 (-asym, -g<N>), fp8_e4m3, fp8_e5m2, nvfp4, bf16, fp16, fp32"

    @override
    def refuses(self, chosen: NumberFormat, spec: TensorSpec) -> str | None:
        role = classify(spec.name, 2, {}).role
        if role.startswith("expert_"):
            return "is an expert, which transformers merges with others while loading, and cannot in torchao's classes"
        if role in _NO_LINEAR:
            return "is no linear layer of a block, which is what transformers gives to torchao"
        if spec.dtype == "F64":
            return "is stored in double precision, which torchao does not compute in"
        if cast_of(chosen) is not None or _kind(chosen) is not None:
            return None
        if chosen.name.startswith("mx"):
            return f"has no weights in {chosen.name} without activations in it"
        return f"has no tensor class for {chosen.name}"

    @override
    def reasons(self, checkpoint: Checkpoint) -> Iterator[str]:
        if not checkpoint.config:
            yield "there is no config.json, which says that the weights are torchao's"

    @override
    def notes(self, plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
        chosen = [decision.number_format for decision in plan]
        if any(_kind(item) == "IntxUnpackedToInt8Tensor" and item.element_bits < 8 for item in chosen):
            yield "torchao's class for integers of fewer than 8 bits that runs anywhere holds each in a whole byte"

    @override
    def members(self, spec: TensorSpec, chosen: NumberFormat, parts: Parts) -> Members:
        assert isinstance(chosen, ScaledFormat)  # noqa: S101 - `refuses` has let no other through
        stored, _ = _flattened(spec, chosen, parts)
        return stored

    @override
    def metadata(self, work: PackingWork) -> Mapping[str, str]:
        """The class of every tensor, in every file, since only their union is read."""
        decisions = {decision.tensor: decision.number_format for decision in work.plan}
        names = [spec.name for shard in work.layout.shards for spec in shard.specs]
        kinds = dict.fromkeys(names, json.dumps({"_type": "Tensor"}))
        for name, chosen in decisions.items():
            if isinstance(chosen, ScaledFormat):
                spec = work.checkpoint.tensors[name]
                kinds[name] = _flattened(spec, chosen, empty_parts(chosen, spec))[1]
        return {**kinds, "tensor_names": json.dumps(names)}

    @override
    def overhead(self, chosen: NumberFormat, spec: TensorSpec) -> int:
        """Whole bytes, zero points of zero, and scales as wide as the model computes."""
        if not isinstance(chosen, ScaledFormat) or _kind(chosen) != "IntxUnpackedToInt8Tensor":
            return 0
        out, inputs = spec.shape
        scales = 1 if chosen.shared == "tensor" else out * ceil(inputs / (chosen.group_size or inputs))
        bits = int(chosen.element_bits)
        zero = 8 - (bits if isinstance(chosen.rule, Asymmetric) else 0)
        wider = 16 if spec.dtype == "F32" else 0
        return round((spec.numel * (8 - bits) + scales * (zero + wider)) / 8)

    @override
    def settings(self, work: PackingWork) -> dict[str, Any]:
        """Transformers asks for a recipe, and takes the classes from the files."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.core.config import config_to_dict
            from torchao.quantization import Int8WeightOnlyConfig

            recipe = config_to_dict(Int8WeightOnlyConfig())
        packed = {decision.tensor for decision in work.plan if _is_packed(decision.format)}
        if not packed:
            return {}
        left = sorted(
            name.removesuffix(".weight")
            for name, spec in work.checkpoint.tensors.items()
            if name not in packed and len(spec.shape) == 2 and name.endswith(".weight")
        )
        settings = {"quant_method": "torchao", "quant_type": {"default": recipe}, "modules_to_not_convert": left}
        return {"quantization_config": {**settings, "include_input_output_embeddings": False}}


def _is_packed(name: str | None) -> bool:
    return isinstance(parse_format(name or ""), ScaledFormat)


def _kind(chosen: NumberFormat) -> str | None:
    """torchao's class for a format whose weights can be its own while activations are not."""
    if not isinstance(chosen, ScaledFormat):
        return None
    if chosen.name == "nvfp4":
        return "NVFP4Tensor"
    if isinstance(chosen.element, Float8) and isinstance(chosen.rule, LargestFloat32):
        return "Float8Tensor"
    if isinstance(chosen.element, Integer) and isinstance(chosen.rule, Symmetric | Asymmetric):
        return "Int8Tensor" if chosen.name == "int8" else "IntxUnpackedToInt8Tensor"
    return None


def _flattened(spec: TensorSpec, chosen: ScaledFormat, parts: Parts) -> tuple[Members, str]:
    """The stored tensors of one weight, and what the header says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        members, metadata = flatten_tensor_state_dict({spec.name: _made(spec, chosen, parts)})
    # The codes first, as `Checkpoint.members` has them.
    ordered = sorted(members, key=lambda name: not name.endswith("_qdata"))
    return {name: members[name].contiguous() for name in ordered}, metadata[spec.name]


def _made(spec: TensorSpec, chosen: ScaledFormat, parts: Parts) -> Any:
    from torchao import quantization as ao

    dtype, kind = torch_dtype(spec.dtype, where=spec.name), _kind(chosen)
    rows, cols = spec.shape
    block = [rows, cols] if chosen.shared == "tensor" else [1, chosen.group_size or cols]
    if kind == "NVFP4Tensor":
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

        assert parts.tensor_scale is not None  # noqa: S101 - the format has one
        scale = parts.tensor_scale.reciprocal().reshape(())
        return NVFP4Tensor(pack_bits(parts.codes, 4), parts.scales, 16, dtype, scale)
    if kind == "Float8Tensor":
        return ao.Float8Tensor(parts.codes, parts.scales, block, dtype=dtype)
    if kind == "Int8Tensor":
        return ao.Int8Tensor(parts.codes, parts.scales, block, dtype)
    zeros = torch.zeros_like(parts.scales, dtype=torch.int8) if parts.zeros is None else parts.zeros
    bits = getattr(torch, f"int{chosen.element.bits}")
    return ao.IntxUnpackedToInt8Tensor(parts.codes, parts.scales.to(dtype), zeros, bits, block, dtype, None)
