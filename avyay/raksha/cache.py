"""Results of earlier scans: what an engine said of a file with this name and content, under these rules.

Nothing here is precious: a cache that cannot be opened, read or written is simply not used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.errors import AvyayError, CorruptError
from avyay.raksha.engines.base import FileResult
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Finding, Rule

__all__ = ["ResultCache", "cache_key", "decode", "decode_rules", "encode", "encode_rules"]

SCHEMA = Schema(
    "raksha_results",
    (
        Migration(
            "0001_results", "CREATE TABLE results (key BLOB PRIMARY KEY, value TEXT, day INTEGER) WITHOUT ROWID, STRICT"
        ),
    ),
)
KEEP_DAYS = 30
DAY = 86_400
CHUNK = 500


class ResultCache:
    """A SQLite file of results. One per scan: not shared between threads."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._clock = clock
        self._database: Database | None = None
        self._broken = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The values known for `keys`."""
        found: dict[bytes, str] = {}
        database = self._open()
        if database is None:
            return found
        try:
            with database.errors():
                for start in range(0, len(keys), CHUNK):
                    part = keys[start : start + CHUNK]
                    marks = ",".join("?" * len(part))
                    found.update(database.execute(f"SELECT key, value FROM results WHERE key IN ({marks})", part))  # noqa: S608 - question marks only
        except AvyayError:
            self._broken = True
        return found

    def put(self, values: Mapping[bytes, str]) -> None:
        """Remember results; drops those not written for a month."""
        database = self._open()
        if database is None or not values:
            return
        today = int(self._clock.now() // DAY)
        try:
            with database.transaction():
                rows = [(key, value, today) for key, value in values.items()]
                database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
                database.execute("DELETE FROM results WHERE day < ?", (today - KEEP_DAYS,))
        except AvyayError:
            self._broken = True

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> Database | None:
        if self._database is None and not self._broken:
            try:
                self._database = self._open_or_replace()
            except AvyayError:
                self._broken = True
        return self._database

    def _open_or_replace(self) -> Database:
        try:
            return open_database(self._path, SCHEMA, busy_timeout=1.0)
        except CorruptError:
            for path in self._path.parent.glob(f"{self._path.name}*"):
                path.unlink(missing_ok=True)
            return open_database(self._path, SCHEMA, busy_timeout=1.0)


def cache_key(engine: str, version: str, file: SourceFile) -> bytes:
    """Names a result: engine, its version and rules, the file's name and content."""
    parts = (engine.encode(), version.encode(), os.fsencode(file.name), file.digest)
    return hashlib.blake2b(b"\0".join(parts)).digest()[:20]


def encode(result: FileResult, file: SourceFile) -> str | None:
    """A result as text, or None for one that may come out otherwise next time.

    Secrets are not written: their places are, and the file itself gives them back.
    """
    if result.failed:
        return None
    findings = []
    for finding in result.findings:
        places = [place for secret in finding.secrets if (place := file.text.find(secret)) >= 0]
        if len(places) != len(finding.secrets):
            return None
        data = {name: value for name in _FIELDS if (value := getattr(finding, name)) not in ((), None, "")}
        data["secrets"] = [[place, len(secret)] for place, secret in zip(places, finding.secrets, strict=True)]
        data["edits"] = [[e.line, e.column, e.end_line, e.end_column, e.text, e.safe] for e in finding.edits]
        if any(secret in str(data.get("message", "")) for secret in finding.secrets):
            return None
        findings.append(data)
    return json.dumps([result.parsed, result.problem, result.sure, findings], separators=(",", ":"))


def decode(text: str, file: SourceFile) -> FileResult | None:
    """The result back from its text; None when it cannot be read (written by another version)."""
    try:
        parsed, problem, sure, findings = json.loads(text)
        return FileResult([_finding(data, file) for data in findings], bool(parsed), str(problem), sure=bool(sure))
    except (ValueError, TypeError, KeyError):
        return None


def encode_rules(rules: Sequence[Rule]) -> str:
    """Rules as text."""
    return json.dumps([asdict(rule) for rule in rules], separators=(",", ":"))


def decode_rules(text: str) -> list[Rule] | None:
    """The rules back; None when the text cannot be read."""
    try:
        return [_rule(item) for item in json.loads(text)]
    except (ValueError, TypeError, AttributeError):
        return None


def _rule(item: dict[str, Any]) -> Rule:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
    return Rule(**values)


_FIELDS = tuple(field.name for field in fields(Finding) if field.name not in ("secrets", "edits", "triage"))


def _finding(data: dict[str, Any], file: SourceFile) -> Finding:
    secrets = tuple(file.text[place : place + length] for place, length in data.pop("secrets"))
    edits = tuple(Edit(*values) for values in data.pop("edits"))
    for name in ("origins", "cwe"):
        if name in data:
            data[name] = tuple(data[name])
    return Finding(**data, secrets=secrets, edits=edits)
