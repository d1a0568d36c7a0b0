"""Damage by a seed: of bytes, and of documents, which a flipped byte would only make unreadable."""

from __future__ import annotations

import copy
import json
import marshal
import random
from typing import Any

#: Values that are not what was expected there.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "\ud800", "\u202e", "\x00", "../../etc/passwd", "9" * 5000, "NaN", "x" * 10_000, "=1+1", "(a+)+$", "[",
    [], {}, [[]], [{}], {"a": {}}, [0] * 1000, ["a"], {"": 0}, [[[[[[[[]]]]]]]],
)  # fmt: skip
_BYTES = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"{",
    b"}",
    b'"',
    b"]",
    b"PK\x03\x04",
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x7f" + b"\xff" * 7,
)


def of_bytes(data: bytes, rng: random.Random, splice: bytes = b"") -> bytes:
    """A few changes: bits, bytes, numbers, parts cut out, doubled, or taken from `splice`."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(found) + 1)
        # Headers are where the meaning is.
        place = min(place, rng.choice((len(found), len(found), 16, 64, 400)))
        kind = rng.randrange(8)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(found):
            found[place] = rng.randrange(256)
        elif kind == 2:
            new = rng.choice(_BYTES)
            found[place : place + len(new)] = new
        elif kind == 3:
            del found[place:]
        elif kind == 4:
            del found[place : place + rng.choice((1, 2, 8, 100))]
        elif kind == 5:
            length = rng.choice((1, 4, 8, 64))
            found[place:place] = found[place : place + length] * rng.choice((1, 2, 50))
        elif kind == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.randrange(2 ** (8 * width))))
            found[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif splice:
            start = rng.randrange(len(splice))
            found[place:place] = splice[start : start + rng.choice((4, 16, 200))]
    return bytes(found)


def of_document(document: Any, rng: random.Random) -> Any:
    """A few nodes of JSON data replaced, taken out, doubled or renamed."""
    found = _copy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(found))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "\ud800", "__metadata__", key.upper()))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(
                (-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key]), [holder[key]])
            )
        else:
            holder[key] = _copy(rng.choice(ODD))
    return found


def _copy(document: Any) -> Any:
    try:
        return marshal.loads(marshal.dumps(document))  # ten times as fast as copy.deepcopy
    except ValueError:
        return copy.deepcopy(document)  # dates, from YAML or Arrow


def _places(document: Any) -> Any:
    todo = [document]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list) and len(holder[key]) < 500:
                todo.append(holder[key])


def text_of(document: Any) -> bytes:
    """The JSON of it; NaN and halves of characters as Python writes and reads them."""
    return json.dumps(document).encode()
