"""Sizes of layers that no config can say: what `tailwise_pruned.json` holds, and models that are given them.

The file says the size of each layer that was cut, the heads of each attention, the rank of each factored layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tailwise.checkpoints.within import check_within
from tailwise.core.errors import MALFORMED, UnreadableError, UsageError
from tailwise.core.storage import json_of, read_text
from tailwise.core.typed import check_typed
from tailwise.models.walking.statistics import PLAIN

PRUNED_FILE = "tailwise_pruned.json"
FORMAT = 1
_VERSION = "tailwise_pruned"


@dataclass(frozen=True)
class Sizes:
    """Of a linear layer. With `rank` it is two: inputs → rank → outputs."""

    inputs: int
    outputs: int
    rank: int | None = None


@dataclass(frozen=True)
class Heads:
    """Of an attention module: query heads, key-value heads, and the size of one."""

    queries: int
    groups: int
    size: int


@dataclass(frozen=True)
class Shapes:
    """What differs from the config, by module."""

    layers: Mapping[str, Sizes] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)

    def to_text(self) -> str:
        """The file."""
        named = {name: {k: v for k, v in asdict(sizes).items() if v is not None} for name, sizes in self.layers.items()}
        document = {
            _VERSION: FORMAT,
            "layers": named,
            "heads": {name: asdict(item) for name, item in self.heads.items()},
        }
        return json.dumps(document, indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> Shapes | None:
        """Those of a folder; None where it has no such file."""
        path = folder / PRUNED_FILE
        if not path.is_file():
            return None
        check_within(folder, path)
        try:
            document = json_of(read_text(path))
            if document[_VERSION] != FORMAT:
                fix = "update tailwise"
                raise UnreadableError(
                    f"is of format {document[_VERSION]}; this tailwise reads {FORMAT}", where=path, fix=fix
                )
            layers = {name: _checked(Sizes, sizes) for name, sizes in document["layers"].items()}
            return Shapes(layers, {name: _checked(Heads, heads) for name, heads in document["heads"].items()})
        except (*MALFORMED, OSError) as error:
            fix = "write the model again with `tailwise apply`"
            raise UnreadableError("does not say how the layers were cut", where=path, fix=fix) from error


Kind = TypeVar("Kind", Sizes, Heads)


def _checked(kind: type[Kind], given: Any) -> Kind:
    """`TypeError` or `ValueError` where a number cannot be a size."""
    check_typed(kind, given)
    if not all(0 < value < 1 << 31 for value in given.values() if value is not None):
        raise ValueError("a size that no layer has")
    made = kind(**given)
    if isinstance(made, Heads) and made.queries % made.groups:
        raise ValueError(f"{made.queries} heads in {made.groups} groups")
    return made


class Factored(nn.Module):
    """W ≈ A·B as two linear layers: x → B·x (rank) → A·(B·x) + bias."""

    def __init__(self, sizes: Sizes, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        rank = sizes.rank or 0
        self.first = nn.Linear(sizes.inputs, rank, bias=False, **where)
        self.second = nn.Linear(rank, sizes.outputs, bias=bias, **where)

    @property
    def weight(self) -> torch.Tensor:
        """A·B, (outputs × inputs), for code that asks a layer for its dtype or its matrix, as T5's does."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the second layer."""
        return self.second.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs)."""
        output: torch.Tensor = self.second(self.first(x))
        return output


def reshape(model: nn.Module, shapes: Shapes) -> None:
    """Give the layers of `model` other sizes in place; their new weights have no values (meta device)."""
    for name, sizes in shapes.layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _resized(model.get_submodule(name), sizes, name))
    for name, heads in shapes.heads.items():
        _set_heads(model.get_submodule(name), heads)


def _resized(module: nn.Module, sizes: Sizes, name: str) -> nn.Module:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or type(module).__name__ not in PLAIN:
        raise UsageError(f"{name} is no linear layer but a {type(module).__name__}")
    meta = torch.device("meta")
    if sizes.rank is not None:
        return Factored(sizes, bias=bias is not None, dtype=weight.dtype, device=meta)
    shape = (sizes.outputs, sizes.inputs)
    if type(module).__name__ == "Conv1D":
        shape = shape[::-1]
        module.nf, module.nx = sizes.outputs, sizes.inputs  # type: ignore[assignment]
    else:
        module.in_features, module.out_features = sizes.inputs, sizes.outputs  # type: ignore[assignment]
    module.weight = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=meta))
    if bias is not None:
        module.bias = nn.Parameter(torch.empty(sizes.outputs, dtype=weight.dtype, device=meta))
    return module


def _set_heads(module: nn.Module, heads: Heads) -> None:
    """What modules of transformers keep of the number of heads, under the names that they use."""
    width = heads.queries * heads.size
    known = {
        "num_heads": heads.queries, "num_attention_heads": heads.queries, "n_heads": heads.queries,
        "n_head": heads.queries, "num_key_value_heads": heads.groups,
        "num_key_value_groups": heads.queries // heads.groups, "all_head_size": width, "split_size": width,
    }  # fmt: skip
    for name, value in known.items():
        if hasattr(module, name):
            setattr(module, name, value)
