"""What a check may ask about the project around a file: authors, owners, manifests, allow-lists; each read once."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from avyay.errors import AvyayError
from avyay.git import GitRepository, find_repository

__all__ = ["Allowed", "Ecosystem", "PackageFacts", "Project", "Resolver"]

Ecosystem = Literal["pypi", "npm", "go"]
EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
OWNERS = ("CODEOWNERS", ".github/CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")
METADATA = (
    "pyproject.toml", "setup.py", "setup.cfg", "package.json", "Cargo.toml", "composer.json", "pom.xml", "Chart.yaml",
    "AUTHORS", "AUTHORS.md",
    "AUTHORS.rst", "AUTHORS.txt", "MAINTAINERS", "MAINTAINERS.md", "CONTRIBUTORS", "CONTRIBUTORS.md", "SECURITY.md",
    "CODE_OF_CONDUCT.md", "LICENSE", "LICENSE.txt", ".mailmap", "CITATION.cff",
)  # fmt: skip
MANIFESTS = re.compile(
    r"(?:^|/)(?:pyproject\.toml|setup\.(?:py|cfg)|(?:[\w.-]*requirements?[\w.-]*|constraints[\w.-]*)\.(?:txt|in)"
    r"|requirements/[\w.-]+\.(?:txt|in)|Pipfile|environment\.ya?ml|package\.json|go\.(?:mod|work)|pnpm-workspace\.yaml)$"
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the user vouches for (`raksha.allow` in avyay.yaml), lower case; a leading `*.` or `*@` is a wildcard."""

    emails: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What a package registry says of a name."""

    exists: bool
    first_released: date | None = None
    releases: int = 0


class Resolver(Protocol):
    """Asks the network, bounded and cached. Every answer may be None: not known (no network, timeout, odd answer)."""

    def host_exists(self, host: str) -> bool | None: ...

    def package(self, ecosystem: Ecosystem, name: str) -> PackageFacts | None: ...


@dataclass
class Project:
    """The surroundings of a scan.

    Attributes:
        root: The scan root; every file name is relative to it.
        files: Names of all files under the root that git (or the walk) knows, scanned or not.
        resolver: Set with `--online`; None means: do not ask the network.
    """

    root: Path
    files: tuple[str, ...] = ()
    allowed: Allowed = field(default_factory=Allowed)
    resolver: Resolver | None = None

    @property
    def online(self) -> bool:
        return self.resolver is not None

    @cached_property
    def repository(self) -> GitRepository | None:
        """The git repository around the root; None without one or without git."""
        try:
            return find_repository(self.root)
        except AvyayError:
            return None

    @cached_property
    def top(self) -> Path:
        """The top of the repository, or the scan root: where metadata files are looked for."""
        return self.repository.root if self.repository is not None else self.root

    def read(self, name: str, *, limit: int = 2_000_000) -> str | None:
        """A file's text by its name relative to `root`; None when missing, unreadable or larger than `limit` bytes."""
        return _read(self.root / name, limit)

    @cached_property
    def git_emails(self) -> frozenset[str]:
        """Lower-case addresses of all authors and committers, and of trailers such as Co-authored-by."""
        if self.repository is None:
            return frozenset()
        done = self.repository.git(
            "log", "--no-show-signature", "--all", "--format=%ae%n%ce%n%(trailers:only,valueonly)", "-n", "20000"
        )
        return _emails(done.text) if done.code == 0 else frozenset()

    @cached_property
    def metadata_emails(self) -> frozenset[str]:
        """Lower-case addresses named by CODEOWNERS, package metadata, licence and maintainers' files."""
        places = {self.root, self.top}
        texts = (_read(place / name) for place in sorted(places) for name in (*OWNERS, *METADATA))
        nested = (self.read(name) for name in self.files if name.rsplit("/", 1)[-1] in METADATA and "/" in name)
        return frozenset().union(*(_emails(text) for text in (*texts, *nested) if text))

    @cached_property
    def known_emails(self) -> frozenset[str]:
        """Every address somebody here really uses."""
        return self.git_emails | self.metadata_emails | self.allowed.emails

    @cached_property
    def manifests(self) -> Mapping[str, str]:
        """Dependency manifests (name relative to the root -> text), below the scan root and in the folders above it."""
        found = {name: text for name in self.files if MANIFESTS.search(name) and (text := self.read(name)) is not None}
        for folder in self.root.parents if self.root != self.top else ():
            for path in sorted(folder.iterdir()):
                if MANIFESTS.search(path.name) and path.is_file() and (text := _read(path)) is not None:
                    found[path.as_posix()] = text
            if folder == self.top:
                break
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Changes when anything a check may read here changes; part of the key of cached results."""
        digest = hashlib.sha256()
        if self.repository is not None:
            # Who wrote what changes with the references, and they are read far faster than the history.
            digest.update(self.repository.git("for-each-ref", "--format=%(objectname)").stdout)
            digest.update((self.repository.head() or "").encode())
        names = (*self.allowed.emails, "/", *self.allowed.hosts, "/", *self.allowed.packages)
        for part in (*sorted(self.metadata_emails), *sorted(names)):
            digest.update(f"{part}\0".encode())
        for name, text in sorted(self.manifests.items()):
            digest.update(os.fsencode(f"{name}\0{text}\0"))
        digest.update(os.fsencode("\0".join(self.files)))  # names need not be text
        return digest.hexdigest()


def _read(path: Path, limit: int = 2_000_000) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > limit:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _emails(text: str) -> frozenset[str]:
    return frozenset(match.lower() for match in EMAIL.findall(text))
