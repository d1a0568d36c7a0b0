"""The contract between file formats and the rest: a checkpoint is named tensors that can be read in row blocks.

Dtype codes are those of the safetensors header; torch and numpy have names of their own for them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch


#: Bits per element of every dtype code; the codes are those of the safetensors header. Packed formats of GGUF
#: use `GGUF_<type>` codes, whose size is not a whole number of bits per element, and state `nbytes` themselves.
DTYPE_BITS: Mapping[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a checkpoint's header describes it, known before any weight is read."""

    name: str
    dtype: str  # a key of DTYPE_BITS, or GGUF_<type>
    shape: tuple[int, ...]  # as stored, row-major
    nbytes: int  # on disk

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Checkpoint(ABC):
    """Named tensors, readable in blocks of rows.

    A subclass fills the attributes and implements `read_rows`. Nothing but headers may be read before the first
    `read_rows`. Reading is thread-safe. Errors are `UnreadableError`, never those of a library.
    """

    uri: str
    format: str  # "safetensors", "torch", "gguf", "memory", "peft", …
    config: Mapping[str, Any]  # the model's config.json, or {}
    tensors: Mapping[str, TensorSpec]
    local: bool = True  # whether reading twice is cheap
    resident: bool = False  # whether the tensors are in memory already
    revision: str | None = None  # the resolved commit, where the source has one
    metadata: Mapping[str, str]  # free text from the header
    reopen: Callable[..., Checkpoint] | None = None  # what opens its address again, in another process too
    shared: Mapping[str, str] = MappingProxyType({})  # tied tensors: name → the name that stands first
    module_kinds: Mapping[str, str] = MappingProxyType({})  # module → its class, where the model is live
    module_scales: Mapping[str, Mapping[str, float]] = MappingProxyType({})  # of a live model: module → adapter → alpha
    factors_apart: bool = False  # whether an adapter's factors are read as they are, by their own names
    notes: tuple[str, ...] = ()  # what was taken or left out, and the user should know
    readings: Mapping[str, str] = MappingProxyType({})  # tensors that reading decodes or computes: name → how
    members: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # decoded tensor → the stored ones it is made of
    unsupported: Mapping[str, str] = MappingProxyType({})  # stored tensors that cannot be read as weights: name → why
    aside: Mapping[str, str] = MappingProxyType(
        {}
    )  # stored tensors that are no weights, whatever their shape: name → why
    assumed: Mapping[str, str] = MappingProxyType({})  # weights that something was assumed of: name → what
    stored: Mapping[str, TensorSpec] = MappingProxyType({})  # of a decoded checkpoint: the tensors as they lie on disk
    read_whole: frozenset[str] = frozenset()  # tensors whose rows cost as much as the whole
    parts: tuple[str, ...] = ()  # what can be asked for in place of what was taken
    chosen: str = ""  # the part that was asked for

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'uri', '')!r}, {len(getattr(self, 'tensors', ()))} tensors)"

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of the tensor's first axis, in the stored dtype (quantized formats: dequantized).

        A tensor with no axis is read with `0, 1` and has shape (). Raises `UnreadableError`.
        """

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, shape `tensors[name].shape`."""
        shape = self.tensors[name].shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def identity(self, name: str) -> str | None:  # noqa: ARG002 - a hook
        """What changes whenever the tensor's bytes change and can be known without reading them, or None.

        A file's path, size, modification time and offset; a hub's content hash and offset.
        """
        return None

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:  # noqa: ARG002 - a hook
        """(rows × r) and (r × cols) whose product the tensor is, where it is one of low rank; else None."""
        return None

    def part(self, names: Iterable[str]) -> Checkpoint:  # noqa: ARG002 - a hook
        """These stored tensors alone, as what another process can read them with.

        It is small and can be pickled: addresses, offsets, lengths and dtypes, never values. `UsageError` where there
        are no such addresses, as for tensors in memory.
        """
        raise UsageError(
            "lies in the memory of this process, where no other can read it",
            where=self.uri,
            fix="save it as safetensors where every worker can read it, or leave the executor local",
        )

    def fetch(self) -> None:  # noqa: B027 - a hook
        """Read what `part` has left into memory, neighbours at once, so that `read_rows` need not wait.

        A format that cannot do so does nothing.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def close(self) -> None:  # noqa: B027 - most formats hold nothing open
        """Release files. Reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "attention.head_count")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num",
             "attention.head_count_kv")  # fmt: skip
