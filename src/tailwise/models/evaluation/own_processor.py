"""What a model says of its pictures, gone through before transformers' processor makes one ready."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation.own_documents import items_of

_LONGEST_SIDE, _MOST_PIXELS = 4096, 1 << 28  # far above any tower's, far below what takes a machine's memory
_SIDES = re.compile(r"(size|edge|height|width|pinpoints|resolutions?|tiles|crops|patches|splits?|divisor|multiple)$")
_EDGES = frozenset(("shortest_edge", "longest_edge"))


def check_processor(ready: Any, pictures: Sequence[Any], where: str) -> None:
    """`UnreadableError` where a processor of transformers would make more of a picture than any tower takes."""
    settings, by_pixels = ready.to_dict(), _counts_pixels(type(ready))
    for key, value in items_of(settings):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        pixels = key.endswith("pixels") or (by_pixels and key in _EDGES)
        most = _MOST_PIXELS if pixels else _LONGEST_SIDE if _SIDES.search(key) else None
        if most is not None and not value <= most:
            raise UnreadableError(
                f"its preprocessor asks for {key} {value:.4g}, and no model takes more than {most}",
                where=where,
                fix="take preprocessor_config.json from where the model came from",
            )
    size = settings.get("size")
    side = size.get("shortest_edge") if isinstance(size, dict) and not by_pixels else None
    for wide, high in (picture.size for picture in pictures):
        if side and side**2 * max(wide, high) > _MOST_PIXELS * min(wide, high):
            raise UnreadableError(
                f"a picture of {wide} × {high}, whose shorter side is to be {side}, has too many pixels",
                where=where,
                fix="leave it out",
            )


def _counts_pixels(kind: type) -> bool:
    """Whether the edges of a processor's size are numbers of pixels, as those of Qwen2-VL and what came of it."""
    taken = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return any(hasattr(kind, name) or name in taken for name in ("merge_size", "min_pixels"))
