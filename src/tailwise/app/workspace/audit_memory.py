"""What was read and worked out, kept in memory within bounds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Value = TypeVar("Value")

_MOST = 256  # things
_BYTES = 1 << 30  # charts as they are, and what is made of a file as the file: in memory it is about as large
_SMALL = 1 << 14  # what anything else is taken to weigh


class AuditMemory:
    """Values by key, the ones that were not asked for longest dropped first. May be used by several threads."""

    def __init__(self, *, most: int = _MOST, nbytes: int = _BYTES) -> None:
        self._most, self._bytes = most, nbytes
        self._values: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._weight = 0
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value], nbytes: int = _SMALL) -> Value:
        """The value of a key, made at most once at a time: six charts of a page read their audit once."""
        with self._lock:
            if key in self._values:
                return self._found(key)
            making = self._making.setdefault(key, threading.Lock())
        with making:  # not the other lock: a large audit must not stop who reads another
            with self._lock:
                if key in self._values:
                    return self._found(key)
            try:
                value = make()
                self._put(key, value, len(value) if isinstance(value, bytes) else nbytes)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _found(self, key: Hashable) -> Value:  # type: ignore[type-var]
        self._values.move_to_end(key)
        return self._values[key][0]  # type: ignore[return-value]

    def _put(self, key: Hashable, value: object, nbytes: int) -> None:
        with self._lock:
            self._weight += nbytes - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, nbytes)
            # The newest stays even where it is larger than all that may be kept: it is in use.
            while len(self._values) > 1 and (len(self._values) > self._most or self._weight > self._bytes):
                _, (_, dropped) = self._values.popitem(last=False)
                self._weight -= dropped
