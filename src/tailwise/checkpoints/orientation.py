"""Which axis of a stored weight its inputs run along. Decided here, and asked for everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.dims import Dims, dims_for

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
