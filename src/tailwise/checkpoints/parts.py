"""Which matrices one tensor holds, from its role, its shape and what is known about the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Dims, dims_for, tower_of
from tailwise.checkpoints.fused import (
    Part,
    halves,
    split_gate_up,
    split_gated_query,
    split_gates,
    split_qkv,
    split_stack,
    split_stacked_rows,
    squeezed,
)
from tailwise.checkpoints.kernels import is_stack, kernel_of, says_kernel, split_conv
from tailwise.checkpoints.orientation import has_inputs_first
from tailwise.checkpoints.views import TensorView, whole

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import TensorSpec

#: Roles whose rows are looked up rather than multiplied.
EMBEDDINGS = frozenset({"embed", "pos_embed", "codebook"})
_VECTORS = EMBEDDINGS | {"rwkv_mix"}  # stored with leading axes of 1
_NOT_NUMBERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "F8_E8M0"})


@dataclass(frozen=True)
class Hints:
    """What is known about the model beyond one tensor."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    module_kinds: Mapping[str, str]  # module → its class, where the checkpoint is a live module
    conv: str  # Recipe.conv
    smallest: int = 1  # short side of a matrix that is measured
    _dims: dict[tuple[bool, ...], Dims] = field(default_factory=dict)  # of each tower, worked out once

    def dims(self, name: str) -> Dims:
        """The sizes that hold for a tensor."""
        tower = tower_of(name)
        if tower not in self._dims:
            self._dims[tower] = dims_for(name, self.config)
        return self._dims[tower]

    def kind_of(self, tensor: str) -> str | None:
        """Class of the module that the tensor is the weight of."""
        return self.module_kinds.get(tensor.rpartition(".")[0])


def is_numeric(dtype: str) -> bool:
    """Whether entries are real numbers rather than codes, indices or masks."""
    return dtype not in _NOT_NUMBERS


#: Gated projections by the end of their names: (holds both factors, what follows it, whether the gate is the first
#: half).
_GATED = (
    ("linear_fc1", "linear_fc2", True),  # Megatron
    ("dense_h_to_4h", "dense_4h_to_h", True),
    ("weights_in", "weights_out", True),  # DINOv2
    ("w12", "w3", True),
    ("net.0.proj", "net.2", False),  # GEGLU of diffusers: the second half passes the activation
    ("Wi", "Wo", True),
    ("ff_proj", "ff_out", False),  # OLMo
    ("proj_1", "proj_2", True),  # OpenELM
)
_GATED_ENDS = tuple(both for both, _, _ in _GATED)
#: Families whose query projection also holds the output gate, by head.
_GATED_QUERIES = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"})


def parts_of(spec: TensorSpec, role: str, hints: Hints) -> list[Part]:
    """The matrices of a tensor of two axes or more, in order."""
    if len(spec.shape) > 2 and role in _VECTORS and set(spec.shape[:-2]) == {1}:
        return [Part("", role, "dense", (squeezed(spec.name, spec.shape),), input_axis=0)]
    if len(spec.shape) == 3 and _is_attention_by_head(spec, role):
        view = whole(spec.name, spec.shape)
        return [Part("", role, "dense", (view,), input_axis=int(role == "attn_o"))]
    if len(spec.shape) == 3 and (parts := _stack(spec, role, hints)):
        return parts
    if len(spec.shape) == 5 and spec.shape[0] == 1 and spec.shape[2] > 8 >= spec.shape[3] == spec.shape[4]:
        # StyleGAN's modulated convolutions have a leading axis for the batch.
        return [Part("", role, "conv", (whole(spec.name, spec.shape[1:]),), reading="kernel")]
    if len(spec.shape) > 2:
        kernel = kernel_of(spec, hints.kind_of(spec.name), hints.tensors)
        return split_conv(spec, role, hints.conv, kernel)
    return _parts_of_matrix(whole(spec.name, spec.shape), role, hints)


def _is_attention_by_head(spec: TensorSpec, role: str) -> bool:
    """XLNet's and JAX's projections: (hidden, heads, head size), of the output and of relative positions as well."""
    bare = not spec.name.endswith(".weight") and "blk." not in spec.name
    projects = role in ("attn_q", "attn_k", "attn_v", "attn_o") or spec.name.endswith("rel_attn.r")
    return bare and projects and spec.shape[1] * spec.shape[2] >= spec.shape[0]


