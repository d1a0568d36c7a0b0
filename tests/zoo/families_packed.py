"""Packed weights as their tools write them; the tool, or else the published layout, says what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from zoo.entry import Entry, Specimen

FP8, INTS, TOOLS, MLX, OTHERS = ("packed: fp8", "packed: integers", "packed: by the tool", "packed: MLX",
                                 "packed: refused")  # fmt: skip
Made = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]  # tensors, maps, config
UP = "model.layers.0.mlp.up_proj"
OUT, IN, GROUP = 48, 64, 16
NEW: Mapping[str, Any] = {"since": "unreleased"}


def packed(kind: str, name: str, make: Callable[[], Made], needs: str = "", **options: Any) -> Entry:
    """The line of a packing: `make` gives the stored tensors, what they mean, and the config beside them."""

    def build(folder: Path) -> Specimen:
        torch.manual_seed(0)
        tensors, maps, config = make()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        roles = {UP: "mlp_up"} if UP in maps else {}
        return Specimen((folder,), {key: matrix.double() for key, matrix in maps.items()}, roles=roles)

    return Entry(name, kind, build, needs, **options)


# --- fp8 -----------------------------------------------------------------------------------------------------------


def _codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return (torch.randn(shape) * 30).to(dtype)


def fp8(scale: str, shape: tuple[int, ...], weight: tuple[int, ...] = (OUT, IN), **also: Any) -> Callable[[], Made]:
    """Codes and scales of which each covers an equal share of rows and columns; `scale` is its leaf."""
    config, extra = also.get("config", {}), also.get("extra", {})
    e8m0, dtype = also.get("e8m0", False), also.get("dtype", torch.float8_e4m3fn)

    def make() -> Made:
        codes = _codes(*weight, dtype=dtype)
        values = torch.rand(shape) * 0.02 + 0.001
        stored = values
        if e8m0:
            stored = torch.exp2(torch.randint(-9, -4, shape).float())
            values, stored = stored, stored.to(torch.float8_e8m0fnu)
        wide = values.reshape(-1, 1) if values.ndim == 1 else values
        for axis in range(wide.ndim):
            step = 128 if 1 < wide.shape[axis] < weight[axis] else -(-weight[axis] // wide.shape[axis])
            wide = wide.repeat_interleave(step, axis).narrow(axis, 0, weight[axis])
        matrix = codes.float() * wide
        maps = {UP: matrix} if len(weight) == 2 else {}
        return {f"{UP}.weight": codes, f"{UP}.{scale}": stored, **extra}, maps, config

    return make


def _fp8_experts() -> Made:
    codes, scale = _codes(3, 48, 32), torch.rand(3) * 0.02
    name = "model.layers.0.mlp.experts.down_proj"
    config = {"model_type": "qwen3_moe", "hidden_size": 48, "moe_intermediate_size": 32}
    maps = {f"{name}[{e}]": codes[e].float() * scale[e] for e in range(3)}
    return {name: codes, f"{name}_scale": scale.reshape(3, 1, 1)}, maps, config


def _fp8_alone() -> Made:
    codes = _codes(OUT, IN)
    return {f"{UP}.weight": codes}, {UP: codes.float()}, {}


def _strange_scale(dtype: str) -> Callable[[], Made]:
    def make() -> Made:
        codes = _codes(OUT, IN) if dtype == "fp8" else torch.randint(-127, 127, (OUT, IN), dtype=torch.int8)
        return {f"{UP}.weight": codes, f"{UP}.absmaxes": torch.rand(OUT, 1)}, {}, {}

    return make


BLOCK = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}}
MODELOPT = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
BIG = (256, 384)

# --- integers ------------------------------------------------------------------------------------------------------


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of small integers to int32 words along the first axis, lowest bit first."""
    count, n = codes.shape
    found = torch.zeros(count * bits // 32, n, dtype=torch.int64)
    for i in range(count):
        for b in range(bits):
            found[(i * bits + b) // 32] |= ((codes[i].long() >> b) & 1) << ((i * bits + b) % 32)
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


def gptq(bits: int, version: str = "gptq", order: bool = False) -> Callable[[], Made]:
    """AutoGPTQ's tensors: zeros are stored less one in format v1."""

    def make() -> Made:
        inputs = 96 if bits == 3 else IN
        codes = torch.randint(0, 2**bits, (inputs, IN))
        zeros = torch.randint(1, 2**bits, (inputs // GROUP, IN))
        scales = torch.rand(inputs // GROUP, IN).half() * 0.1
        groups = torch.arange(inputs) // GROUP
        groups = groups[torch.randperm(inputs)] if order else groups
        stored = zeros if version == "gptq_v2" else zeros - 1
        tensors = {"qweight": words(codes, bits), "qzeros": words(stored.T, bits).T, "scales": scales,
                   "g_idx": groups.to(torch.int32)}  # fmt: skip
        config = {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": GROUP,
                                          "desc_act": order, "checkpoint_format": version}}  # fmt: skip
        matrix = ((codes - zeros[groups]) * scales.float()[groups]).T
        return {f"{UP}.{leaf}": tensor for leaf, tensor in tensors.items()}, {UP: matrix}, config

    return make


def awq() -> Made:
    """AutoAWQ's `gemm` layout: nibble j of a word is output order[j]."""

    def pack(codes: torch.Tensor) -> torch.Tensor:
        order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
        by_word = codes.reshape(codes.shape[0], -1, 8)[:, :, order].long()
        found = sum(by_word[:, :, j] << (4 * j) for j in range(8))
        return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)

    codes, zeros = torch.randint(0, 16, (IN, OUT)), torch.randint(0, 16, (IN // GROUP, OUT))
    scales, groups = torch.rand(IN // GROUP, OUT).half() * 0.1, torch.arange(IN) // GROUP
    tensors = {f"{UP}.qweight": pack(codes), f"{UP}.qzeros": pack(zeros), f"{UP}.scales": scales}
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}}
    return tensors, {UP: ((codes - zeros[groups]) * scales.float()[groups]).T}, config


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def nvfp4() -> Made:
    """ModelOpt's NVFP4: two codes a byte, E4M3 scales of 16 entries, one scale of all."""
    codes = torch.randint(0, 16, (OUT, IN))
    scale, whole = (torch.rand(OUT, IN // 16) + 0.2).to(torch.float8_e4m3fn), torch.tensor(0.013)
    tensors = {"weight": (codes[:, 1::2] << 4 | codes[:, ::2]).to(torch.uint8), "weight_scale": scale,
               "weight_scale_2": whole, "input_scale": torch.tensor(0.02)}  # fmt: skip
    matrix = E2M1[codes] * scale.float().repeat_interleave(16, 1) * whole
    config = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}}
    return {f"{UP}.{leaf}": tensor for leaf, tensor in tensors.items()}, {UP: matrix}, config


# --- by the tools themselves ---------------------------------------------------------------------------------------


def bnb4(kind: str, nested: bool) -> Callable[[], Made]:
    """A Linear4bit as it saves itself, and its own dequantization."""

    def make() -> Made:
        nn, functional = import_module("bitsandbytes.nn"), import_module("bitsandbytes.functional")
        layer = nn.Linear4bit(IN, OUT, bias=False, quant_type=kind, compress_statistics=nested).to("cpu")
        maps = {UP: functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)}
        config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        return {f"{UP}.{name}": tensor for name, tensor in layer.state_dict().items()}, maps, config

    return make


def bnb8() -> Made:
    """A Linear8bitLt as it saves itself, fed with unit vectors."""
    layer = import_module("bitsandbytes.nn").Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False).to("cpu")
    tensors = {f"{UP}.{name}": tensor for name, tensor in layer.state_dict().items()}
    matrix = tensors[f"{UP}.weight"].float() * tensors[f"{UP}.SCB"].reshape(-1, 1) / 127
    with torch.no_grad():
        fed = layer(torch.eye(IN)).T.float()
    assert torch.allclose(fed, matrix, atol=2e-2 * float(matrix.abs().max()))  # it rounds what it multiplies
    return tensors, {UP: matrix}, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


def mxfp4() -> Made:
    """gpt-oss as it was released, and transformers' own decoder."""
    convert = import_module("transformers.integrations.mxfp4").convert_moe_packed_tensors
    name, hidden = "model.layers.0.mlp.experts.down_proj", 32
    blocks = torch.randint(0, 256, (3, hidden, 2, 16), dtype=torch.uint8)
    scales = torch.randint(120, 130, (3, hidden, 2), dtype=torch.uint8)
    whole = convert(blocks, scales, dtype=torch.float32)  # experts × in × out
    config = {"model_type": "gpt_oss", "hidden_size": hidden, "intermediate_size": 64,
              "quantization_config": {"quant_method": "mxfp4"}}  # fmt: skip
    maps = {f"{name}[{e}]": whole[e].T for e in range(3)}
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, maps, config


def compressed(layout: str, **settings: Any) -> Callable[[], Made]:
    """compressed-tensors' own compressor and decompressor."""

    def make() -> Made:
        compressors = import_module("compressed_tensors.compressors")
        quantization = import_module("compressed_tensors.quantization")
        weights = {"symmetric": True, **settings}
        per = {"group": (OUT, IN // GROUP), "channel": (OUT, 1), "tensor": (1,), "tensor_group": (OUT, IN // 16)}
        shape = per[weights["strategy"]]
        state = {"weight": torch.randn(OUT, IN), "weight_scale": torch.rand(shape) * 0.2 + 0.2}
        if not weights["symmetric"]:
            state["weight_zero_point"] = torch.randint(-8, 8, shape, dtype=torch.int8)
        if layout.startswith("nvfp4"):
            state["weight_global_scale"] = torch.tensor([2.0])
        codec = compressors.BaseCompressor.get_value_from_registry(layout)
        scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))
        stored = codec.compress(state, scheme)
        config = {"quantization_config": {
            "quant_method": "compressed-tensors", "format": layout,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}}  # fmt: skip
        maps = {UP: codec.decompress(dict(stored), scheme)["weight"].float()}
        return {f"{UP}.{leaf}": tensor for leaf, tensor in stored.items()}, maps, config

    return make


def torchao(name: str, **settings: Any) -> Callable[[], Made]:
    """torchao's tensor classes, saved as transformers saves them, dequantized by themselves."""

    def make() -> Made:
        quantization = import_module("torchao.quantization")
        saving = import_module("torchao.prototype.safetensors.safetensors_support")
        model = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False))
        made = {key: value() if callable(value) else value for key, value in settings.items()}
        quantization.quantize_(model, getattr(quantization, name)(**made))
        weight = model[0].weight
        with torch.no_grad():
            maps = {UP: model(torch.eye(IN)).T.float() if name.startswith("Intx") else weight.dequantize().float()}
        tensors, metadata = saving.flatten_tensor_state_dict({f"{UP}.weight": weight})
        return tensors, maps, {"zoo_metadata": metadata}

    return make


