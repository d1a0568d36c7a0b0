"""One number per block, counted from the data: the second look at names, when all of them are known.

A stack is a run of numbered modules with one prefix (`model.encoder.layers`). Stacks are numbered one after
the other, so that a number names one block: first vision and audio towers, then encoders, then all others
(decoders and language models), each in the order of the file. Within a stack numbered once (`layers.3`) the
name's own number is kept, so a part of a model has the numbers of the whole. Where blocks are numbered by
stage and layer (`layer2.0`, `stages.1.layers.0`), the index runs over the stages, and what belongs to a stage
as a whole (down-sampling) goes to the stage's first block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_STAGED = re.compile(
    r"^(?P<stack>(?:.*?\.)??)(?:"
    r"(?:stages?|layers|down_blocks|up_blocks|albert_layer_groups)\.(?P<a>\d+)\."
    r"(?:layers|blocks|resnets|attentions|albert_layers)\.(?P<b>\d+)"
    r"|features\.(?P<c>\d+)\.(?P<d>\d+)"
    r"|(?:layer|denseblock)(?P<e>\d+)\.(?:denselayer)?(?P<f>\d+)"
    r")(?:\.|$)"
)
_STAGE_ONLY = re.compile(r"^(?P<stack>(?:.*?\.)??)(?:stages?|layers|features)\.(?P<a>\d+)(?:\.|$)")
_PLAIN = re.compile(r"^(?P<stack>(?:.*?\.)??)(?:encoder_layer_)?(?P<a>\d+)(?:\.|$)")
_FIRST = re.compile(r"(?:^|[._])(?:vision|visual|image|audio|v|a|feature_extractor)(?=[._]|\d|$)|vision")
_ENCODER = re.compile(r"(?:^|[._])(?:encoder|enc)(?=[._]|$)")

_Key = tuple[str, tuple[int, ...]]


def number_blocks(names: Iterable[str]) -> Mapping[str, int]:
    """Name → block index, for the names that sit in a numbered module."""
    listed = list(names)
    staged = {match["stack"] for name in listed if (match := _STAGED.match(name))}
    keys = {name: key for name in listed if (key := _key(name, staged)) is not None}
    stacks: dict[str, set[tuple[int, ...]]] = {}
    for stack, place in keys.values():
        stacks.setdefault(stack, set()).add(place)
    first: dict[_Key, int] = {}
    offset = 0
    for stack in sorted(stacks, key=_rank):
        offset = _number_stack(stack, stacks[stack], offset, first)
    return {name: first[key] for name, key in keys.items()}


def _number_stack(stack: str, places: set[tuple[int, ...]], offset: int, into: dict[_Key, int]) -> int:
    """Number the blocks of one stack from `offset`, and return the next free number."""
    ordered = sorted(places)
    plain = len(ordered[0]) == 1
    numbers = [place[0] for place in ordered] if plain else list(range(len(ordered)))
    for place, number in zip(ordered, numbers, strict=True):
        into[stack, place] = offset + number
    return offset + numbers[-1] + 1


def _key(name: str, staged: set[str]) -> _Key | None:
    """(stack, place in the stack) of a name, or None."""
    if match := _STAGED.match(name):
        found = [int(value) for key, value in match.groupdict().items() if key != "stack" and value]
        return match["stack"], tuple(found)
    if (match := _STAGE_ONLY.match(name)) and match["stack"] in staged:
        return match["stack"], (int(match["a"]), 0)
    if match := _PLAIN.match(name):
        return match["stack"], (int(match["a"]),)
    return None


def _rank(stack: str) -> int:
    return 0 if _FIRST.search(stack) else 1 if _ENCODER.search(stack) else 2
