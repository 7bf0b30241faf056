"""`GET /v1/events`: what happened, live as server-sent events or page by page as JSON; resumable, filtered by name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from avyay.errors import AvyayError, UsageError
from avyay.events.build import open_home, open_pump, open_reader
from avyay.events.pump import Pump
from avyay.events.reader import Batch, Cursor, EventReader, matches
from avyay.log import get_logger
from avyay.serve.run import Stopping

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["EventFeed"]

LOOK = 0.25  # seconds between two looks at the outboxes, while somebody listens
KEEP_ALIVE = 15.0
MOST_STREAMS = 200
PAGE = 100
_PIECE = 32_768  # bytes
_LOOKS_KEPT = 16
_MOST_NAMES = 20
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class _View:
    """What one caller asked for, and may see."""

    reader: EventReader
    names: Sequence[str]
    within: Sequence[str]
    still: Callable[[], Awaitable[bool]] | None

    def read(self, cursor: Cursor, limit: int) -> Batch:
        return self.reader.read(cursor, limit, self.names, within=self.within)


@dataclass(frozen=True, slots=True)
class _News:
    """What follows a place, written for the wire once for all who stand there."""

    frames: tuple[tuple[str, bytes], ...]
    cursor: Cursor
    missed: Mapping[str, int]

    def pieces(self, view: _View) -> Iterator[bytes]:
        """The frames a caller wants and may see, several in a piece."""
        gathered, size = [], 0
        for name, frame in self.frames:
            if matches(name, view.names) and matches(name, view.within):
                gathered.append(frame)
                size += len(frame)
                if size >= _PIECE:
                    yield b"".join(gathered)
                    gathered, size = [], 0
        if gathered:
            yield b"".join(gathered)


def _look(reader: EventReader, cursor: Cursor) -> _News:
    batch = reader.read(cursor, PAGE)
    frames = (
        (
            event.name,
            b"id: %b\nevent: %b\ndata: %b\n\n"
            % (str(event.cursor).encode(), event.name.encode(), orjson.dumps(event.body())),
        )
        for event in batch.events
    )
    return _News(tuple(frames), batch.cursor, batch.missed)


class _Stream(StreamingResponse):
    """Ends its generator with itself: else one whose caller stopped reading would count as listening for long."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


