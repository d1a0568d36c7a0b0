"""The tables of a history, the same on SQLite and on PostgreSQL.

What is measured of a layer is not a row of its own. All layers' values of one metric at one step are one vector, so
that a metric of a thousand steps is a thousand rows to read, whatever the number of layers.
"""

from __future__ import annotations

from typing import Any

from tailwise.history.kinds import BigInteger, Float, Integer, LargeBinary, String, Text
from tailwise.history.sql import (
    DDL,
    Column,
    ForeignKey,
    Index,
    MetaData,
    Table,
    UniqueConstraint,
    event,
)

#: Version of what follows. A change of it takes a step in `migrate.py`.
SCHEMA = 2

METADATA = MetaData()


def _parent(table: str, *, key: bool = False) -> Column[int]:
    target = ForeignKey(f"tailwise_{table}.id", ondelete="CASCADE")
    return Column(f"{table.removesuffix('s')}_id", Integer, target, nullable=False, primary_key=key)


META = Table(
    "tailwise_meta",
    METADATA,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)
RUNS = Table(
    "tailwise_runs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created", Float(53), nullable=False),  # seconds since the epoch
)
METRICS = Table(
    "tailwise_metrics",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
)
#: The layers that a point knows, in the order of its vectors. Points of a run nearly always share one list.
LAYOUTS = Table(
    "tailwise_layouts",
    METADATA,
    Column("id", Integer, primary_key=True),
    _parent("runs"),
    Column("digest", String(64), nullable=False),
    Column("layers", Text, nullable=False),  # JSON: [[name, role, block or null], …]
    UniqueConstraint("run_id", "digest"),
)
POINTS = Table(
    "tailwise_points",
    METADATA,
    Column("id", Integer, primary_key=True),
    _parent("runs"),
    Column("step", BigInteger, nullable=False),
    Column("tempo", String(8), key="cadence", nullable=False),  # cheap, full, or audit
    Column("time", Float(53), nullable=False),
    Column("layout_id", Integer, ForeignKey("tailwise_layouts.id"), nullable=False),
    Column("scalars", Text, nullable=False),  # JSON
    Column("notes", Text, nullable=False),  # JSON
    UniqueConstraint("run_id", "step", "cadence"),
)
#: float64, little-endian, one value for each layer of the point's layout; see `vectors.py` for what is absent.
VECTORS = Table(
    "tailwise_vectors",
    METADATA,
    _parent("points", key=True),
    Column("metric_id", Integer, ForeignKey("tailwise_metrics.id"), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
AUDITS = Table(
    "tailwise_audits",
    METADATA,
    _parent("points", key=True),
    Column("path", Text, nullable=True),  # of the .audit file, which has the spectra
    Column("provenance", Text, nullable=False),  # JSON
    Column("facts", LargeBinary, nullable=False),  # Parquet: the audit's table without its metrics
)
ALARMS = Table(
    "tailwise_alarms",
    METADATA,
    Column("id", Integer, primary_key=True),
    _parent("runs"),
    Column("key", String(64), nullable=False),  # digest of the rule and the layers
    Column("step", BigInteger, nullable=False),  # at which it was noticed first
    Column("severity", String(8), nullable=False),
    Column("body", Text, nullable=False),  # JSON of the alarm
    Column("times", Integer, nullable=False),  # how often it was noticed
    Column("last_step", BigInteger, nullable=False),
    UniqueConstraint("run_id", "key"),
)
#: How far a spool (see `spool.py`) has been taken over: what makes that happen once.
SPOOLS = Table(
    "tailwise_spools",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("lines", Integer, nullable=False),
)
Index("tailwise_layouts_run", LAYOUTS.c.run_id)

# Vectors of 300 layers are 2.4 kB. PostgreSQL would move them to a side table, and compress what does not compress.
for _statement in ("ALTER COLUMN data SET STORAGE EXTERNAL", "SET (toast_tuple_target = 8160)"):
    _inline: Any = DDL(f"ALTER TABLE tailwise_vectors {_statement}")  # type: ignore[no-untyped-call]
    event.listen(VECTORS, "after_create", _inline.execute_if(dialect="postgresql"))
