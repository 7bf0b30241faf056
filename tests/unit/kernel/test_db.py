"""Opening SQLite: migrations all or nothing, and every failure with a way forward."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from avyay.db import Database, Migration, Schema, integrity_problems, open_async_database, open_database
from avyay.errors import AvyayError, ConfigError, CorruptError, DependencyError, InternalError, UnreachableError

NOTES_1 = Schema("notes", (Migration("0001_notes", "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"),))
NOTES_2 = Schema("notes", (*NOTES_1.migrations, Migration("0002_tag", "ALTER TABLE notes ADD COLUMN tag TEXT")))
TAGS = Schema("tags", (Migration("0001_tags", "CREATE TABLE tags (name TEXT PRIMARY KEY) WITHOUT ROWID"),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "data" / "notes.db"


def setting(database: Database, name: str) -> object:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_new_file_is_private_and_set_up(path: Path) -> None:
    database = open_database(path, NOTES_1, synchronous="FULL", busy_timeout=2.5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert setting(database, "journal_mode") == "wal"
    assert setting(database, "foreign_keys") == 1
    assert setting(database, "synchronous") == 2
    assert setting(database, "busy_timeout") == 2500
    assert integrity_problems(database) == []
    database.close()


def test_migrations_run_once_and_in_order(path: Path) -> None:
    with_one = open_database(path, NOTES_1)
    with with_one.transaction():
        with_one.execute("INSERT INTO notes (text) VALUES ('kept')")
    with_one.close()
    for _ in range(2):
        database = open_database(path, NOTES_2, TAGS)
        assert database.execute("SELECT text, tag FROM notes").fetchall() == [("kept", None)]
        assert database.execute("SELECT schema, name FROM avyay_migrations ORDER BY schema, position").fetchall() == [
            ("notes", "0001_notes"),
            ("notes", "0002_tag"),
            ("tags", "0001_tags"),
        ]
        database.close()


def test_a_migration_may_be_a_function_or_a_script_with_a_trigger(path: Path) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO notes (text) VALUES (?)", [("a;b",), ("c",)])

    guard = """
        -- nothing leaves; even here a semicolon
        CREATE TRIGGER keep BEFORE DELETE ON notes BEGIN SELECT RAISE(ABORT, 'kept; really'); END;
        INSERT INTO notes (text) VALUES ('x;y');
        """
    schema = Schema("notes", (*NOTES_1.migrations, Migration("2", fill), Migration("3", guard)))
    database = open_database(path, schema)
    assert [text for (text,) in database.execute("SELECT text FROM notes")] == ["a;b", "c", "x;y"]
    with pytest.raises(sqlite3.IntegrityError, match="kept; really"):
        database.execute("DELETE FROM notes")
    database.close()


def test_a_failing_migration_leaves_the_file_as_it_was(path: Path) -> None:
    open_database(path, NOTES_1).close()
    broken = Schema(
        "notes", (*NOTES_2.migrations, Migration("0003", "CREATE TABLE more (id); CREATE TABLE more (id);"))
    )
    with pytest.raises(InternalError, match="already exists"):
        open_database(path, broken)
    database = open_database(path, NOTES_1)  # would be "newer" had anything stayed
    assert {name for (name,) in database.execute("SELECT name FROM sqlite_master")} >= {"notes"}
    assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    database.close()


def test_a_table_can_be_rebuilt_but_not_with_broken_references(path: Path) -> None:
    first = Migration(
        "1",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE child (id REFERENCES parent);"
        "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)",
    )
    rebuild = Migration(
        "2",
        "CREATE TABLE fresh (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO fresh SELECT id, '' FROM parent;"
        "DROP TABLE parent; ALTER TABLE fresh RENAME TO parent",
    )
    open_database(path, Schema("family", (first,))).close()
    with pytest.raises(InternalError, match="1 broken reference"):
        open_database(path, Schema("family", (first, Migration("2", "DELETE FROM parent"))))
    database = open_database(path, Schema("family", (first, rebuild)))
    assert database.execute("SELECT * FROM parent JOIN child USING (id)").fetchall() == [(1, "")]
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO child VALUES (2)")
    database.close()


def test_a_newer_schema_is_refused_with_the_remedy(path: Path) -> None:
    open_database(path, NOTES_2).close()
    with pytest.raises(ConfigError, match="newer avyay") as caught:
        open_database(path, NOTES_1)
    assert caught.value.code == "schema_newer"
    assert "upgrade" in (caught.value.hint or "")


def test_an_unknown_history_is_refused(path: Path) -> None:
    open_database(path, NOTES_2).close()
    other = Schema("notes", (NOTES_1.migrations[0], Migration("0002_other", "CREATE TABLE other (id)")))
    with pytest.raises(CorruptError) as caught:
        open_database(path, other)
    assert caught.value.code == "schema_diverged"


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE precious (id)")
    theirs.close()
    with pytest.raises(ConfigError) as caught:
        open_database(path, NOTES_1)
    assert caught.value.code == "foreign_database"


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to look", b"SQLite format 3\0" + b"\xff" * 2000]
)
def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(content)
    with pytest.raises(AvyayError) as caught:
        open_database(path, NOTES_1)
    assert isinstance(caught.value, CorruptError)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == content


def test_damage_inside_is_found(path: Path) -> None:
    database = open_database(path, NOTES_1)
    with database.transaction():
        database.executemany("INSERT INTO notes (text) VALUES (?)", [("x" * 500,)] * 500)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = bytearray(path.read_bytes())
    data[8192:16384] = b"\x5a" * 8192
    path.write_bytes(data)
    damaged = open_database(path, NOTES_1)
    with pytest.raises(CorruptError) as caught, damaged.transaction(immediate=False):
        damaged.execute("SELECT sum(length(text)) FROM notes").fetchone()
    assert caught.value.code == "database_damaged"
    damaged.close()


def test_a_full_disk_rolls_back_and_says_so(path: Path) -> None:
    database = open_database(path, NOTES_1)
    with database.transaction():
        database.execute("INSERT INTO notes (text) VALUES ('before')")
    database.execute("PRAGMA max_page_count = 8")
    with pytest.raises(DependencyError) as caught, database.transaction():
        database.executemany("INSERT INTO notes (text) VALUES (?)", [("x" * 4000,)] * 100)
    assert caught.value.code == "disk_full"
    assert database.execute("SELECT text FROM notes").fetchall() == [("before",)]
    database.close()


def test_a_locked_database_is_named_after_the_timeout(path: Path) -> None:
    holder = open_database(path, NOTES_1)
    other = open_database(path, NOTES_1, busy_timeout=0.05)
    with holder.transaction(), pytest.raises(UnreachableError) as caught, other.transaction():
        raise AssertionError("must not get here")
    assert caught.value.code == "database_busy"
    holder.close()
    other.close()


def test_a_transaction_rolls_back_on_any_exception(path: Path) -> None:
    database = open_database(path, NOTES_1)
    try:
        with database.transaction():
            database.execute("INSERT INTO notes (text) VALUES ('gone')")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not database.in_transaction
    assert database.execute("SELECT count(*) FROM notes").fetchone() == (0,)
    database.close()


def test_reading_only(path: Path) -> None:
    with pytest.raises(DependencyError, match="no database"):
        open_database(path, NOTES_1, read_only=True)
    assert not path.parent.exists()
    open_database(path, NOTES_1).close()
    with pytest.raises(ConfigError, match="older avyay"):
        open_database(path, NOTES_2, read_only=True)
    reader = open_database(path, NOTES_1, read_only=True)
    with pytest.raises(DependencyError) as caught, reader.transaction(immediate=False):
        reader.execute("INSERT INTO notes (text) VALUES ('no')")
    assert caught.value.code == "database_read_only"
    reader.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the home should be")
    with pytest.raises(DependencyError) as caught:
        open_database(tmp_path / "home" / "data" / "notes.db", NOTES_1)
    assert caught.value.code == "database_uncreatable"
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(DependencyError) as caught:
        open_database(tmp_path / "folder.db", NOTES_1)
    assert caught.value.code == "database_unopenable"


@contextmanager
def not_root() -> Iterator[None]:
    """Root may write anywhere: be somebody else meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_read_only_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    open_database(home / "notes.db", NOTES_1).close()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o077 == 0:  # private to root, as pytest makes them
            folder.chmod(0o755)
    (home / "notes.db").chmod(0o444)
    home.chmod(0o555)
    with not_root():
        with pytest.raises(DependencyError) as existing:
            open_database(home / "notes.db", NOTES_1)
        with pytest.raises(DependencyError) as missing:
            open_database(home / "new.db", NOTES_1)
    home.chmod(0o755)
    assert (existing.value.code, missing.value.code) == ("database_read_only", "database_uncreatable")
    assert "AVYAY_HOME" in (missing.value.hint or "")
    assert [file.name for file in home.iterdir()] == ["notes.db"]


def test_many_threads_create_one_file(path: Path) -> None:
    def insert(number: int) -> None:
        database = open_database(path, NOTES_2, TAGS)
        with database.transaction():
            database.execute("INSERT INTO notes (text) VALUES (?)", (str(number),))
        database.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(insert, range(24)))
    database = open_database(path, NOTES_2)
    assert database.execute("SELECT count(DISTINCT text) FROM notes").fetchone() == (24,)
    database.close()


def test_the_asyncio_twin(path: Path) -> None:
    async def use() -> list[tuple[str]]:
        async with open_async_database(path, NOTES_1) as connection:
            await connection.execute("INSERT INTO notes (text) VALUES ('async')")
        async with open_async_database(path, NOTES_1, read_only=True) as connection:
            return [tuple(row) for row in await connection.execute_fetchall("SELECT text FROM notes")]

    assert asyncio.run(use()) == [("async",)]


def test_a_schema_has_distinct_names() -> None:
    with pytest.raises(ValueError, match="two migrations"):
        Schema("notes", (Migration("1", ""), Migration("1", "")))
