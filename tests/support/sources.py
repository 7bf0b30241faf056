"""Scripted sources: one loopback HTTP server that answers like Hacker News, Reddit, Product Hunt, X and a feed.

Bodies follow the documentation, read in November 2026, and were not recorded: hn.algolia.com/api; Reddit's
github.com/reddit-archive/reddit/wiki/API and reddit.com/dev/api; api.producthunt.com/v2/docs/rate_limits/headers and
its GraphQL reference; docs.x.com/x-api/posts/recent-search; RSS 2.0 and RFC 4287.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Reply = tuple[int, dict[str, str], bytes]


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Sources:
    """`posts` complaints, number 1 the oldest, one a minute. `now` is the clock that requests are stamped with."""

    def __init__(self, now: Callable[[], float], posts: int = 250) -> None:
        self.now = now
        self.base = 1_790_000_000
        self.posts = posts
        self.deleted: set[int] = set()
        self.script: list[Reply] = []  # answered first, one for each request
        self.requests: list[tuple[float, str, dict[str, str], dict[str, str]]] = []
        self.limit_headers: dict[str, str] = {}
        sources = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                self.serve()

            def do_POST(self) -> None:
                self.serve()

            def serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                sources.requests.append((sources.now(), parts.path, query, headers))
                if sources.script:
                    status, more, body = sources.script.pop(0)
                else:
                    status, more, body = sources.answer(parts.path, query, headers, raw)
                self.send_response(status)
                for name, value in {**sources.limit_headers, **more}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Sources:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    def numbers(self) -> list[int]:
        """Newest first."""
        return [number for number in range(self.posts, 0, -1) if number not in self.deleted]

    def time_of(self, number: int) -> int:
        return self.base + number * 60

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str], raw: bytes) -> Reply:
        if path.startswith("/hn/"):
            return self.ok(self.hacker_news(query))
        if path.startswith("/item/"):
            number = int(path.removeprefix("/item/").removesuffix(".json"))
            return self.ok({"id": number, "deleted": True} if number in self.deleted else {"id": number, "by": "a"})
        if path == "/reddit/token":
            assert headers["authorization"].startswith("Basic ")
            return self.ok({"access_token": "t", "token_type": "bearer", "expires_in": 86400, "scope": "*"})
        if path.startswith("/reddit/"):
            assert headers["authorization"] == "Bearer t"
            assert headers["user-agent"].startswith("python:avyay")
            return self.ok(self.reddit(path, query))
        if path == "/producthunt":
            return self.ok(self.product_hunt(json.loads(raw)))
        if path.startswith("/x/"):
            return self.ok(self.x(query))
        return self.feed(path, headers)

    def ok(self, body: Any) -> Reply:
        return 200, {"content-type": "application/json"}, json.dumps(body).encode()

    def hacker_news(self, query: dict[str, str]) -> Any:
        above = re.search(r"created_at_i>(\d+)", query.get("numericFilters", ""))
        below = re.search(r"created_at_i<=(\d+)", query.get("numericFilters", ""))
        matching = [
            number
            for number in self.numbers()
            if (not above or self.time_of(number) > int(above[1]))
            and (not below or self.time_of(number) <= int(below[1]))
        ]
        size = int(query["hitsPerPage"])
        hits = [
            {
                "objectID": str(number),
                "author": "someone",
                "created_at": iso(self.time_of(number)),
                "created_at_i": self.time_of(number),
                "title": None,
                "story_title": "A story",
                "comment_text": f"<p>I hate copying invoice {number} by hand&#x27;s way</p>",
                "points": None,
                "_tags": ["comment", "author_someone", "story_1"],
            }
            for number in matching[:size]
        ]
        return {
            "hits": hits,
            "nbHits": len(matching),
            "page": 0,
            "nbPages": -(-len(matching) // size),
            "hitsPerPage": size,
        }

    def reddit(self, path: str, query: dict[str, str]) -> Any:
        if path.endswith("/api/info"):
            asked = [int(name[3:], 36) for name in query["id"].split(",")]
            rows = [self.thing(number, removed=number in self.deleted) for number in asked]
            return {"kind": "Listing", "data": {"after": None, "children": rows}}
        numbers = self.numbers()
        if "after" in query:
            numbers = numbers[numbers.index(int(query["after"][3:], 36)) + 1 :]
        shown = numbers[: int(query["limit"])]
        after = self.thing(shown[-1])["data"]["name"] if len(numbers) > len(shown) else None
        return {"kind": "Listing", "data": {"after": after, "children": [self.thing(number) for number in shown]}}

    def thing(self, number: int, *, removed: bool = False) -> Any:
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        code, rest = "", number
        while rest:
            rest, digit = divmod(rest, 36)
            code = digits[digit] + code
        return {
            "kind": "t3",
            "data": {
                "id": code,
                "name": f"t3_{code}",
                "title": f"Invoice {number}",
                "selftext": "[removed]" if removed else f"I hate copying invoice {number} by hand",
                "author": "[deleted]" if removed else "someone",
                "permalink": f"/r/smallbusiness/comments/{code}/invoice/",
                "subreddit": "smallbusiness",
                "created_utc": float(self.time_of(number)),
                "score": 3,
                "num_comments": 2,
            },
        }

    def product_hunt(self, body: dict[str, Any]) -> Any:
        variables = body["variables"]
        numbers = self.numbers()
        if variables["postedAfter"]:
            after = datetime.fromisoformat(variables["postedAfter"]).timestamp()
            numbers = [number for number in numbers if self.time_of(number) > after]
        start = int(variables["after"] or 0)
        end = start + variables["first"]
        edges = [
            {
                "node": {
                    "id": str(number),
                    "name": f"Tool {number}",
                    "tagline": "Invoices",
                    "description": None,
                    "url": f"https://www.producthunt.com/posts/tool-{number}",
                    "createdAt": iso(self.time_of(number)),
                    "votesCount": 1,
                    "commentsCount": 0,
                    "comments": {"edges": []},
                }
            }
            for number in numbers[start:end]
        ]
        page = {"endCursor": str(end), "hasNextPage": end < len(numbers)}
        return {"data": {"posts": {"edges": edges, "pageInfo": page}}}

    def x(self, query: dict[str, str]) -> Any:
        numbers = [number for number in self.numbers() if number > int(query.get("since_id", 0))]
        start = int(query.get("next_token", 0))
        size = int(query["max_results"])
        shown = numbers[start : start + size]
        meta: dict[str, Any] = {"result_count": len(shown)}
        if shown:
            meta |= {"newest_id": str(shown[0]), "oldest_id": str(shown[-1])}
        if start + size < len(numbers):
            meta["next_token"] = str(start + size)
        data = [
            {
                "id": str(number),
                "text": f"I hate copying invoice {number} by hand",
                "created_at": iso(self.time_of(number)),
                "lang": "en",
                "public_metrics": {"retweet_count": 0, "reply_count": 1, "like_count": 4, "quote_count": 0},
                "edit_history_tweet_ids": [str(number)],
            }
            for number in shown
        ]
        return ({"data": data} if data else {}) | {"meta": meta}

    def feed(self, path: str, headers: dict[str, str]) -> Reply:
        tag = f'"{self.posts}"'
        if headers.get("if-none-match") == tag:
            return 304, {"etag": tag}, b""
        if path == "/atom":
            entries = "".join(
                f"<entry><id>tag:{n}</id><title>Entry {n}</title><link rel='alternate' href='https://b.example/{n}'/>"
                f"<published>{iso(self.time_of(n))}</published><content type='html'>I hate {n}</content></entry>"
                for n in self.numbers()[:10]
            )
            body = f"<feed xmlns='http://www.w3.org/2005/Atom'>{entries}</feed>"
        else:
            items = "".join(
                f"<item><guid>g{n}</guid><title>Item {n}</title><link>https://b.example/{n}</link>"
                "<pubDate>Mon, 21 Sep 2026 10:00:00 GMT</pubDate>"
                f"<description>I hate &lt;b&gt;{n}&lt;/b&gt;</description></item>"
                for n in self.numbers()[:10]
            )
            body = f"<rss version='2.0'><channel><title>t</title>{items}</channel></rss>"
        return 200, {"etag": tag, "content-type": "application/xml"}, body.encode()
