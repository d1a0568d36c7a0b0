"""Which matrices one tensor holds, from its role, its shape and what is known about the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.dims import Dims, dims_for
from tailwise.checkpoints.fused import (
    Part,
    split_experts,
    split_gate_up,
    split_gates,
    split_qkv,
    split_stacked_rows,
    squeezed,
)
from tailwise.checkpoints.kernels import is_transposed, split_conv
from tailwise.checkpoints.views import View, whole

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import TensorSpec

#: Roles whose rows are looked up rather than multiplied.
EMBEDDINGS = frozenset({"embed", "pos_embed"})
_VECTORS = EMBEDDINGS | {"rwkv_mix"}  # stored with leading axes of 1
_NOT_NUMBERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "F8_E8M0"})


@dataclass(frozen=True)
class Hints:
    """What is known about the model beyond one tensor."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    module_kinds: Mapping[str, str]  # module → its class, where the checkpoint is a live module
    conv: str  # Recipe.conv

    def kind_of(self, tensor: str) -> str | None:
        """Class of the module that the tensor is the weight of."""
        return self.module_kinds.get(tensor.rpartition(".")[0])


def is_numeric(dtype: str) -> bool:
    """Whether entries are real numbers rather than codes, indices or masks."""
    return dtype not in _NOT_NUMBERS


def parts_of(spec: TensorSpec, role: str, hints: Hints) -> list[Part]:
    """The matrices of a tensor of two axes or more, in order."""
    if len(spec.shape) > 2 and role in _VECTORS and set(spec.shape[:-2]) == {1}:
        return [Part("", role, "dense", (squeezed(spec.name, spec.shape),))]
    if len(spec.shape) == 3 and (role.startswith("expert_") or role == "ssm_x"):
        E, A, B = spec.shape
        return split_experts(spec.name, (E, A, B), role, dims_for(spec.name, hints.config))
    if len(spec.shape) > 2:
        module = spec.name.removesuffix(".weight")
        transposed = is_transposed(module, hints.kind_of(spec.name))
        return split_conv(spec.name, spec.shape, role, hints.conv, transposed=transposed)
    return _parts_of_matrix(whole(spec.name, spec.shape), role, hints)


def _parts_of_matrix(view: View, role: str, hints: Hints) -> list[Part]:
    dims = dims_for(view.tensor, hints.config)
    if role in ("rnn_ih", "rnn_hh"):
        return _gates(view, role, hints)
    if role == "attn_qkv":
        return split_qkv(view, dims, in_out=_is_conv1d(view, hints))
    if role == "mlp_up" and _holds_gate_too(view, dims):
        role = "mlp_gate_up"
    parts = split_gate_up(view, role, dims) if role.endswith("gate_up") else [Part("", role, "dense", (view,))]
    if not role.startswith("expert_"):
        return parts
    if experts := _stacked_experts(view, hints.config):
        return split_stacked_rows(view, role, experts)
    return [replace(part, kind="expert") for part in parts]


def _gates(view: View, role: str, hints: Hints) -> list[Part]:
    """Split by the hidden size: rows of the projection `weight_hr`, or columns of `weight_hh`."""
    _, _, tail = view.tensor.rpartition("weight_")
    stem = view.tensor.removesuffix(tail)
    if tail.startswith("hr"):
        return [Part("", role, "rnn", (view,))]
    recurrent = hints.tensors.get(f"{stem}hh{tail[2:]}")
    projected = hints.tensors.get(f"{stem}hr{tail[2:]}")
    hidden = projected.shape[1] if projected else recurrent.shape[1] if recurrent else 0
    return split_gates(view, role, hidden) if hidden else [Part("", role, "rnn", (view,))]


def _is_conv1d(view: View, hints: Hints) -> bool:
    """GPT-2's `Conv1D` stores in × out; of a fused projection that shows in the shape d × 3d."""
    kind = hints.kind_of(view.tensor)
    return kind == "Conv1D" or (kind is None and view.n_cols == 3 * view.n_rows)


def _holds_gate_too(view: View, dims: Dims) -> bool:
    """GGUF's `ffn_up` of Phi-3 and GLM-4 is gate and up, stacked."""
    return "blk." in view.tensor and view.n_rows not in dims.inner and view.n_rows / 2 in dims.inner


def _stacked_experts(view: View, config: Mapping[str, Any]) -> int:
    """Number of experts along the rows (DBRX: `experts.mlp.w1`), or 0."""
    ffn = config.get("ffn_config")
    count = ffn.get("moe_num_experts") if isinstance(ffn, Mapping) else None
    stacked = ".experts.mlp." in view.tensor and isinstance(count, int) and count > 0
    return count if stacked and count and view.n_rows % count == 0 else 0
