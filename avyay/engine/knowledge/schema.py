"""The tables of the knowledge graph: one database for all repositories of a home."""

from __future__ import annotations

from avyay.db import Migration, Schema

__all__ = ["SCHEMA"]

SCHEMA = Schema(
    "knowledge",
    (
        Migration(
            "0001_graph",
            """
            CREATE TABLE repositories (
                id INTEGER PRIMARY KEY,
                root TEXT NOT NULL UNIQUE,   -- the shared git folder: worktrees are one repository
                commit_id TEXT NOT NULL DEFAULT '',   -- what is indexed
                history TEXT NOT NULL DEFAULT '',   -- up to where the log was read
                rules TEXT NOT NULL DEFAULT ''   -- version of the parsing rules
            ) STRICT;
            CREATE TABLE names (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
            CREATE TABLE files (
                id INTEGER PRIMARY KEY,
                repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
                path TEXT NOT NULL,
                blob TEXT NOT NULL,
                language TEXT NOT NULL,
                lines INTEGER NOT NULL,
                broken INTEGER NOT NULL,
                refs BLOB NOT NULL,   -- int32 pairs: name, count
                UNIQUE (repository, path)
            ) STRICT;
            CREATE TABLE symbols (
                file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
                name INTEGER NOT NULL,
                kind TEXT NOT NULL,
                line INTEGER NOT NULL,
                last_line INTEGER NOT NULL,
                scope TEXT NOT NULL,
                signature TEXT NOT NULL
            ) STRICT;
            CREATE INDEX symbols_of_file ON symbols (file);
            CREATE TABLE imports (
                file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
                line INTEGER NOT NULL,
                module TEXT NOT NULL,
                names TEXT NOT NULL
            ) STRICT;
            CREATE INDEX imports_of_file ON imports (file);
            CREATE TABLE mentions (   -- a document names a file
                file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
                line INTEGER NOT NULL,
                word TEXT NOT NULL
            ) STRICT;
            CREATE INDEX mentions_of_file ON mentions (file);
            CREATE TABLE changes (
                repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
                path TEXT NOT NULL,
                author TEXT NOT NULL,
                commits INTEGER NOT NULL,
                last INTEGER NOT NULL,
                PRIMARY KEY (repository, path, author)
            ) STRICT, WITHOUT ROWID;
            CREATE TABLE outcomes (   -- tasks that touched a file, as the queue last told
                repository INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
                task TEXT NOT NULL,
                path TEXT NOT NULL,
                title TEXT NOT NULL,
                state TEXT NOT NULL,
                reason TEXT NOT NULL,
                at REAL NOT NULL,
                PRIMARY KEY (repository, path, task)
            ) STRICT, WITHOUT ROWID;
            """,
        ),
    ),
)
