"""The tables of a catalogue, beside those of a history in the same database; the same on SQLite and on PostgreSQL."""

from __future__ import annotations

from tailwise.core.errors import UnreadableError
from tailwise.history.connect import reading, writing
from tailwise.history.kinds import BigInteger, Float, Integer, String, Text
from tailwise.history.migrate import bring_up_to_date as history_up_to_date
from tailwise.history.schema import META
from tailwise.history.sql import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    Table,
    UniqueConstraint,
    select,
)

#: Version of what follows.
SCHEMA = 1
_KEY = "sweep_schema"

METADATA = MetaData()
SWEEPS = Table(
    "tailwise_sweeps",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("output", Text, nullable=False),
    Column("question", Text, nullable=False),  # JSON of the recipe and of which matrices are taken
    Column("created", Float(53), nullable=False),  # seconds since the epoch
)
MODELS = Table(
    "tailwise_sweep_models",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("sweep_id", Integer, ForeignKey("tailwise_sweeps.id", ondelete="CASCADE"), nullable=False),
    Column("place", Integer, nullable=False),  # in the list
    Column("model", Text, nullable=False),
    Column("status", String(8), nullable=False),  # waiting, claimed, done or failed
    Column("attempts", Integer, nullable=False),  # with the owner, it tells a claim from those before it
    Column("owner", Text, nullable=False),
    Column("until", Float(53), nullable=False),  # end of the lease; of a waiting model, when it may be tried again
    Column("finished", Float(53), nullable=True),
    Column("reason", Text, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("facts", Text, nullable=False),  # JSON, see `facts.py`
    # Of the facts, what is summed over models while others work.
    Column("matrices", Integer, nullable=False),
    Column("reused", Integer, nullable=False),
    Column("bytes_read", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("core_seconds", Float(53), nullable=False),
    UniqueConstraint("sweep_id", "model"),
)
Index("tailwise_sweep_next", MODELS.c.sweep_id, MODELS.c.status, MODELS.c.place)


def bring_up_to_date(engine: Engine, where: str) -> None:
    """Make what is not there yet. Raises `UnreadableError` where it is newer than this code knows."""
    history_up_to_date(engine, where)
    with reading(engine, where) as connection:
        version = _version(connection)
    if version is None:
        with writing(engine, where) as connection:
            # Once more, now that no other process can be doing the same.
            version = _version(connection)
            if version is None:
                METADATA.create_all(connection)
                connection.execute(META.insert().values(key=_KEY, value=str(SCHEMA)))
                return
    if version > SCHEMA:
        what = f"has sweeps of a newer tailwise (schema {version}; this one knows up to {SCHEMA})"
        raise UnreadableError(what, where=where, fix="pip install --upgrade tailwise")


def _version(connection: Connection) -> int | None:
    version = connection.execute(select(META.c.value).where(META.c.key == _KEY)).scalar()
    return None if version is None else int(version)
