"""Weights of Keras and Flax: outputs last, names of their own. Here they get PyTorch's axes and names.

A dense kernel is in × out and stays so (`MatMul`). A convolution (k…, in, out) becomes (out, in, k…), a transposed one
(k…, out, in) becomes (in, out, k…), a depthwise one (k…, in, m) becomes (in·m, 1, k…). The heads of an attention are
joined: (in, heads, dim) becomes in × heads·dim. Gates of an LSTM lie as PyTorch's do; those of a GRU are put into its
order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KERNELS = frozenset({"kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel"})
_LEAVES = {"kernel": "weight", "embeddings": "weight", "embedding": "weight", "gamma": "weight", "scale": "weight",
           "beta": "bias", "depthwise_kernel": "depthwise.weight", "pointwise_kernel": "pointwise.weight"}  # fmt: skip
_TRANSPOSED = re.compile(r"conv\d?d?_?transpose|deconv", re.IGNORECASE)
_CONV = re.compile(r"conv", re.IGNORECASE)
_DEPTHWISE = re.compile(r"depthwise_?conv", re.IGNORECASE)
_RECURRENT = re.compile(r"lstm|gru|simple_?rnn", re.IGNORECASE)
_INTO_HEADS = frozenset({"query", "key", "value", "query_dense", "key_dense", "value_dense"})
_FROM_HEADS = frozenset({"attention_output", "output_dense", "out"})
#: What Keras 3 calls the numbered variables of a layer.
_NUMBERED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"separable_?conv", re.IGNORECASE), ("depthwise_kernel", "pointwise_kernel", "bias")),
    (re.compile(r"embedding", re.IGNORECASE), ("embeddings",)),
    (re.compile(r"norm", re.IGNORECASE), ("gamma", "beta", "moving_mean", "moving_variance")),
    (_RECURRENT, ("kernel", "recurrent_kernel", "bias")),
    (re.compile(""), ("kernel", "bias")),
)
#: What holds a stack of layers along the first axis of each array (flax' scan), where no number follows it.
_SCANNED = frozenset({"encoderblock", "layers"})
_MOST_LAYERS = 1024
#: Products of Gemma in JAX: leaf → (its parts, or none; axes of each that are put in × out; how many make the inputs).
_EINSUMS: tuple[tuple[re.Pattern[str], tuple[str, ...], tuple[int, ...], int], ...] = (
    (re.compile(r"q_einsum[./]w"), ("q_proj",), (1, 0, 2), 1),
    (re.compile(r"kv_einsum[./]w"), ("k_proj", "v_proj"), (1, 0, 2), 1),
    (re.compile(r"qkv_einsum[./]w"), ("q_proj", "k_proj", "v_proj"), (1, 0, 2), 1),
    (re.compile(r"attn_vec_einsum[./]w"), ("o_proj",), (0, 1, 2), 2),
    (re.compile(r"gating_einsum(?:[./]w)?"), ("gate_proj", "up_proj"), (0, 1), 1),
)
_GRU = (1, 0, 2)  # update, reset, new in Keras; reset, update, new in PyTorch


@dataclass(frozen=True)
class Turned:
    """How a stored array is shown: its axes permuted, the result reshaped, blocks of rows in another order."""

    name: str
    shape: tuple[int, ...]
    kind: str = ""  # of the module, as `Checkpoint.module_kinds`
    axes: tuple[int, ...] | None = None
    blocks: tuple[int, ...] = ()
    refused: str = ""  # why it is not known which axes are inputs

    @property
    def as_stored(self) -> bool:
        """Whether rows are rows of the stored array."""
        return self.axes is None and not self.blocks

    def turn(self, array: NDArray[Any]) -> NDArray[Any]:
        """The stored array as it is shown."""
        import numpy as np

        turned = (array if self.axes is None else array.transpose(self.axes)).reshape(self.shape)
        if not self.blocks:
            return turned
        parts = np.split(turned, len(self.blocks))
        return np.concatenate([parts[block] for block in self.blocks])


def leaf_of(number: int, classes: str) -> str:
    """Name of a layer's variable `number` in Keras 3; `classes` names the layer's class, and what it lies in."""
    names = next(names for pattern, names in _NUMBERED if pattern.search(classes))
    return names[number] if number < len(names) else str(number)


def turned(path: Sequence[str], shape: tuple[int, ...], classes: str = "") -> Turned:
    """How the array at `path` (layer, …, leaf) is shown. `classes`: names of classes of its layer, where known."""
    *module, leaf = path
    said = "/".join([*module, classes]) if classes else "/".join(module)
    if (
        leaf in ("kernel", "recurrent_kernel")
        and len(shape) == 2
        and _RECURRENT.search(classes or "/".join(module[-2:]))
    ):
        return _gates(module, leaf, shape, gru="gru" in said.lower())
    name = ".".join([*module, _LEAVES.get(leaf, leaf)])
    if leaf not in _KERNELS:
        kind = "Embedding" if leaf in ("embeddings", "embedding") and len(shape) == 2 else ""
        return Turned(name, shape, kind)
    if len(shape) < 3:
        return Turned(name, shape, "MatMul" if len(shape) == 2 else "")
    inner = module[-1] if module else ""
    if len(shape) == 3 and not _CONV.search(classes or inner):
        return _heads(name, inner, shape)
    return _convolution(name, shape, depthwise=leaf == "depthwise_kernel" or bool(_DEPTHWISE.search(said)),
                        transposed=bool(_TRANSPOSED.search(said)))  # fmt: skip


def stacks_of(arrays: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Prefix → number of layers, of the arrays of Flax that hold a stack of layers along their first axis.

    `arrays`: shape by path, joined with slashes. All below the prefix must agree, and one be more than a matrix.
    """
    below: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in arrays.items():
        if (prefix := _scanned(name)) is not None:
            below.setdefault(prefix, []).append(shape)
    return {
        prefix: shapes[0][0]
        for prefix, shapes in below.items()
        if all(shape[:1] == shapes[0][:1] != () for shape in shapes)
        and max(map(len, shapes)) > 2
        and 0 < shapes[0][0] <= _MOST_LAYERS
    }