def _stack(spec: TensorSpec, role: str, hints: Hints) -> list[Part]:
    """The matrices of a stack, or nothing where the tensor is a kernel."""
    E, A, B = spec.shape
    expert = role.startswith("expert_")
    note = ""
    # llama.cpp writes kernels as such, under names that say so.
    if not (expert or role == "ssm_x" or ("blk." in spec.name and not says_kernel(spec.name) and min(A, B) > 4)):
        stacked, note = is_stack(spec, hints.kind_of(spec.name), hints.tensors)
        if not stacked:
            return []
    role = "other" if role == "conv" else role  # which is what three axes are called whose name is not known
    dims = hints.dims(spec.name)
    kind = "expert" if expert else "dense"
    parts = split_stack(spec.name, (E, A, B), role, dims, kind=kind, note=note)
    # Of matrices that are all too small one says so; a million of them would take far more room than the file.
    return list(islice(parts, 1 if min(A, B) < hints.smallest else None))


def _parts_of_matrix(view: TensorView, role: str, hints: Hints) -> list[Part]:
    dims = hints.dims(view.tensor)
    if role in ("rnn_ih", "rnn_hh"):
        return _gates(view, role, hints)
    in_out = _has_inputs_first(view, role, hints)
    if role == "attn_qkv":
        return split_qkv(view, dims, in_out=in_out)
    if role in EMBEDDINGS:
        return [Part("", role, "dense", (view,), input_axis=int(_is_linear(view, hints)))]
    if not in_out and (parts := _several(view, role, dims, hints)):
        return parts
    return _feed_forward(view, role, dims, hints, in_out=in_out)


