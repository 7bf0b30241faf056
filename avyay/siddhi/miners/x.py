"""X: recent search of API v2. Every post read costs money, so each page passes the budget governor first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx2

from avyay.clock import Clock
from avyay.money import Picodollars, parse_usd
from avyay.siddhi.miners.base import Miner, Page, Rate, ask, number
from avyay.siddhi.miners.newest import Walk
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["XSearch"]


class XSearch(Miner):
    """A query is in X's own language, such as `"I wish there was" lang:en -is:retweet`."""

    name = "x"
    rate = Rate(450, 900.0)
    price: Picodollars = parse_usd("0.005")

    def __init__(
        self, http: httpx2.AsyncClient, clock: Clock, token: str, *, endpoint: str = "https://api.x.com/2"
    ) -> None:
        self._http = http
        self._clock = clock
        self._headers = {"authorization": f"Bearer {token}"}
        self._endpoint = endpoint

    async def page(self, query: str, cursor: str | None) -> Page:
        walk = Walk.read(cursor)
        parameters = {
            "query": query,
            "max_results": str(self.page_size),
            "sort_order": "recency",
            "tweet.fields": "created_at,public_metrics,lang",
        }
        if walk.floor:
            parameters["since_id"] = walk.floor
        if walk.place:
            parameters["next_token"] = walk.place
        answer = await ask(
            self._http,
            "X",
            self._clock,
            "GET",
            f"{self._endpoint}/tweets/search/recent",
            params=parameters,
            headers=self._headers,
        )
        posts: list[dict[str, Any]] = answer.data.get("data", [])
        meta = answer.data["meta"]
        walk = walk.seen(meta.get("newest_id"))
        following = meta.get("next_token")
        walk = walk.onward(following) if following else walk.over()
        return Page(
            tuple(self._complaint(post) for post in posts),
            walk.write(),
            not following,
            answer.limits,
            posts=number(meta.get("result_count")),
        )

    async def close(self) -> None:
        await self._http.aclose()

    def _complaint(self, post: dict[str, Any]) -> Complaint:
        counts = post.get("public_metrics", {})
        return Complaint(
            source=self.name,
            id=post["id"],
            permalink=f"https://x.com/i/web/status/{post['id']}",
            title="",
            text=excerpt(post["text"]),
            hash=content_hash(post["text"]),
            created_at=datetime.fromisoformat(post["created_at"]).timestamp(),
            segment=post.get("lang", ""),
            points=number(counts.get("like_count")),
            replies=number(counts.get("reply_count")),
        )
