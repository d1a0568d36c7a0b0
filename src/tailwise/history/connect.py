"""From a path or URL to connections that read together and write one at a time."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tailwise.core.errors import MALFORMED, TailwiseError, UnreachableError, UnreadableError, UsageError
from tailwise.core.optional import how_to_get
from tailwise.history.bounded import BoundedWork, check_pages
from tailwise.history.schema import META
from tailwise.history.sql import (
    URL,
    ArgumentError,
    Connection,
    DBAPIError,
    Engine,
    InterfaceError,
    InvalidRequestError,
    NoSuchModuleError,
    OperationalError,
    create_engine,
    event,
    make_url,
    text,
)

#: Of the advisory lock that PostgreSQL's writers take, one at a time as SQLite's do.
_WRITERS = 0x7A11_715E
_PAGE_BYTES = 8192
_CACHE_KIB = 65536
_LONGEST = 1 << 28  # bytes of a text or a vector in SQLite
#: In a connection's own notes: its `BoundedWork`.
_WORK = "work"


def is_url(where: str) -> bool:
    """Whether `where` is a URL rather than a path."""
    return "://" in where


def plain(where: str | os.PathLike[str]) -> str:
    """The path that an address of SQLite means, such as `sqlite:///runs.db`; anything else as it is.

    Raises `UsageError` for one without a file.
    """
    text_ = os.fspath(where)
    scheme, colon, rest = text_.partition("://")
    if not colon or scheme.lower().partition("+")[0] not in ("sqlite", "sqlite3"):
        return text_
    host, slash, path = rest.partition("/")
    path = path.partition("?")[0] if not host else ""
    if not slash or path in ("", ":memory:"):
        raise UsageError("names no file", where=text_, fix="give a path, such as history.db or sqlite:///history.db")
    return path


def shown(where: str | os.PathLike[str]) -> str:
    """`where` without a password."""
    text_ = os.fspath(where)
    if not is_url(text_):
        return text_
    try:
        return make_url(text_).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return text_.partition("://")[0] + "://…"


def connect(where: str | os.PathLike[str], *, create: bool, patience: float) -> Engine:
    """An engine for the store at `where`. Raises `UsageError` for an address that can be none."""
    address = plain(where)
    if is_url(address):
        return _postgres(address, patience)
    return _sqlite(Path(address).expanduser(), create, patience)


def _postgres(address: str, patience: float) -> Engine:
    fix = "give the path of a file, or postgresql://user@host/database"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:  # ValueError: of a port that is no number
        raise UsageError("is no address of a database", where=shown(address), fix=fix) from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UsageError(f"{url.get_backend_name()} is not a database for histories", where=shown(address), fix=fix)
    url = url.set(drivername="postgresql+psycopg")
    arguments: dict[str, Any] = {
        "connect_timeout": max(1, round(patience)),
        "tcp_user_timeout": round(1000 * patience),  # of a server that no longer answers
    }
    arguments = {key: value for key, value in arguments.items() if key not in url.query}
    arguments["options"] = f"{url.query.get('options', '')} -c lock_timeout={round(1000 * patience)}".strip()
    try:
        arguments["cursor_factory"] = _binary_cursor()
        return create_engine(url, connect_args=arguments, pool_pre_ping=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise UsageError("PostgreSQL takes psycopg, which is not installed", fix=how_to_get("history")) from (error)


def _binary_cursor() -> type[Any]:
    """A cursor that gets vectors as they are; as text they are twice as long, and have to be read digit by digit."""
    import psycopg

    class BinaryCursor(psycopg.Cursor[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.format = psycopg.pq.Format.BINARY

    return BinaryCursor


def _sqlite(path: Path, create: bool, patience: float) -> Engine:
    if path.is_dir():
        raise UsageError("is a folder", where=path, fix=f"give a file in it, such as {path / 'history.db'}")
    if path.suffix == ".jsonl":
        fix = f"bring it into a store: tailwise store import {path} --store history.db"
        raise UsageError("holds lines, and a store was expected", where=path, fix=fix)
    if not path.exists():
        if not create:
            raise UnreadableError("no such store", where=path, fix="`tailwise watch` or a monitor's store makes one")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnreachableError(f"could not be made: {error.strerror or error}", where=path) from error
    url = URL.create("sqlite", database=str(path)) if create or _may_write(path) else _read_only(path)
    engine = create_engine(url, connect_args={"timeout": patience})
    event.listen(engine, "connect", _Prepare(path, patience))
    event.listen(engine, "begin", _begin)
    event.listen(engine, "before_cursor_execute", _count_anew)
    return engine


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _read_only(path: Path) -> URL:
    """For those who may only read. Where nobody has the file open, SQLite is told that it does not change."""
    query = {"uri": "true", "mode": "ro"}
    if not path.with_name(f"{path.name}-wal").exists():
        query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query=query)


class _Prepare:
    """What every new connection to SQLite is set to."""

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience, self._checked = path, patience, False

    def __call__(self, raw: Any, record: Any) -> None:
        record.info[_WORK] = BoundedWork(raw, self._path)
        raw.isolation_level = None  # transactions begin where `_begin` says so, and not before
        raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        cursor = raw.cursor()
        # What a schema of somebody else names is no function that could do more than compute.
        cursor.execute("PRAGMA trusted_schema=OFF")
        if not self._checked:
            check_pages(cursor, self._path)
            self._checked = True
        cursor.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        cursor.execute("PRAGMA foreign_keys=ON")
        # With WAL this loses nothing when a process dies; when the machine does, the last moments at most.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._write_ahead(cursor)
        cursor.close()

    def _write_ahead(self, cursor: sqlite3.Cursor) -> None:
        """Switch to WAL; SQLite itself does not wait for others while it does so."""
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        if not _is_ours(cursor):
            return
        until = time.monotonic() + self._patience
        while True:
            try:
                cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
                cursor.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "readonly" in str(error):
                    return
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return


def _is_ours(cursor: sqlite3.Cursor) -> bool:
    """Whether the file is new or a history: what another program made stays as it is, to the byte."""
    names = {name for (name,) in cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return not names or META.name in names


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _count_anew(connection: Connection, *_: Any) -> None:
    connection.connection.info[_WORK].begin()


@contextmanager
def reading(engine: Engine, where: str) -> Iterator[Connection]:
    """A transaction that sees one state of the store."""
    # On PostgreSQL each statement sees a state of its own unless told otherwise: points that were written anew between
    # two of them would come without their values.
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with store_errors(where), engine.connect().execution_options(**options) as connection:
        try:
            yield connection
        except MALFORMED as error:
            raise UnreadableError(
                f"holds what tailwise has not written ({type(error).__name__}: {str(error)[:200]})",
                where=where,
                fix="restore it from a copy, or begin another",
            ) from error


@contextmanager
def writing(engine: Engine, where: str) -> Iterator[Connection]:
    """A transaction that is the only one that writes; all of it is kept, or nothing."""
    with store_errors(where), engine.connect().execution_options(writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITERS})
        yield connection


@contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turn what the drivers raise into errors that say what to do."""
    try:
        yield
    except TailwiseError:
        raise
    except DBAPIError as error:
        raise _explained(error, where) from error
    except InvalidRequestError as error:  # such as a type of a column that is not the one that was made
        fix = "restore the tables from a copy, or begin another store"
        raise UnreadableError(f"its tables are not those of a store ({error})", where=where, fix=fix) from error
    except OSError as error:
        raise UnreachableError(f"could not be reached: {error.strerror or error}", where=where) from error


def _explained(error: DBAPIError, where: str) -> TailwiseError:
    lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    message = lines[0].strip()
    for part, what, fix in (
        ("full", "the disk is full", "free space there"),
        ("readonly", "may not be written", "check the permissions of the file and of its folder"),
        ("read-only", "may not be written", "write to the primary server, with a user who may"),
        ("unable to open", "could not be opened", "check the path, and the permissions of the folder"),
        ("locked", "another process kept it locked for too long", "see what else writes there, and try again"),
    ):
        if part in message:
            return UnreachableError(what, where=where, fix=fix)
    if "interrupted" in message:
        return UnreadableError(
            "takes more work to read than a file of its size can need: its pages are damaged, or made to harm",
            where=where,
            fix="restore it from a copy, or begin another",
        )
    if "not a database" in message or "malformed" in message or "decode" in message:
        return UnreadableError(f"is no store, or it is damaged ({message})", where=where, fix="check the path")
    if "permission denied" in message.lower():
        return UnreadableError(message, where=where, fix="ask for rights on the tables named tailwise_*")
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return UnreachableError(
            f"could not be reached ({message})", where=where, fix="check the address, and that it runs"
        )
    return UnreadableError(f"did not take it: {message}", where=where)
