"""Stored tensors by the module they belong to, in one pass over their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Siblings

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import TensorSpec

#: Where a module's own name ends although more dots follow: in what torch's parametrizations, adapters, and packings
#: that hang their scales below the weight (`m.weight.absmax`) put there.
_INNER = re.compile(
    r"\.(?=parametrizations\."
    r"|weight\."
    r"|lora_(?:[ABab]|down|up|mid|embedding_[AB]|magnitude_vector|alpha)(?:\.|$)"
    r"|trainable_tokens_(?:delta|original)(?:\.|$)"
    r"|lora_linear_layer\.|lora\.(?:down|up)\.|lora\.[AB]$|adaptor\.[AB]\.weight$"
    r"|(?:hada|lokr|oft|boft|ia3|vera|loha|glora)_\w+(?:\.|$)"
    r"|(?:down|up|linear_in|linear_out|[ab][12])\.weight$)"
)
_MARKED = re.compile(
    r"parametrizations\.|weight\.|lora|lycoris|hada_|lokr_|oft_|ia3_|vera_|loha_|\.(?:down|up)\.weight"
    r"|adaptor\.|adapter|trainable_tokens"
)
#: Names that are factors only where the module says so: `to_q_lora.down.weight`, `linear_qkv.adapter.linear_in.weight`
#: (a bottleneck with a non-linearity has the same leaves, under another name), `lora_unet_x.a1.weight`.
_ONLY_IN = (
    (re.compile(r"(?:down|up)\."), re.compile(r"lora[^.]*$")),
    (
        re.compile(r"linear_(?:in|out)\."),
        re.compile(r"\.lora_[^.]*$|\.linear_(?:qkv|proj|fc1|fc2)\.adapter(?:_[qkv]|_gate|_up)?$"),
    ),
    (re.compile(r"[ab][12]\."), re.compile(r"\.(?:lora|lycoris)_[^.]*$")),
)


def siblings_of(tensors: Mapping[str, TensorSpec]) -> Iterator[Siblings]:
    """Every module with tensors of its own, in the order of its first tensor."""
    found: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in tensors.items():
        module, leaf = _split(name)
        found.setdefault(module, {})[leaf] = spec
    for module, leaves in found.items():
        yield Siblings(module, leaves)


def _split(name: str) -> tuple[str, str]:
    if _MARKED.search(name):
        dotted = f".{name}"
        if (match := _inner(dotted)) is not None:
            return dotted[1 : match.start()], dotted[match.end() :]
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _inner(dotted: str) -> re.Match[str] | None:
    for match in _INNER.finditer(dotted):
        where = next((module for leaf, module in _ONLY_IN if leaf.match(dotted, match.end())), None)
        if where is None or where.search(dotted[: match.start()]):
            return match
    return None
