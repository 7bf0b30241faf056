"""Every test of the queue runs over SQLite, and over PostgreSQL where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres", "initdb"))]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(params=BACKENDS)
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Path | str]:
    """Makes places for a queue."""
    if request.param == "sqlite":
        return lambda: tmp_path / "engine.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_url


@pytest.fixture
def place(new_place: Callable[[], Path | str]) -> Path | str:
    """Where a queue may be made."""
    return new_place()
