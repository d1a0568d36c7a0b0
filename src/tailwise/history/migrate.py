"""Tables of a store: made where there are none, brought up from an older version, and refused where they compute."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.history.connect import reading, writing
from tailwise.history.schema import META, METADATA, SCHEMA, SPOOLS
from tailwise.history.sql import (
    Connection,
    Engine,
    inspect,
    select,
    text,
    update,
)

_TABLE = re.compile(r"\s*CREATE\s+TABLE\s", re.IGNORECASE)  # as SQLite keeps every plain one


def bring_up_to_date(engine: Engine, where: str) -> None:
    """Make the tables where there are none, and change those of an older version, all or nothing.

    Raises `UnreadableError` where the store is newer than this code knows, or belongs to another program.
    """
    with reading(engine, where) as connection:
        version = _version(connection, where)
    if version == SCHEMA:
        return
    with writing(engine, where) as connection:
        # Once more, now that no other process can be doing the same.
        version = _version(connection, where)
        if version == 0:
            METADATA.create_all(connection)
            connection.execute(META.insert().values(key="schema", value=str(SCHEMA)))
        for step in range(version, SCHEMA) if version else ():
            _STEPS[step](connection)
            connection.execute(update(META).where(META.c.key == "schema").values(value=str(step + 1)))


def _version(connection: Connection, where: str) -> int:
    """Version of the schema in the store; 0 where there is none."""
    tables = inspect(connection).get_table_names()
    if META.name not in tables:
        if tables and connection.dialect.name == "sqlite":
            raise UsageError("is the database of another program", where=where, fix="choose another file")
        return 0
    (_check_plain if connection.dialect.name == "sqlite" else _check_plain_of_server)(connection, where)
    version = connection.execute(select(META.c.value).where(META.c.key == "schema")).scalar()
    if version is None or not version.isdigit():
        raise UnreadableError("does not say which version it has", where=where, fix="restore it from a copy")
    if int(version) > SCHEMA:
        raise UnreadableError(
            f"was written by a newer tailwise: it has schema {version}, and this one knows up to {SCHEMA}",
            where=where,
            fix="pip install --upgrade tailwise",
        )
    return int(version)


def _check_plain(connection: Connection, where: str) -> None:
    """Only tables hold values: a view, a virtual table or a column that is computed could compute without end."""
    # To SQLite large letters and small are one, in names and in the kinds that its schema says.
    listed = text("SELECT lower(type) AS type, name, tbl_name, sql FROM sqlite_master")
    made = [row for row in connection.execute(listed)
            if str(row.tbl_name).lower().startswith("tailwise_")]  # fmt: skip
    tables = [row for row in made if row.type == "table" and _TABLE.match(str(row.sql))]
    other = [row.name for row in made if row.type != "index" and row not in tables]
    computed = text("SELECT name FROM pragma_table_xinfo(:name) WHERE hidden > 0")
    for row in tables:
        if not other:
            other += connection.execute(computed, {"name": row.name}).scalars()
    _refuse(other, where)


#: Of the tables that are ours by name: what is none, has rules, policies or heirs, and what computes beside its rows.
_ODD = """
WITH ours AS (
    SELECT * FROM pg_catalog.pg_class WHERE pg_catalog.left(relname::text, 9) OPERATOR(pg_catalog.=) 'tailwise_'
    AND pg_catalog.pg_table_is_visible(oid)
)
SELECT relname::text FROM ours WHERE relkind IN ('v', 'm', 'f', 'p')
    OR (relkind = 'r' AND (relhasrules OR relrowsecurity OR relhassubclass))
UNION ALL SELECT tgname::text FROM pg_catalog.pg_trigger JOIN ours ON tgrelid = ours.oid WHERE NOT tgisinternal
UNION ALL SELECT attname::text FROM pg_catalog.pg_attribute JOIN ours ON attrelid = ours.oid WHERE attgenerated <> ''
"""


def _check_plain_of_server(connection: Connection, where: str) -> None:
    """The same in PostgreSQL, where others than the reader may have made the tables."""
    _refuse(list(connection.execute(text(_ODD)).scalars()), where)


def _refuse(other: Sequence[object], where: str) -> None:
    if other:
        raise UnreadableError(
            f"{str(other[0])[:100]!r} in it is no table or column of values, and tailwise has not made it",
            where=where,
            fix="drop it (a view, rule, trigger, policy or computed column), or copy the tables into another store",
        )


def _counts_of_alarms(connection: Connection) -> None:
    """1 → 2: how often an alarm was noticed, and how far a spool was taken over."""
    connection.execute(text("ALTER TABLE tailwise_alarms ADD COLUMN times INTEGER NOT NULL DEFAULT 1"))
    connection.execute(text("ALTER TABLE tailwise_alarms ADD COLUMN last_step BIGINT NOT NULL DEFAULT 0"))
    connection.execute(text("UPDATE tailwise_alarms SET last_step = step"))
    SPOOLS.create(connection)


#: Version → what brings it to the next. Written against that version's tables, never against those of today.
_STEPS: Mapping[int, Callable[[Connection], None]] = {1: _counts_of_alarms}
