"""Dependencies that are behind: asked of the registries through the user's own clients, so private ones count."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from avyay.engine.generate.tools import ere
from avyay.engine.generate.types import Found, Need, Site

__all__ = ["Dependencies"]

_TIMEOUT = 60.0
_MOST = 40
_PINNED = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*([0-9][^\s;#\\]*)")
_LATEST = re.compile(r"^\S+ \(([^)]+)\)", re.MULTILINE)


class Dependencies:
    """Pinned Python requirements and npm packages with a newer release."""

    def find(self, site: Site) -> Found:
        if not site.online:
            return Found.not_checked("asks package registries: allow it with --online")
        needs: list[Need] = []
        problems: list[str] = []
        for found in (self._pip(site), self._npm(site)):
            needs += found.needs
            if found.skipped:
                problems.append(found.skipped)
        return Found(tuple(needs), "; ".join(problems), whole=not problems)

    def _pip(self, site: Site) -> Found:
        from packaging.version import InvalidVersion, Version

        needs, unknown = [], []
        pins = list(_pins(site.root))
        for path, line, name, version in pins[:_MOST]:
            command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", name]
            done = site.run(command, timeout=_TIMEOUT, cwd=site.root)
            match = _LATEST.search(done.text)
            if done.timed_out or done.code != 0 or match is None:
                unknown.append(name)
                continue
            try:
                behind = Version(match[1]) > Version(version)
            except InvalidVersion:
                continue
            if behind:
                needs.append(_need(site, "pip", path, line, name, version, match[1]))
        said = f"{len(unknown)} packages could not be looked up, such as {unknown[0]}" if unknown else ""
        return Found(tuple(needs), said, whole=not unknown and len(pins) <= _MOST)

    def _npm(self, site: Site) -> Found:
        manifest = site.root / "package.json"
        if not manifest.is_file():
            return Found()
        program = shutil.which("npm", path=site.path)
        if program is None:
            return Found.not_checked("npm is not installed")
        done = site.run([program, "outdated", "--json"], timeout=_TIMEOUT, cwd=site.root)
        try:
            rows = json.loads(done.stdout or b"{}")
        except ValueError:
            rows = None
        if done.timed_out or not isinstance(rows, dict) or "error" in rows:
            return Found.not_checked(f"npm outdated failed: {done.error_text.strip()[-200:]}")
        lines = manifest.read_text(encoding="utf-8", errors="replace").splitlines()
        needs = []
        for name, row in rows.items():
            line = next((number for number, text in enumerate(lines, 1) if f'"{name}"' in text), 1)
            current = str(row.get("current") or row.get("wanted"))
            needs.append(_need(site, "npm", "package.json", line, name, current, str(row.get("latest"))))
        return Found(tuple(needs))


def _pins(root: Path) -> Iterator[tuple[str, int, str, str]]:
    """(path, line, name, version) of exact pins in requirement files without hashes: hashed ones are compiled."""
    for path in sorted([*root.glob("requirements*.txt"), *root.glob("requirements/*.txt")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "--hash=" in text:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := _PINNED.match(line):
                yield path.relative_to(root).as_posix(), number, match[1], match[2]


def _need(site: Site, kind: str, path: str, line: int, name: str, version: str, latest: str) -> Need:
    major = version.split(".", 1)[0] != latest.split(".", 1)[0]
    if kind == "pip":
        pin = f"^{ere(name)}(\\[.*\\])?[[:space:]]*==[[:space:]]*{ere(version)}"
        accept = f"! grep -nE {shlex.quote(pin)} {shlex.quote(path)}"
    else:
        accept = f"! npm outdated --parseable {shlex.quote(name)} | grep -q ."
    return Need(
        key=f"{kind}:{name.lower()}",
        title=f"Update {name} from {version} to {latest}",
        description=f"{path}:{line} holds {name} at {version}; {latest} is out. Read what changed between them, update"
        " it and mend what breaks." + (" The major version changed: expect breaking changes." if major else ""),
        evidence=(f"{path}:{line}",),
        accept=f"{accept} && {site.tests}" if site.tests else accept,
        files=(path,),
        size="medium" if major else "small",
        weight=0.6 if major else 0.3,
        allow=frozenset({"locks", path}),
    )
