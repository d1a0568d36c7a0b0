"""GGUF files as the gguf package writes them, with the names and the stacking of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from zoo.entry import Entry, Specimen

GGUF = "GGUF"
HIDDEN, INNER, VOCAB, HEADS, EXPERTS, LATENT = 64, 96, 80, 4, 3, 32
Shapes = Mapping[str, tuple[int, ...]]

#: Name → shape, outputs first, as in llama.cpp's models.
BLOCK = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (32, HIDDEN), "attn_v": (32, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
}  # fmt: skip
FUSED = {"attn_qkv": (HIDDEN + 64, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_up": (INNER, HIDDEN),
         "ffn_down": (HIDDEN, INNER)}  # fmt: skip
MOE = {
    "attn_q": (HIDDEN, HIDDEN), "ffn_gate_inp": (EXPERTS, HIDDEN), "ffn_gate_exps": (EXPERTS, INNER, HIDDEN),
    "ffn_up_exps": (EXPERTS, INNER, HIDDEN), "ffn_down_exps": (EXPERTS, HIDDEN, INNER),
    "ffn_gate_shexp": (INNER, HIDDEN),
}  # fmt: skip
GATE_UP = {"ffn_gate_up_exps": (EXPERTS, 2 * INNER, HIDDEN), "ffn_down_exps": (EXPERTS, HIDDEN, INNER)}
LATENT_HEADS = {"attn_q_a": (LATENT, HIDDEN), "attn_kv_a_mqa": (LATENT, HIDDEN), "attn_k_b": (HEADS, LATENT, 64),
                "attn_v_b": (HEADS, 24, LATENT)}  # fmt: skip
ENDS = {"token_embd.weight": (VOCAB, HIDDEN), "output.weight": (VOCAB, HIDDEN)}
ROLES = {
    "attn_q": "attn_q", "attn_k": "attn_k", "attn_v": "attn_v", "attn_output": "attn_o", "ffn_gate": "mlp_gate",
    "ffn_up": "mlp_up", "ffn_down": "mlp_down", "token_embd": "embed", "output": "lm_head", "ffn_gate_inp": "router",
    "ffn_gate_exps": "expert_gate", "ffn_up_exps": "expert_up", "ffn_down_exps": "expert_down",
}  # fmt: skip


def gguf(name: str, kind: str, shapes: Shapes, arch: str = "llama", **options: Any) -> Entry:
    """The line of a file: the type of its weights, and the shapes of a block."""
    ends = options.pop("ends", True)

    def build(folder: Path) -> Specimen:
        package = import_module("gguf")
        generator = torch.Generator().manual_seed(0)
        tensors = {f"blk.{b}.{leaf}.weight": shape for b in range(2) for leaf, shape in shapes.items()}
        tensors |= ENDS if ends else {}
        writer = package.GGUFWriter(folder / "model.gguf", arch)
        _describe(writer)
        maps: dict[str, torch.Tensor] = {}
        for tensor, shape in tensors.items():
            array, values = _stored(package, kind, shape, generator)
            writer.add_tensor(tensor, array, raw_dtype=package.GGMLQuantizationType[kind])
            maps.update(_maps(tensor, values))
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file,
                      writer.close):  # fmt: skip
            write()
        found = {key: ROLES.get(key.partition("[")[0].rpartition(".")[2]) for key in maps}
        return Specimen((folder / "model.gguf",), maps, roles={key: role for key, role in found.items() if role})

    return Entry(name, GGUF, build, "gguf", 2, **options)


def _describe(writer: Any) -> None:
    for add, value in ((writer.add_embedding_length, HIDDEN), (writer.add_head_count, HEADS),
                       (writer.add_head_count_kv, 2), (writer.add_block_count, 2),
                       (writer.add_feed_forward_length, INNER), (writer.add_expert_count, EXPERTS)):  # fmt: skip
        add(value)


def _stored(package: Any, kind: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Any, torch.Tensor]:
    """The array as written, and the values that the package takes it for."""
    quants, code = package.quants, package.GGMLQuantizationType[kind]
    values = (torch.randn(shape, generator=generator) * 0.1).numpy()
    try:
        array = quants.quantize(values, code)
    except NotImplementedError:  # the package only reads it: any bytes are weights
        block, size = package.GGML_QUANT_SIZES[code]
        row = (*shape[:-1], shape[-1] // block * size)
        array = torch.randint(0, 60, row, generator=generator, dtype=torch.uint8).numpy()
    return array, torch.from_numpy(quants.dequantize(array, code).reshape(shape)).double()


def _maps(tensor: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """llama.cpp multiplies by what it stores as it stands (`ggml_mul_mat`): outputs × inputs, of stacks each slab."""
    module = tensor.removesuffix(".weight")
    if module == "token_embd":
        return {module: values.T}
    return {module: values} if values.ndim == 2 else {f"{module}[{e}]": slab for e, slab in enumerate(values)}


HEADED = {"since": "unreleased"}
WIDE = {"attn_q": (256, 256), "ffn_down": (64, 512)}  # the blocks of K-quants are 256 entries wide
ENTRIES = [
    *(gguf(f"Llama in {kind}", kind, BLOCK) for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    *(gguf(f"Llama in {kind}", kind, WIDE, ends=False) for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")),
    gguf("fused query, key and value", "Q8_0", FUSED, "phi3"),
    gguf("experts", "Q8_0", MOE, "qwen3moe"),
    gguf("experts in F16", "F16", MOE, "qwen3moe"),
    gguf("fused gate and up of experts", "Q8_0", GATE_UP, "qwen3moe", **HEADED),
    gguf("heads of latent attention", "F16", LATENT_HEADS, "deepseek2", **HEADED),
]  # fmt: skip
