"""Where points go: anything with `write(point)`, a file of JSON lines, or a history."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tailwise.errors import UsageError
from tailwise.history.point import Point


@runtime_checkable
class Sink(Protocol):
    """Takes points. It may have a `close()` too, which is called only where the monitor opened it."""

    def write(self, point: Point) -> object:
        """Take one point. Called from the monitor's own thread; what it raises is logged once."""
        ...


class JsonLines:
    """A file with one point a line, in JSON. Several processes may append to one file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, point: Point) -> None:
        """Append one line, in one write, so that lines of several processes do not mix."""
        line = json.dumps(point.to_json(), allow_nan=False, ensure_ascii=False) + "\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def opened(history: Any) -> Sink:
    """`history` if it is a sink, a `.jsonl` file, or the history that a path or URL names."""
    if not isinstance(history, str | Path):
        if not isinstance(history, Sink):
            raise UsageError(f"{type(history).__name__} takes no points", fix="give a path, a URL or a write(point)")
        return history
    if str(history).endswith((".jsonl", ".ndjson")):
        return JsonLines(history)
    return _history(str(history))


def _history(uri: str) -> Sink:
    # By name and late: only runs that keep a database need one.
    try:
        sink: Sink = import_module("tailwise.history.store").open_history(uri)
    except ModuleNotFoundError as error:
        raise UsageError(f"{uri} cannot be opened: {error}", fix="give a path that ends in .jsonl") from error
    return sink
