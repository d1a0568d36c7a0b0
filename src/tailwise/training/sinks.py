"""Where points go: anything with `write(point)`, a file of JSON lines, or a history."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tailwise.errors import UsageError
from tailwise.history.point import Alarm, Point


@runtime_checkable
class Sink(Protocol):
    """Takes points."""

    def write(self, point: Point) -> object:
        """Take one point. Called from the monitor's own thread; what it raises is logged once."""
        ...


class JsonLines:
    """A file with one point or alarm a line, in JSON. Several processes may append to one file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, item: Point | Alarm) -> None:
        """Append one line, in one write, so that lines of several processes do not mix."""
        kind = "point" if isinstance(item, Point) else "alarm"
        line = json.dumps({"kind": kind, **item.to_json()}, allow_nan=False, ensure_ascii=False) + "\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def opened(history: str | Path) -> Any:
    """What writes points and alarms to a `.jsonl` file, or to the database that a path or URL names."""
    # By name and late: only runs that keep a database need what opens one.
    try:
        writers = import_module("tailwise.history.queued")
    except ModuleNotFoundError as error:
        if str(history).endswith(".jsonl"):
            return JsonLines(history)
        raise UsageError(f"{history} cannot be opened: {error}", fix="give a path that ends in .jsonl") from error
    return writers.open_writer(history)
