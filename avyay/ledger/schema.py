"""The tables of `avyay.ledger`. Amounts are integer picodollars."""

from __future__ import annotations

from avyay.db import Migration, Schema

__all__ = ["LEDGER_SCHEMA"]

LEDGER_SCHEMA = Schema(
    "ledger",
    (
        Migration(
            "0001_reserve_and_settle",
            """
            CREATE TABLE ledger_scopes (
                key TEXT PRIMARY KEY,
                spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0 AND typeof(spent) = 'integer'),
                reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0 AND typeof(reserved) = 'integer'),
                cap INTEGER,
                resets_at REAL
            ) WITHOUT ROWID;

            CREATE TABLE ledger_reservations (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                key TEXT NOT NULL UNIQUE,
                held INTEGER NOT NULL CHECK (held >= 0 AND typeof(held) = 'integer'),
                spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0 AND typeof(spent) = 'integer'),
                state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'unknown', 'settled', 'released')),
                owner TEXT,
                created_at REAL NOT NULL,
                expires_at REAL,
                note TEXT
            );
            CREATE INDEX ledger_pending ON ledger_reservations (state, expires_at) WHERE state IN ('open', 'unknown');

            CREATE TABLE ledger_holds (
                reservation_id INTEGER NOT NULL REFERENCES ledger_reservations,
                position INTEGER NOT NULL,
                scope TEXT NOT NULL REFERENCES ledger_scopes,
                PRIMARY KEY (reservation_id, position)
            ) WITHOUT ROWID;
            CREATE INDEX ledger_holds_by_scope ON ledger_holds (scope);

            CREATE TABLE ledger_entries (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                reservation_id INTEGER NOT NULL REFERENCES ledger_reservations,
                at REAL NOT NULL,
                kind TEXT NOT NULL,
                held INTEGER NOT NULL,
                spent INTEGER NOT NULL,
                note TEXT
            );
            CREATE INDEX ledger_entries_by_reservation ON ledger_entries (reservation_id);

            CREATE TRIGGER ledger_entries_stay BEFORE DELETE ON ledger_entries
            BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
            CREATE TRIGGER ledger_entries_are_final BEFORE UPDATE ON ledger_entries
            BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
            """,
        ),
        Migration(
            "0002_outstanding",
            # Of a block: drawn for calls that were under way when its owner last wrote.
            "ALTER TABLE ledger_reservations ADD COLUMN outstanding INTEGER NOT NULL DEFAULT 0",
        ),
    ),
)
