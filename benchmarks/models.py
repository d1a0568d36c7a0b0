"""Synthetic checkpoints of real shapes, with spectra that resemble trained ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

#: Shapes of a 1.24-billion-parameter Llama (16 blocks, width 2048, tied embedding).
LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "model_type": "llama", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
#: Shapes of Llama-3.1-8B: 32 blocks, width 4096, head and embedding apart.
LLAMA_8B = {
    **LLAMA_1B, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip


def heavy_tailed(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """A bf16 matrix, noise plus 64 directions of power-law strength: (rows × cols), made where the generator is."""
    where = generator.device
    noise = torch.randn(rows, cols, generator=generator, device=where) * 0.02
    rank = min(64, rows, cols)
    strength = 0.02 * (rows + cols) ** 0.5 * torch.arange(1, rank + 1, device=where) ** -0.5 * 4
    left = torch.randn(rows, rank, generator=generator, device=where) / rows**0.5
    right = torch.randn(rank, cols, generator=generator, device=where) / cols**0.5
    return (noise + left @ (strength[:, None] * right)).to("cpu", torch.bfloat16)


def single_layer(folder: Path, rows: int, cols: int) -> Path:
    """A checkpoint with one Linear of this shape."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    if not path.exists():
        weight = heavy_tailed(rows, cols, torch.Generator().manual_seed(rows * cols))
        save_file({"model.layers.0.mlp.up_proj.weight": weight}, path)
    return folder


def llama(folder: Path, config: dict[str, object] = LLAMA_1B, device: str = "cpu") -> Path:
    """A sharded checkpoint of a whole Llama; one shard per block. Other devices make it faster, and other numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        return folder
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])  # type: ignore[call-overload]
    narrow = int(config["num_key_value_heads"]) * int(config["head_dim"])  # type: ignore[call-overload]
    shapes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)
    count = int(config["num_hidden_layers"])  # type: ignore[call-overload]
    weight_map: dict[str, str] = {}
    for shard in range(count + 1):
        name = f"model-{shard + 1:05d}-of-{count + 1:05d}.safetensors"
        if shard == count:
            vocab = int(config["vocab_size"])  # type: ignore[call-overload]
            tensors = {"model.embed_tokens.weight": heavy_tailed(vocab, width, generator)}
            if not config["tie_word_embeddings"]:
                tensors["lm_head.weight"] = heavy_tailed(vocab, width, generator)
        else:
            tensors = {
                f"model.layers.{shard}.{part}.weight": heavy_tailed(*shape, generator) for part, shape in shapes.items()
            }
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
