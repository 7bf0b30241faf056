"""Where documents come from: git repositories read at a commit, and plain folders."""

from avyay.rag.sources.base import Change, Entry, Selection, SourceSpec, SourceTree, Unread
from avyay.rag.sources.registry import open_source, resolve_source

__all__ = [
    "Change",
    "Entry",
    "Selection",
    "SourceSpec",
    "SourceTree",
    "Unread",
    "open_source",
    "resolve_source",
]
