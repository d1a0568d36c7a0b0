"""Towers beside the text of a model that predicts text: what reads images and sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailwise.checkpoints.checkpoint import tower_of

#: What towers are called where they are asked for.
TOWERS = ("vision", "audio")
#: Ends of the names of classes that predict text. Others that hold two towers (CLIP) are as much the one as the other.
_PREDICTS_TEXT = ("ForConditionalGeneration", "ForCausalLM", "ForImageTextToText", "ForVision2Seq", "LMHeadModel")


def tower_beside(name: str, config: Mapping[str, Any]) -> str | None:
    """`vision` or `audio` where the tensor `name` lies in such a tower of a model that predicts text, else None."""
    architectures = config.get("architectures") or ()
    if not any(str(one).endswith(_PREDICTS_TEXT) for one in architectures):
        return None
    vision, audio, _ = tower_of(name)
    return TOWERS[0] if vision else TOWERS[1] if audio else None
