"""Numbers of many layers over many steps, as one Arrow table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.storage import json_of
from tailwise.history.jsonl import numbers_from
from tailwise.history.read import Steps, in_steps, known_run, layouts_of, metric_names
from tailwise.history.schema import POINTS, VECTORS
from tailwise.history.sql import ColumnElement, Connection, LargeBinary, func, select
from tailwise.history.vectors import ABSENT, VectorLayout

Layers = str | Sequence[str] | None


def series(
    connection: Connection, run: str, metrics: Sequence[str], chosen: tuple[Layers, Collection[str] | None],
    steps: Steps | None,
) -> pa.Table:  # fmt: skip
    """A line per step, cadence and layer that has one of the metrics; a column per metric, null where it has none."""
    layers, roles = chosen
    owner = known_run(connection, run)
    ids = _metric_ids(connection, metrics, owner)
    mine = [POINTS.c.run_id == owner, *in_steps(steps)]
    query = select(POINTS.c.id, POINTS.c.step, POINTS.c.cadence, POINTS.c.layout_id).where(*mine)
    heads = connection.execute(query.order_by(POINTS.c.step, POINTS.c.cadence)).all()
    parts = []
    for number, layout in layouts_of(connection, {head.layout_id for head in heads}).items():
        kept = _kept(layout, layers, roles)
        if len(kept) and ids:
            span = int(kept[0]), int(kept[-1]) + 1, len(layout.places)
            rows = _rows(connection, [*mine, POINTS.c.layout_id == number], ids, span)
            # Room for points that have values, and for no others: a few bytes can name a layout of a million layers.
            having = {point for point, _, _ in rows}
            own = [head for head in heads if head.id in having]
            values = _values(rows, ids, [head.id for head in own], span[1] - span[0])
            parts.append(_part(layout, kept, own, dict(zip(ids, values, strict=True))))
    return _joined(parts, list(ids))


def _metric_ids(connection: Connection, metrics: Sequence[str], run: int) -> dict[str, int]:
    if isinstance(metrics, str):
        metrics = (metrics,)
    known = {name: number for number, name in metric_names(connection).items()}
    for name in metrics:
        if name not in known:
            if _is_scalar(connection, run, name):
                fix = "History.scalars has it, and `tailwise history RUN` without --metric"
                raise UsageError(f"{name} is a number of the whole model, and has no layers", fix=fix)
            raise unknown_name("metric in this store", name, known)
    return {name: known[name] for name in metrics}


def _is_scalar(connection: Connection, run: int, name: str) -> bool:
    rows = connection.execute(select(POINTS.c.scalars).where(POINTS.c.run_id == run)).scalars()
    return any(name in json_of(row) for row in rows)


def _rows(
    connection: Connection, mine: list[ColumnElement[bool]], ids: Mapping[str, int], span: tuple[int, int, int]
) -> Sequence[Any]:
    """(point, metric, bytes of the layers from `first` to before `last` of `count`)."""
    first, last, count = span
    data: ColumnElement[Any] = VECTORS.c.data
    if last - first < count:  # of one layer, eight bytes
        data = func.substr(VECTORS.c.data, 8 * first + 1, 8 * (last - first), type_=LargeBinary)
    query = (
        select(VECTORS.c.point_id, VECTORS.c.metric_id, data)
        .join(POINTS, POINTS.c.id == VECTORS.c.point_id)
        .where(VECTORS.c.metric_id.in_(ids.values()), *mine)
    )
    return connection.execute(query).all()


def _values(
    rows: Sequence[Any], ids: Mapping[str, int], points: Sequence[int], layers: int
) -> NDArray[np.float64]:  # fmt: skip
    """The rows as numbers, (metrics, points, layers)."""
    width = 8 * layers
    values = np.empty((len(ids), len(points), layers), np.float64)
    if len(rows) < len(ids) * len(points):
        values.view(ABSENT.dtype)[:] = ABSENT
    # Straight to where it belongs: joining the bytes of each metric first took as long as reading them.
    place = values.reshape(-1).view(np.uint8).data
    metrics = {number: index * len(points) * width for index, number in enumerate(ids.values())}
    starts = {point: index * width for index, point in enumerate(points)}
    for point, metric, vector in rows:
        at = metrics[metric] + starts[point]
        place[at : at + width] = vector
    return values


def _kept(layout: VectorLayout, layers: Layers, roles: Collection[str] | None) -> NDArray[np.intp]:
    """Positions of the layers that are asked for."""
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise UsageError(f"{layers!r} is not a regular expression: {error}") from error
        wanted = [pattern.search(item.name) is not None for item in layout.places]
    else:
        names = None if layers is None else set(layers)
        wanted = [names is None or item.name in names for item in layout.places]
    allowed = set(roles) if roles else None
    return np.flatnonzero(
        [want and (allowed is None or item.role in allowed) for want, item in zip(wanted, layout.places, strict=True)]
    )


def _part(
    layout: VectorLayout, places: NDArray[np.intp], heads: Sequence[Any], values: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """Columns of the points that share a layout, without the lines that have none of the metrics."""
    columns = {name: _column(places, mine) for name, mine in values.items()}
    part: dict[str, Any] = {
        "step": np.repeat([head.step for head in heads], len(places)),
        "cadence": np.repeat([_CADENCES.index(head.cadence) for head in heads], len(places)),
        "place": np.tile(np.arange(len(places)), len(heads)),
        "places": [layout.places[index] for index in places],
        "columns": columns,
    }
    some = ~np.logical_and.reduce([gone for _, gone in columns.values()])
    if some.all():
        return part
    fewer = {key: part[key][some] for key in ("step", "cadence", "place")}
    return {**part, **fewer, "columns": {name: (values[some], gone[some]) for name, (values, gone) in columns.items()}}


def _column(places: NDArray[np.intp], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One metric's values (points, layers from the first that is kept) of those that are, and which are absent."""
    if len(places) < values.shape[1]:
        values = values[:, places - places[0]]
    flat = values.reshape(-1)
    return flat, flat.view(ABSENT.dtype) == ABSENT


