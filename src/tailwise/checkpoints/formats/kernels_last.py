"""Weights of Keras and Flax: outputs last, names of their own. Here they get PyTorch's axes and names.

A dense kernel is in × out and stays so (`MatMul`). A convolution (k…, in, out) becomes (out, in, k…), a transposed one
(k…, out, in) becomes (in, out, k…), a depthwise one (k…, in, m) becomes (in·m, 1, k…). The heads of an attention are
joined: (in, heads, dim) becomes in × heads·dim. Gates of an LSTM lie as PyTorch's do; those of a GRU are put into its
order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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

        found = (array if self.axes is None else array.transpose(self.axes)).reshape(self.shape)
        if not self.blocks:
            return found
        parts = np.split(found, len(self.blocks))
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
