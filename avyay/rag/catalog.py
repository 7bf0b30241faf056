"""The index's own database: what is indexed, and which generation of it is visible.

Everything a search shows is decided here. A sync prepares the next generation's files, writes its rows and moves the
pointer in one transaction, so readers see the whole old state or the whole new one. Chunks never change: a changed
document gets new ones, and the old live on, invisible, until no reader can ask for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from avyay.db import Database, Migration, Schema
from avyay.rag.sources.base import SourceSpec
from avyay.rag.types import Chunk, Section

__all__ = [
    "SCHEMA",
    "ChunkRow",
    "DocumentRow",
    "SourceRow",
    "State",
    "document_chunks",
    "document_sections",
    "read_chunks",
    "read_sources",
    "read_state",
    "visible_chunks",
]

SCHEMA = Schema(
    "rag",
    (
        Migration(
            "0001_index",
            """
            CREATE TABLE state (
                only INTEGER PRIMARY KEY CHECK (only = 1),
                generation INTEGER NOT NULL,   -- what is visible; 0: nothing yet
                files TEXT NOT NULL,           -- the folder of its files
                embedder TEXT NOT NULL,
                dimensions INTEGER NOT NULL,
                chunks INTEGER NOT NULL,
                documents INTEGER NOT NULL,
                published_at REAL NOT NULL
            );
            INSERT INTO state VALUES (1, 0, '', '', 0, 0, 0, 0);

            CREATE TABLE sources (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                name TEXT NOT NULL UNIQUE,
                kind TEXT NOT NULL,
                location TEXT NOT NULL,
                branch TEXT,
                prefix TEXT NOT NULL,
                include TEXT NOT NULL,
                exclude TEXT NOT NULL,
                worktree INTEGER NOT NULL,
                head TEXT NOT NULL,            -- the commit indexed, '' for a folder
                pipeline TEXT NOT NULL,        -- how it was cut and embedded; another value means: from the start
                indexed_at REAL NOT NULL,
                checked_at REAL NOT NULL
            );

            -- Visible in generation g: born <= g, and died is NULL or died > g.
            CREATE TABLE documents (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                source_id INTEGER NOT NULL,
                path TEXT NOT NULL,
                content TEXT NOT NULL,         -- names its bytes
                title TEXT NOT NULL,
                head TEXT NOT NULL,            -- the last commit that changed it
                author_time INTEGER,
                born INTEGER NOT NULL,
                died INTEGER
            );
            CREATE UNIQUE INDEX documents_live ON documents (source_id, path) WHERE died IS NULL;
            CREATE INDEX documents_dead ON documents (died) WHERE died IS NOT NULL;

            CREATE TABLE chunks (
                uid INTEGER PRIMARY KEY AUTOINCREMENT,
                document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
                id TEXT NOT NULL,
                section_id TEXT NOT NULL,
                first_line INTEGER NOT NULL,
                last_line INTEGER NOT NULL,
                tokens INTEGER NOT NULL,
                part INTEGER NOT NULL,
                repeated INTEGER NOT NULL,
                oversized INTEGER NOT NULL,
                vector_key TEXT NOT NULL,      -- names the vector: a hash of what was embedded
                heading_path TEXT NOT NULL,
                headings TEXT NOT NULL,
                context TEXT NOT NULL,
                text TEXT NOT NULL
            );
            CREATE INDEX chunks_document ON chunks (document_id);

            CREATE TABLE sections (
                document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
                id TEXT NOT NULL,
                parent_id TEXT,
                heading TEXT NOT NULL,
                level INTEGER NOT NULL,
                heading_path TEXT NOT NULL,
                first_line INTEGER NOT NULL,
                last_line INTEGER NOT NULL,
                PRIMARY KEY (document_id, id)
            ) WITHOUT ROWID;

            CREATE TABLE unread (
                source_id INTEGER NOT NULL REFERENCES sources (id) ON DELETE CASCADE,
                path TEXT NOT NULL,
                reason TEXT NOT NULL
            );

            -- Vectors not yet in the vector store: single documents would leave it a fragment each.
            CREATE TABLE pending_vectors (vector_key TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class State:
    """What is visible. `files` is the name of the folder that holds the arrays of this generation."""

    generation: int
    files: str
    embedder: str
    dimensions: int
    chunks: int
    documents: int
    published_at: float


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source as indexed; times are Unix seconds."""

    id: int
    spec: SourceSpec
    head: str
    pipeline: str
    indexed_at: float
    checked_at: float
    documents: int
    chunks: int
    unread: int


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document that is visible. `head` is the last commit that changed it."""

    id: int
    source: str
    path: str
    content: str
    title: str
    head: str
    author_time: int | None


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk with the document it was cut from."""

    uid: int
    vector_key: str
    chunk: Chunk
    document: DocumentRow


def read_state(database: Database) -> State:
    """What is visible now."""
    with database.errors():
        row = database.execute(
            "SELECT generation, files, embedder, dimensions, chunks, documents, published_at FROM state"
        ).fetchone()
    return State(*row)


_SOURCES = """
SELECT s.id, s.name, s.kind, s.location, s.branch, s.prefix, s.include, s.exclude, s.worktree, s.head, s.pipeline,
    s.indexed_at, s.checked_at,
    (SELECT count(*) FROM documents d WHERE d.source_id = s.id AND d.died IS NULL),
    (SELECT count(*) FROM chunks c JOIN documents d ON d.id = c.document_id
        WHERE d.source_id = s.id AND d.died IS NULL),
    (SELECT count(*) FROM unread u WHERE u.source_id = s.id)
FROM sources s ORDER BY s.name
"""


def read_sources(database: Database) -> list[SourceRow]:
    """All sources, by name."""
    with database.errors():
        rows = database.execute(_SOURCES).fetchall()
    found = []
    for row in rows:
        name, kind, location, branch, prefix, include, exclude, worktree = row[1:9]
        spec = SourceSpec(
            name,
            kind,
            location,
            branch,
            prefix,
            include=tuple(json.loads(include)),
            exclude=tuple(json.loads(exclude)),
            worktree=bool(worktree),
        )
        found.append(SourceRow(row[0], spec, *row[9:16]))
    return found


_CHUNKS = """
SELECT c.uid, c.vector_key, c.id, c.section_id, c.first_line, c.last_line, c.tokens, c.part, c.repeated, c.oversized,
    c.heading_path, c.headings, c.context, c.text,
    d.id, coalesce(s.name, ''), d.path, d.content, d.title, d.head, d.author_time
FROM chunks c JOIN documents d ON d.id = c.document_id LEFT JOIN sources s ON s.id = d.source_id
WHERE c.uid IN ({})
"""


def read_chunks(database: Database, uids: Sequence[int]) -> dict[int, ChunkRow]:
    """Chunks by uid; what has been purged since is left out."""
    found: dict[int, ChunkRow] = {}
    for first in range(0, len(uids), 500):
        some = [int(uid) for uid in uids[first : first + 500]]
        query = _CHUNKS.format(",".join("?" * len(some)))
        with database.errors():
            rows = database.execute(query, some).fetchall()
        for row in rows:
            document = DocumentRow(*row[14:21])
            chunk = Chunk(
                id=row[2],
                section_id=row[3],
                path=document.path,
                title=document.title,
                heading_path=tuple(json.loads(row[10])),
                headings=tuple(json.loads(row[11])),
                first_line=row[4],
                last_line=row[5],
                text=row[13],
                context=row[12],
                tokens=row[6],
                part=row[7],
                repeated=row[8],
                oversized=bool(row[9]),
            )
            found[row[0]] = ChunkRow(row[0], row[1], chunk, document)
    return found


def document_chunks(database: Database, document: int) -> list[Chunk]:
    """The chunks of a document, in order."""
    with database.errors():
        rows = database.execute("SELECT uid FROM chunks WHERE document_id = ? ORDER BY uid", (document,)).fetchall()
    uids = [uid for (uid,) in rows]
    found = read_chunks(database, uids)
    return [found[uid].chunk for uid in uids if uid in found]


def document_sections(database: Database, document: int) -> list[Section]:
    """The sections of a document, in order."""
    with database.errors():
        rows = database.execute(
            "SELECT id, parent_id, heading, level, heading_path, first_line, last_line FROM sections"
            " WHERE document_id = ? ORDER BY first_line, level",
            (document,),
        ).fetchall()
    return [
        Section(identity, parent, heading, level, tuple(json.loads(path)), first, last)
        for identity, parent, heading, level, path, first, last in rows
    ]


def visible_chunks(database: Database) -> list[int]:
    """The uids of all chunks that a search may show, in order."""
    with database.errors():
        rows = database.execute(
            "SELECT c.uid FROM chunks c JOIN documents d ON d.id = c.document_id WHERE d.died IS NULL ORDER BY c.uid"
        ).fetchall()
    return [uid for (uid,) in rows]
