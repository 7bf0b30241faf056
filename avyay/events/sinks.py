"""Where events go beside `/v1/events`: a webhook, a Redis stream. A sink sends one message, or says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx2

from avyay.errors import DependencyError, PolicyError
from avyay.events.addresses import Lookup, allowed_address, look_up
from avyay.events.webhooks import sign
from avyay.http import async_client
from avyay.resilience.rate_headers import read_retry_after

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Message", "NotDeliveredError", "RedisSink", "Sink", "WebhookSink"]

_LONGEST_WAIT = 86_400.0  # seconds that a receiver may put a message off


class NotDeliveredError(Exception):
    """A message was not taken.

    Args:
        why: In a few words, without secrets.
        retry_after: Seconds the other side asked for.
        final: Trying again is pointless.
    """

    def __init__(self, why: str, *, retry_after: float | None = None, final: bool = False) -> None:
        super().__init__(why)
        self.why, self.retry_after, self.final = why, retry_after, final


@dataclass(frozen=True, slots=True)
class Message:
    """An event on its way. `body` is JSON."""

    id: str
    name: str
    body: bytes


class Sink(Protocol):
    """One receiver. `names` are globs of the events it wants; without any it gets all."""

    name: str
    names: Sequence[str]
    attempts: int

    async def send(self, message: Message) -> None:
        """Deliver.

        Raises:
            NotDeliveredError: it was not taken, or nobody knows.
        """
        ...

    async def close(self) -> None: ...


class WebhookSink:
    """POSTs signed JSON; any 2xx is a receipt. Redirects are not followed: they are no receipt.

    Args:
        private: Whether the name may lead into this machine's own network.
        lookup: Finds the addresses of a name.
    """

    def __init__(
        self,
        name: str,
        url: str,
        secrets: Sequence[bytes],
        *,
        names: Sequence[str] = (),
        timeout: float = 10.0,
        attempts: int = 10,
        private: bool = False,
        lookup: Lookup = look_up,
        now: Callable[[], float],
    ) -> None:
        self.name, self.names, self.attempts = name, names, attempts
        self._url, self._secrets, self._timeout, self._now = httpx2.URL(url), secrets, timeout, now
        self._private, self._lookup = private, lookup
        self._http: httpx2.AsyncClient | None = None

    async def send(self, message: Message) -> None:
        if self._http is None:
            self._http = async_client(read=self._timeout, connect=min(5.0, self._timeout))
        headers = {
            "host": self._url.netloc.decode("ascii"),
            "content-type": "application/json",
            **sign(self._secrets, message.id, int(self._now()), message.body),
        }
        try:
            async with asyncio.timeout(self._timeout):
                where, options = await self._place()
                async with self._http.stream(
                    "POST", where, content=message.body, headers=headers, extensions=options
                ) as answer:
                    status, retry = answer.status_code, read_retry_after(answer.headers, self._now())
        except TimeoutError as error:
            raise NotDeliveredError(f"no answer within {self._timeout:g} s") from error
        except PolicyError as error:
            raise NotDeliveredError(error.message) from error
        except OSError as error:
            raise NotDeliveredError(f"the name {self._url.host} is not known") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NotDeliveredError(type(error).__name__) from error
        if not 200 <= status < 300:
            wait = None if retry is None else min(retry, _LONGEST_WAIT)
            raise NotDeliveredError(f"HTTP {status}", retry_after=wait, final=status == 410)

    async def _place(self) -> tuple[httpx2.URL, dict[str, Any]]:
        """The URL with the address that was judged in the place of the name, and the name for TLS."""
        url = self._url
        port = url.port or (443 if url.scheme == "https" else 80)
        address = await allowed_address(url.host, port, private=self._private, lookup=self._lookup)
        return url.copy_with(host=address), {"sni_hostname": url.host} if url.scheme == "https" else {}

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None


class RedisSink:
    """Appends to a Redis stream (XADD), kept to about `length` entries. A message may come twice with the same `id`."""

    attempts = 1_000_000  # Redis is either there or not: the fault is never the message's

    def __init__(
        self, url: str, stream: str, *, names: Sequence[str] = (), length: int = 100_000, timeout: float = 5.0
    ) -> None:
        try:
            import redis.asyncio  # noqa: F401
        except ImportError as error:
            raise DependencyError(
                "Redis streams need the redis package.", hint="pip install 'avyay[redis]'", code="no_redis"
            ) from error
        self.name, self.names = "redis", names
        self._url, self._stream, self._length, self._timeout = url, stream, length, timeout
        self._redis: Redis | None = None

    async def send(self, message: Message) -> None:
        import redis.asyncio
        from redis.exceptions import RedisError

        if self._redis is None:
            self._redis = redis.asyncio.from_url(
                self._url, socket_timeout=self._timeout, socket_connect_timeout=self._timeout
            )
        fields: dict[Any, Any] = {"id": message.id, "type": message.name, "body": message.body}
        try:
            async with asyncio.timeout(2 * self._timeout):
                await self._redis.xadd(self._stream, fields, maxlen=self._length, approximate=True)
        except (RedisError, OSError, TimeoutError) as error:
            raise NotDeliveredError(type(error).__name__) from error

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None
