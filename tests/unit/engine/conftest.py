"""Every test of the queue runs over SQLite, and over PostgreSQL where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

# Debian keeps its servers off the PATH of ordinary users.
_PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/sbin")]
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *(str(place) for place in _PLACES if place.is_dir())])

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
