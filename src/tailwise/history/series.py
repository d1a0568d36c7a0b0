"""Numbers of many layers over many steps, as one Arrow table."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailwise.errors import UsageError, unknown_name
from tailwise.history.jsonl import numbers_from
from tailwise.history.read import Steps, in_steps, known_run, layouts_of, metric_names
from tailwise.history.schema import POINTS, VECTORS
from tailwise.history.sql import Connection, select
from tailwise.history.vectors import Layout, floats

Layers = str | Sequence[str] | None


def series(
    connection: Connection, run: str, metrics: Sequence[str], chosen: tuple[Layers, Collection[str] | None],
    steps: Steps | None,
) -> pa.Table:  # fmt: skip
    """A line per step, tempo and layer that has one of the metrics; a column per metric, null where it has none."""
    layers, roles = chosen
    owner, ids = known_run(connection, run), _metric_ids(connection, metrics)
    query = select(POINTS.c.id, POINTS.c.step, POINTS.c.tempo, POINTS.c.layout_id).where(
        POINTS.c.run_id == owner, *in_steps(steps)
    )
    heads = connection.execute(query.order_by(POINTS.c.step, POINTS.c.tempo)).all()
    vectors = _vectors(connection, owner, list(ids.values()), steps)
    layouts = layouts_of(connection, {head.layout_id for head in heads})
    parts = []
    for number, layout in layouts.items():
        kept = _kept(layout, layers, roles)
        mine = [head for head in heads if head.layout_id == number]
        if len(kept) and mine:
            parts.append(_part(layout, kept, mine, {name: vectors.get(key, {}) for name, key in ids.items()}))
    return _joined(parts, list(ids))


def _metric_ids(connection: Connection, metrics: Sequence[str]) -> dict[str, int]:
    if isinstance(metrics, str):
        metrics = (metrics,)
    known = {name: number for number, name in metric_names(connection).items()}
    for name in metrics:
        if name not in known:
            raise unknown_name("metric in this store", name, known)
    return {name: known[name] for name in metrics}


def _vectors(connection: Connection, run: int, ids: list[int], steps: Steps | None) -> dict[int, dict[int, bytes]]:
    """Metric → point → vector."""
    query = (
        select(VECTORS.c.point_id, VECTORS.c.metric_id, VECTORS.c.data)
        .join(POINTS, POINTS.c.id == VECTORS.c.point_id)
        .where(POINTS.c.run_id == run, VECTORS.c.metric_id.in_(ids), *in_steps(steps))
    )
    found: dict[int, dict[int, bytes]] = {number: {} for number in ids}
    for point, metric, data in connection.execute(query).all():
        found[metric][point] = data
    return found


def _kept(layout: Layout, layers: Layers, roles: Collection[str] | None) -> NDArray[np.intp]:
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
    layout: Layout, kept: NDArray[np.intp], heads: Sequence[Any], vectors: Mapping[str, Mapping[int, bytes]]
) -> dict[str, Any]:
    """Columns of the points that share a layout."""
    count = len(layout.places)
    nothing = np.full(count, np.nan).tobytes()
    columns: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
    for name, by_point in vectors.items():
        data = b"".join(by_point.get(head.id, nothing) for head in heads)
        values, gone = floats(data)
        values, gone = (values.reshape(len(heads), count)[:, kept], gone.reshape(len(heads), count)[:, kept])
        there = np.array([head.id in by_point for head in heads])
        columns[name] = values.ravel(), (gone | ~there[:, None]).ravel()
    some = ~np.logical_and.reduce([gone for _, gone in columns.values()])
    places = [layout.places[index] for index in kept]
    return {
        "step": np.repeat([head.step for head in heads], len(kept))[some],
        "tempo": np.repeat([_TEMPOS.index(head.tempo) for head in heads], len(kept))[some],
        "place": np.tile(np.arange(len(kept)), len(heads))[some],
        "places": places,
        "columns": {name: (values[some], gone[some]) for name, (values, gone) in columns.items()},
    }


_TEMPOS = ["cheap", "full", "audit"]
_EMPTY: dict[str, Any] = {
    "step": np.zeros(0, np.int64), "tempo": np.zeros(0, np.int64), "place": np.zeros(0, np.int64), "places": [],
}  # fmt: skip


def _joined(parts: list[dict[str, Any]], metrics: list[str]) -> pa.Table:
    nothing = (np.zeros(0), np.zeros(0, dtype=bool))
    parts = parts or [{**_EMPTY, "columns": dict.fromkeys(metrics, nothing)}]
    places = [place for part in parts for place in part["places"]]
    offsets = np.cumsum([0, *(len(part["places"]) for part in parts)])
    place = np.concatenate([part["place"] + start for part, start in zip(parts, offsets, strict=False)])
    step = np.concatenate([part["step"] for part in parts]).astype(np.int64)
    tempo = np.concatenate([part["tempo"] for part in parts])
    # Parts are in order within; between them, cheap points and audits of one run take turns.
    order = np.lexsort((tempo, step)) if len(parts) > 1 else slice(None)
    blocks = [place.block for place in places]
    columns: dict[str, Any] = {
        "step": step[order],
        "tempo": pa.DictionaryArray.from_arrays(tempo[order].astype(np.int32), pa.array(_TEMPOS)),
        "layer": _words(place[order], [item.name for item in places]),
        "role": _words(place[order], [item.role for item in places]),
        "block": pa.array(blocks, pa.int32()).take(pa.array(place[order])),
    }
    for name in metrics:
        values = np.concatenate([part["columns"][name][0] for part in parts])[order]
        gone = np.concatenate([part["columns"][name][1] for part in parts])[order]
        columns[name] = pa.array(values, pa.float64(), mask=gone)
    return pa.table(columns)


def _words(index: NDArray[np.int64], words: list[str]) -> pa.DictionaryArray:
    """Each word once, though several layouts have it."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    codes = np.array([numbers[word] for word in words], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(
        codes[index] if len(codes) else index.astype(np.int32), pa.array(list(numbers), pa.string())
    )


def scalars(connection: Connection, run: str, steps: Steps | None) -> pa.Table:
    """A line per point: step, tempo, time, and a column per scalar."""
    query = select(POINTS.c.step, POINTS.c.tempo, POINTS.c.time, POINTS.c.scalars).where(
        POINTS.c.run_id == known_run(connection, run), *in_steps(steps)
    )
    rows = connection.execute(query.order_by(POINTS.c.step, POINTS.c.tempo)).all()
    numbers = [numbers_from(json.loads(row.scalars)) for row in rows]
    names = dict.fromkeys(name for values in numbers for name in values)
    return pa.table({
        "step": pa.array([row.step for row in rows], pa.int64()),
        "tempo": pa.array([row.tempo for row in rows], pa.string()),
        "time": pa.array([row.time for row in rows], pa.float64()),
        **{name: pa.array([values.get(name) for values in numbers], pa.float64()) for name in names},
    })  # fmt: skip