def mlx(**settings: Any) -> Callable[[], Made]:
    """Quantized layers of mlx, fed with unit vectors."""

    def make() -> Made:
        import numpy as np

        mx, nn = import_module("mlx.core"), import_module("mlx.nn")
        mx.random.seed(0)
        layer = nn.QuantizedLinear.from_linear(nn.Linear(128, OUT, bias=False), **settings)
        table = nn.QuantizedEmbedding.from_embedding(nn.Embedding(40, 128), **settings)
        rows, columns = (np.array(fed.astype(mx.float32)) for fed in (table(mx.arange(40)), layer(mx.eye(128))))
        stored = {f"{UP}.{leaf}": value for leaf, value in layer.parameters().items()}
        stored |= {f"model.embed_tokens.{leaf}": value for leaf, value in table.parameters().items()}
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in stored.items()}
        maps = {UP: torch.from_numpy(columns).T, "model.embed_tokens": torch.from_numpy(rows).T}
        return tensors, maps, {"quantization": settings, "model_type": "llama", "hidden_size": 128}

    return make


def refused(name: str, config: Mapping[str, Any] | None = None, pending: str = "", **leaves: torch.Tensor) -> Entry:
    """The line of a packing that is not read: its tensors, leaf → tensor."""

    def make() -> Made:
        quantization = {"quantization_config": dict(config)} if config else {}
        return {f"{UP}.{leaf.replace('__', '.')}": tensor for leaf, tensor in leaves.items()}, {}, quantization

    return packed(OTHERS, name, make, refused="UNSUPPORTED", **NEW, **({"pending": pending} if pending else {}))


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _reals(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1


ENTRIES = [
    packed(FP8, "weight_scale, one", fp8("weight_scale", (1,), config=MODELOPT)),
    packed(FP8, "weight_scale, by row", fp8("weight_scale", (OUT, 1))),
    packed(FP8, "weight_scale, input_scale", fp8("weight_scale", (), extra={f"{UP}.input_scale": torch.tensor(0.1)})),
    packed(FP8, "weight_scale, by block", fp8("weight_scale", (2, 3), BIG)),
    packed(FP8, "weight_scale_inv, by block", fp8("weight_scale_inv", (2, 3), BIG, config=BLOCK)),
    packed(FP8, "weight_scale_inv, cut off", fp8("weight_scale_inv", (2, 3), (200, 300), config=BLOCK)),
    packed(FP8, "scale, by block", fp8("scale", (2, 3), BIG), **NEW),
    packed(FP8, "scale, by block, E8M0", fp8("scale", (2, 3), BIG, e8m0=True), **NEW),
    packed(FP8, "scale_weight", fp8("scale_weight", (1,), extra={"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}),
           **NEW),
    packed(FP8, "e5m2", fp8("weight_scale", (1,), dtype=torch.float8_e5m2)),
    packed(FP8, "experts, a scale each", _fp8_experts),
    packed(FP8, "without a scale", _fp8_alone),
    packed(FP8, "a scale of an unknown name", _strange_scale("fp8"), refused="UNSUPPORTED", **NEW),
    packed(INTS, "int8, a scale of an unknown name", _strange_scale("int8"), refused="UNSUPPORTED", **NEW),
    packed(INTS, "GPTQ, 4 bit", gptq(4)),
    packed(INTS, "GPTQ, 8 bit", gptq(8)),
    packed(INTS, "GPTQ, 3 bit", gptq(3)),
    packed(INTS, "GPTQ, 2 bit", gptq(2)),
    packed(INTS, "GPTQ, activation order", gptq(4, order=True)),
    packed(INTS, "GPTQ, format v2", gptq(4, "gptq_v2")),
    packed(INTS, "AWQ", awq),
    packed(INTS, "NVFP4 of ModelOpt", nvfp4, **NEW),
    packed(TOOLS, "bitsandbytes nf4", bnb4("nf4", nested=False), "bitsandbytes"),
    packed(TOOLS, "bitsandbytes nf4, nested", bnb4("nf4", nested=True), "bitsandbytes"),
    packed(TOOLS, "bitsandbytes fp4", bnb4("fp4", nested=False), "bitsandbytes"),
    packed(TOOLS, "bitsandbytes int8", bnb8, "bitsandbytes"),
    packed(TOOLS, "gpt-oss in MXFP4", mxfp4, "transformers"),
    packed(TOOLS, "compressed-tensors, int4 by group", compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP), "compressed_tensors"),
    packed(TOOLS, "compressed-tensors, int4 with zero points", compressed(
        "pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=False),
        "compressed_tensors"),
    packed(TOOLS, "compressed-tensors, int8 by row", compressed(
        "int-quantized", num_bits=8, type="int", strategy="channel"), "compressed_tensors"),
    packed(TOOLS, "compressed-tensors, fp8 by row", compressed(
        "float-quantized", num_bits=8, type="float", strategy="channel"), "compressed_tensors"),
    packed(TOOLS, "compressed-tensors, NVFP4", compressed(
        "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        "compressed_tensors"),
    packed(TOOLS, "torchao, int8", torchao("Int8WeightOnlyConfig", version=2), "torchao"),
    packed(TOOLS, "torchao, float8", torchao("Float8WeightOnlyConfig", version=2), "torchao"),
    packed(TOOLS, "torchao, int4", torchao(
        "IntxWeightOnlyConfig", weight_dtype=torch.int4,
        granularity=lambda: import_module("torchao.quantization.granularity").PerGroup(16)), "torchao"),
    *(packed(MLX, f"{bits} bit, group {group}", mlx(bits=bits, group_size=group), "mlx", **NEW)
      for bits, group in ((2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64), (8, 32))),
    packed(MLX, "mxfp4", mlx(bits=4, group_size=32, mode="mxfp4"), "mlx", **NEW),
    packed(MLX, "mxfp8", mlx(bits=8, group_size=32, mode="mxfp8"), "mlx", **NEW),
    packed(MLX, "nvfp4", mlx(bits=4, group_size=16, mode="nvfp4"), "mlx", **NEW),
    refused("HQQ", W_q=_bytes(24, 64), scale=_reals(64, 1), zero=_reals(64, 1), nbits=torch.tensor(4)),
    refused("nunchaku (SVDQuant)", qweight=_ints(48, 32, dtype=torch.int8), wscales=_reals(1, 48),
            smooth_factor=_reals(64), proj_down=_reals(64, 16), proj_up=_reals(48, 16)),
    refused("AQLM", {"quant_method": "aqlm"}, codes=_ints(48, 8, 1, dtype=torch.int8), codebooks=_reals(1, 256, 1, 8),
            scales=_reals(48, 1, 1, 1)),
    refused("QuIP#", Qidxs=_ints(48, 8, dtype=torch.int16), SU=_reals(64), SV=_reals(48), Wscale=_reals(1)),
    refused("EXL2", q_weight=_ints(8, 48), q_scale=_ints(4, 6), q_scale_max=_reals(4), q_groups=_ints(8),
            q_invperm=_ints(64)),
    refused("EXL3", trellis=_ints(4, 3, 64, dtype=torch.int16), suh=_reals(64), svh=_reals(48)),
    refused("Marlin", B=_ints(4, 96), s=_reals(4, 48)),
    refused("quanto", weight___data=_ints(48, 64, dtype=torch.int8), weight___scale=_reals(48, 1),
            input_scale=_reals(1)),
    refused("EETQ", {"quant_method": "eetq"}, weight=_ints(64, 48, dtype=torch.int8), weight_scales=_reals(48)),
    refused("VPTQ", {"quant_method": "vptq"},
            indices=_ints(1, 8, 48), centroids__weight=_reals(1, 2048),
            weight_scale=_reals(64), weight_bias=_reals(64)),
    refused("BitNet", {"quant_method": "bitnet"}, weight=_bytes(12, 64), weight_scale=_reals(1)),
    refused("GPTQ of an unknown width", {"quant_method": "gptq"}, qweight=_ints(7, 48), qzeros=_ints(4, 5),
            scales=_reals(4, 48)),
]  # fmt: skip
