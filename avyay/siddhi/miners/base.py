"""What every source does: give one page of complaints, and say where the next one begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from avyay.clock import Clock
from avyay.errors import AuthError, UnreachableError
from avyay.log import redact
from avyay.money import ZERO, Picodollars
from avyay.resilience.rate_headers import RateLimit, read_rate_limits, read_retry_after
from avyay.siddhi.types import Complaint

__all__ = ["Answer", "LimitedError", "Miner", "Page", "Rate", "ask", "number"]


class LimitedError(UnreachableError):
    """The source asks to be left alone. `wait`: seconds it named, None when it did not."""

    default_code = "rate_limited"

    def __init__(self, who: str, wait: float | None) -> None:
        super().__init__(f"{who} limits us for {f'{wait:.0f} s' if wait is not None else 'a while'}.", hint="Wait.")
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `requests` in any `seconds`, as the source states it."""

    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Args:
        cursor: Where mining goes on, opaque to everybody but the miner.
        done: Nothing more for now; the cursor is then where the next run begins.
        limits: What the answer's headers said.
        posts: How many posts were read, for sources that charge by the post.
    """

    complaints: tuple[Complaint, ...]
    cursor: str
    done: bool
    limits: tuple[RateLimit, ...] = ()
    posts: int = 0


class Miner(ABC):
    """One source. `price` is what it charges for a post, `page_size` the most posts a page has."""

    name: str
    rate: Rate
    price: Picodollars = ZERO
    page_size: int = 100

    @abstractmethod
    async def page(self, query: str, cursor: str | None) -> Page:
        """The page at `cursor`; None begins.

        Raises:
            LimitedError: Too many requests, by the source's own count.
            AuthError: No key, or a wrong one.
            UnreachableError: No usable answer.
        """

    async def gone(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that their author or the source has deleted; none where the source cannot say."""
        return []

    async def close(self) -> None:
        """Release connections."""
        return


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded answer and the limits its headers state."""

    data: Any
    limits: tuple[RateLimit, ...]
    headers: Mapping[str, str]
    status: int


async def ask(
    http: httpx2.AsyncClient,
    who: str,
    clock: Clock,
    method: str,
    url: str,
    *,
    raw: bool = False,
    limited: Sequence[int] = (429,),
    **options: Any,
) -> Answer:
    """One request, without retries: pacing and retrying belong to whoever pages.

    Args:
        raw: The answer is text, not JSON.
        limited: Statuses that mean "slow down".
    """
    try:
        response = await http.request(method, url, **options)
    except httpx2.HTTPError as error:
        host = httpx2.URL(url).host
        raise UnreachableError(
            f"{who} at {host} did not answer ({type(error).__name__}).", hint="Check the network and try again."
        ) from error
    if response.status_code in limited:
        raise LimitedError(who, read_retry_after(response.headers, clock.now()))
    if response.status_code in (401, 403):
        raise AuthError(f"{who} refused the credentials (HTTP {response.status_code}).", hint="Check its key.")
    if not response.is_success and response.status_code != 304:
        raise UnreachableError(
            f"{who} answered HTTP {response.status_code}: {redact(response.text[:200])!r}.",
            hint="Check the query and try again.",
            code=f"http_{response.status_code}",
        )
    try:
        data = response.text if raw else response.json()
    except ValueError as error:
        raise UnreachableError(f"{who} answered something that is not JSON.", hint="Try again later.") from error
    return Answer(data, read_rate_limits(response.headers, clock.now()), response.headers, response.status_code)


def number(value: Any) -> int:
    """A count that may be missing."""
    return int(value) if isinstance(value, int | float) else 0
