"""The router's way out: HTTP on the data plane. Everything a network can do wrong becomes one `TransportError`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Incoming", "Transport", "TransportError"]

TransportFault = Literal["connect", "timeout", "broken"]


class TransportError(Exception):
    """The other side could not be reached, said nothing in time, or broke off. `fault` says which."""

    def __init__(self, fault: TransportFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Incoming(Protocol):
    """An answer whose head has arrived. Header names are in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """The rest of the body, whole.

        Raises:
            TransportError: it broke off.
        """
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The rest of the body as it arrives; the same errors."""
        ...

    def close(self) -> None:
        """Let go: a finished answer's connection is used again, an unfinished one's is cut at once."""
        ...


class Transport:
    """One pool of connections, made in the event loop that first uses it.

    Args:
        connect_timeout: Seconds to connect, TLS included.
        idle_timeout: Seconds between two bytes of an answer.
        limit: Connections at most, to all providers together; 0 is no limit.
    """

    def __init__(self, *, connect_timeout: float = 5.0, idle_timeout: float = 300.0, limit: int = 0) -> None:
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _client(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit, ttl_dns_cache=60, ssl=ssl.create_default_context(), keepalive_timeout=30
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._connect_timeout, sock_read=self._idle_timeout
                ),
                auto_decompress=False,
                trust_env=True,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._loop = loop
        return self._session

    async def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Incoming:
        """Send a request and wait for the head of its answer. Redirects are answers like any other.

        Raises:
            TransportError: there is none.
        """
        import aiohttp

        try:
            response = await self._client().request(method, url, headers=headers, data=body, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise TransportError("connect", f"no connection ({_kind(error)})") from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise TransportError("timeout", "no answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransportError("broken", f"the connection broke ({_kind(error)})") from error
        return _HttpReply(response)

    async def aclose(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()


def _kind(error: Exception) -> str:
    inner = getattr(error, "os_error", None) or error
    return type(inner).__name__


class _HttpReply:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    async def read(self) -> bytes:
        import aiohttp

        try:
            return await self._response.read()
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise TransportError("timeout", "the answer stopped in the middle") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransportError("broken", f"the answer broke off ({_kind(error)})") from error

    async def chunks(self) -> AsyncIterator[bytes]:
        import aiohttp

        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise TransportError("timeout", "the answer stopped in the middle") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransportError("broken", f"the answer broke off ({_kind(error)})") from error

    def close(self) -> None:
        # At its end aiohttp has handed the connection back already; before it, close() cuts it.
        self._response.close()
