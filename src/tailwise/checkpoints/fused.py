"""One tensor, several matrices: fused QKV, gate-up and RNN gates, and stacks of experts.

Layouts were read from the modeling code of transformers 5.23; the tests compare them with the forward passes.
Ranges are over the output features: rows of a Linear (out × in), columns of a `Conv1D` (in × out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tailwise.checkpoints.checkpoint import Dims
from tailwise.checkpoints.orientation import stack_has_inputs_first
from tailwise.checkpoints.views import RowRange, TensorView, whole

Ranges = Mapping[str, tuple[RowRange, ...]]  # part → ranges of output features

#: Families whose `query_key_value` alternates q, k, v by head or group of heads: view(heads, 3, head_dim).
_BY_GROUP = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "internlm2"})
#: Families with a fused order that the config does not describe.
_OPAQUE = frozenset({"codegen"})


@dataclass(frozen=True)
class Part:
    """One matrix of a tensor: `suffix` is added to the module's name."""

    suffix: str
    role: str
    kind: str
    views: tuple[TensorView, ...]
    note: str = ""
    reading: str = "plain"  # plain, fused, stack, kernel, transposed_kernel
    input_axis: int = 1  # of the matrix as it is read: 1 where columns are inputs, 0 where rows are


def split_qkv(view: TensorView, dims: Dims, *, in_out: bool) -> list[Part]:
    """Query, key and value of a fused projection, or the whole with a note."""
    out = view.n_cols if in_out else view.n_rows
    ranges = qkv_ranges(view.tensor, out, dims, square=out == 3 * (view.n_rows if in_out else view.n_cols))
    if ranges is None:
        note = "kept whole: the config does not explain its layout"
        return [Part("", "attn_qkv", "dense", (view,), note, input_axis=int(not in_out))]
    return [
        Part(
            f"#{part}",
            f"attn_{part}",
            "dense",
            (select(view, where, in_out=in_out),),
            reading="fused",
            input_axis=int(not in_out),
        )
        for part, where in ranges.items()
    ]


