"""Which axis of a stored weight its inputs run along. Decided here, and asked for everywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tailwise.checkpoints.checkpoint import Dims, dims_for
from tailwise.checkpoints.roles import ROLES

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import TensorSpec

#: Families whose linear layers are `Conv1D`, stored in × out, and how the names of these end.
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_ENDS = ("c_attn", "c_proj", "c_fc", "q_attn")
#: Families whose stacks of experts, or of gates by head, are (E, in, out); all others are (E, out, in).
_STACKS_IN_OUT = frozenset({"gpt_oss", "llama4", "llama4_text", "recurrent_gemma"})
#: Ends of names of what is multiplied with from the left: JAX' and Keras' kernels, CLIP's bare projections.
_FROM_THE_LEFT = (".kernel", "/kernel", "text_projection", "visual.proj", "visual.output_projection")
#: Classes of modules whose `weight` is in × out: transformers' Conv1D, ONNX's MatMul, Keras' dense layers.
_IN_OUT_KINDS = frozenset({"Conv1D", "MatMul", "Dense", "EinsumDense"})
#: Classes whose weight holds a row for each input: it is looked up.
_TABLE_KINDS = frozenset({"Embedding", "EmbeddingBag", "Gather"})


def has_inputs_first(
    name: str,
    shape: tuple[int, ...],
    *,
    kind: str | None = None,
    tensors: Mapping[str, TensorSpec] | None = None,
    config: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a linear layer's weight of two axes is stored in × out.

    `kind`: the class of its module, which decides. Without it: the length of the bias, where the matrix is not square,
    then the family.
    """
    if kind is not None and kind not in ("Module", ""):
        return kind in _IN_OUT_KINDS or kind in _TABLE_KINDS or "Conv1D" in kind
    module, config = name.removesuffix(".weight"), config or {}
    if name.endswith(_FROM_THE_LEFT):
        return True
    bias = None if tensors is None else tensors.get(f"{module}.bias")
    if bias is not None and len(bias.shape) == 1 and shape[0] != shape[1] and bias.shape[0] in shape:
        return bias.shape[0] == shape[1]
    if module.rpartition(".")[2] not in _CONV1D_ENDS or config.get("model_type"):
        return module.rpartition(".")[2] in _CONV1D_ENDS and config.get("model_type") in _CONV1D
    # The same names in other code are ordinary linear layers, whose fused projection is 3d × d.
    fused = next((s for n, s in (tensors or {}).items() if n.endswith("c_attn.weight") and len(s.shape) == 2), None)
    return fused is not None and fused.shape[1] == 3 * fused.shape[0]


def stack_has_inputs_first(role: str, sides: tuple[int, int], dims: Dims) -> bool | None:
    """Whether the matrices (A × B) of a stack are stored in × out; None where the config cannot tell."""
    A, B = sides
    if A != B and dims.hidden in sides and role.startswith(("expert_", "mlp_")):
        # The hidden size is what goes in, of a down-projection what comes out.
        return (dims.hidden == A) != role.endswith("down")
    return True if dims.model_type in _STACKS_IN_OUT else False if dims.hidden else None


