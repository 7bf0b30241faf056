"""The folders of attempts on this machine, and the sweeping up after dispatchers that are gone."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

from avyay.engine import keeper
from avyay.paths import ensure_directory

__all__ = ["Attempts"]


class Attempts:
    """The folders of attempts on this machine, each with a note of the dispatcher that it belongs to.

    Args:
        root: Below it lies `<task>/<fence>` for every attempt whose log is kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = ensure_directory(root)
        self.prefix = sha256(str(self.root.resolve()).encode()).hexdigest()[:12]

    def mark(self, task: str, fence: int) -> str:
        """What the processes of an attempt carry in their environment."""
        return f"{self.prefix}/{task}/{fence}"

    def folder(self, task: str, fence: int) -> Path:
        return self.root / task / str(fence)

    def open(self, task: str, fence: int) -> Path:
        """The folder of a new attempt, owned by this process."""
        folder = ensure_directory(self.folder(task, fence))
        owner = {"pid": os.getpid(), "birth": keeper.birth(os.getpid())}
        (folder / "owner.json").write_text(json.dumps(owner), encoding="utf-8")
        return folder

    def close(self, folder: Path) -> None:
        """Keep the log of an attempt and remove the rest."""
        for name in ("tree", "home", "candidate", "check", "before"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("spec.json", "owner.json"):
            (folder / name).unlink(missing_ok=True)

    def open_folders(self) -> list[tuple[Path, bool]]:
        """Attempts that were not closed, and whether their dispatcher still lives."""
        found = []
        for note in sorted(self.root.glob("*/*/owner.json")):
            try:
                owner = json.loads(note.read_text(encoding="utf-8"))
                alive = keeper.birth(int(owner["pid"])) == owner["birth"] is not None
            except (OSError, ValueError, KeyError, TypeError):
                alive = False
            found.append((note.parent, alive))
        return found

    def recover(self) -> list[str]:
        """End processes and remove folders of attempts whose dispatcher is gone; says what it found."""
        said: list[str] = []
        alive: set[str] = set()
        dead: list[Path] = []
        for folder, lives in self.open_folders():
            if lives:
                alive.add(self.mark(folder.parent.name, int(folder.name)))
            else:
                dead.append(folder)
        orphans = {name for name in keeper.marks(f"{self.prefix}/").values() if name not in alive}
        for folder in dead:
            orphans.add(self.mark(folder.parent.name, int(folder.name)))
        for name in sorted(orphans):
            task, fence = name.split("/")[1:3]
            killed, left = keeper.end_marked(name, str(self.folder(task, int(fence))))
            if killed or left:
                said.append(f"{task}/{fence}: ended {killed} processes of a dispatcher that is gone, {len(left)} left")
        for folder in dead:
            self.close(folder)
            said.append(f"{folder.parent.name}/{folder.name}: removed the worktree of a dispatcher that is gone")
        return said
