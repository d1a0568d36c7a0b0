"""Names of the factors of low-rank adapters, and of what they add to a layer."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

#: After the name of a layer: what factors beside its weight add to it.
CHANGE = "#lora"
#: What peft puts before the names of the model that it adapts.
PEFT = "base_model.model."
_FACTOR = re.compile(r"\.lora_(?P<embedding>embedding_)?(?P<side>[ABab]|down|up)(?![a-z])")


def is_factor(name: str, adapter: str = "") -> bool:
    """Whether a tensor is a factor of a low-rank adapter, of peft's of this name or of any."""
    _, mark, rest = name.partition(".lora_")
    return bool(mark) and (not adapter or adapter in rest.split("."))


@lru_cache(maxsize=1 << 16)
def factor_of(layer: str) -> Literal["A", "B", ""]:
    """ "A" for a factor that begins with weights, "B" for one that begins at zero, "" for what is no factor.

    Of an embedding it is the first that begins at zero.
    """
    if (named := _FACTOR.search(layer)) is None:
        return ""
    first = named["side"] in ("A", "a", "down")
    return "A" if first is not bool(named["embedding"]) else "B"
