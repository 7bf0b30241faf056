"""Fetches the OSV database: one zip of JSON records per ecosystem, kept as one SQLite file with what matching needs.

The new file is built aside and moved into place whole; whatever goes wrong, the old copy stays.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, get_args

import httpx2

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, open_database
from avyay.errors import AvyayError, UnreachableError
from avyay.http import client, unreachable
from avyay.paths import ensure_directory
from avyay.raksha.sca.cvss import base_score
from avyay.raksha.sca.database import SCHEMA
from avyay.raksha.sca.lockfiles import OsvEcosystem, normal

__all__ = ["ECOSYSTEMS", "SOURCE", "update_database"]

SOURCE = "https://osv-vulnerabilities.storage.googleapis.com"
ECOSYSTEMS: tuple[OsvEcosystem, ...] = get_args(OsvEcosystem)
MAXIMUM_ZIP = 2_000_000_000
MAXIMUM_RECORD = 20_000_000
BATCH = 5_000
ATTEMPTS = 3


def update_database(
    path: Path,
    *,
    ecosystems: Sequence[OsvEcosystem] = ECOSYSTEMS,
    source: str = SOURCE,
    progress: Callable[[int, int | None, str], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, int]:
    """Fetch the advisories of some ecosystems; those of others stay as they are.

    Returns:
        The number of records by ecosystem.

    Raises:
        UnreachableError: the source does not answer, or answers something else; the old copy stays.
        DependencyError: the database cannot be written.
        UsageError: nor can its folder.
    """
    counts: dict[str, int] = {}
    ensure_directory(path.parent)
    with TemporaryDirectory(prefix=".advisories-", dir=path.parent) as folder:
        fresh = Path(folder, "new.db")
        database = open_database(fresh, SCHEMA, synchronous="OFF")
        try:
            for ecosystem in ecosystems:
                url = f"{source.rstrip('/')}/{ecosystem}/all.zip"
                archive = Path(folder, f"{ecosystem}.zip")
                _download(url, archive, progress)
                with database.transaction():
                    counts[ecosystem] = _fill(database, ecosystem, archive, url, progress)
                    row = (ecosystem, url, clock.now(), counts[ecosystem])
                    database.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", row)
                archive.unlink()
            _keep_others(database, path, ecosystems)
            database.execute("PRAGMA journal_mode = DELETE")
        finally:
            database.close()
        for leftover in ("-wal", "-shm"):
            Path(f"{path}{leftover}").unlink(missing_ok=True)
        fresh.replace(path)
    return counts


def _download(url: str, target: Path, progress: Callable[[int, int | None, str], None] | None) -> None:
    last: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            with client(read=60.0) as http, http.stream("GET", url) as response:
                if response.status_code >= 500:
                    last = httpx2.HTTPStatusError(
                        f"HTTP {response.status_code}", request=response.request, response=response
                    )
                    continue
                if not response.is_success:
                    status = response.status_code
                    raise UnreachableError(f"The advisory source answered HTTP {status}.", hint=f"Check {url}.")
                _save(response, target, progress)
                return
        except httpx2.TransportError as error:
            last = error
    assert last is not None
    raise unreachable("The advisory source", url, last)


def _save(response: httpx2.Response, target: Path, progress: Callable[[int, int | None, str], None] | None) -> None:
    length = response.headers.get("content-length", "")
    total = int(length) if length.isdigit() else None
    done = 0
    with target.open("wb") as stream:
        for piece in response.iter_bytes(1 << 20):
            done += len(piece)
            if done > MAXIMUM_ZIP:
                raise UnreachableError(f"{response.url} is larger than 2 GB.", hint="Is this the right source?")
            stream.write(piece)
            if progress is not None:
                progress(done, total, f"Fetching {target.stem}")


def _fill(
    database: Database,
    ecosystem: OsvEcosystem,
    archive: Path,
    url: str,
    progress: Callable[[int, int | None, str], None] | None,
) -> int:
    records = 0
    rows: list[tuple[str, str, str, str]] = []

    def flush() -> None:
        database.executemany("INSERT INTO advisories VALUES (?, ?, ?, ?)", rows)
        rows.clear()

    try:
        with zipfile.ZipFile(archive) as bundle:
            infos = [info for info in bundle.infolist() if info.filename.endswith(".json")]
            for number, info in enumerate(infos, start=1):
                if info.file_size > MAXIMUM_RECORD:
                    continue
                with bundle.open(info) as stream:
                    record = json.loads(_limited(stream))
                before = len(rows)
                rows.extend(_rows(record, ecosystem))
                records += len(rows) > before
                if len(rows) >= BATCH:
                    flush()
                    if progress is not None:
                        progress(number, len(infos), f"Reading {ecosystem}")
            flush()
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreachableError(
            f"{url} holds no OSV records ({type(error).__name__}).", hint="Is this the right source?"
        ) from error
    if not records:
        raise UnreachableError(f"{url} holds no OSV records.", hint="Is this the right source?")
    return records


def _limited(stream: IO[bytes]) -> bytes:
    """A record; its size in the archive's directory may lie."""
    data = stream.read(MAXIMUM_RECORD + 1)
    if len(data) > MAXIMUM_RECORD:
        raise ValueError("a record is too large")
    return data


def _rows(record: dict[str, Any], ecosystem: OsvEcosystem) -> Iterator[tuple[str, str, str, str]]:
    if record.get("withdrawn"):
        return
    packages: dict[str, dict[str, list[Any]]] = {}
    for affected in record.get("affected", ()):
        package = affected.get("package", {})
        if package.get("ecosystem") != ecosystem:
            continue
        name = normal(package["name"]) if ecosystem == "PyPI" else package["name"]
        entry = packages.setdefault(name, {"r": [], "v": []})
        ranges = [r["events"] for r in affected.get("ranges", ()) if r.get("type") in ("SEMVER", "ECOSYSTEM")]
        entry["r"].extend(ranges)
        if not ranges:
            entry["v"].extend(affected.get("versions", ()))
    if not packages:
        return
    specific = record.get("database_specific") or {}
    scores = [score for item in record.get("severity", ()) if (score := base_score(item.get("score", ""))) is not None]
    shared = {
        "a": record.get("aliases", []),
        "s": " ".join(str(record.get("summary") or record.get("details") or "").split())[:200],
        "l": str(specific.get("severity", "")).upper() if isinstance(specific, dict) else "",
        "c": max(scores) if scores else None,
    }
    for name, entry in packages.items():
        yield ecosystem, name, record["id"], json.dumps({**shared, **entry}, separators=(",", ":"))


def _keep_others(database: Database, path: Path, ecosystems: Sequence[str]) -> None:
    if not path.is_file():
        return
    try:
        old = open_database(path, SCHEMA, read_only=True)
    except AvyayError:
        return  # damaged or not ours: what was fetched now is all there is
    try:
        marks = ",".join("?" * len(ecosystems))
        with database.transaction():
            for table in ("advisories", "sources"):
                query = f"SELECT * FROM {table} WHERE ecosystem NOT IN ({marks})"  # noqa: S608 - constants
                for row in old.execute(query, tuple(ecosystems)):
                    database.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    finally:
        old.close()
