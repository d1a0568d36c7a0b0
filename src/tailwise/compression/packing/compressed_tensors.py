"""The layouts of compressed-tensors, which vLLM, SGLang and transformers load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.roles import classify
from tailwise.compression.packing.bit_streams import pack_bits, pack_words
from tailwise.compression.packing.packing import PackingWork
from tailwise.compression.packing.shards import Members, ShardPacking
from tailwise.compression.packing.tensor_parts import Parts, cast_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.schemes import Scheme, scheme_of
from tailwise.number_formats.number_format import NumberFormat

_WORDS = "pack-quantized"
#: Layouts that the library decodes to bfloat16 whatever the model computes in.
_BF16_ONLY = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized")
_NO_LINEAR = ("embed", "pos_embed", "codebook", "norm", "bias")


class CompressedTensors(ShardPacking):
    """`weight_packed` or `weight`, `weight_scale` and the like for each linear layer."""

    name = "compressed-tensors"
    package, extra = "compressed_tensors", "packed"
    loads = (
        "It loads with `transformers.AutoModelForCausalLM.from_pretrained` where the package compressed-tensors is "
        "installed, and lies as vLLM reads it."
    )

    @override
    def instead(self) -> str:
        return "int2 … int8 (-asym, -g<N>), fp8_e4m3, mxfp4, mxfp6, mxfp8, nvfp4, bf16, fp16, fp32"

    @override
    def refuses(self, chosen: NumberFormat, spec: TensorSpec) -> str | None:
        if classify(spec.name, 2, {}).role in _NO_LINEAR:
            return "is an embedding, and servers load linear layers packed, nothing else"
        if cast_of(chosen) is None and _READ_BY_ITSELF.search(spec.name):
            return "is a layer whose weight Mamba's code reads by itself, and which transformers does not load packed"
        if cast_of(chosen) is not None:
            return None
        scheme = scheme_of(chosen)
        if scheme is None:
            return f"has no layout for {chosen.name}"
        return None if scheme.layout in _known() else f"the installed version has no layout {scheme.layout}"

    @override
    def reasons(self, checkpoint: Checkpoint) -> Iterator[str]:
        if not checkpoint.config:
            yield "there is no config.json, which says how the weights are packed"

    @override
    def notes(self, plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
        schemes = _schemes(plan)
        if len(schemes) > 1 and _asymmetric(schemes):
            yield (
                "transformers does not load asymmetric integers beside other formats; vLLM does, and so does "
                "`tailwise audit`"
            )
        lost = [name for name, (scheme, _) in schemes.items() if not _has_kernels(scheme)]
        if lost:
            yield f"transformers loads {', '.join(lost)}; vLLM has no kernels for it"
        experts = [scheme for scheme, tensors in schemes.values() if any(map(_is_expert, tensors))]
        if len(experts) > 1 or any(not scheme.weights["symmetric"] for scheme in experts):
            yield "transformers loads experts in one symmetric format alone, and reads others as wrong numbers"
        if _dtype(schemes, checkpoint):
            yield "config.json asks for bfloat16, the one type that compressed-tensors decodes mx and nvfp4 formats to"

    @override
    def members(self, spec: TensorSpec, chosen: NumberFormat, parts: Parts) -> Members:
        scheme, module = scheme_of(chosen), spec.name.removesuffix(".weight")
        assert scheme is not None  # noqa: S101 - `refuses` has let no other through
        bits, whole = int(chosen.element_bits), scheme.weights["strategy"] == "tensor"
        scales = parts.scales.reshape(1) if whole else parts.scales
        if scheme.layout == _WORDS:
            return self._words(module, parts, bits, scales)
        packed = bits < 8
        codes = {f"{module}.weight_packed": pack_bits(parts.codes, bits)} if packed else {spec.name: parts.codes}
        stored = {**codes, f"{module}.weight_scale": scales}
        if parts.tensor_scale is not None:
            stored[f"{module}.weight_global_scale"] = parts.tensor_scale
        return stored

    @staticmethod
    def _words(module: str, parts: Parts, bits: int, scales: torch.Tensor) -> Members:
        on_meta = parts.codes.device.type == "meta"
        shape = torch.empty(2, dtype=torch.int64, device="meta") if on_meta else torch.tensor(parts.codes.shape)
        members = {f"{module}.weight_packed": pack_words(parts.codes, bits), f"{module}.weight_scale": scales}
        if parts.zeros is not None:
            zeros = parts.zeros.reshape(1) if scales.ndim == 1 else pack_words(parts.zeros.T, bits).T.contiguous()
            members[f"{module}.weight_zero_point"] = zeros
        return {**members, f"{module}.weight_shape": shape}

    @override
    def overhead(self, chosen: NumberFormat, spec: TensorSpec) -> int:
        """Rows are filled up to whole words, and two integers hold the shape."""
        scheme = scheme_of(chosen)
        if scheme is None or scheme.layout != _WORDS:
            return 0
        (out, inputs), bits = spec.shape, int(chosen.element_bits)
        group, strategy = chosen.group_size, scheme.weights["strategy"]
        nbytes = 16 + out * _filling(inputs, bits)
        if not scheme.weights["symmetric"]:
            groups = 1 if group is None else ceil(inputs / group)
            nbytes += (8 - bits) / 8 if strategy == "tensor" else groups * _filling(out, bits)
        return round(nbytes)

    @override
    def settings(self, work: PackingWork) -> dict[str, Any]:
        schemes = _schemes(work.plan)
        if not schemes:
            return {}
        layouts = {scheme.layout for scheme, _ in schemes.values()}
        settings: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": _left(work.plan, work.checkpoint),
            "config_groups": {f"group_{number}": _group(*item) for number, item in enumerate(schemes.values())},
        }
        if len(schemes) == 1 and _asymmetric(schemes):
            # transformers makes no room for packed zero points, and reads them only where it decodes while loading.
            settings["dequantize"] = True
        return {"quantization_config": settings, **_dtype(schemes, work.checkpoint)}


#: Weights of a mixer that its code multiplies with, or sets, without calling the layer.
_READ_BY_ITSELF = re.compile(r"\bmixer\.(?:dt_proj|out_proj)\.weight$|\bmamba\.dt_proj\.weight$")


def _known() -> frozenset[str]:
    from compressed_tensors.config import CompressionFormat

    return frozenset(item.value for item in CompressionFormat)


def _filling(count: int, bits: int) -> float:
    """Bytes between the last code of a row and the end of its last word."""
    return 4 * ceil(count * bits / 32) - count * bits / 8


def _schemes(plan: Plan) -> dict[str, tuple[Scheme, list[str]]]:
    """Name of a format → its scheme and tensors; plain casts have none."""
    schemes: dict[str, tuple[Scheme, list[str]]] = {}
    for decision in plan:
        chosen = decision.number_format
        scheme = scheme_of(chosen)
        if scheme is not None:
            schemes.setdefault(chosen.name, (scheme, []))[1].append(decision.tensor)
    return schemes


def _group(scheme: Scheme, tensors: list[str]) -> dict[str, Any]:
    """Layers of one format, as config.json has them; activations stay as they are."""
    targets = [_target(tensor) for tensor in tensors]
    unused = {"input_activations": None, "output_activations": None}
    return {"targets": targets, "weights": dict(scheme.weights), **unused, "format": scheme.layout}


def _target(tensor: str) -> str:
    """A module by its full name; of an expert as a regular expression, by which transformers finds their group."""
    module = tensor.removesuffix(".weight")
    return f"re:^{re.escape(module)}$" if _is_expert(tensor) else module


def _is_expert(tensor: str) -> bool:
    return classify(tensor, 2, {}).role.startswith("expert_")


def _has_kernels(scheme: Scheme) -> bool:
    """Whether vLLM computes with such weights, as its sources have it."""
    if scheme.layout != _WORDS:
        return scheme.layout != "mxfp6-pack-quantized"
    return scheme.weights["num_bits"] in (4, 8) and scheme.weights["strategy"] in ("group", "channel")


def _asymmetric(schemes: dict[str, tuple[Scheme, list[str]]]) -> bool:
    packed = [scheme.weights for scheme, _ in schemes.values() if scheme.layout == _WORDS]
    return any(not weights["symmetric"] and weights["strategy"] != "tensor" for weights in packed)


def _dtype(schemes: dict[str, tuple[Scheme, list[str]]], checkpoint: Checkpoint) -> dict[str, str]:
    """What config.json says of the dtype, where it must say something else than now."""
    key = "torch_dtype" if "torch_dtype" in checkpoint.config else "dtype"
    coarse = any(scheme.layout in _BF16_ONLY for scheme, _ in schemes.values())
    return {key: "bfloat16"} if coarse and checkpoint.config.get(key) != "bfloat16" else {}


def _left(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """Linear layers that stay as they are: servers ask for a word on every one."""
    packed = {tensor for _, tensors in _schemes(plan).values() for tensor in tensors}
    left = {"lm_head"} if checkpoint.config.get("tie_word_embeddings") else set()
    for name, spec in checkpoint.tensors.items():
        if name in packed or len(spec.shape) != 2 or not name.endswith(".weight"):
            continue
        if classify(name, 2, checkpoint.config).role not in _NO_LINEAR:
            left.add(name.removesuffix(".weight"))
    return sorted(left)