class EventFeed:
    """The events of this home for the callers of one daemon; also delivers them to webhooks and Redis.

    Args:
        stopping: Ends the streams when the daemon drains.
        look: Seconds between two looks for new events.
        keep_alive: Seconds of silence after which a comment is sent, so that no proxy closes the stream.
    """

    def __init__(
        self,
        services: Services,
        *,
        stopping: Stopping | None = None,
        look: float = LOOK,
        keep_alive: float = KEEP_ALIVE,
    ) -> None:
        if stopping is not None:
            stopping.add(self.drain)
        self._services = services
        self._reader: EventReader = open_reader(services.paths)
        self._own: EventReader = open_reader(services.paths, own=True)
        self._home: str | None = None
        self._look, self._keep_alive = look, keep_alive
        self._ending = asyncio.Event()
        self._news = asyncio.Condition()
        self._seen = 0  # counts looks that found something new
        self._looks: OrderedDict[tuple[bool, str, int], asyncio.Task[_News]] = OrderedDict()
        self._watching: asyncio.Task[None] | None = None
        self._pump: Pump | None = None
        self._pumping: asyncio.Task[None] | None = None
        self.streams = 0

    async def start(self) -> None:
        """Begin to deliver.

        Raises:
            AvyayError: a sink is configured that cannot work.
        """
        services = self._services
        self._pump = open_pump(
            services.settings.events, services.paths, services.loaded.environment, clock=services.clock
        )
        self._pumping = asyncio.create_task(self._pump.run())

    def drain(self) -> None:
        """End all streams: their callers come back to somebody else, with the id they have."""
        self._ending.set()

    async def stop(self) -> None:
        """End everything."""
        self.drain()
        if self._pump is not None and self._pumping is not None:
            self._pump.stop()
            await self._pumping
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await asyncio.to_thread(self._reader.close)
        await asyncio.to_thread(self._own.close)

    async def answer(
        self, request: Request, *, within: Sequence[str] = (), still: Callable[[], Awaitable[bool]] | None = None
    ) -> Response:
        """A stream, or a page for those who accept JSON and no stream.

        Query: `name` or `kind` (a glob, repeatable), `after` (an id of this stream; also as `Last-Event-ID`; `start`
        for all that is kept), `limit` (of a page), `own` (leave out what was followed from other homes). Without
        `after` a stream begins now, and a page holds the newest.

        Args:
            within: Globs of what this caller may see; without any, all of it.
            still: Whether the caller may still see it; asked before anything is sent.

        Raises:
            UsageError: one of them cannot be understood.
        """
        query = request.query_params
        names = (*query.getlist("name"), *query.getlist("kind"))
        own = query.get("own", "false")
        if own not in ("true", "false"):
            raise UsageError("own is true or false.")
        view = _View(self._own if own == "true" else self._reader, names, tuple(within), still)
        after = request.headers.get("last-event-id") or query.get("after")
        if len(names) > _MOST_NAMES or any(len(name) > 200 for name in names):
            raise UsageError("At most 20 names are taken, of 200 characters each.")
        cursor = None if after is None else Cursor() if after == "start" else Cursor.parse(after)
        accepted = request.headers.get("accept", "")
        if "text/event-stream" not in accepted and ("application/json" in accepted or "limit" in query):
            return await self._page(view, cursor, query.get("limit", str(PAGE)))
        if self.streams >= MOST_STREAMS:
            return JSONResponse(
                {"type": "about:blank", "status": 503, "title": "Too many listen already.", "code": "too_many_streams"},
                503,
                {"retry-after": "5"},
                "application/problem+json",
            )
        if cursor is None:
            cursor = await asyncio.to_thread(view.reader.head)
        return _Stream(self._stream(cursor, view), headers=self._headers, media_type="text/event-stream")

    @property
    def _headers(self) -> dict[str, str]:
        if self._home is None:
            self._home = open_home(self._services.paths)
        return {**_HEADERS, "avyay-home": self._home}

    async def _page(self, view: _View, cursor: Cursor | None, limit: str) -> Response:
        if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= 1000:
            raise UsageError("limit is a number from 1 to 1000.")
        if cursor is None:
            batch = await asyncio.to_thread(view.reader.latest, int(limit), view.names, within=view.within)
        else:
            batch = await asyncio.to_thread(self._after, cursor, int(limit), view)
        body = {
            "events": [{**event.body(), "cursor": str(event.cursor)} for event in batch.events],
            "cursor": str(batch.cursor),
            "missed": dict(batch.missed),
        }
        return Response(orjson.dumps(body), headers=self._headers, media_type="application/json")

    def _after(self, cursor: Cursor, limit: int, view: _View) -> Batch:
        """The next page: reads on past what the names leave out."""
        missed: dict[str, int] = {}
        while True:
            batch = view.read(cursor, limit)
            missed |= batch.missed
            if batch.events:
                events = batch.events[:limit]
                here = events[-1].cursor if len(batch.events) > limit else batch.cursor
                return Batch(events, here, missed)
            if str(batch.cursor) == str(cursor):
                return replace(batch, missed=missed)
            cursor = batch.cursor

    async def _stream(self, cursor: Cursor, view: _View) -> AsyncIterator[bytes]:
        self.streams += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            yield f"retry: 2000\nid: {cursor}\n\n".encode()
            while not self._ending.is_set():
                seen = self._seen
                news = await self._look_once(view.reader, cursor, seen)
                if view.still is not None and not await view.still():
                    return
                if news.missed:
                    yield b"event: avyay.events.missed\ndata: " + orjson.dumps(news.missed) + b"\n\n"
                for piece in news.pieces(view):
                    yield piece
                moved, cursor = str(news.cursor) != str(cursor), news.cursor
                if not moved and not await self._more(seen):
                    yield b": still here\n\n"
        finally:
            self.streams -= 1

    async def _look_once(self, reader: EventReader, cursor: Cursor, seen: int) -> _News:
        """What follows a cursor; those who stand at the same place after the same news share one look at the disk.

        A look that began before news came could miss it, so `seen` is part of what they share.
        """
        key = (reader is self._own, str(cursor), seen)
        task = self._looks.get(key)
        if task is None:
            task = self._looks[key] = asyncio.create_task(asyncio.to_thread(_look, reader, cursor))
            if len(self._looks) > _LOOKS_KEPT:
                self._looks.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except Exception:  # whatever it was, the next caller looks anew; this one is told
            self._looks.pop(key, None)
            raise

    async def _more(self, seen: int) -> bool:
        """Wait until something is new; False after a silence."""
        try:
            async with asyncio.timeout(self._keep_alive), self._news:
                await self._news.wait_for(lambda: self._ending.is_set() or self._seen != seen)
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        """One look for all who listen."""
        log = get_logger("events")
        known = ""
        while self.streams and not self._ending.is_set():
            try:
                head = str(await asyncio.to_thread(self._reader.head))
            except AvyayError as error:
                log.error("outboxes_unreadable", error=error.message)
            else:
                if head != known:
                    known = head
                    async with self._news:
                        self._seen += 1
                        self._news.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._look)
        async with self._news:
            self._news.notify_all()
