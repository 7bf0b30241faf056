"""A plain folder, or the work tree of a repository: files as they lie on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from avyay.errors import UsageError
from avyay.rag.sources.base import Change, Entry, Selection, Unread, too_large

__all__ = ["FolderTree"]


class FolderTree:
    """Files below `root`. Symlinks that lead out of it are not followed, and are reported.

    Raises:
        UsageError: the folder cannot be listed.
    """

    commit = ""

    def __init__(self, root: Path, selection: Selection) -> None:
        self.root = root.resolve()
        self._selection = selection
        self._unread: list[Unread] = []

    @property
    def unread(self) -> Sequence[Unread]:
        _ = self.entries
        return self._unread

    @cached_property
    def entries(self) -> Sequence[Entry]:
        found = []
        for path in self._walk():
            if not self._selection.wants(path):
                continue
            if (entry := self._entry(path)) is not None:
                found.append(entry)
        return sorted(found, key=lambda entry: entry.path)

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        for entry in entries:
            # Read again rather than kept: a folder may hold more than memory does. A file that changed since it was
            # listed is indexed as it is now and found changed by the next sync.
            try:
                yield entry, (self.root / entry.path).read_bytes()
            except OSError:
                continue

    def history(self, paths: Sequence[str]) -> dict[str, Change]:
        """Files have no history here; their modification time stands for it."""
        changes = {}
        for path in paths:
            try:
                changes[path] = Change("", int((self.root / path).stat().st_mtime))
            except OSError:
                changes[path] = Change("", None)
        return changes

    def descends_from(self, commit: str) -> bool:
        return commit == ""

    def _walk(self) -> Iterator[str]:
        def fail(error: OSError) -> None:
            relative = os.path.relpath(error.filename or self.root, self.root)
            if relative == ".":
                raise UsageError(
                    f"Cannot read the folder {self.root}: {error.strerror}.", hint="Check its permissions."
                ) from error
            self._unread.append(Unread(relative, f"cannot be listed: {error.strerror}"))

        for folder, folders, files in os.walk(self.root, onerror=fail):
            folders[:] = sorted(name for name in folders if name != ".git")
            relative = os.path.relpath(folder, self.root)
            prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            yield from (prefix + name for name in sorted(files))

    def _entry(self, path: str) -> Entry | None:
        file = self.root / path
        try:
            path.encode("utf-8")
            resolved = file.resolve(strict=True)
            if not resolved.is_relative_to(self.root):
                self._unread.append(Unread(path, "a symbolic link that leads out of the folder"))
                return None
            if not resolved.is_file():
                return None
            size = resolved.stat().st_size
            if (left_out := too_large(path, size)) is not None:
                self._unread.append(left_out)
                return None
            with resolved.open("rb") as stream:
                return Entry(path, hashlib.file_digest(stream, "sha256").hexdigest(), size)
        except UnicodeEncodeError:
            self._unread.append(Unread(path.encode("utf-8", "replace").decode(), "its name is not UTF-8"))
        except OSError as error:
            self._unread.append(Unread(path, f"cannot be read: {error.strerror}"))
        return None
