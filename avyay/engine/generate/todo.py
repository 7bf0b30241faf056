"""TODO, FIXME, XXX and HACK comments, the oldest first: git blame knows their age."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable

from avyay.engine.generate.tools import ere
from avyay.engine.generate.types import Found, Need, Site, Size
from avyay.errors import DependencyError

__all__ = ["Todo"]

_MARK = re.compile(r"(?:#|//|/\*+|^\s*\*|--|;|<!--|%)\s*(TODO|FIXME|XXX|HACK)\b[\s:(]*(.*)$")
_GREP = r"(TODO|FIXME|XXX|HACK)"
_MOST = 2000
_BLAMED = 300
_DAY = 86_400.0
_TIMEOUT = 120.0


class Todo:
    """Comments that promise something."""

    def find(self, site: Site) -> Found:
        done = site.git.git("grep", "-nIwE", "--no-color", "-z", _GREP, "HEAD", "--", ".", timeout=_TIMEOUT)
        if done.code not in (0, 1):
            raise DependencyError(f"git grep failed: {done.error_text.strip()[:200]}", hint="Check it with: git fsck")
        seen: list[tuple[str, int, str, str]] = []
        for row in done.text.splitlines():
            parts = row.split("\0", 2)
            if len(parts) == 3 and (match := _MARK.search(parts[2])):
                seen.append((parts[0].removeprefix("HEAD:"), int(parts[1]), match[1], _words(match[2])))
        ages = self._ages(site, seen[:_BLAMED])
        texts: Counter[tuple[str, str, str]] = Counter()
        needs = []
        for path, line, mark, words in seen[:_MOST]:
            texts[path, mark, words] += 1
            again = texts[path, mark, words]
            age, author = ages.get((path, line), (0.0, ""))
            needs.append(self._need(site, path, line, mark, words, again, age, author))
        return Found(tuple(needs), whole=len(seen) <= _MOST)

    def _need(
        self, site: Site, path: str, line: int, mark: str, words: str, again: int, age: float, author: str
    ) -> Need:
        what = words or "no words beside it"
        old = f"It stands there for {age / _DAY:.0f} days{f', by {author}' if author else ''}. " if age else ""
        # The comment must be gone, and what is tested must still work.
        shown = shlex.quote(f"{mark}.*{ere(words)}" if words else mark)
        accept = f"! grep -nE {shown} {shlex.quote(path)}"
        if tests := site.tests_for([path]):
            accept = f"{accept} && {tests}"
        return Need(
            key=f"{path}:{mark}:{words}:{again}",
            title=f"{mark} in {path}: {what}"[:120],
            description=f"{path}:{line} says `{mark}: {what}`. {old}Do what it asks for and remove the comment; if it"
            " asks for nothing any more, remove it and say why in the commit message.",
            evidence=(f"{path}:{line}",),
            accept=accept,
            files=site.knowledge.touched(site.root, [path]),
            size=_size(site, path, line),
            # A FIXME is a known fault; age says that nobody else will do it.
            weight=min(1.0, (0.5 if mark == "FIXME" else 0.3) + min(age / (730 * _DAY), 1.0) * 0.5),
        )

    def _ages(self, site: Site, seen: Iterable[tuple[str, int, str, str]]) -> dict[tuple[str, int], tuple[float, str]]:
        """(path, line) -> (age in seconds, author)."""
        lines: dict[str, list[int]] = defaultdict(list)
        for path, line, _, _ in seen:
            lines[path].append(line)
        found: dict[tuple[str, int], tuple[float, str]] = {}
        now = site.clock.now()
        for path, numbers in lines.items():
            spans = [part for number in numbers for part in ("-L", f"{number},{number}")]
            done = site.git.git("blame", "--line-porcelain", *spans, "HEAD", "--", path, timeout=_TIMEOUT)
            current, author = 0, ""
            for row in done.text.splitlines() if done.code == 0 else ():
                if match := re.match(r"[0-9a-f]{40} \d+ (\d+)", row):
                    current = int(match[1])
                elif row.startswith("author "):
                    author = row.removeprefix("author ")
                elif row.startswith("author-time "):
                    found[path, current] = (max(0.0, now - int(row.split()[1])), author)
        return found


def _words(text: str) -> str:
    text = re.sub(r"\s*(?:\*/|-->|\"\"\"|''')\s*$", "", text)
    return " ".join(text.strip(" )").split())[:160]


def _size(site: Site, path: str, line: int) -> Size:
    """By the length of the function or class around it."""
    around = [s for s in site.knowledge.symbols(site.root, path) if s.line <= line <= s.last_line]
    shortest = min((s.last_line - s.line for s in around), default=40)
    return "small" if shortest <= 60 else "medium" if shortest <= 250 else "large"
