"""Files on this machine: JSON lines with `text` and, if known, `title`, `url`, `id`, `created_at`, `segment`."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from avyay.errors import UsageError, why_unreadable
from avyay.siddhi.miners.base import Miner, Page, Rate, number
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["Files"]


class Files(Miner):
    """A query is a path. The cursor is how many lines were read, so lines added later are found."""

    name = "file"
    rate = Rate(1_000_000, 1.0)
    page_size = 1000

    async def page(self, query: str, cursor: str | None) -> Page:
        path = Path(query)
        begin = int(cursor or 0)
        lines = await asyncio.to_thread(_lines, path, begin, self.page_size)
        complaints = [_complaint(line, path, begin + place + 1) for place, line in enumerate(lines) if line.strip()]
        return Page(tuple(complaints), str(begin + len(lines)), len(lines) < self.page_size)


def _lines(path: Path, begin: int, count: int) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return list(islice(file, begin, begin + count))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {why_unreadable(error)}.", hint="It must be JSON lines in UTF-8."
        ) from error


def _complaint(line: str, path: Path, place: int) -> Complaint:
    try:
        row: dict[str, Any] = json.loads(line)
        text = str(row["text"])
        created = row.get("created_at", 0)
        moment = datetime.fromisoformat(created).timestamp() if isinstance(created, str) else float(created)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path}:{place}: not a complaint ({error}).", hint='Each line: {"text": "...", "url": "..."}'
        ) from error
    identifier = str(row.get("id") or content_hash(text)[:16])
    return Complaint(
        source=str(row.get("source") or "file"),
        id=identifier,
        permalink=str(row.get("url") or f"{path.absolute().as_uri()}#L{place}"),
        title=str(row.get("title") or ""),
        text=excerpt(text),
        hash=content_hash(text),
        created_at=moment,
        segment=str(row.get("segment") or ""),
        points=number(row.get("points")),
        replies=number(row.get("replies")),
    )
