"""`QueuedHistory`: the writer of a training loop. It never raises, and loses nothing while the database is away."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tailwise.core.errors import UnreachableError
from tailwise.history.connect import is_url
from tailwise.history.jsonl import Item
from tailwise.history.point import Point
from tailwise.history.spool import REJECTED, Line, Spool, folder_for
from tailwise.history.store import History

_log = logging.getLogger(__name__)
_BATCH = 100  # lines taken over in one transaction


class QueuedHistory:
    """A history that a training loop can write to whatever happens to the database.

    What cannot be written waits in a file in order, and is taken over once the database is back: each line once, also
    where a process dies in between. Files that dead processes left behind are taken over too. Trouble is logged once,
    until it is over.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        spool: str | os.PathLike[str] | None = None,
        *,
        patience: float = 2.0,
        retry: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the store, or begin to wait for it.

        Parameters
        ----------
        spool
            Folder of what waits: beside an SQLite file, or in tailwise's cache folder for a server, if not given.
        patience
            Seconds that a write may be kept waiting.
        retry
            Seconds between attempts to reach a database that is away.

        Raises `UsageError` and `UnreadableError` as `History` does, and `UnreachableError` where points could not even
        wait. A database that is away raises nothing.
        """
        address = os.fspath(where)
        address = address if is_url(address) else str(Path(address).expanduser())
        self._where, self._patience, self._retry, self._clock = address, patience, retry, clock
        self._folder = Path(spool) if spool is not None else folder_for(address, is_url(address))
        self._lock = threading.RLock()
        self._history: History | None = None
        self._troubled = False
        self._said: set[str] = set()
        self._next_try = clock()
        self.lost = 0  # items that could neither be written nor wait
        self._own: Spool | None = Spool.fresh(self._folder)
        self._left = Spool.left_behind(self._folder)
        try:
            self._connect()
            self._take_over_all()
        except UnreachableError as error:
            self._trouble(error)
        except BaseException:
            self._let_go()
            raise

    @property
    def waiting(self) -> int:
        """Lines that are not in the database yet."""
        return sum(spool.lines for spool in self._spools())

    def _spools(self) -> list[Spool]:
        return [*self._left, *([self._own] if self._own else [])]

    def write(self, item: Item) -> None:
        """Keep a point or an alarm: in the database, or in the spool until it is back. Never raises."""
        try:
            with self._lock:
                self._write(item)
        except Exception as error:  # a training loop must go on
            self.lost += 1
            self._say("lost", "a point could not be kept, and training goes on without it: %s", error)

    def _write(self, item: Item) -> None:
        if self.waiting == 0 and self._try(lambda history: _add(history, item)):
            return
        if self._own is None:
            self._own = Spool.fresh(self._folder)
        self._own.append(item)
        if self._clock() >= self._next_try:
            self._try(lambda _: self._take_over_all())

    def flush(self) -> bool:
        """Try now to bring everything to the database; whether nothing waits any more. Never raises."""
        try:
            with self._lock:
                return self.waiting == 0 or self._try(lambda _: self._take_over_all())
        except Exception as error:
            self._say("flush", "what waits could not be written: %s", error)
            return False

    def _try(self, work: Callable[[History], None]) -> bool:
        if self._troubled and self._clock() < self._next_try and self.waiting == 0:
            return False
        try:
            work(self._connect())
        except UnreachableError as error:
            self._trouble(error)
            return False
        if self._troubled:
            self._troubled = False
            self._said.clear()
            _log.warning("the history at %s is being written again", self._connect().where)
        return True

    def _connect(self) -> History:
        if self._history is None:
            self._history = History(self._where, patience=self._patience)
        return self._history

    def _trouble(self, error: UnreachableError) -> None:
        self._troubled = True
        self._next_try = self._clock() + self._retry
        self._say("away", f"points wait in {self._folder}, and are written when the history is back: %s", error)

    def _say(self, kind: str, message: str, error: Exception) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _log.warning(message, str(error).replace("\n", " "))

    def _take_over_all(self) -> None:
        history = self._connect()
        while self._left:
            self._take_over(history, self._left[0])
            self._left.pop(0)
        if self._own is not None and self._own.lines:
            self._take_over(history, self._own)
            self._own = None

    def _take_over(self, history: History, spool: Spool) -> None:
        done = history.taken_over(spool.key)
        while batch := list(spool.after(done, _BATCH)):
            _take_batch(history, spool, batch)
            done = batch[-1][0]
        spool.remove()
        history.forget_spool(spool.key)

    def close(self) -> None:
        """Try once more to write what waits, and let go. What still waits is found by the next writer."""
        with self._lock:
            if self.waiting and self._history is not None:
                self.flush()
            self._let_go()

    def _let_go(self) -> None:
        for spool in self._spools():
            spool.close()
        self._left, self._own = [], None
        if self._history is not None:
            self._history.close()
            self._history = None

    def __enter__(self) -> QueuedHistory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _add(history: History, item: Item) -> None:
    if isinstance(item, Point):
        history.add_point(item)
    else:
        history.add_alarm(item)


def _take_batch(history: History, spool: Spool, batch: list[Line]) -> None:
    items = [item for _, _, item in batch if item is not None]
    try:
        if len(items) == len(batch):
            history.take_over(spool.key, batch[-1][0], items)
            return
    except UnreachableError:
        raise
    except Exception as error:
        _log.debug("one of these lines is not taken: %s", error)
    for number, text, item in batch:
        _take_one(history, spool, (number, text, item))


def _take_one(history: History, spool: Spool, line: Line) -> None:
    number, text, item = line
    try:
        if item is not None:
            history.take_over(spool.key, number, [item])
            return
        why: object = "it is damaged"
    except UnreachableError:
        raise
    except Exception as error:
        why = error
    _log.warning("a line of %s is put aside in %s: %s", spool.path.name, REJECTED, why)
    spool.reject(text)
    history.take_over(spool.key, number, [])