def is_stored_in_out(name: str, shape: tuple[int, ...], role: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor of a file (a matrix, or a stack of experts) is stored with its inputs first."""
    if len(shape) == 3:
        dims = dims_for(name, config)
        return role.startswith("expert_") and bool(stack_has_inputs_first(role, (shape[1], shape[2]), dims))
    return len(shape) == 2 and has_inputs_first(name, shape, config=config)


#: Roles outside the blocks that data meets first, and last.
INPUTS = frozenset({"embed", "pos_embed", "patch_embed", "time_embed", "cond_embed"})
OUTPUTS = frozenset({"pooler", "classifier", "regressor", "patch_out", "lm_head"})
#: Formats that keep the order in which a model was written down; all others are alphabetical.
KEEPS_ORDER = frozenset({"torch", "memory"})

_ROLE = {role: at for at, role in enumerate(ROLES)}
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("embed", "pos_embed", "patch_embed", "time_embed", "cond_embed", "modulation"),
    ("conv",),
    ("attn_", "ssm_", "rwkv_", "rnn_"),
    ("cross",),  # attention whose keys come from elsewhere: told by the name
    ("router", "mlp_", "shared_", "expert_"),
    ("residual_mix", "projector", "squeeze_excite", "codebook"),
)
_CROSS = re.compile(r"cross|encoder_attn|EncDec|attn2|encdec", re.IGNORECASE)
_LAST_IN_BLOCK = re.compile(r"(?:down|up)sampl|shortcut|(?:^|\.)resizers?\.")
_FIRST_IN_BLOCK = re.compile(r"(?:^|\.)proj_in(?:\.|$)")
_EXPERT = re.compile(r"experts?[._](\d{1,9})|\[(\d{1,9})\]")
_DIGITS = re.compile(r"(\d{1,18})")
_PARTS = {part: at for at, part in enumerate(("q", "k", "v", "gate", "up", "i", "f", "g", "o", "r", "z", "n"))}
_BEHIND = re.compile(
    r"(?:^|[._])(?:out|head|heads|final|last|post|output|decoder|decode_head|unembed|ln_f|fc|classifier|logits)(?=[._\d]|$)"
)
_EARLY = re.compile(r"embed|embd|pre|(?:^|[._])in(?=[._]|$)|input|stem|patch|(?:bn|norm|ln)_?[01](?=[._]|$)")
_BRIDGE = re.compile(r"quant|(?:^|\.)(?:decoder\.conv_in|encoder\.conv_out)(?:\.|$)")
_TOWER = re.compile(r"(?:^|[._])(?:encoder|enc|vision\w*|visual|image|audio|v|a)(?=[._])")

_Key = tuple[float, ...]


class Placed(Protocol):
    """What has a place in the order."""

    @property
    def name(self) -> str:
        """Full name."""

    @property
    def role(self) -> str:
        """A key of `ROLES`."""

    @property
    def block(self) -> int | None:
        """Index of its block, counted from the data."""


Row = TypeVar("Row", bound=Placed)


def natural(name: str) -> tuple[str | int, ...]:
    """A key that sorts `layers.2` before `layers.10`."""
    return tuple(int(part) if at % 2 else part for at, part in enumerate(_DIGITS.split(name)))


def in_order(rows: Iterable[Row], *, as_listed: bool = False) -> list[Row]:
    """`rows` from the data to the labels.

    Between rows without a block their names decide, with numbers as numbers; with `as_listed`, for formats that keep
    the order in which the model was written down (`KEEPS_ORDER`), the order in which they are given.
    """
    listed = list(rows)
    bridge = _behind_towers(listed)
    keys = {
        at: (*_place(row, bridge), *((at,) if as_listed and row.block is None else ()), *_named(row.name))
        for at, row in enumerate(listed)
    }
    return [listed[at] for at in sorted(keys, key=lambda at: keys[at])]


def before_blocks(role: str, name: str) -> bool:
    """Whether what has no block stands before the blocks: embeddings, stems, and what its name does not put behind."""
    if role == "norm":  # the last norm of a language model is called `norm`
        return _EARLY.search(name) is not None
    return role in INPUTS or not (role in OUTPUTS or _BEHIND.search(name))


def _named(name: str) -> tuple[object, ...]:
    """The module's name, then the part of its tensor."""
    module, _, part = name.partition("#")
    return natural(module), _PARTS.get(part, len(_PARTS)), natural(part)


def _behind_towers(rows: Sequence[Placed]) -> float | None:
    """Behind the last block of encoders and towers, where other blocks follow it; else None."""
    inside = [row.block for row in rows if row.block is not None and _TOWER.search(row.name)]
    last = max(inside, default=None)
    follows = last is not None and any(row.block is not None and row.block > last for row in rows)
    return last + 0.5 if last is not None and follows else None


def _place(row: Placed, bridge: float | None) -> _Key:
    """(inputs, before the blocks, blocks, behind them, heads; the block; the place in it; the expert; the role)."""
    role, name = row.role, row.name
    at = float(_ROLE.get(role, len(_ROLE)))
    if row.block is not None:
        return 2, row.block, _group(role, name), _expert(role, name), at
    if role in INPUTS:
        return 0, 0, 0, -1, at
    if role in OUTPUTS:
        return 4, 0, 0, -1, at
    if bridge is not None and (role in ("projector", "codebook") or _BRIDGE.search(name)):
        return 2, bridge, 0, -1, 0
    return 1 if before_blocks(role, name) else 3, 0, 0, -1, 0


def _group(role: str, name: str) -> int:
    """Place of a role within its block."""
    if role in ("conv", "projector") and _LAST_IN_BLOCK.search(name):
        return len(_GROUPS) - 1
    if role == "projector" and _FIRST_IN_BLOCK.search(name):
        return 1
    group = next((at for at, starts in enumerate(_GROUPS) if role.startswith(starts)), len(_GROUPS))
    return 3 if group == 2 and _CROSS.search(name) else group


def _expert(role: str, name: str) -> int:
    """Number of the expert, −1 for what is none."""
    match = _EXPERT.search(name) if role.startswith("expert_") else None
    return int(match[1] or match[2]) if match else -1
