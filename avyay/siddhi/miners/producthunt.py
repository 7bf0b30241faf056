"""Product Hunt's GraphQL API v2: the newest posts of a topic, with what people say under them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx2

from avyay.clock import Clock
from avyay.errors import UnreachableError
from avyay.siddhi.miners.base import LimitedError, Miner, Page, Rate, ask, number
from avyay.siddhi.miners.hn import plain
from avyay.siddhi.miners.newest import Walk
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["ProductHunt"]

_QUERY = """
query Posts($first: Int!, $after: String, $topic: String, $postedAfter: DateTime) {
  posts(first: $first, after: $after, topic: $topic, postedAfter: $postedAfter, order: NEWEST) {
    edges { node { id name tagline description url createdAt votesCount commentsCount
      comments(first: 5) { edges { node { id body url createdAt votesCount } } } } }
    pageInfo { endCursor hasNextPage }
  }
}
"""


class ProductHunt(Miner):
    """A query is a topic's slug, or "" for all."""

    name = "producthunt"
    rate = Rate(450, 900.0)  # besides 6,250 complexity points in the same time, which its headers count
    page_size = 20

    def __init__(
        self,
        http: httpx2.AsyncClient,
        clock: Clock,
        token: str,
        *,
        endpoint: str = "https://api.producthunt.com/v2/api/graphql",
    ) -> None:
        self._http = http
        self._clock = clock
        self._token = token
        self._endpoint = endpoint

    async def page(self, query: str, cursor: str | None) -> Page:
        walk = Walk.read(cursor)
        variables = {
            "first": self.page_size,
            "after": walk.place or None,
            "topic": query or None,
            "postedAfter": walk.floor or None,
        }
        answer = await ask(
            self._http,
            "Product Hunt",
            self._clock,
            "POST",
            self._endpoint,
            json={"query": _QUERY, "variables": variables},
            headers={"authorization": f"Bearer {self._token}", "accept": "application/json"},
        )
        if errors := answer.data.get("errors"):
            words = str(errors[0].get("message", errors[0].get("error", "")))
            if "rate limit" in words.lower():
                reset = next((limit.reset_after for limit in answer.limits), None)
                raise LimitedError("Product Hunt", reset)
            raise UnreachableError(f"Product Hunt: {words}", hint="Check the topic.")
        posts = answer.data["data"]["posts"]
        nodes = [edge["node"] for edge in posts["edges"]]
        walk = walk.seen(nodes[0]["createdAt"] if nodes else None)
        done = not posts["pageInfo"]["hasNextPage"]
        walk = walk.over() if done else walk.onward(posts["pageInfo"]["endCursor"])
        complaints = [one for node in nodes for one in self._complaints(node, query)]
        return Page(tuple(complaints), walk.write(), done, answer.limits)

    async def close(self) -> None:
        await self._http.aclose()

    def _complaints(self, node: dict[str, Any], topic: str) -> list[Complaint]:
        about = f"{node['tagline']} {node.get('description') or ''}".strip()
        found = [self._complaint(f"post-{node['id']}", node["url"], node["name"], about, node, topic)]
        for edge in (node.get("comments") or {}).get("edges", []):
            comment = edge["node"]
            text = plain(comment["body"])
            found.append(
                self._complaint(f"comment-{comment['id']}", comment["url"], node["name"], text, comment, topic)
            )
        return found

    def _complaint(
        self, identifier: str, url: str, title: str, text: str, node: dict[str, Any], topic: str
    ) -> Complaint:
        return Complaint(
            source=self.name,
            id=identifier,
            permalink=url,
            title=title,
            text=excerpt(text),
            hash=content_hash(text),
            created_at=datetime.fromisoformat(node["createdAt"]).timestamp(),
            segment=topic,
            points=number(node.get("votesCount")),
            replies=number(node.get("commentsCount")),
        )
