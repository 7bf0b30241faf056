"""Reads lock files: which package in which version, and on which line it says so.

Only what is pinned and comes from a registry: paths, workspace members and git dependencies have no advisories.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

__all__ = ["Dependency", "LockfileError", "is_lockfile", "read_lockfile"]

OsvEcosystem = Literal["PyPI", "npm", "Go"]


class LockfileError(ValueError):
    """The file is not what its name says."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A package at a version; `line` is 1-based."""

    ecosystem: OsvEcosystem
    name: str
    version: str
    line: int


def is_lockfile(name: str) -> bool:
    """Whether `read_lockfile` reads a file of this name."""
    return _reader(name) is not None


def read_lockfile(name: str, text: str) -> list[Dependency]:
    """The pinned packages of a lock file, each once.

    Raises:
        LockfileError: it cannot be parsed.
    """
    reader = _reader(name)
    if reader is None:
        return []
    try:
        found = list(reader(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise LockfileError(f"{name} cannot be read: {type(error).__name__}") from error
    unique: dict[tuple[str, str], Dependency] = {}
    for item in found:
        unique.setdefault((item.name, item.version), item)
    return list(unique.values())


def _reader(name: str) -> Callable[[str], Iterator[Dependency]] | None:
    base = name.rsplit("/", 1)[-1]
    if base in _READERS:
        return _READERS[base]
    folder = name.rsplit("/", 2)[-2] if "/" in name else ""
    if base.endswith((".txt", ".in")) and (_REQUIREMENTS.search(base) or folder == "requirements"):
        return _requirements
    return None


_REQUIREMENTS = re.compile(r"(?:^|[._-])(?:requirements?|constraints)(?:[._-]|$)")
_PIN = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*===?\s*([A-Za-z0-9][^\s;,#\\]*)")


def normal(name: str) -> str:
    """A PyPI name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(text: str) -> Iterator[Dependency]:
    for number, line in enumerate(text.splitlines(), start=1):
        match = _PIN.match(line)
        if match and "*" not in match[2]:
            yield Dependency("PyPI", normal(match[1]), match[2], number)


def _toml_packages(text: str) -> Iterator[Dependency]:
    """uv.lock, poetry.lock, pdm.lock: `[[package]]` tables."""
    lines = _lines_of(text, re.compile(r'^name = "([^"]+)"', re.MULTILINE))
    for package in tomllib.loads(text).get("package", []):
        name, version = package["name"], package.get("version")
        source = package.get("source", {})
        local = isinstance(source, dict) and (
            not {"virtual", "editable", "path", "directory", "git"}.isdisjoint(source)
            or source.get("type") in ("directory", "git", "file", "url")
        )
        line = next(lines.get(name, iter(())), 1)
        if version and not local and "path" not in package and "git" not in package:
            yield Dependency("PyPI", normal(name), str(version), line)


def _lines_of(text: str, pattern: re.Pattern[str]) -> dict[str, Iterator[int]]:
    """For each name the lines on which it stands, in order."""
    found: dict[str, list[int]] = {}
    line, last = 1, 0
    for match in pattern.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        found.setdefault(match[1], []).append(line)
    return {name: iter(lines) for name, lines in found.items()}


def _pipfile_lock(text: str) -> Iterator[Dependency]:
    lines = _lines_of(text, re.compile(r'^\s*"([^"]+)": \{', re.MULTILINE))
    document = json.loads(text)
    for section in ("default", "develop"):
        for name, entry in document.get(section, {}).items():
            version = str(entry.get("version", ""))
            line = next(lines.get(name, iter(())), 1)
            if version.startswith("=="):
                yield Dependency("PyPI", normal(name), version.removeprefix("=="), line)


def _package_lock(text: str) -> Iterator[Dependency]:
    lines = _lines_of(text, re.compile(r'^\s*"([^"]+)": \{', re.MULTILINE))
    document = json.loads(text)
    for path, entry in document.get("packages", {}).items():
        line = next(lines.get(path, iter(())), 1)
        if "node_modules/" not in path or entry.get("link") or not _from_registry(entry.get("resolved")):
            continue
        name = entry.get("name") or path.rpartition("node_modules/")[2]
        if entry.get("version"):
            yield Dependency("npm", name, entry["version"], line)
    if "packages" not in document:
        yield from _package_lock_1(document.get("dependencies", {}), lines)


def _package_lock_1(entries: dict[str, Any], lines: dict[str, Iterator[int]]) -> Iterator[Dependency]:
    for name, entry in entries.items():
        line = next(lines.get(name, iter(())), 1)
        version = str(entry.get("version", ""))
        if version[:1].isdigit():
            yield Dependency("npm", name, version, line)
        yield from _package_lock_1(entry.get("dependencies", {}), lines)


def _from_registry(resolved: Any) -> bool:
    return resolved is None or (isinstance(resolved, str) and resolved.startswith(("http://", "https://")))


_PNPM_KEY = re.compile(r"^/?(@[^/@]+/[^/@]+|[^/@]+)[/@](\d[^(_/]*)")


def _pnpm_lock(text: str) -> Iterator[Dependency]:
    lines = _lines_of(text, re.compile(r"^  '?/?([^\s':]+(?::[^\s':]+)?)'?:", re.MULTILINE))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    document = loader.get_single_data()
    for key in document.get("packages") or {}:
        match = _PNPM_KEY.match(str(key))
        if match:
            yield Dependency("npm", match[1], match[2], next(lines.get(str(key).lstrip("/"), iter(())), 1))


_YARN_HEAD = re.compile(r'^"?((?:@[^/"@]+/)?[^@"\s]+)@(?P<how>[^"\s,]*)')
_YARN_LOCAL = re.compile(r"(?:workspace|link|portal|file|git|https?|patch):|git\+")
_YARN_VERSION = re.compile(r'^\s+version:?\s+"?([^"\s]+)"?')


def _yarn_lock(text: str) -> Iterator[Dependency]:
    name, how, start = "", "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if line and not line[0].isspace() and not line.startswith("#"):
            head = _YARN_HEAD.match(line)
            name, how, start = (head[1], head["how"], number) if head else ("", "", number)
            if how.startswith("npm:") and (alias := re.match(r"npm:((?:@[^/]+/)?[^@]+)@", how)):
                name = alias[1]
        elif name and (version := _YARN_VERSION.match(line)):
            if not _YARN_LOCAL.match(how) and version[1][:1].isdigit():
                yield Dependency("npm", name, version[1], start)
            name = ""


_GO_REQUIRE = re.compile(r"^\s*(?:require\s+)?([^\s/()]+\.[^\s()]+)\s+(v\d[^\s]*)")


def _go_mod(text: str) -> Iterator[Dependency]:
    block = ""
    replaced = set(re.findall(r"^\s*(?:replace\s+)?(\S+)(?:\s+v\S+)?\s+=>", text, re.MULTILINE))
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.split("//")[0].rstrip()
        if opened := re.match(r"^(\w+)\s*\($", bare):
            block = opened[1]
        elif bare.strip() == ")":
            block = ""
        elif block == "require" or bare.startswith("require "):
            match = _GO_REQUIRE.match(bare)
            if match and match[1] not in replaced:
                yield Dependency("Go", match[1], match[2].removeprefix("v").removesuffix("+incompatible"), number)


_READERS: dict[str, Callable[[str], Iterator[Dependency]]] = {
    "uv.lock": _toml_packages,
    "poetry.lock": _toml_packages,
    "pdm.lock": _toml_packages,
    "Pipfile.lock": _pipfile_lock,
    "package-lock.json": _package_lock,
    "npm-shrinkwrap.json": _package_lock,
    "pnpm-lock.yaml": _pnpm_lock,
    "yarn.lock": _yarn_lock,
    "go.mod": _go_mod,
}
