"""One GGUF file, which llama.cpp loads, and transformers through its own reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.copied_settings import copy_settings
from tailwise.compression.packing import gguf_model as model
from tailwise.compression.packing.gguf_tokenizer import add_tokenizer
from tailwise.compression.packing.packing import Packing, PackingWork
from tailwise.compression.packing.tensor_parts import Coded, Parts, cast_of
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.ggml_types import StoredBlocks
from tailwise.number_formats.number_format import NumberFormat

FILE = "model.gguf"
_HEAD_OF_QWEN3 = 128  # of transformers' config, where it reads nothing else from a file


class Gguf(Packing):
    """Every tensor by llama.cpp's name, in llama.cpp's type."""

    name = "gguf"
    package, extra = "gguf", "gguf"
    loads = (
        f"`{FILE}` is what llama.cpp runs. transformers loads it too, dequantized: "
        f'`AutoModelForCausalLM.from_pretrained(folder, gguf_file="{FILE}")`.'
    )

    @override
    def instead(self) -> str:
        return ", ".join(sorted(TYPES))

    @override
    def refuses(self, chosen: NumberFormat, spec: TensorSpec) -> str | None:
        if chosen.name not in TYPES:
            return f"has no type for {chosen.name}"
        return None

    @override
    def reasons(self, checkpoint: Checkpoint) -> Iterator[str]:
        yield from model.reasons(checkpoint)

    @override
    def notes(self, plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
        config = checkpoint.config
        if model.rope_factors(config) is not None:
            yield "transformers does not read the factors of Llama 3.1's positions from a GGUF file; llama.cpp does"
        if any(config.get(name) for name in ("attention_bias", "mlp_bias")):
            yield "transformers does not read the biases of this model from a GGUF file; llama.cpp does"
        if config.get("model_type") == "qwen3" and model.head_dim(config) != _HEAD_OF_QWEN3:
            yield (
                f"transformers takes heads of {_HEAD_OF_QWEN3} for granted in a GGUF of Qwen3, and these have "
                f"{model.head_dim(config)}; llama.cpp and tailwise read the size from the file"
            )
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            yield f"the window of {config['sliding_window']} tokens is not in the file: attention will see all"

    @override
    def overhead(self, chosen: NumberFormat, spec: TensorSpec) -> int:
        """Blocks hold nothing else."""
        return 0

    @override
    def stored_as(self, tensor: str, checkpoint: Checkpoint) -> str:
        name = model.gguf_name(tensor, checkpoint.config)
        assert name is not None  # noqa: S101 - `reasons` has looked
        return name

    @override
    def restored(self, values: torch.Tensor, tensor: str, checkpoint: Checkpoint) -> torch.Tensor:
        return model.turned_back(values, model.heads_of(tensor, checkpoint.config))

    @override
    def write(self, work: PackingWork, folder: Path) -> tuple[str, ...]:
        import gguf

        config = work.checkpoint.config
        notes = list(copy_settings(work.layout, folder))
        writer = gguf.GGUFWriter(folder / FILE, model.ARCHITECTURES[config["model_type"]])
        try:
            notes += self._head(writer, work, folder)
            self._tensors(writer, work)
        finally:
            writer.close()
        with (folder / FILE).open("rb") as file:
            os.fsync(file.fileno())
        return tuple(notes)

    def _head(self, writer: Any, work: PackingWork, folder: Path) -> list[str]:
        """All metadata."""
        import gguf

        config = work.checkpoint.config
        writer.add_name(work.plan.model.rstrip("/").rsplit("/", 1)[-1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(file_type(work.plan))
        model.add_sizes(writer, config)
        return list(add_tokenizer(writer, folder, _vocabulary(work.checkpoint)))

    def _tensors(self, writer: Any, work: PackingWork) -> None:
        """The sizes of all tensors, then one tensor after the other."""
        import gguf
        import numpy as np

        config, factors = work.checkpoint.config, model.rope_factors(work.checkpoint.config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, np.dtype(np.float32), 4 * factors.numel())
        formats = {decision.tensor: decision.number_format for decision in work.plan}
        specs = [spec for shard in work.layout.shards for spec in shard.specs]
        for spec in specs:
            kind = type_of(spec, formats.get(spec.name))
            size = row_bytes(kind, spec.shape[-1])
            rows = spec.numel // spec.shape[-1]
            shape = (*spec.shape[:-1], size)
            raw = gguf.GGMLQuantizationType[kind]
            name = model.gguf_name(spec.name, config)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), rows * size, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        total, done = sum(spec.nbytes for spec in specs), 0
        for spec in specs:
            writer.write_tensor_data(_stored(spec, work, type_of(spec, formats.get(spec.name))).numpy())
            done += spec.nbytes
            work.progress("writing tensors", done, total)


def _stored(spec: TensorSpec, work: PackingWork, kind: str) -> torch.Tensor:
    coded = work.coded(spec.name)
    values = work.checkpoint.read(spec.name) if coded is None else coded.stored
    heads = model.heads_of(spec.name, work.checkpoint.config)
    if values.ndim < 2:
        return to_bytes(model.turned(values, heads), kind, coded)
    return model.turned(to_bytes(values, kind, coded), heads).contiguous()


def _vocabulary(checkpoint: Checkpoint) -> int:
    """Rows of the token embedding."""
    embeddings = (spec for name, spec in checkpoint.tensors.items() if name.endswith("embed_tokens.weight"))
    spec = next(embeddings, None)
    return int(checkpoint.config.get("vocab_size", 0)) if spec is None else spec.shape[0]


def file_type(plan: Plan) -> int:
    """llama.cpp's name for a file: the type that most parameters have."""
    from gguf import LlamaFileType

    sizes: dict[str, int] = {}
    for decision in plan:
        kind = TYPES[decision.number_format.fitting(decision.shape[-1] if decision.shape else _SUPER).name]
        sizes[kind] = sizes.get(kind, 0) + decision.n_params
    most = max(sizes, key=lambda kind: sizes[kind])
    return int(LlamaFileType[_MOSTLY.get(most, f"MOSTLY_{most}")])


