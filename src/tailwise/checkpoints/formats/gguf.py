"""GGUF, the format of llama.cpp: tensors dequantized block of rows by block of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import RangedStore, torch_dtype
from tailwise.checkpoints.formats.gguf_header import TensorInfo, read_gguf_header
from tailwise.checkpoints.formats.repeated import Laid, beyond_what_is_held
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.optional import how_to_get

if TYPE_CHECKING:
    import torch

_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8"})
#: ComfyUI-GGUF stores tensors whose rows are no whole blocks in rows of 256, and their shapes under this key.
_SHAPES = "comfy.gguf.orig_shape."
_STATISTICS = (".in_sum2", ".in_sum", ".counts")
#: Numbers of types that no version of llama.cpp reads now, and whose they are.
_FOREIGN_TYPES = (
    (frozenset({4, 5, 31, 32, 33}), "an old llama.cpp, which dropped it"),
    (frozenset({36, 37, 38}), "bitnet.cpp, or of an old llama.cpp, which dropped it"),
    (range(97, 512), "a fork of llama.cpp, as ik_llama.cpp"),
)

#: Hugging Face's config keys from the architecture's metadata keys.
_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
#: Names of architectures that Hugging Face writes differently.
_MODEL_TYPES = {
    "gptneox": "gpt_neox",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v2",
    "command-r": "cohere",
    "phi2": "phi",
    "gemma3": "gemma3_text",
}


class GgufCheckpoint(RangedStore):
    """The tensors of one GGUF file, or of one that was split. Quantized tensors read as float32."""

    format = "gguf"

    def __init__(
        self,
        uri: str,
        parts: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        _require_gguf()
        self._files = tuple(parts)
        self._places: dict[str, tuple[ByteSource, TensorInfo]] = {}
        self.unsupported: dict[str, str] = {}
        tensors: dict[str, TensorSpec] = {}
        metadata: dict[str, Any] = {}
        for part in self._files:
            header = read_gguf_header(part)
            metadata = {**header.metadata, **metadata}
            _refuse_statistics(header.metadata, [info.name for info in header.tensors], part.name)
            for info in header.tensors:
                spec = _spec(info, part)
                tensors[info.name] = replace(spec, shape=_true_shape(info, header.metadata, part.name))
                self._places[info.name] = part, info
                if why := _of_a_fork(info.type_id):
                    self.unsupported[info.name] = why
        places = self._places.items()
        self.unsupported |= beyond_what_is_held(
            Laid(name, part, part.size, tensors[name].nbytes) for name, (part, _) in places
        )
        super().__init__(
            uri,
            tensors,
            config=config or config_of(metadata),
            metadata={k: str(v) for k, v in metadata.items() if not isinstance(v, list)},
            revision=revision,
        )

    @property
    def files(self) -> tuple[ByteSource, ...]:
        """The file, or the parts of one that was split; the metadata of the first speaks for all."""
        return self._files

    def stored_type(self, name: str) -> tuple[int, tuple[int, ...]]:
        """The number of a tensor's type, and its shape as it lies in the file."""
        info = self._places[name][1]
        return info.type_id, info.shape

    def stored_bytes(self, name: str) -> bytes:
        """A tensor as it lies in its file."""
        part, info = self._places[name]
        return part.read(info.offset, self._spec(name).nbytes)

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        part, info = self._places[spec.name]
        place = f"{part.name}, tensor {spec.name}"
        rows = spec.shape[0] if spec.shape else 1
        if spec.dtype in _PLAIN:
            return _plain(part, info, spec, (start, stop))
        if spec.shape != info.shape:
            return self._across_blocks(spec, start, stop)
        if len(spec.shape) < 2:
            # The blocks of a quantized vector straddle its elements, so it is read whole.
            return _dequantize(part.read(info.offset, spec.nbytes), info, (1, *spec.shape), place)[0][start:stop]
        row_bytes = spec.nbytes // max(rows, 1)
        data = part.read(info.offset + start * row_bytes, (stop - start) * row_bytes)
        return _dequantize(data, info, (stop - start, *spec.shape[1:]), place)

    def _across_blocks(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that is stored in another shape: they may begin and end within a block."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        part, info = self._places[spec.name]
        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.type_id)]
        row = prod(spec.shape[1:])
        first, last = start * row // block, -(-stop * row // block)
        data = part.read(info.offset + first * nbytes, (last - first) * nbytes)
        flat = _dequantize(data, info, (1, (last - first) * block), f"{part.name}, tensor {spec.name}")[0]
        skipped = start * row - first * block
        return flat[skipped : skipped + (stop - start) * row].reshape(stop - start, *spec.shape[1:])

    def identity(self, name: str) -> str | None:
        """See `RangedStore`; bytes that are shown in another shape than their own are another tensor."""
        stored, spec = super().identity(name), self._spec(name)
        return stored if stored is None or spec.shape == self._places[name][1].shape else f"{stored}:{spec.shape}"

    def _offset(self, name: str) -> int:
        return self._places[name][1].offset


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UsageError("reading GGUF files takes the gguf package", fix=how_to_get("gguf")) from error


