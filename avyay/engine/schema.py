"""The queue's tables, for SQLite and for PostgreSQL: the same columns in the same order."""

from __future__ import annotations

from avyay.db import Migration, Schema
from avyay.postgres import PostgresSchema

__all__ = ["OPEN", "POSTGRES_SCHEMA", "SCHEMA"]

OPEN = "state IN ('leased', 'merging', 'ready', 'running', 'verifying')"
"""Where one index leads to both: what may be claimed has no owner, what is at work has one."""

_CHAIN = """
ALTER TABLE tasks ADD COLUMN latest BIGINT;   -- its newest line of history
ALTER TABLE history ADD COLUMN earlier BIGINT;   -- the line before it, of the same task
UPDATE history SET earlier = (
    SELECT max(older.number) FROM history AS older WHERE older.task = history.task AND older.number < history.number
);
UPDATE tasks SET latest = (SELECT max(number) FROM history WHERE history.task = tasks.id);
DROP INDEX history_of_task;
DROP INDEX ready_tasks;
DROP INDEX active_tasks;
CREATE INDEX open_tasks ON tasks (owner, priority DESC, number)
    WHERE state IN ('leased', 'merging', 'ready', 'running', 'verifying');
"""

SCHEMA = Schema(
    "engine",
    (
        Migration(
            "0001_queue",
            """
            CREATE TABLE tasks (
                number INTEGER PRIMARY KEY,
                id TEXT NOT NULL UNIQUE,
                title TEXT NOT NULL,
                description TEXT NOT NULL,
                accept TEXT NOT NULL,
                files TEXT NOT NULL,
                requires TEXT NOT NULL,
                evidence TEXT NOT NULL,
                fingerprint TEXT UNIQUE,
                priority INTEGER NOT NULL,
                state TEXT NOT NULL,
                reason TEXT NOT NULL DEFAULT '',
                waits INTEGER NOT NULL DEFAULT 0,   -- needs that are not done
                approval INTEGER NOT NULL DEFAULT 0,   -- 1: a person has yet to approve
                attempt INTEGER NOT NULL DEFAULT 0,
                attempts INTEGER NOT NULL,
                fence INTEGER NOT NULL DEFAULT 0,
                owner TEXT,
                beats INTEGER NOT NULL DEFAULT 0,
                not_before REAL NOT NULL DEFAULT 0,
                created REAL NOT NULL,
                updated REAL NOT NULL
            ) STRICT;
            CREATE INDEX ready_tasks ON tasks (priority DESC, number) WHERE state = 'ready';
            CREATE INDEX active_tasks ON tasks (state) WHERE state IN ('leased', 'running', 'verifying', 'merging');
            CREATE TABLE needs (
                task TEXT NOT NULL REFERENCES tasks (id),
                need TEXT NOT NULL REFERENCES tasks (id),
                PRIMARY KEY (task, need)
            ) STRICT, WITHOUT ROWID;
            CREATE INDEX followers ON needs (need, task);
            CREATE TABLE history (
                number INTEGER PRIMARY KEY,
                task TEXT NOT NULL REFERENCES tasks (id),
                at REAL NOT NULL,
                kind TEXT NOT NULL,
                before TEXT,
                after TEXT,
                owner TEXT,
                fence INTEGER,
                detail TEXT NOT NULL DEFAULT '',
                data TEXT NOT NULL DEFAULT '{}'
            ) STRICT;
            CREATE INDEX history_of_task ON history (task, number);
            CREATE TABLE fences (last INTEGER NOT NULL) STRICT;
            INSERT INTO fences (last) VALUES (0);
            """,
        ),
        Migration("0002_extra", "ALTER TABLE tasks ADD COLUMN extra TEXT NOT NULL DEFAULT '{}'"),
        Migration(
            "0003_days",
            "CREATE TABLE days (day TEXT PRIMARY KEY, seconds REAL NOT NULL, picodollars INTEGER NOT NULL)"
            " STRICT, WITHOUT ROWID",
        ),
        Migration("0004_chain", _CHAIN.replace("BIGINT", "INTEGER") + "DROP TABLE fences;"),
        Migration(
            "0005_identity",
            # Names the queue in the ids of its events.
            "CREATE TABLE identity (id TEXT NOT NULL) STRICT; INSERT INTO identity VALUES (lower(hex(randomblob(16))))",
        ),
        Migration(
            "0006_neighbours",
            # NULL comes last: what is at work stands right before what is claimed next, mostly in the same leaf, so
            # that a claim writes one leaf of this index and not two.
            """
            DROP INDEX open_tasks;
            CREATE INDEX open_tasks ON tasks (owner DESC, priority DESC, number)
                WHERE state IN ('leased', 'merging', 'ready', 'running', 'verifying');
            """,
        ),
    ),
)

POSTGRES_SCHEMA = PostgresSchema(
    "avyay_engine",
    (
        (
            "0001_queue",
            """
            CREATE TABLE tasks (
                number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                id TEXT NOT NULL UNIQUE,
                title TEXT NOT NULL,
                description TEXT NOT NULL,
                accept TEXT NOT NULL,
                files TEXT NOT NULL,
                requires TEXT NOT NULL,
                evidence TEXT NOT NULL,
                fingerprint TEXT UNIQUE,
                priority BIGINT NOT NULL,
                state TEXT NOT NULL,
                reason TEXT NOT NULL DEFAULT '',
                waits BIGINT NOT NULL DEFAULT 0,
                approval BIGINT NOT NULL DEFAULT 0,
                attempt BIGINT NOT NULL DEFAULT 0,
                attempts BIGINT NOT NULL,
                fence BIGINT NOT NULL DEFAULT 0,
                owner TEXT,
                beats BIGINT NOT NULL DEFAULT 0,
                not_before DOUBLE PRECISION NOT NULL DEFAULT 0,
                created DOUBLE PRECISION NOT NULL,
                updated DOUBLE PRECISION NOT NULL,
                extra TEXT NOT NULL DEFAULT '{}'
            );
            CREATE INDEX ready_tasks ON tasks (priority DESC, number) WHERE state = 'ready';
            CREATE INDEX active_tasks ON tasks (state) WHERE state IN ('leased', 'running', 'verifying', 'merging');
            CREATE TABLE needs (
                task TEXT NOT NULL REFERENCES tasks (id),
                need TEXT NOT NULL REFERENCES tasks (id),
                PRIMARY KEY (task, need)
            );
            CREATE INDEX followers ON needs (need, task);
            CREATE TABLE history (
                number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                task TEXT NOT NULL REFERENCES tasks (id),
                at DOUBLE PRECISION NOT NULL,
                kind TEXT NOT NULL,
                before TEXT,
                after TEXT,
                owner TEXT,
                fence BIGINT,
                detail TEXT NOT NULL DEFAULT '',
                data TEXT NOT NULL DEFAULT '{}'
            );
            CREATE INDEX history_of_task ON history (task, number);
            CREATE SEQUENCE fences;
            """,
        ),
        (
            "0002_identity",
            """
            CREATE TABLE identity (id TEXT NOT NULL);   -- names the queue in the ids of its events
            INSERT INTO identity VALUES (md5(random()::text || clock_timestamp()::text));
            """,
        ),
        (
            "0003_days",
            "CREATE TABLE days (day TEXT PRIMARY KEY, seconds DOUBLE PRECISION NOT NULL, picodollars BIGINT NOT NULL)",
        ),
        ("0004_chain", _CHAIN + "DROP SEQUENCE fences;"),
    ),
)
