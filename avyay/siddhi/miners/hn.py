"""Hacker News: Algolia's search by date, and the official API to learn what was deleted. No key is needed."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import httpx2

from avyay.clock import Clock
from avyay.siddhi.miners.base import Miner, Page, Rate, ask, number
from avyay.siddhi.miners.newest import Walk
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["HackerNews", "plain"]

_TAG = re.compile(r"<[^>]*>")


class HackerNews(Miner):
    """The query is what Algolia searches for; stories and comments."""

    name = "hn"
    rate = Rate(10_000, 3600.0)

    def __init__(
        self,
        http: httpx2.AsyncClient,
        clock: Clock,
        *,
        endpoint: str = "https://hn.algolia.com/api/v1",
        items: str = "https://hacker-news.firebaseio.com/v0",
    ) -> None:
        self._http = http
        self._clock = clock
        self._endpoint = endpoint
        self._items = items

    async def page(self, query: str, cursor: str | None) -> Page:
        walk = Walk.read(cursor)
        bounds = [f"created_at_i>{walk.floor}"] if walk.floor else []
        if walk.place:
            # Pages end at 1,000 hits there; bounds in time do not. Ties in a second are met again and stored once.
            bounds.append(f"created_at_i<={walk.place}")
        parameters = {"query": query, "tags": "(story,comment)", "hitsPerPage": str(self.page_size), "page": "0"}
        if bounds:
            parameters["numericFilters"] = ",".join(bounds)
        answer = await ask(
            self._http, "Hacker News", self._clock, "GET", f"{self._endpoint}/search_by_date", params=parameters
        )
        hits: list[dict[str, Any]] = answer.data["hits"]
        times = [number(hit["created_at_i"]) for hit in hits]
        walk = walk.seen(str(times[0]) if times else None)
        done = len(hits) < self.page_size
        if not done:
            last = times[-1]
            # A whole page within one second: step below it, or the walk would stand still.
            walk = walk.onward(str(last - 1 if str(last) == walk.place and times[0] == last else last))
        return Page(
            tuple(self._complaint(hit) for hit in hits), (walk.over() if done else walk).write(), done, answer.limits
        )

    async def gone(self, ids: Sequence[str]) -> list[str]:
        found = []
        for one in ids:
            answer = await ask(self._http, "Hacker News", self._clock, "GET", f"{self._items}/item/{one}.json")
            if answer.data is None or answer.data.get("deleted") or answer.data.get("dead"):
                found.append(one)
        return found

    async def close(self) -> None:
        await self._http.aclose()

    def _complaint(self, hit: dict[str, Any]) -> Complaint:
        text = plain(hit.get("comment_text") or hit.get("story_text") or "")
        title = hit.get("title") or hit.get("story_title") or ""
        kind = next((tag for tag in ("ask_hn", "show_hn", "comment", "story") if tag in hit.get("_tags", ())), "")
        return Complaint(
            source=self.name,
            id=str(hit["objectID"]),
            permalink=f"https://news.ycombinator.com/item?id={hit['objectID']}",
            title=title,
            text=excerpt(text or title),
            hash=content_hash(text or title),
            created_at=float(hit["created_at_i"]),
            segment=kind,
            points=number(hit.get("points")),
            replies=number(hit.get("num_comments")),
        )


def plain(markup: str) -> str:
    """Text without its HTML."""
    return html.unescape(_TAG.sub(" ", markup))
