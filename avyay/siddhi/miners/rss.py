"""RSS 2.0 and Atom feeds, asked politely: conditional requests, one every two seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from xml.etree import ElementTree

import httpx2

from avyay.clock import Clock
from avyay.errors import UnreachableError
from avyay.siddhi.miners.base import Miner, Page, Rate, ask
from avyay.siddhi.miners.hn import plain
from avyay.siddhi.types import Complaint, content_hash, excerpt

__all__ = ["Feeds"]

_ATOM = "{http://www.w3.org/2005/Atom}"
_CONTENT = "{http://purl.org/rss/1.0/modules/content/}encoded"


class Feeds(Miner):
    """A query is the address of a feed. A feed is one page; the cursor holds its validators."""

    name = "rss"
    rate = Rate(1, 2.0)

    def __init__(self, http: httpx2.AsyncClient, clock: Clock) -> None:
        self._http = http
        self._clock = clock

    async def page(self, query: str, cursor: str | None) -> Page:
        validators: dict[str, str] = json.loads(cursor) if cursor else {}
        answer = await ask(
            self._http,
            "The feed",
            self._clock,
            "GET",
            query,
            raw=True,
            limited=(429, 503),
            headers=validators,
            follow_redirects=True,
        )
        if answer.status == 304:
            return Page((), cursor or "{}", True)
        fresh = {
            request: answer.headers[header]
            for request, header in (("if-none-match", "etag"), ("if-modified-since", "last-modified"))
            if header in answer.headers
        }
        complaints = tuple(_entries(answer.data, query, self._clock.now()))
        return Page(complaints, json.dumps(fresh), True, answer.limits)

    async def close(self) -> None:
        await self._http.aclose()


def _entries(document: str, feed: str, now: float) -> Iterator[Complaint]:
    if "<!DOCTYPE" in document[:2000] or "<!ENTITY" in document:
        raise UnreachableError("The feed declares a document type, which feeds have no use for.", hint="Is it a feed?")
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - entities were refused above
    except ElementTree.ParseError as error:
        raise UnreachableError(f"The feed is not XML: {error}.", hint="Is it the address of a feed?") from error
    for item in root.iter("item"):
        link = _text(item, "link")
        text = plain(_text(item, _CONTENT) or _text(item, "description"))
        yield _complaint(
            _text(item, "guid") or link, link, _text(item, "title"), text, _moment(_text(item, "pubDate"), now), feed
        )
    for entry in root.iter(f"{_ATOM}entry"):
        links = [element for element in entry.findall(f"{_ATOM}link") if element.get("rel", "alternate") == "alternate"]
        link = links[0].get("href", "") if links else ""
        text = plain(_text(entry, f"{_ATOM}content") or _text(entry, f"{_ATOM}summary"))
        stamp = _text(entry, f"{_ATOM}published") or _text(entry, f"{_ATOM}updated")
        yield _complaint(
            _text(entry, f"{_ATOM}id") or link, link, _text(entry, f"{_ATOM}title"), text, _moment(stamp, now), feed
        )


def _complaint(identifier: str, link: str, title: str, text: str, created_at: float, feed: str) -> Complaint:
    whole = text.strip() or title
    return Complaint(
        source="rss",
        id=identifier,
        permalink=link or identifier,
        title=title,
        text=excerpt(whole),
        hash=content_hash(whole),
        created_at=created_at,
        segment=httpx2.URL(feed).host,
    )


def _text(element: ElementTree.Element, name: str) -> str:
    found = element.find(name)
    return "".join(found.itertext()).strip() if found is not None else ""


def _moment(text: str, now: float) -> float:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(text).timestamp()
        except (ValueError, TypeError):
            continue
    return now
