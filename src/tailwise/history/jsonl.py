"""Points and alarms as lines of JSON: a history without a database, and what waits for one."""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, get_args

from tailwise.core.errors import MALFORMED, UnreachableError, UnreadableError, UsageError
from tailwise.core.storage import json_of, open_regular
from tailwise.history.point import Alarm, Cadence, Point, Resumed, Severity

_log = logging.getLogger(__name__)

Item = Point | Alarm | Resumed
LAST_STEP = (1 << 63) - 1  # that a database holds


def to_line(item: Item) -> str:
    """One line, without its end. Infinities are the words "inf" and "-inf", which JSON has no numbers for."""
    if isinstance(item, Resumed):
        return _line({"kind": "resumed", **item.to_json()})
    return point_line(item) if isinstance(item, Point) else alarm_line(item)


def point_line(point: Point) -> str:
    """A point as one line."""
    body = point.to_json()
    body["layers"] = {name: numbers_to(values) for name, values in point.layers.items()}
    body["scalars"] = numbers_to(point.scalars)
    return _line({"kind": "point", **body})


def alarm_line(alarm: Alarm) -> str:
    """An alarm as one line."""
    return _line({"kind": "alarm", **alarm.to_json(), "evidence": numbers_to(alarm.evidence)})


def _line(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


def from_line(line: str) -> Item:
    """What `to_line` gave. Raises `ValueError`."""
    try:
        body = json_of(line)
        kind = body.pop("kind", "point")
        if kind == "resumed":
            return _resumed(body)
        return _alarm(body) if kind == "alarm" else _point(body)
    except MALFORMED as error:
        raise ValueError(f"neither a point nor an alarm ({type(error).__name__}: {error})") from error


def _point(body: dict[str, Any]) -> Point:
    layers = {name: numbers_from(values) for name, values in body["layers"].items()}
    cadence = body["cadence"] if "cadence" in body else body["tempo"]  # as version 0.1 called it
    if cadence not in get_args(Cadence) or abs(int(body["step"])) > LAST_STEP:
        raise TypeError("its cadence or its step is none")
    return Point(
        str(body["run"]), int(body["step"]), cadence, float(body["time"]), layers,
        numbers_from(body.get("scalars", {})), _texts(body.get("notes", ())),
    )  # fmt: skip


def _alarm(body: dict[str, Any]) -> Alarm:
    lists = {key: _texts(body.get(key, ())) for key in ("layers", "remedies")}
    alarm = Alarm(**{**body, **lists, "evidence": numbers_from(body.get("evidence", {}))})
    if not all(isinstance(text, str) for text in (alarm.run, alarm.rule, alarm.title)):
        raise TypeError("its run, rule or title is no text")
    steps = (alarm.step, 0 if alarm.since is None else alarm.since)
    if not all(isinstance(step, int) and abs(step) <= LAST_STEP for step in steps):
        raise TypeError("its step is no number")
    if alarm.severity not in get_args(Severity):
        raise TypeError(f"its severity is {str(alarm.severity)[:100]!r}")
    return replace(alarm, time=float(alarm.time))


def _resumed(body: dict[str, Any]) -> Resumed:
    if not isinstance(body["run"], str) or abs(int(body["step"])) > LAST_STEP:
        raise TypeError("its run is no text, or its step none")
    return Resumed(body["run"], int(body["step"]), float(body["time"]))


def _texts(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts holds others")
    return tuple(values)


def numbers_to(values: Mapping[str, float]) -> dict[str, float | str | None]:
    """Numbers as JSON can hold them: null for NaN, a word for an infinity."""
    return {name: float(value) if math.isfinite(value) else _WORDS.get(value) for name, value in values.items()}


def numbers_from(values: Mapping[str, float | str | None]) -> dict[str, float]:
    """What `numbers_to` was given."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


_WORDS = {math.inf: "inf", -math.inf: "-inf"}


class JsonlHistory:
    """A file of points and alarms, one a line. Several threads may write; processes take files of their own."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, which is made where there is none. Raises `UnreachableError` where that cannot be."""
        self.path = Path(path).expanduser()
        self.lost = 0  # items that `write` could not keep
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            _mend_last_line(self.path)
        except IsADirectoryError as error:
            raise UsageError("is a folder", where=self.path, fix="give a file in it, such as history.jsonl") from error
        except OSError as error:
            raise UnreachableError(f"could not be written: {error.strerror or error}", where=self.path) from error

    def append(self, item: Item) -> None:
        """Append a line. Raises `UnreachableError` for a full disk and its like; the file is then as before."""
        data = (to_line(item) + "\n").encode()
        try:
            with self._lock:
                if isinstance(item, Resumed) and os.fstat(self._file.fileno()).st_size == 0:
                    return  # there is nothing that could be left
                _append(self._file, data)
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", None) or str(error)
            raise UnreachableError(f"could not be written: {what}", where=self.path) from error

    def write(self, item: Item) -> None:
        """Append a line, for a training loop: never raises. What could not be kept is counted, and logged once."""
        try:
            self.append(item)
        except Exception as error:  # a training loop must go on
            self.lost += 1
            if self.lost == 1:
                _log.warning("a point could not be kept, and training goes on without it: %s", error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonlHistory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _append(file: FileIO, data: bytes) -> None:
    start = os.fstat(file.fileno()).st_size
    done = 0
    try:
        while done < len(data):  # a disk that fills up takes a part
            done += file.write(data[done:]) or 0
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), start)
        raise


def _mend_last_line(path: Path) -> None:
    """End a line that a killed process left without its end; take it away where it is not whole."""
    with path.open("r+b") as file:
        data = file.read()
        whole, _, last = data.rpartition(b"\n")
        if not last:
            return
        try:
            from_line(last.decode())
        except ValueError:
            file.truncate(len(whole) + 1 if whole else 0)
        else:
            file.write(b"\n")


def one_line(items: Iterable[Item]) -> list[Point | Alarm]:
    """Points and alarms without those of branches that ended: each run as it stands, one point a step and cadence."""
    runs: dict[str, _Branch] = {}
    for place, item in enumerate(items):
        branch = runs.setdefault(item.run, _Branch())
        if isinstance(item, Resumed):
            branch.end_after(item.step)
        else:
            branch.add(place, item)
    standing = sorted(kept for branch in runs.values() for kept in branch.parts.items())
    return [_united(parts) for _, parts in standing]


class _Branch:
    """What stands of one run, in time that goes with what was read however often it went back."""

    def __init__(self) -> None:
        self.parts: dict[int, list[Point | Alarm]] = {}  # place of the first → all of one step and cadence
        self._places: dict[tuple[int, str], int] = {}
        self._latest: list[tuple[int, int]] = []  # a heap of (−step, place)

    def add(self, place: int, item: Point | Alarm) -> None:
        if isinstance(item, Point):
            there = self._places.setdefault((item.step, item.cadence), place)
            if there != place:
                self.parts[there].append(item)
                return
        self.parts[place] = [item]
        heapq.heappush(self._latest, (-item.step, place))

    def end_after(self, step: int) -> None:
        while self._latest and -self._latest[0][0] > step:
            (first, *_) = self.parts.pop(heapq.heappop(self._latest)[1])
            if isinstance(first, Point):
                del self._places[first.step, first.cadence]


def _united(parts: Sequence[Point | Alarm]) -> Point | Alarm:
    points = [part for part in parts if isinstance(part, Point)]
    return united(*points) if len(points) > 1 else parts[0]


def united(*points: Point) -> Point:
    """Points of one step as one: layers and scalars of all, the latest of what several have; notes of all."""
    layers: dict[str, dict[str, float]] = {}
    scalars: dict[str, float] = {}
    notes: dict[str, None] = {}
    for point in points:
        for name, values in point.layers.items():
            layers.setdefault(name, {}).update(values)
        scalars.update(point.scalars)
        notes |= dict.fromkeys(point.notes)
    return replace(points[-1], layers=layers, scalars=scalars, notes=tuple(notes))


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[Item]:
    """The points and alarms of a file, in order, and where a run went back. A last line that is torn is left out.

    Raises `UnreadableError` where there is no file, or a line before the last complete one is damaged.
    """
    source = Path(path)
    try:
        with open_regular(source) as file:
            torn = None
            for number, line in enumerate(file, 1):
                if torn is not None and not line.strip():
                    continue
                if torn is not None:
                    raise torn
                if not line.strip():
                    continue
                try:
                    yield from_line(line.decode())
                except ValueError as error:
                    torn = UnreadableError(f"line {number} is damaged: {error}", where=source)
    except OSError as error:
        raise UnreadableError(f"could not be read: {error.strerror or error}", where=source) from error
