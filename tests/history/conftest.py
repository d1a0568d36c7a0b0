"""Stores to test with: an SQLite file, and a schema on a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tailwise.history.store import History


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path) -> str:
    """The address of an empty store, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "history.db")
    return request.getfixturevalue("postgres").new_store()


@pytest.fixture
def store(where) -> Iterator[History]:
    with History(where) as history:
        yield history