def qkv_ranges(name: str, out: int, dims: Dims, *, square: bool) -> Ranges | None:
    """Output features of q, k and v, or None where the config does not explain `out`.

    Stacked: all of q, then k, then v (Phi-3, GPT-2, MPT, ModernBERT, timm, `in_proj_weight`, GGUF). By group:
    for each key-value head its queries, its key, its value (GPT-NeoX and BLOOM with one query each, Falcon's
    new decoder, InternLM2). `square`: out = 3·in, which without a config means three equal parts.
    """
    by_group = dims.grouped if dims.grouped is not None else dims.model_type in _BY_GROUP
    unsure = "query_key_value" in name and not (dims.model_type or "blk." in name)
    if unsure or dims.model_type in _OPAQUE:
        return None
    if "blk." in name:
        by_group = False  # llama.cpp's converter stacks q, k and v of every family
    heads, kv, dim = dims.heads, dims.kv_heads, dims.head_dim
    if heads and kv and dim and (heads + 2 * kv) * dim == out and heads % kv == 0:
        return _grouped(heads // kv, kv, dim) if by_group else _stacked(heads * dim, kv * dim)
    return _stacked(out // 3, out // 3) if square and not by_group else None


def _stacked(q: int, kv: int) -> Ranges:
    return {"q": ((0, q),), "k": ((q, q + kv),), "v": ((q + kv, q + 2 * kv),)}


def _grouped(queries: int, groups: int, dim: int) -> Ranges:
    starts = [g * (queries + 2) * dim for g in range(groups)]
    q = queries * dim
    return {
        "q": tuple((s, s + q) for s in starts),
        "k": tuple((s + q, s + q + dim) for s in starts),
        "v": tuple((s + q + dim, s + q + 2 * dim) for s in starts),
    }


def split_gate_up(view: TensorView, role: str, dims: Dims, *, in_out: bool = False) -> list[Part]:
    """Gate (first half: the one that passes the activation) and up of a fused projection, or the whole."""
    out = view.n_cols if in_out else view.n_rows
    family = role.removesuffix("gate_up")
    if out % 2 or (family == "mlp_" and dims.inner and out // 2 not in dims.inner):
        note = "kept whole: the config does not explain its layout"
        return [Part("", role, "dense", (view,), note, input_axis=int(not in_out))]
    return halves(view, family, in_out=in_out)


def halves(view: TensorView, family: str, *, in_out: bool = False, gate_first: bool = True) -> list[Part]:
    """The two factors of a gated projection, the one that passes the activation as the gate."""
    out = view.n_cols if in_out else view.n_rows
    half = out // 2
    names = ("gate", "up") if gate_first else ("up", "gate")
    ranges = zip(names, (((0, half),), ((half, out),)), strict=True)
    return [
        Part(
            f"#{part}",
            f"{family}{part}",
            "dense",
            (select(view, where, in_out=in_out),),
            reading="fused",
            input_axis=int(not in_out),
        )
        for part, where in ranges
    ]


def split_gated_query(view: TensorView, dims: Dims) -> list[Part]:
    """Query and output gate of a projection that alternates them by head (Qwen3-Next): view(heads, 2, head_dim)."""
    d, heads = dims.head_dim or 0, dims.heads or 0
    ranges = {
        "q": tuple((2 * h * d, (2 * h + 1) * d) for h in range(heads)),
        "gate": tuple(((2 * h + 1) * d, (2 * h + 2) * d) for h in range(heads)),
    }
    roles = {"q": "attn_q", "gate": "attn_index"}
    return [
        Part(f"#{part}", roles[part], "dense", (select(view, where, in_out=False),), reading="fused")
        for part, where in ranges.items()
    ]


def split_gates(view: TensorView, role: str, hidden: int) -> list[Part]:
    """The gates of a recurrent layer: i, f, g, o of an LSTM, r, z, n of a GRU (torch's order)."""
    gates = {4: "ifgo", 3: "rzn"}.get(view.n_rows // hidden if view.n_rows % hidden == 0 else 0, "")
    if not gates:
        return [Part("", role, "rnn", (view,))]
    return [
        Part(f"#{gate}", role, "rnn", (replace(view, rows=((i * hidden, (i + 1) * hidden),)),), reading="fused")
        for i, gate in enumerate(gates)
    ]


def split_stack(
    tensor: str, shape: tuple[int, int, int], role: str, dims: Dims, *, kind: str = "dense", note: str = ""
) -> Iterator[Part]:
    """Every matrix of a stack (E, A, B), gate and up of experts apart where the config tells how they lie."""
    E, A, B = shape
    in_out = stack_has_inputs_first(role, (A, B), dims)
    for e in range(E):
        view = TensorView(tensor, (E * A, B), ((e * A, (e + 1) * A),), (0, B, 1))
        for part in _of_stack(view, role, dims, in_out):
            yield replace(
                part,
                suffix=f"[{e}]{part.suffix}",
                kind=kind,
                note=part.note or note,
                reading="stack",
                input_axis=int(not in_out),
            )


def _of_stack(view: TensorView, role: str, dims: Dims, in_out: bool | None) -> list[Part]:
    if not role.endswith("gate_up"):
        return [Part("", role, "", (view,))]
    known = in_out is not None and dims.hidden == (view.n_rows if in_out else view.n_cols)
    if not known or in_out is None:
        return [Part("", role, "", (view,), "kept whole: the config does not tell its layout")]
    if dims.model_type == "gpt_oss":  # gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        C = view.n_cols
        views = (replace(view, cols=(0, C, 2)), replace(view, cols=(1, C, 2)))
        return [Part("#gate", "expert_gate", "", views[:1]), Part("#up", "expert_up", "", views[1:])]
    return split_gate_up(view, role, dims, in_out=in_out)


def split_stacked_rows(view: TensorView, role: str, experts: int) -> Iterator[Part]:
    """Experts stacked along the rows of a matrix (DBRX: (E·inner) × hidden)."""
    height = view.n_rows // experts
    for e in range(experts):
        rows = ((e * height, (e + 1) * height),)
        yield Part(f"[{e}]", role, "expert", (replace(view, rows=rows),), reading="stack")


def select(view: TensorView, ranges: tuple[RowRange, ...], *, in_out: bool) -> TensorView:
    """The output features `ranges` of an undivided view, or of one expert's rows."""
    if in_out:
        ((start, stop),) = ranges
        return replace(view, cols=(start, stop, 1))
    first = view.rows[0][0]
    return replace(view, rows=tuple((first + a, first + b) for a, b in ranges))


def squeezed(tensor: str, shape: tuple[int, ...]) -> TensorView:
    """A tensor whose leading axes are 1 as a matrix of the others (ViT positions: 1 × 197 × 768)."""
    axes = shape
    while len(axes) > 2 and axes[0] == 1:
        axes = axes[1:]
    return whole(tensor, axes)