_HEAD_DIM = ("head_dim", "kv_channels", "d_kv", "attention.key_length")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "embedding_length")
_INNER = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size",
          "feed_forward_length", "expert_feed_forward_length", "intermediate_size_mlp",
          "shared_expert_intermediate_size", "shared_intermediate_size")  # fmt: skip
_VISION = re.compile(r"(?:^|[._])(?:vision|visual|image|v\.blk)")
_AUDIO = re.compile(r"(?:^|[._])audio")


@dataclass(frozen=True)
class Dims:
    """Sizes of one tower of a model; None or empty where the config does not say."""

    model_type: str
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    hidden: int | None
    inner: frozenset[int]
    grouped: bool | None  # Falcon: whether q, k, v alternate by group of heads; None for other families


def tower_of(name: str) -> tuple[bool, ...]:
    """What of a tensor's name its sizes depend on: tensors for which this is the same have the same sizes."""
    return _VISION.search(name) is not None, _AUDIO.search(name) is not None, "blk." in name


def dims_for(name: str, config: Mapping[str, Any]) -> Dims:
    """The sizes that hold for the tensor `name`; in models of several towers, those of its own tower."""
    part = _tower(name, config)
    heads, hidden = _first(part, _HEADS), _first(part, _HIDDEN)
    head_dim = _first(part, _HEAD_DIM)
    if head_dim is None and heads and hidden and hidden % heads == 0:
        head_dim = hidden // heads
    inner = {part[key] for key in _INNER if isinstance(part.get(key), int)}
    kind = str(part.get("model_type", ""))
    # GGUF tensors (`blk.`) are stacked and their metadata counts the heads, whatever the family did before.
    kv_heads, grouped = _kv_heads(part, "" if "blk." in name else kind, heads)
    return Dims(kind, heads, kv_heads, head_dim, hidden, frozenset(inner), grouped)


def _kv_heads(part: Mapping[str, Any], kind: str, heads: int | None) -> tuple[int | None, bool | None]:
    if kind in ("falcon", "RefinedWeb", "RefinedWebModel"):
        if part.get("new_decoder_architecture"):
            return _first(part, _KV_HEADS) or heads, True
        return (1, False) if part.get("multi_query", True) else (heads, True)
    if (
        kind == "chatglm"
        and not part.get("multi_query_attention")
        and ("inner_hidden_size" in part or "position_encoding_2d" in part)
    ):
        return heads, True  # the first ChatGLM, by head
    if kind == "phi3small":
        return _first(part, _KV_HEADS) or heads, True
    if kind == "gpt_bigcode":
        return (1, False) if part.get("multi_query", True) else (heads, True)
    return _first(part, _KV_HEADS) or heads, None


def _tower(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sub-config of the tower that `name` belongs to, over the values of the whole."""
    wanted = ("vision_config",) if _VISION.search(name) else ("audio_config",) if _AUDIO.search(name) else ()
    for key in (*wanted, "text_config", "llm_config", "language_config"):
        if isinstance(sub := config.get(key), Mapping):
            return _flat({**config, **sub})
    return _flat(config)


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`attn_config` and `ffn_config` opened (MPT, DBRX), and GGUF's `<arch>.` prefix removed."""
    flat = dict(config)
    for key in ("attn_config", "ffn_config"):
        if isinstance(sub := config.get(key), Mapping):
            flat = {**sub, **flat}
    arch = config.get("general.architecture")
    if isinstance(arch, str):
        flat.update({k.removeprefix(f"{arch}."): v for k, v in config.items() if k.startswith(f"{arch}.")})
        flat.setdefault("model_type", arch)
    return flat


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


#: numpy's (and ml_dtypes') names that are not the code's letters with a number.
NUMPY_NAMES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}


def code_of(dtype: Any) -> str:
    """The code of a torch or numpy dtype; its own name in capitals when the format has no code for it."""
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    return NUMPY_NAMES.get(name, name.upper())
