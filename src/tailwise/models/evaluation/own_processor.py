"""What a model says of its pictures, gone through before transformers' processor makes one ready."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.typed import is_finite
from tailwise.models.evaluation.own_documents import items_of

# Far above any tower's, far below what takes a machine's memory.
_LONGEST_SIDE, _MOST_PIXELS = 4096, 1 << 28
#: Of what a small picture is made larger to: Qwen's largest upper bound. Of all parts that a picture is cut into.
_MOST_MADE, _MOST_TILES = 1 << 24, 4096
_SIDES = re.compile(r"(size|edge|height|width|pinpoints|resolutions?|tiles|crops|patches|splits?|divisor|multiple)$")
_EDGES = frozenset(("shortest_edge", "longest_edge"))
_LEAST = frozenset(("shortest_edge", "min_pixels"))
_COUNTS = re.compile(r"(patches|tiles|crops|splits?)$")
_AREAS = ("size", "crop_size", "patch_size", "tile_size")


def check_processor(ready: Any, sizes: Iterable[tuple[int, int]], where: str) -> None:
    """`UnreadableError` where transformers' processor would make more of such pictures than any tower takes."""
    settings, by_pixels = ready.to_dict(), _counts_pixels(type(ready))
    for key, value in items_of(settings):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        pixels = key.endswith("pixels") or (by_pixels and key in _EDGES)
        most = (
            _MOST_MADE
            if pixels and key in _LEAST
            else _MOST_PIXELS
            if pixels
            else _LONGEST_SIDE
            if _SIDES.search(key)
            else None
        )
        if most is not None and not value <= most:
            said = f"{value:.4g}" if is_finite(value) else "a number without end"
            raise _refused(f"asks for {key} {said}, and no model takes more than {most}", where)
    _check_parts(settings, by_pixels, where)
    size = settings.get("size")
    side = size.get("shortest_edge") if isinstance(size, dict) and not by_pixels else None
    for wide, high in sizes:
        if side and side**2 * max(wide, high) > _MOST_PIXELS * min(wide, high):
            raise UnreadableError(
                f"a picture of {wide} × {high}, whose shorter side is to be {side}, has too many pixels",
                where=where,
                fix="leave it out",
            )


def _check_parts(settings: dict[str, Any], by_pixels: bool, where: str) -> None:
    """The same of what a picture is cut into: how many parts there are, and the pixels of all of them."""
    areas = {name: _area(settings.get(name)) for name in _AREAS if not (by_pixels and name == "size")}
    parts = [value for key, value in items_of(settings)
             if _COUNTS.search(key) and isinstance(value, int) and not isinstance(value, bool)]  # fmt: skip
    count, largest = max(parts, default=1), max(areas.values(), default=1)
    if count * largest > _MOST_PIXELS // 4:
        raise _refused(f"asks for {count} parts of {largest} pixels of a picture", where)
    part = min((area for name, area in areas.items() if name != "patch_size" and settings.get(name)), default=None)
    grids = [value for key in ("image_grid_pinpoints", "split_resolutions") for value in settings.get(key) or ()]
    tiles = 0 if part is None else max((_area(grid) // part for grid in grids), default=0)
    if tiles > _MOST_TILES:
        raise _refused(f"cuts a picture into {tiles} tiles, and no model takes more than {_MOST_TILES}", where)


def _area(size: Any) -> int:
    """Pixels of a size, in whichever of its spellings; 1 where it says nothing."""
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list | tuple) else [size, size]
    known = [int(side) for side in sides if is_finite(side)]
    return 1 if not known else known[0] ** 2 if len(known) == 1 else max(known[0] * known[1], 1)


def _refused(what: str, where: str) -> UnreadableError:
    fix = "take preprocessor_config.json from where the model came from"
    return UnreadableError(f"its preprocessor {what}", where=where, fix=fix)


def _counts_pixels(kind: type) -> bool:
    """Whether the edges of a processor's size are numbers of pixels, as those of Qwen2-VL and what came of it."""
    taken = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return any(hasattr(kind, name) or name in taken for name in ("merge_size", "min_pixels"))
