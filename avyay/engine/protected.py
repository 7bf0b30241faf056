"""Files a task may not change unless it says so: tests, CI, lock files, and what its acceptance command reads. Pure.

An agent that cannot make a test pass is tempted to change the test. New test files are welcome; existing ones stay.
"""

from __future__ import annotations

import configparser
import json
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

__all__ = ["Change", "Refusal", "protected_changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """A changed file; `status` as git has it: A added, M modified, D deleted, T type changed."""

    status: str
    path: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that is not allowed, and the kind of file it touches."""

    path: str
    kind: str
    status: str

    def __str__(self) -> str:
        verb = {"A": "added", "D": "deleted", "M": "changed"}.get(self.status, "changed")
        return f"{self.path} was {verb} ({self.kind})"


_TEST_FOLDERS = frozenset({"test", "tests", "__tests__", "spec", "specs", "testdata"})
_TEST_NAMES = (
    "test_*.py", "*_test.py", "*_test.go", "*_test.rs", "*_test.c*", "*.test.[jt]s", "*.test.[jt]sx", "*.spec.[jt]s",
    "*.spec.[jt]sx", "*Test.java", "*Tests.java", "*Test.kt", "*Tests.cs", "*_spec.rb", "*_test.rb", "*Test.php",
)  # fmt: skip
# These steer how tests run: adding one can switch all of them off.
_TEST_STEERING = (
    "conftest.py",
    "pytest.ini",
    "tox.ini",
    ".coveragerc",
    "jest.config.*",
    "vitest.config.*",
    "sitecustomize.py",
)
_CI = (
    ".github/*", ".gitlab-ci.yml", ".gitlab/*", ".circleci/*", ".buildkite/*", "azure-pipelines*.yml", "Jenkinsfile",
    ".travis.yml", ".drone.yml", "bitbucket-pipelines.yml", ".pre-commit-config.yaml", ".gitmodules", ".gitattributes",
)  # fmt: skip
_LOCKS = frozenset(
    {
        "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "bun.lockb",
        "poetry.lock", "uv.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "Cargo.lock", "go.sum", "composer.lock",
        "Gemfile.lock",
        "mix.lock", "flake.lock", "gradle.lockfile", "packages.lock.json", "Podfile.lock", "pubspec.lock",
    }
)  # fmt: skip


def protected_changes(
    changes: Iterable[Change],
    *,
    allow: Collection[str] = (),
    more: Sequence[str] = (),
    accept: str = "",
    read: Callable[[str, bool], str | None] = lambda _path, _after: None,
) -> list[Refusal]:
    """The changes that are not allowed.

    Args:
        allow: "tests", "ci", "locks", "gate", or globs of paths.
        more: Globs that are protected besides.
        accept: The acceptance command: what it runs is a gate that the result cannot move.
        read: The content of a file before (False) or after (True) the change, or None when there is none.
    """
    gates = _gates(accept)
    found = []
    for change in changes:
        kind = _kind(change, gates, more, read)
        if kind is None or kind in allow or any(fnmatchcase(change.path, glob) for glob in allow):
            continue
        found.append(Refusal(change.path, kind, change.status))
    return found


def _kind(
    change: Change, gates: frozenset[str], more: Sequence[str], read: Callable[[str, bool], str | None]
) -> str | None:
    path = PurePosixPath(change.path)
    if any(fnmatchcase(change.path, glob) for glob in more):
        return "protected"
    if any(fnmatchcase(change.path, glob) for glob in _CI):
        return "ci"
    if path.name in _LOCKS:
        return "locks"
    if any(fnmatchcase(path.name, glob) for glob in _TEST_STEERING):
        return "tests"
    if change.status != "A" and _is_test(path):
        return "tests"
    if change.status != "A" and change.path in gates:
        return "gate"
    if (section := _SECTIONS.get(path.name)) is not None and change.status == "M":
        before, after = (section(read(change.path, moment) or "") for moment in (False, True))
        return "gate" if before != after else None
    return None


def _is_test(path: PurePosixPath) -> bool:
    return any(part in _TEST_FOLDERS for part in path.parts[:-1]) or any(
        fnmatchcase(path.name, glob) for glob in _TEST_NAMES
    )


def _gates(accept: str) -> frozenset[str]:
    """Files that steer an acceptance command: the scripts it starts, and the files its tools are steered by."""
    lexer = shlex.shlex(accept, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        words = accept.split()
    gates: set[str] = set()
    first = True
    for number, word in enumerate(words):
        if set(word) <= set("();<>|&"):
            first = True
            continue
        if first and "=" not in word:
            first = False
            tool = PurePosixPath(word).name
            gates |= {word.removeprefix("./")} if "/" in word else _STEERED_BY.get(tool, frozenset())
            if tool in ("sh", "bash", "dash", "zsh", "source", ".") and number + 1 < len(words):
                gates.add(words[number + 1].removeprefix("./"))
    return frozenset(gates)


_STEERED_BY = {
    "make": frozenset({"Makefile", "GNUmakefile", "makefile"}),
    "just": frozenset({"justfile", "Justfile"}),
    "nox": frozenset({"noxfile.py"}),
    "rake": frozenset({"Rakefile"}),
    "task": frozenset({"Taskfile.yml"}),
}


def _pyproject(text: str) -> Any:
    try:
        tool = tomllib.loads(text).get("tool", {})
    except tomllib.TOMLDecodeError:
        return text
    return {name: tool.get(name) for name in ("pytest", "coverage", "tox", "nox", "hatch") if name in tool}


def _package_json(text: str) -> Any:
    try:
        content = json.loads(text)
        return {name: content.get(name) for name in ("scripts", "jest", "vitest", "mocha", "nyc") if name in content}
    except (ValueError, AttributeError):
        return text


def _setup_cfg(text: str) -> Any:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return text
    return {name: dict(parser[name]) for name in parser.sections() if name.startswith(("tool:", "coverage:", "tox"))}


_SECTIONS: dict[str, Callable[[str], Any]] = {
    "pyproject.toml": _pyproject,
    "package.json": _package_json,
    "setup.cfg": _setup_cfg,
}
