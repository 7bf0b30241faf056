"""The local copy of the OSV database: filled by `avyay raksha db update`, read without network ever after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from avyay.db import Migration, Schema, open_database
from avyay.errors import DependencyError

__all__ = ["HINT", "SCHEMA", "Advisory", "AdvisoryDatabase"]

HINT = "Fetch it with: avyay raksha db update"

SCHEMA = Schema(
    "raksha_advisories",
    (
        Migration(
            "0001_advisories",
            "CREATE TABLE advisories (ecosystem TEXT, package TEXT, id TEXT, data TEXT) STRICT;"
            "CREATE INDEX advisories_package ON advisories (ecosystem, package);"
            "CREATE TABLE sources (ecosystem TEXT PRIMARY KEY, url TEXT, fetched REAL, records INTEGER) STRICT;",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Advisory:
    """What is known about one vulnerability of one package.

    `score` is CVSS 0..10 or None; `label` the publisher's own word (`HIGH`).
    """

    id: str
    aliases: tuple[str, ...]
    summary: str
    label: str
    score: float | None
    ranges: tuple[tuple[dict[str, str], ...], ...]
    versions: tuple[str, ...]


class AdvisoryDatabase:
    """The local copy, opened for reading.

    Raises:
        DependencyError: there is none yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = open_database(path, SCHEMA, read_only=True, check_same_thread=False)
        except DependencyError as error:
            raise DependencyError("There is no advisory database yet.", hint=HINT, code="no_advisories") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def fetched(self) -> dict[str, datetime]:
        """When each ecosystem was fetched."""
        with self._database.errors():
            rows = self._database.execute("SELECT ecosystem, fetched FROM sources").fetchall()
        return {str(name): datetime.fromtimestamp(at, UTC) for name, at in rows}

    def advisories(self, ecosystem: str, packages: Sequence[str]) -> dict[str, list[Advisory]]:
        """The advisories about some packages, by name."""
        found: dict[str, list[Advisory]] = {}
        with self._database.errors():
            for start in range(0, len(packages), 500):
                part = packages[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = self._database.execute(
                    f"SELECT package, id, data FROM advisories WHERE ecosystem = ? AND package IN ({marks})",  # noqa: S608 - question marks only
                    (ecosystem, *part),
                )
                for package, name, data in rows:
                    found.setdefault(package, []).append(_advisory(name, json.loads(data)))
        return found


def _advisory(name: str, data: dict[str, Any]) -> Advisory:
    return Advisory(
        id=name,
        aliases=tuple(data.get("a", ())),
        summary=data.get("s", ""),
        label=data.get("l", ""),
        score=data.get("c"),
        ranges=tuple(tuple(events) for events in data.get("r", ())),
        versions=tuple(data.get("v", ())),
    )