def _scanned(name: str) -> str | None:
    """What `name` begins with, up to the module that can hold a stack of layers."""
    parts = name.split("/")
    at = next((i for i, part in enumerate(parts[:-1]) if part in _SCANNED and not parts[i + 1].isdigit()), None)
    return None if at is None else "/".join(parts[: at + 1])


def layers_of(
    name: str, path: Sequence[str], shape: tuple[int, ...], stacks: Mapping[str, int]
) -> Iterator[tuple[tuple[int, ...], Turned]]:
    """The matrices of an array of Flax: indices along its first axes, and how each is shown.

    `path`: the parts of `name` as they are shown. An array that is one matrix has no index.
    """
    prefix = _scanned(name)
    if prefix is None or prefix not in stacks:
        yield from _einsums(path, shape, ())
        return
    at = next(i for i, part in enumerate(path) if part in _SCANNED) + 1
    for layer in range(stacks[prefix]):
        yield from _einsums([*path[:at], str(layer), *path[at:]], shape[1:], (layer,))


def _einsums(
    path: Sequence[str], shape: tuple[int, ...], index: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Turned]]:
    leaf = "/".join(path[-2:] if path[-1] in ("w", "linear") else path[-1:])
    if (leaf in ("mlp/linear", "linear/w")) and len(shape) == 2:
        stem = path[: path.index("linear")]
        yield index, Turned(".".join([*stem, "down_proj", "weight"]), shape, "MatMul")
        return
    matching = next((rule for rule in _EINSUMS if rule[0].fullmatch(leaf)), None)
    stem = path[: -1 - leaf.count("/")]
    if matching is None:
        yield index, turned(path, shape)
        return
    _, parts, axes, inputs = matching
    inner = shape if len(parts) == 1 else shape[1:]
    if len(inner) != len(axes) or (len(parts) > 1 and shape[0] != len(parts)):
        why = "a product of JAX whose axes are not those that are known here"
        yield index, Turned(".".join([*stem, leaf.replace("/", ".")]), shape, refused=why)
        return
    if len(inner) == 2 and inner[0] > inner[1]:  # stored out × in: an inner layer is wider than the model
        axes = (1, 0)
    put = [inner[axis] for axis in axes]
    matrix = (prod(put[:inputs]), prod(put[inputs:]))
    for number, part in enumerate(parts):
        at = index if len(parts) == 1 else (*index, number)
        yield at, Turned(".".join([*stem, part, "weight"]), matrix, "MatMul", axes)


def _gates(module: Sequence[str], leaf: str, shape: tuple[int, ...], *, gru: bool) -> Turned:
    stem = list(module)
    while len(stem) > 1 and re.fullmatch(r"(?:lstm_|gru_|simple_rnn_)?cell(?:_\d+)?", stem[-1]):
        stem.pop()
    ending = "weight_ih_l0" if leaf == "kernel" else "weight_hh_l0"
    blocks = _GRU if gru and shape[1] % 3 == 0 else ()
    return Turned(".".join([*stem, ending]), shape[::-1], "GRU" if gru else "LSTM", (1, 0), blocks)


def _heads(name: str, inner: str, shape: tuple[int, ...]) -> Turned:
    if inner in _INTO_HEADS:
        return Turned(name, (shape[0], shape[1] * shape[2]), "MatMul", (0, 1, 2))
    if inner in _FROM_HEADS:
        return Turned(name, (shape[0] * shape[1], shape[2]), "MatMul", (0, 1, 2))
    return Turned(
        name, shape, refused="a kernel of three axes, of which it is not known which are inputs (EinsumDense)"
    )


def _convolution(name: str, shape: tuple[int, ...], *, depthwise: bool, transposed: bool) -> Turned:
    last, room = len(shape) - 1, tuple(range(len(shape) - 2))
    kind = f"{'ConvTranspose' if transposed and not depthwise else 'Conv'}{len(room)}d"
    if depthwise:
        return Turned(name, (prod(shape[-2:]), 1, *shape[:-2]), kind, (last - 1, last, *room))
    return Turned(name, (shape[-1], shape[-2], *shape[:-2]), kind, (last, last - 1, *room))