_CADENCES = ["cheap", "full", "audit"]
_EMPTY: dict[str, Any] = {
    "step": np.zeros(0, np.int64), "cadence": np.zeros(0, np.int64), "place": np.zeros(0, np.int64), "places": [],
}  # fmt: skip


def _joined(parts: list[dict[str, Any]], metrics: list[str]) -> pa.Table:
    nothing = (np.zeros(0), np.zeros(0, dtype=bool))
    parts = parts or [{**_EMPTY, "columns": dict.fromkeys(metrics, nothing)}]
    places = [place for part in parts for place in part["places"]]
    offsets = np.cumsum([0, *(len(part["places"]) for part in parts)])
    place = np.concatenate([part["place"] + start for part, start in zip(parts, offsets, strict=False)])
    step = np.concatenate([part["step"] for part in parts]).astype(np.int64)
    cadence = np.concatenate([part["cadence"] for part in parts])
    # Parts are in order within; between them, cheap points and audits of one run take turns.
    order = np.lexsort((cadence, step)) if len(parts) > 1 else slice(None)
    blocks = [place.block for place in places]
    columns: dict[str, Any] = {
        "step": step[order],
        "cadence": pa.DictionaryArray.from_arrays(cadence[order].astype(np.int32), pa.array(_CADENCES)),
        "layer": _words(place[order], [item.name for item in places]),
        "role": _words(place[order], [item.role for item in places]),
        "block": pa.array(blocks, pa.int32()).take(pa.array(place[order])),
    }
    for name in metrics:
        values, gone = (_concatenated([part["columns"][name][side] for part in parts])[order] for side in (0, 1))
        columns[name] = pa.array(values, pa.float64(), mask=gone if gone.any() else None)
    return pa.table(columns)


def _concatenated(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)  # one needs no copy


def _words(index: NDArray[np.int64], words: list[str]) -> pa.DictionaryArray:
    """Each word once, though several layouts have it."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    codes = np.array([numbers[word] for word in words], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(
        codes[index] if len(codes) else index.astype(np.int32), pa.array(list(numbers), pa.string())
    )


def scalars(connection: Connection, run: str, steps: Steps | None) -> pa.Table:
    """A line per point: step, cadence, time, and a column per scalar."""
    query = select(POINTS.c.step, POINTS.c.cadence, POINTS.c.time, POINTS.c.scalars).where(
        POINTS.c.run_id == known_run(connection, run), *in_steps(steps)
    )
    rows = connection.execute(query.order_by(POINTS.c.step, POINTS.c.cadence)).all()
    numbers = [numbers_from(json_of(row.scalars)) for row in rows]
    names = dict.fromkeys(name for values in numbers for name in values)
    _check_table(len(rows), len(names), sum(map(len, numbers)))
    return pa.table({
        "step": pa.array([row.step for row in rows], pa.int64()),
        "cadence": pa.array([row.cadence for row in rows], pa.string()),
        "time": pa.array([row.time for row in rows], pa.float64()),
        **{name: pa.array([values.get(name) for values in numbers], pa.float64()) for name in names},
    })  # fmt: skip


#: Cells of a table of scalars that are always made, and more of them for every number that is there.
_CELLS, _CELLS_A_NUMBER = 10_000_000, 64


def _check_table(points: int, names: int, numbers: int) -> None:
    if points * names > _CELLS + _CELLS_A_NUMBER * numbers:
        raise UnreadableError(
            f"its {points} points have {names} scalars of different names, and hardly two have one in common",
            fix="give a scalar one name throughout a run, or read fewer steps",
        )