def _feed_forward(view: TensorView, role: str, dims: Dims, hints: Hints, *, in_out: bool) -> list[Part]:
    if dims.model_type == "phi3small" and view.tensor.endswith("up_proj.weight") and view.n_rows / 2 in dims.inner:
        return [Part("", "mlp_gate_up", "dense", (view,), "kept whole: gate and up alternate by row")]
    if role == "mlp_up" and _holds_gate_too(view, dims):
        role = "mlp_gate_up"
    expert = role.startswith("expert_")
    if expert and not role.endswith("gate_up") and (experts := _stacked_experts(view, hints.config)):
        small = min(view.n_rows // experts, view.n_cols) < hints.smallest
        return list(islice(split_stacked_rows(view, role, experts), 1 if small else None))
    if not role.endswith("gate_up"):
        return [Part("", role, "expert" if expert else "dense", (view,), input_axis=int(not in_out))]
    parts = split_gate_up(view, role, dims, in_out=in_out)
    return [replace(part, kind="expert") for part in parts] if expert else parts


def _several(view: TensorView, role: str, dims: Dims, hints: Hints) -> list[Part]:
    """The parts of a projection that is fused in a way its neighbours or its family tell, or nothing."""
    if role == "attn_q" and _holds_output_gate(view, dims, hints.config):
        return split_gated_query(view, dims)
    module = view.tensor.removesuffix(".weight")
    if "single" in module:
        return _parallel_block(view, module, hints)
    if not module.endswith(_GATED_ENDS):
        return []
    for both, after, gate_first in _GATED:
        if module.endswith(both) and module.removesuffix(both)[-1:] in (".", ""):
            following = hints.tensors.get(f"{module.removesuffix(both)}{after}.weight")
            if following is None or len(following.shape) != 2:
                continue
            family = "expert_" if role.startswith("expert_") else "mlp_"
            if following.shape[1] * 2 == view.n_rows:
                return halves(view, family, gate_first=gate_first)
            if following.shape[1] == view.n_rows:
                return [Part("", f"{family}up", "dense", (view,))]
    return []


def _holds_output_gate(view: TensorView, dims: Dims, config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    settings = {**config, **(text if isinstance(text, Mapping) else {})}
    gated = settings.get("attn_output_gate", dims.model_type in _GATED_QUERIES)
    return bool(gated and dims.heads and dims.head_dim and view.n_rows == 2 * dims.heads * dims.head_dim)


#: Blocks that attend and feed forward side by side: (what holds q, k, v and the inner layer; what both leave through).
_PARALLEL = (("linear1", "linear2"), ("attn.to_qkv_mlp_proj", "attn.to_out"))


def _parallel_block(view: TensorView, module: str, hints: Hints) -> list[Part]:
    """Flux's single blocks: q, k, v and the inner layer on one input; their outputs side by side into one
    projection."""
    for entry, leave in _PARALLEL:
        for end, is_entry in ((entry, True), (leave, False)):
            stem = module.removesuffix(end)
            if stem == module or not re.search(r"single\w*blocks\.\d+\.$", stem):
                continue
            first, last = (hints.tensors.get(f"{stem}{name}.weight") for name in (entry, leave))
            if first is None or last is None or len(first.shape) != 2 or len(last.shape) != 2:
                return []
            d, inner = last.shape[0], last.shape[1] - last.shape[0]
            factors, rest = divmod(first.shape[0] - 3 * d, inner) if inner > 0 else (0, 1)
            if rest or factors not in (1, 2) or first.shape[1] != d:
                return []
            return _entering(view, d, inner, factors) if is_entry else _leaving(view, d, inner)
    return []


def _entering(view: TensorView, d: int, inner: int, factors: int) -> list[Part]:
    ends = [("q", "attn_q", d), ("k", "attn_k", d), ("v", "attn_v", d)]
    ends += [("gate", "mlp_gate", inner), ("up", "mlp_up", inner)] if factors == 2 else [("up", "mlp_up", inner)]
    parts, start = [], 0
    for suffix, role, height in ends:
        rows = ((start, start + height),)
        parts.append(Part(f"#{suffix}", role, "dense", (replace(view, rows=rows),), reading="fused"))
        start += height
    return parts


def _leaving(view: TensorView, d: int, inner: int) -> list[Part]:
    columns = (("o", "attn_o", (0, d, 1)), ("down", "mlp_down", (d, d + inner, 1)))
    return [
        Part(f"#{name}", role, "dense", (replace(view, cols=cols),), reading="fused") for name, role, cols in columns
    ]


def _gates(view: TensorView, role: str, hints: Hints) -> list[Part]:
    """Split by the hidden size: rows of the projection `weight_hr`, or columns of `weight_hh`."""
    _, _, tail = view.tensor.rpartition("weight_")
    stem = view.tensor.removesuffix(tail)
    if tail.startswith("hr"):
        return [Part("", role, "rnn", (view,))]
    recurrent = hints.tensors.get(f"{stem}hh{tail[2:]}")
    projected = hints.tensors.get(f"{stem}hr{tail[2:]}")
    hidden = projected.shape[1] if projected else recurrent.shape[1] if recurrent else 0
    return split_gates(view, role, hidden) if hidden else [Part("", role, "rnn", (view,))]


def _is_linear(view: TensorView, hints: Hints) -> bool:
    """Whether what has a table's name is multiplied with: a linear layer has a bias, a table has none."""
    kind = hints.kind_of(view.tensor)
    return kind == "Linear" or (kind is None and f"{view.tensor.removesuffix('.weight')}.bias" in hints.tensors)


def _has_inputs_first(view: TensorView, role: str, hints: Hints) -> bool:
    if role == "attn_qkv" and view.n_cols == 3 * view.n_rows and hints.kind_of(view.tensor) in (None, "Module"):
        return True  # GPT-2's `Conv1D` in other code too: the fused projection is d × 3d
    first = has_inputs_first(
        view.tensor, view.shape, kind=hints.kind_of(view.tensor), tensors=hints.tensors, config=hints.config
    )
    return first and role not in EMBEDDINGS


def _holds_gate_too(view: TensorView, dims: Dims) -> bool:
    """GGUF's `ffn_up` of Phi-3 and GLM-4 is gate and up, stacked."""
    return "blk." in view.tensor and view.n_rows not in dims.inner and view.n_rows / 2 in dims.inner


def _stacked_experts(view: TensorView, config: Mapping[str, Any]) -> int:
    """Number of experts along the rows (DBRX: `experts.mlp.w1`), or 0."""
    ffn = config.get("ffn_config")
    count = ffn.get("moe_num_experts") if isinstance(ffn, Mapping) else None
    stacked = ".experts.mlp." in view.tensor and isinstance(count, int) and count > 0
    return count if stacked and count and view.n_rows % count == 0 else 0
