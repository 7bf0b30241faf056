"""The user's work tree goes along when its branch moves, however large it is and whoever is killed meanwhile.

The step that must not happen twice is one `git update-ref`, made while the queue's database is held. Bringing many
files to the new commit would hold it for long, so that is done before and after:

1. `prepare`, before the step: a note says what is going to be done; then git's own lock on the index is taken, so that
   nobody commits, or switches, from a state in between; then git is asked whether the files could go along.
2. The step: the branch moves, in the transaction that ends the task.
3. `settle`, after it: the files go along in a copy of the index, the copy becomes the index, lock and note go.

Whoever dies in between leaves the lock and the note, and `settle` by the next one that has the turn finishes or takes
back what was begun: the commit that is checked out tells which. The programs that change something hold the turn as
well, so one that outlives its dispatcher is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from avyay.engine.carry import carry
from avyay.errors import DependencyError
from avyay.git import GitRepository
from avyay.log import get_logger

__all__ = ["IN_THE_WAY", "Follower"]

IN_THE_WAY = "work_tree_in_the_way"
"""The code of the error when the user's own work keeps a work tree from following."""

log = get_logger("engine")

_TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class _Note:
    """A work tree on its way from one commit to another, and the index it had then."""

    where: str
    before: str
    after: str
    index: str
    token: str

    @property
    def mark(self) -> bytes:
        """What tells our lock from that of a git, or of another home's engine."""
        return f"avyay engine, {self.token}: on the way to {self.after}, see: avyay engine doctor\n".encode()

    @property
    def lock(self) -> Path:
        """What git itself makes to keep others off an index."""
        return Path(f"{self.index}.lock")

    @property
    def copy(self) -> Path:
        return Path(f"{self.index}.{self.token}.avyay")

    @property
    def locked(self) -> bool:
        """Whether the lock is there, and ours."""
        try:
            return self.lock.read_bytes() == self.mark
        except OSError:
            return False


class Follower:
    """Takes work trees along. For whoever has the turn of the merge queue, and only then.

    Args:
        folder: Where the note is kept.
        branch: What moves, for messages.
    """

    def __init__(self, folder: Path, branch: str) -> None:
        self._branch = branch
        self._file = folder / "following.json"
        self._prepared: _Note | None = None

    def pending(self) -> Path | None:
        """The work tree that is on its way, or was when somebody died."""
        note = self._read()
        return Path(note.where) if note is not None else None

    def prepare(self, where: Path, before: str, after: str, turn: int) -> None:
        """Keep others off the index of a work tree, and make sure that its files could go along.

        Args:
            turn: The descriptor of the turn's lock.

        Raises:
            DependencyError: uncommitted changes are in the way, git is at work there, or it cannot be written; all is
                as it was.
        """
        tree = GitRepository(where)
        index = tree.output("rev-parse", "--path-format=absolute", "--git-path", "index").strip()
        note = _Note(str(where), before, after, index, secrets.token_hex(8))
        try:
            self._write(note)
            self._take(note)
            _copy_index(tree, note, turn)
            dry = tree.git("read-tree", "-m", "-u", "-n", before, after, timeout=_TIMEOUT, index=note.copy)
            if dry.code != 0:
                raise self._in_the_way(where, dry.error_text)
        except OSError as error:
            self._let_go(note)
            raise DependencyError(
                f"{where} cannot be prepared for the merge: {error}",
                hint="Is there space, is its .git yours, and on a file system with hard links?",
            ) from error
        except BaseException:
            self._let_go(note)
            raise
        self._prepared = note

    def settle(self, turn: int) -> str | None:
        """Take the files along when the branch moved, or give everything back when it did not; says what it did.

        Raises:
            DependencyError: git is at work in that work tree, or fails: for another time.
        """
        note = self._read()
        if note is None:
            return None
        tree = GitRepository(Path(note.where))
        mine, self._prepared = self._prepared == note, None
        if not tree.root.is_dir():
            self._let_go(note)
            return f"the work tree {note.where} is gone"
        within = tree.git("merge-base", "--is-ancestor", note.after, "HEAD")
        if within.code == 1:
            self._let_go(note)
            return None
        if within.code != 0:
            raise DependencyError(f"git fails in {tree.root}: {within.error_text.strip()[:300]}", hint="Try: git fsck")
        if not note.locked:
            self._take(note)  # somebody removed it
        if not mine:
            _copy_index(tree, note, turn)
        self._go_along(tree, note, turn)
        self._let_go(note)
        return f"{note.where} stands at {note.after[:7]}"

    def _go_along(self, tree: GitRepository, note: _Note, turn: int) -> None:
        target = tree.output("rev-parse", "--verify", "HEAD^{commit}").strip()
        moved = tree.git(
            "read-tree", "-m", "-u", note.before, target, timeout=_TIMEOUT, index=note.copy, pass_fds=(turn,)
        )
        if moved.code != 0:
            # Files that were changed since we asked, or a checkout that was cut in the middle.
            log.warning("carries_changes_along", tree=note.where, reason=moved.error_text.strip()[:300])
            for path, what in carry(tree, note.copy, note.before, target, pass_fds=(turn,)).items():
                log.warning("carried_along", tree=note.where, path=path, what=what)
        note.copy.replace(note.index)

    def _read(self) -> _Note | None:
        try:
            return _Note(**json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, note: _Note) -> None:
        new = self._file.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(note), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)

    def _let_go(self, note: _Note) -> None:
        for left in (note.copy, Path(f"{note.copy}.lock"), Path(f"{note.copy}.new")):
            left.unlink(missing_ok=True)
        if note.locked:
            note.lock.unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)

    def _take(self, note: _Note) -> None:
        """Make the lock, with our mark in it from its first moment on: nobody else's is ever mistaken for ours."""
        new = Path(f"{note.copy}.new")
        new.write_bytes(note.mark)
        try:
            os.link(new, note.lock)
        except FileExistsError:
            why = f"git is at work there, or {note.lock} is left of one that died"
            raise self._in_the_way(Path(note.where), why) from None
        finally:
            new.unlink(missing_ok=True)

    def _in_the_way(self, where: Path, why: str) -> DependencyError:
        return DependencyError(
            f"{where} cannot follow {self._branch}: {why.strip()[:300]}",
            hint="Commit or stash what you changed there, or give the engine a clone of its own.",
            code=IN_THE_WAY,
        )


def _copy_index(tree: GitRepository, note: _Note, turn: int) -> None:
    Path(f"{note.copy}.lock").unlink(missing_ok=True)  # of a git that was killed: a living one has the turn
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(note.index, note.copy)
    tree.git("update-index", "-q", "--refresh", timeout=_TIMEOUT, index=note.copy, pass_fds=(turn,))