_SUPER = 256
#: Where llama.cpp names a file otherwise than the type that most of it has.
_MOSTLY = {
    "F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE", "Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
}  # fmt: skip


BLOCK = 32
#: Number format → name of llama.cpp's type.
TYPES = {
    "fp32": "F32", "fp16": "F16", "bf16": "BF16", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1",
    "q8_0": "Q8_0", "mxfp4": "MXFP4", "q2_k": "Q2_K", "q3_k": "Q3_K", "q4_k": "Q4_K", "q5_k": "Q5_K", "q6_k": "Q6_K",
    "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS",
}  # fmt: skip
_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def type_of(spec: TensorSpec, chosen: NumberFormat | None) -> str:
    """llama.cpp's type of a tensor: that of its format, or as it is stored; vectors are always float32."""
    if chosen is not None:
        return TYPES[chosen.fitting(spec.shape[-1]).name]
    return "F32" if len(spec.shape) < 2 else _STORED[spec.dtype]


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row."""
    name = next(name for name, stored in TYPES.items() if stored == kind)
    return round(parse_format(name).bits_per_weight(1, columns) * columns / 8)


def to_bytes(values: torch.Tensor, kind: str, coded: Coded | None) -> torch.Tensor:
    """A tensor as llama.cpp stores it: uint8, the rows of the tensor by the bytes of a row."""
    if coded is not None and cast_of(coded.format) is None:
        if isinstance(coded.grid, StoredBlocks):
            return coded.grid.scales
        return _blocks(coded.parts, coded.format.name)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    cast = values.to(dtype).contiguous()
    return (cast if cast.ndim > 1 else cast[None]).view(torch.uint8)


def _blocks(parts: Parts, name: str) -> torch.Tensor:
    """(out, groups · bytes of a block)."""
    out, groups = parts.scales.shape
    head = [_bytes(parts.scales)] if parts.lows is None else [_bytes(parts.scales), _bytes(parts.lows)]
    codes = parts.codes.reshape(out, groups, BLOCK)
    if name == "q8_0":
        return torch.cat([*head, codes.view(torch.uint8)], dim=-1).flatten(1)
    bits = 5 if name.startswith("q5") else 4
    if codes.dtype == torch.int8:  # the least code is stored as zero
        codes = (codes + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 5:
        fifth = (codes >> 4).reshape(out, groups, 4, 8)
        weights = 2 ** torch.arange(8, dtype=torch.uint8)
        head.append((fifth * weights).sum(-1).to(torch.uint8))
    low = codes & 15
    halves = low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4)  # entry i beside entry i + 16
    return torch.cat([*head, halves], dim=-1).flatten(1)


def _bytes(scales: torch.Tensor) -> torch.Tensor:
    """(out, groups, bytes of a scale)."""
    return scales.contiguous().view(torch.uint8).reshape(*scales.shape, -1)
