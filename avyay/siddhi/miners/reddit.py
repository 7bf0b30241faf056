"""Reddit through OAuth (application only): new posts of a subreddit, or a search in it. Its pages are never scraped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2

from avyay import __version__
from avyay.clock import Clock
from avyay.siddhi.miners.base import Miner, Page, Rate, ask, number
from avyay.siddhi.miners.newest import Walk
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["Reddit"]

_REMOVED = ("[deleted]", "[removed]")


class Reddit(Miner):
    """A query is a subreddit, or "subreddit: words"."""

    name = "reddit"
    rate = Rate(1000, 600.0)  # 100 a minute for each client, averaged over ten minutes

    def __init__(
        self,
        http: httpx2.AsyncClient,
        clock: Clock,
        client_id: str,
        client_secret: str,
        *,
        user: str = "avyay",
        endpoint: str = "https://oauth.reddit.com",
        tokens: str = "https://www.reddit.com/api/v1/access_token",
    ) -> None:
        self._http = http
        self._clock = clock
        self._keys = (client_id, client_secret)
        self._agent = f"python:avyay.siddhi:{__version__} (by /u/{user})"
        self._endpoint = endpoint
        self._tokens = tokens
        self._token = ("", 0.0)

    async def page(self, query: str, cursor: str | None) -> Page:
        walk = Walk.read(cursor)
        subreddit, _, words = (part.strip() for part in query.partition(":"))
        parameters = {"limit": str(self.page_size), "raw_json": "1"}
        if walk.place:
            parameters["after"] = walk.place
        if words:
            parameters |= {"q": words, "restrict_sr": "1", "sort": "new", "t": "all"}
        answer = await self._get(f"/r/{subreddit}/{'search' if words else 'new'}", parameters)
        listing = answer.data["data"]
        posts = [child["data"] for child in listing["children"]]
        floor = float(walk.floor or 0)
        fresh = [post for post in posts if post["created_utc"] > floor]
        walk = walk.seen(str(posts[0]["created_utc"]) if posts else None)
        after = listing.get("after")
        done = not after or len(fresh) < len(posts)
        walk = walk.over() if done else walk.onward(after)
        kept = tuple(self._complaint(post) for post in fresh if post.get("selftext") not in _REMOVED)
        return Page(kept, walk.write(), done, answer.limits)

    async def gone(self, ids: Sequence[str]) -> list[str]:
        found = set(ids)
        for start in range(0, len(ids), 100):
            names = ",".join(ids[start : start + 100])
            answer = await self._get("/api/info", {"id": names, "raw_json": "1"})
            for child in answer.data["data"]["children"]:
                post = child["data"]
                if post.get("author") != "[deleted]" and post.get("selftext", post.get("body")) not in _REMOVED:
                    found.discard(post["name"])
        return sorted(found)

    async def close(self) -> None:
        await self._http.aclose()

    async def _get(self, path: str, parameters: dict[str, str]) -> Any:
        headers = {"authorization": f"Bearer {await self._access()}", "user-agent": self._agent}
        return await ask(
            self._http, "Reddit", self._clock, "GET", f"{self._endpoint}{path}", params=parameters, headers=headers
        )

    async def _access(self) -> str:
        if self._token[1] <= self._clock.now():
            answer = await ask(
                self._http,
                "Reddit",
                self._clock,
                "POST",
                self._tokens,
                auth=self._keys,
                data={"grant_type": "client_credentials"},
                headers={"user-agent": self._agent},
            )
            lasting = float(answer.data["expires_in"]) - 60
            self._token = (answer.data["access_token"], self._clock.now() + lasting)
        return self._token[0]

    def _complaint(self, post: dict[str, Any]) -> Complaint:
        text = post.get("selftext") or post["title"]
        return Complaint(
            source=self.name,
            id=post["name"],
            permalink=f"https://www.reddit.com{post['permalink']}",
            title=post["title"],
            text=excerpt(text),
            hash=content_hash(text),
            created_at=float(post["created_utc"]),
            segment=post["subreddit"].lower(),
            points=number(post.get("score")),
            replies=number(post.get("num_comments")),
        )