def _refuse_statistics(metadata: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Refuse llama.cpp's importance matrix: sums over activations, one row for each tensor of a model."""
    statistics = bool(names) and all(name.endswith(_STATISTICS) for name in names)
    if metadata.get("general.type") == "imatrix" or statistics:
        raise UnreadableError(
            "is an importance matrix (imatrix) of llama.cpp: it holds statistics of activations and no weights",
            where=where,
            fix="give the GGUF file of the model that it was collected for",
        )


def _true_shape(info: TensorInfo, metadata: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The tensor's shape in the model, where the file says that it is stored in another."""
    shape = metadata.get(f"{_SHAPES}{info.name}")
    if shape is None:
        return info.shape
    if (
        not isinstance(shape, list)
        or not all(isinstance(n, int) and n >= 0 for n in shape)
        or prod(shape) != prod(info.shape)
    ):
        raise UnreadableError(
            f"{_SHAPES}{info.name[:100]} says the shape {str(shape)[:80]}, and {prod(info.shape)} entries are stored",
            where=where,
            fix="the file is damaged: download or convert it again",
        )
    return tuple(shape)


def _of_a_fork(type_id: int) -> str:
    """Why a type that llama.cpp itself does not have is not read; empty for its own, and for numbers of its future."""
    from gguf import GGMLQuantizationType

    known = type_id in GGMLQuantizationType._value2member_map_
    owner = None if known else next((owner for numbers, owner in _FOREIGN_TYPES if type_id in numbers), None)
    if owner is None:
        return ""
    return (
        f"the type number {type_id} is of {owner}: the gguf package cannot dequantize it; "
        "give the model in its original precision, or in a type of llama.cpp's own"
    )


def _spec(info: TensorInfo, part: ByteSource) -> TensorSpec:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    place = f"{part.name}, tensor {info.name[:100]}"
    spec = TensorSpec(info.name, f"GGUF_{info.type_id}", info.shape, 0)
    if info.type_id in GGMLQuantizationType._value2member_map_:
        kind = GGMLQuantizationType(info.type_id)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if (info.shape[-1] if info.shape else 1) % block:
            raise UnreadableError(
                f"a row of {info.shape[-1:]} is not a whole number of {kind.name} blocks of {block}",
                where=place,
                fix="the file is damaged: download it again",
            )
        code = kind.name if kind.name in _PLAIN else f"GGUF_{kind.name}"
        spec = TensorSpec(info.name, code, info.shape, spec.numel // block * block_bytes)
    if info.offset + spec.nbytes > part.size:
        raise UnreadableError(
            f"data ends before the end of the tensor: it needs bytes up to {info.offset + spec.nbytes}, "
            f"there are {part.size}",
            where=place,
            fix="the file is truncated: download it again",
        )
    return spec


def _plain(part: ByteSource, info: TensorInfo, spec: TensorSpec, rows: tuple[int, int]) -> torch.Tensor:
    import torch

    count = rows[1] - rows[0]
    row_bytes = spec.nbytes // max(spec.shape[0] if spec.shape else 1, 1)
    block = torch.empty(count * row_bytes, dtype=torch.uint8)
    if block.numel():
        part.read_into(block.numpy().data, info.offset + rows[0] * row_bytes)
    shape = (count, *spec.shape[1:]) if spec.shape else ()
    return block.view(torch_dtype(spec.dtype, where=part.name)).reshape(shape)


def _dequantize(data: bytes, info: TensorInfo, shape: tuple[int, ...], place: str) -> torch.Tensor:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if 0 in shape:
        return torch.empty(shape)
    try:
        kind = GGMLQuantizationType(info.type_id)
        packed = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)
        with np.errstate(all="ignore"):
            values = dequantize(packed, kind)
    except (NotImplementedError, ValueError, IndexError) as error:
        raise UnreadableError(
            f"the gguf package cannot dequantize the type {_type_name(info.type_id)}",
            where=place,
            fix="upgrade it (pip install -U gguf), or read the model in its original precision",
        ) from error
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"])).reshape(shape)


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    known = GGMLQuantizationType._value2member_map_
    return GGMLQuantizationType(type_id).name if type_id in known else f"number {type_id}"


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping like Hugging Face's config.json from the metadata of a GGUF file."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return {}
    config: dict[str, Any] = {"model_type": _MODEL_TYPES.get(architecture, architecture)}
    for name, key in _CONFIG_KEYS.items():
        value = metadata.get(f"{architecture}.{key}")
        if isinstance(value, list):  # one per layer
            value = value[0] if value and all(one == value[0] for one in value) else value or None
        if value is not None:
            config[name] = value
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        config.setdefault("num_key_value_heads", heads)
        config.setdefault("head_dim", width // heads)
    if "num_local_experts" in config:
        config["num_experts"] = config["num_local_experts"]
    return config
