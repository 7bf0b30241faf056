"""What a sync is going to do: a source's listing held against what is indexed, and what is new, cut into chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from avyay.errors import AvyayError, UsageError
from avyay.rag.documents import Document, read_document
from avyay.rag.sources import Change, Entry, SourceSpec, SourceTree, Unread, open_source

if TYPE_CHECKING:
    from avyay.db import Database
    from avyay.ports import Progress
    from avyay.rag.catalog import SourceRow
    from avyay.rag.types import Chunk

__all__ = ["Plan", "SyncReport", "make_plan", "manifest"]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync found and did. `embedded` chunks were computed, `reused` ones were known already."""

    source: str
    head: str
    previous: str | None
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    chunks: int
    embedded: int
    reused: int
    unread: tuple[Unread, ...]
    generation: int
    seconds: float

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.added or self.changed or self.removed)


@dataclass
class Plan:
    """What is to happen to one source. `retired` holds the ids of documents that change or go."""

    spec: SourceSpec
    tree: SourceTree
    row: SourceRow | None
    documents: list[tuple[Entry, Document]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    history: dict[str, Change] = field(default_factory=dict)
    rewritten: bool = False
    embedded: int = 0
    reused: int = 0

    @property
    def chunks(self) -> list[Chunk]:
        return [chunk for _, document in self.documents for chunk in document.chunks]

    @property
    def idle(self) -> bool:
        """Whether nothing that can be searched changes."""
        return not self.documents and not self.retired

    def report(self, generation: int, seconds: float) -> SyncReport:
        """The plan as something done."""
        return SyncReport(
            source=self.spec.name,
            head=self.tree.commit,
            previous=self.row.head if self.row else None,
            added=tuple(self.added),
            changed=tuple(self.changed),
            removed=tuple(self.removed),
            unchanged=len(self.unchanged),
            chunks=len(self.chunks),
            embedded=self.embedded,
            reused=self.reused,
            unread=tuple(self.unread),
            generation=generation,
            seconds=seconds,
        )


def make_plan(
    database: Database,
    spec: SourceSpec,
    row: SourceRow | None,
    *,
    mirrors: Path,
    again: bool,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    progress: Progress,
) -> Plan:
    """Read the present state of a source (fetching it first when it is remote) and cut what is new.

    Args:
        row: The source as indexed; None when it is new.
        again: Cut unchanged documents too.

    Raises:
        AvyayError: the source cannot be read, or a new one holds no document.
    """
    progress(0, None, f"Reading {spec.name}")
    tree = open_source(spec, mirrors)
    plan = Plan(spec, tree, row, unread=list(tree.unread))
    known = manifest(database, row.id) if row else {}
    entries = {entry.path: entry for entry in tree.entries}
    fresh = [entry for path, entry in entries.items() if again or known.get(path, ("", 0))[0] != entry.content]
    for done, (entry, data) in enumerate(tree.read(fresh)):
        progress(done, len(fresh), f"Cutting {spec.name}")
        found = read_document(entry.path, data, count_tokens=count_tokens, max_tokens=max_tokens)
        if isinstance(found, Unread):
            plan.unread.append(found)
        elif found is not None:
            (plan.changed if entry.path in known else plan.added).append(entry.path)
            plan.documents.append((entry, found))
    fresh_paths = {entry.path for entry in fresh}
    written = {entry.path for entry, _ in plan.documents}
    for path, (_, identity) in known.items():
        if path in entries and path not in fresh_paths:
            plan.unchanged.append(path)
            continue
        plan.retired.append(identity)
        if path not in written:
            plan.removed.append(path)
    if row is None and not plan.documents:
        raise _nothing_there(spec, plan)
    plan.rewritten = row is not None and not tree.descends_from(row.head)
    plan.history = tree.history([*written, *(plan.unchanged if plan.rewritten else ())])
    return plan


def manifest(database: Database, source: int) -> dict[str, tuple[str, int]]:
    """path -> (content, document id) of what is visible of a source."""
    rows = database.execute("SELECT path, content, id FROM documents WHERE source_id = ? AND died IS NULL", (source,))
    return {path: (content, identity) for path, content, identity in rows.fetchall()}


def _nothing_there(spec: SourceSpec, plan: Plan) -> AvyayError:
    where = f"{spec.location}/{spec.prefix}".rstrip("/")
    at = f" at {plan.tree.commit[:7]}" if plan.tree.commit else ""
    if plan.unread:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in plan.unread[:3])
        return UsageError(f"No document in {where}{at} can be read: {reasons}.", code="no_documents")
    hint = "Documents are .md, .rst, .adoc, .txt, .pdf and YAML alert rules; name others with --include '*.ext'."
    if spec.kind == "git":
        hint += " Files that are not committed are not read: use --worktree for those."
    return UsageError(f"There are no documents in {where}{at}.", hint=hint, code="no_documents")
