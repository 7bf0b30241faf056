"""HTTP out: one factory for clients, so that every call has timeouts, retries and our user agent."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any, Literal

import httpx2

from avyay import __version__
from avyay.errors import AuthError, UnreachableError
from avyay.log import redact
from avyay.retries import retry_context

__all__ = ["RETRY_STATUS", "async_client", "client", "request_json", "timeouts", "unreachable"]

RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
USER_AGENT = f"avyay/{__version__}"


def timeouts(read: float = 30.0, *, connect: float = 5.0) -> httpx2.Timeout:
    """Seconds: to connect and to take a pooled connection, and between two bytes read or written."""
    return httpx2.Timeout(read, connect=connect, pool=connect)


def client(*, read: float = 30.0, connect: float = 5.0, headers: Mapping[str, str] | None = None) -> httpx2.Client:
    """A blocking client. Redirects are not followed: an endpoint that moves is a configuration fault."""
    return httpx2.Client(
        timeout=timeouts(read, connect=connect),
        headers={"user-agent": USER_AGENT, **(headers or {})},
        verify=ssl.create_default_context(),
    )


def async_client(
    *, read: float = 30.0, connect: float = 5.0, headers: Mapping[str, str] | None = None
) -> httpx2.AsyncClient:
    """An asynchronous client, otherwise like `client`."""
    return httpx2.AsyncClient(
        timeout=timeouts(read, connect=connect),
        headers={"user-agent": USER_AGENT, **(headers or {})},
        verify=ssl.create_default_context(),
    )


class _RetryableError(Exception):
    """A status worth another try."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response = response


def unreachable(who: str, url: str, error: Exception) -> UnreachableError:
    """The one sentence for a call that got no usable answer."""
    kind = type(error).__name__ if not isinstance(error, _RetryableError) else str(error)
    host = httpx2.URL(url).netloc.decode("ascii", "replace").rpartition("@")[2]
    return UnreachableError(
        f"{who} at {host} did not answer usefully ({kind}).",
        hint=f"Check that {host} is reachable from here and try again.",
    )


def request_json(
    http: httpx2.Client,
    method: Literal["GET", "POST"],
    url: str,
    *,
    who: str,
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    attempts: int = 3,
    check: Callable[[Any], bool] | None = None,
) -> Any:
    """Call a JSON API: bounded retries with jittered backoff on connection errors and on `RETRY_STATUS`.

    Args:
        who: What the user knows the other side as; named in errors.
        check: Says whether the decoded answer has the expected shape.

    Raises:
        AuthError: 401 or 403.
        UnreachableError: no answer, an error status (its code is then `http_<status>`, unless it was worth retries),
            or something that is not the expected JSON.
    """
    try:
        for attempt in retry_context(
            on=(httpx2.TransportError, _RetryableError), attempts=attempts, timeout=60.0, wait_initial=0.2, wait_max=5.0
        ):
            with attempt:
                response = http.request(method, url, json=json, headers=headers)
                if response.status_code in RETRY_STATUS:
                    raise _RetryableError(response)
    except (httpx2.HTTPError, _RetryableError) as error:
        raise unreachable(who, url, error) from error
    if response.status_code in (401, 403):
        raise AuthError(f"{who} refused the credentials (HTTP {response.status_code}).", hint="Check the key.")
    if not response.is_success:
        raise UnreachableError(
            f"{who} answered HTTP {response.status_code}: {redact(response.text[:200])!r}.",
            hint="Check the address and the request.",
            code=f"http_{response.status_code}",
        )
    try:
        data = response.json()
    except ValueError as error:
        raise unreachable(who, url, error) from error
    if check is not None and not check(data):
        raise UnreachableError(f"{who} answered something unexpected.", hint=f"Is {url} the right address?")
    return data
