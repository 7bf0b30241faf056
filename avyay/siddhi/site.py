"""What SIDDHI shows in public: one site, every hypothesis under its own path, every version kept so it can be undone.

    h1/index.html    variant a        h1/b/index.html    variant b

A publishing target takes a whole folder, so the site is put together from the newest version of every hypothesis each
time: publishing one never takes another down.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from avyay.errors import UsageError
from avyay.siddhi.deploy import Target

__all__ = ["Site"]

_ENDED = ".ended"  # marks a version that asks nothing any more
_PAGE_ENDED = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>This page has ended</title></head>
<body><main><h1>This page has ended</h1><p>It asked whether something should be made. Thank you.</p></main></body>
</html>
"""


class Site:
    """The kept versions, as `place/HYPOTHESIS/0001/…`; the newest of each is what appears."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def add(self, hypothesis: str, files: Mapping[str, str]) -> Path:
        """Keep a version (paths inside it to their content); returns its folder. It appears when published."""
        versions = self.versions(hypothesis)
        number = int(versions[-1].name) + 1 if versions else 1
        folder = self.place / hypothesis / f"{number:04d}"
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        return folder

    def end(self, hypothesis: str) -> Path:
        """Keep a version that says the page has ended, for both variants."""
        return self.add(hypothesis, {"index.html": _PAGE_ENDED, "b/index.html": _PAGE_ENDED, _ENDED: ""})

    def versions(self, hypothesis: str) -> list[Path]:
        """Oldest first."""
        place = self.place / hypothesis
        return sorted(path for path in place.glob("[0-9]*") if path.is_dir()) if place.is_dir() else []

    def publish(self, target: Target) -> None:
        """Make the newest version of every hypothesis appear.

        Raises:
            DependencyError: It did not work; what was there before is still there.
        """
        with tempfile.TemporaryDirectory(prefix="avyay-site-") as name:
            for place in sorted(path for path in self.place.glob("*") if path.is_dir()):
                if versions := self.versions(place.name):
                    shutil.copytree(versions[-1], Path(name) / place.name, ignore=shutil.ignore_patterns(_ENDED))
            target.publish(Path(name))

    def undo(self, hypothesis: str, target: Target) -> Path | None:
        """Go back to the version before the last; returns it, or None when the page is gone now.

        Raises:
            UsageError: Nothing was published.
            DependencyError: It could not be published; nothing changed.
        """
        versions = self.versions(hypothesis)
        if not versions or (len(versions) == 1 and (versions[0] / _ENDED).exists()):
            raise UsageError(f"Nothing of {hypothesis} was published.", hint="Publish first.")
        aside = versions[-1].with_name(f".{versions[-1].name}")
        versions[-1].rename(aside)
        try:
            if len(versions) == 1:
                self.end(hypothesis)
            self.publish(target)
        except BaseException:
            if len(versions) == 1:
                shutil.rmtree(versions[-1], ignore_errors=True)
            aside.rename(versions[-1])
            raise
        shutil.rmtree(aside)
        return versions[-2] if len(versions) > 1 else None
