"""`/v1/events` at the gateway: what all components published, here and elsewhere, as far as a caller may see it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from avyay.errors import AuthError
from avyay.events.build import open_follower
from avyay.events.follow import Follower, Remote
from avyay.serve.events import EventFeed
from avyay.serve.gateway.auth import Authenticator, Identity, credential_of
from avyay.serve.gateway.relay import Upstream
from avyay.serve.gateway.replies import Refusal
from avyay.serve.gateway.routes import events_seen
from avyay.serve.house import Metric
from avyay.serve.run import Stopping

if TYPE_CHECKING:
    from collections.abc import Iterable

    from avyay.wiring import Services

__all__ = ["MOST_OF_ONE", "EventsPage", "events_state", "remotes_of"]

MOST_OF_ONE = 20
"""Streams that one key may have open in a process."""

_STREAMS, _FOLLOWED = "gateway_event_streams", "gateway_events_followed"

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def remotes_of(upstreams: Iterable[Upstream]) -> list[Remote]:
    """The components as homes to follow; the gateway asks in its own name."""
    return [Remote(one.name, one.url, one.own_word) for one in upstreams]


def events_state(counted: Iterable[Metric]) -> dict[str, Any]:
    """For `/health`: how many listen, and which components of other homes are followed, in all processes together."""
    metrics = {name: rows for name, _, _, rows in counted}
    followed = {labels["component"] for labels, value in metrics.get(_FOLLOWED, ()) if value}
    return {"streams": int(sum(value for _, value in metrics.get(_STREAMS, ()))), "followed": sorted(followed)}


class EventsPage:
    """The page, and what goes on beside it: webhooks and Redis, and following the components of other homes.

    Args:
        stopping: Ends the streams when the gateway drains.
    """

    def __init__(
        self,
        services: Services,
        authenticator: Authenticator,
        remotes: Iterable[Remote],
        *,
        stopping: Stopping | None = None,
    ) -> None:
        self._services = services
        self._authenticator = authenticator
        self._remotes = list(remotes)
        self._feed = EventFeed(services, stopping=stopping)
        self._send_timeout = services.settings.gateway.send_timeout
        self._open: Counter[str] = Counter()
        self._follower: Follower | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to deliver and to follow.

        Raises:
            AvyayError: a receiver is configured that cannot work.
        """
        await self._feed.start()
        services = self._services
        self._follower = open_follower(
            self._remotes, services.settings.events, services.paths, told=services.engine_queues_told
        )
        self._following = asyncio.create_task(self._follower.run())

    async def stop(self) -> None:
        """End everything."""
        if self._follower is not None and self._following is not None:
            self._follower.stop()
            with suppress(asyncio.CancelledError):
                await self._following
        await self._feed.stop()

    @property
    def streams(self) -> int:
        """Callers that listen."""
        return self._feed.streams

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus."""
        yield _STREAMS, "gauge", "Callers that listen to events.", [({}, float(self.streams))]
        if self._follower is not None:
            on = [({"component": one.name}, float(one.name in self._follower.following)) for one in self._remotes]
            yield _FOLLOWED, "gauge", "1: events of this component of another home come here.", on
            garbled = float(self._follower.garbled)
            yield "gateway_events_garbled_total", "counter", "What components sent that is no event.", [({}, garbled)]

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, identity: Identity | None, request_id: str
    ) -> int:
        """Answer one caller. Everything that cannot be understood is refused before the stream begins."""
        scopes, key = (identity.scopes, identity.key) if identity is not None else (frozenset(), "")
        if self._open[key] >= MOST_OF_ONE:
            raise Refusal(
                429,
                f"This key listens {MOST_OF_ONE} times already.",
                code="too_many_streams",
                hint="Close one of them.",
                headers=((b"retry-after", b"5"),),
            )
        self._open[key] += 1
        try:
            return await self._answer(scope, receive, send, scopes, request_id)
        finally:
            self._open[key] -= 1
            self._open += Counter()  # without those that are at nothing

    async def _answer(self, scope: Scope, receive: Receive, send: Send, scopes: frozenset[str], request_id: str) -> int:
        seen = events_seen(scopes)
        if seen is None:
            raise AuthError("This key may see no events.", code="missing_scope")
        response: Response
        if scope["method"] == "HEAD":
            response = Response(media_type="text/event-stream")
        else:
            response = await self._feed.answer(Request(scope, receive), within=seen, still=self._still(scope, scopes))
        response.headers["x-request-id"] = request_id
        task = asyncio.ensure_future(response(scope, receive, self._bounded(send, lambda: task.cancel())))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            return 499
        task.result()
        return response.status_code

    def _bounded(self, send: Send, give_up: Callable[[], object]) -> Send:
        """A caller that does not read holds no place for ever."""

        async def bounded(message: MutableMapping[str, Any]) -> None:
            try:
                async with asyncio.timeout(self._send_timeout):
                    await send(message)
            except TimeoutError:
                give_up()
                await asyncio.sleep(0)  # where the end reaches us

        return bounded

    def _still(self, scope: Scope, scopes: frozenset[str]) -> Callable[[], Awaitable[bool]] | None:
        """Whether the caller's key is still good: a stream may outlive it."""
        if self._authenticator.open:
            return None
        token = credential_of(scope["headers"])
        return lambda: self._authenticator.still_holds(token, scopes)
