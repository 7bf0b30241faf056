"""What every ad platform does for SIDDHI: create paused, start, pause, remove, and say what was billed."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from typing import Any, Literal

import httpx2

from avyay.errors import AuthError, PolicyError, UnreachableError, UsageError
from avyay.http import unreachable
from avyay.log import redact
from avyay.money import Picodollars
from avyay.resilience.backoff import Backoff
from avyay.resilience.rate_headers import read_retry_after

__all__ = ["AdPlatform", "Caller", "Campaign", "Order", "RejectedError", "Status", "UnknownOutcomeError"]

Status = Literal["paused", "enabled", "removed"]

_BACKOFF = Backoff(base=0.3, cap=5.0, attempts=4, patience=20.0)


class UnknownOutcomeError(UnreachableError):
    """The call may have taken effect or not: only the platform's own books can say."""

    default_code = "unknown_outcome"


class RejectedError(UsageError):
    """The platform refused the call; nothing was done."""

    default_code = "platform_rejected"


@dataclass(frozen=True, slots=True)
class Order:
    """A campaign to be made.

    Args:
        name: Unique for good: by it the campaign is found again when a call's outcome is unknown.
        amount: What is ordered for its whole life. The platform may bill up to its overspend factor more.
        ends_at: Seconds since the epoch; the platform itself stops then, whatever becomes of us.
        urls: Where clicks lead; with several, each gets an ad and the platform divides visitors among them.
        headlines: At least three, at most 30 characters each.
        descriptions: At least two, at most 90 characters each.
        keywords: What people search for, where the platform asks for it.
        countries: ISO 3166 codes.
        max_click: The most a click may cost, where the platform can be told.
    """

    name: str
    amount: Picodollars
    ends_at: float
    urls: tuple[str, ...]
    headlines: tuple[str, ...]
    descriptions: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    countries: tuple[str, ...] = ("US",)
    max_click: Picodollars | None = None


@dataclass(frozen=True, slots=True)
class Campaign:
    """What the platform's books say about a campaign."""

    id: str
    name: str
    status: Status
    billed: Picodollars
    clicks: int = 0
    impressions: int = 0


class AdPlatform(ABC):
    """One account at one platform.

    `overspend`: it may bill up to this many times an order. `settle_after`: seconds after a campaign's removal when
    nothing more will be billed for it.
    """

    name: str
    overspend: Decimal
    settle_after: float

    @abstractmethod
    def zone(self) -> tzinfo:
        """The time zone in which it counts days."""

    @abstractmethod
    def create(self, order: Order) -> str:
        """Make a paused campaign; returns the platform's id for it.

        Raises:
            RejectedError: Nothing was made.
            UnknownOutcomeError: It may have been made, wholly or in part.
        """

    @abstractmethod
    def validate(self, order: Order) -> str:
        """Have the platform check an order without making anything; says what was checked.

        Raises:
            RejectedError: It would be refused.
        """

    @abstractmethod
    def start(self, campaign: str) -> None:
        """Let it spend. Again: nothing."""

    @abstractmethod
    def pause(self, campaign: str) -> None:
        """Stop it spending. Again: nothing."""

    @abstractmethod
    def remove(self, campaign: str) -> None:
        """Stop it for good: it can never be started again. Again: nothing."""

    @abstractmethod
    def campaigns(self, prefix: str) -> list[Campaign]:
        """All campaigns whose name begins with `prefix`, the removed ones too."""

    def enabled(self, prefix: str) -> list[str]:
        """Ids of what may spend now, among the campaigns whose names begin with `prefix`: as few calls as possible."""
        return [one.id for one in self.campaigns(prefix) if one.status == "enabled"]

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release connections."""


class Caller:
    """JSON calls with the right kind of failure: refused for certain, or nobody knows.

    Args:
        who: The platform, for messages.
        failure: Reads the platform's own words out of an error body.
    """

    def __init__(
        self,
        who: str,
        http: httpx2.Client,
        *,
        failure: Callable[[Any], str],
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.who = who
        self.http = http
        self._failure = failure
        self._sleep = sleep
        self._chance = chance

    def call(
        self,
        method: Literal["GET", "POST", "DELETE"],
        url: str,
        *,
        headers: Mapping[str, str],
        repeatable: bool,
        json: Any = None,
        data: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded answer.

        Args:
            repeatable: Doing it twice is as good as once, so it is tried again with backoff.

        Raises:
            AuthError, PolicyError, RejectedError: Refused: nothing was done.
            UnknownOutcomeError: No usable answer to a call that may have had an effect.
        """
        failures = 0
        while True:
            failures += 1
            wait: float | None = None
            try:
                response = self.http.request(
                    method, url, headers=dict(headers), json=json, data=dict(data) if data else None, params=params
                )
                if response.is_success:
                    return response.json()
                if response.status_code == 429:
                    asked = read_retry_after(response.headers, time.time())
                    wait = _BACKOFF.delay(failures, self._chance, asked)
                    if wait is None:
                        raise PolicyError(
                            f"{self.who} asks us to slow down.", hint="Try again later.", code="rate_limited"
                        )
                elif response.status_code < 500 and response.status_code != 408:
                    raise self._refused(response)
                else:
                    cause: Exception = UnreachableError(f"HTTP {response.status_code}")
                    wait = self._again(failures, repeatable, url, cause)
            except (httpx2.HTTPError, ValueError) as error:
                wait = self._again(failures, repeatable, url, error)
            self._sleep(wait)

    def _again(self, failures: int, repeatable: bool, url: str, cause: Exception) -> float:
        wait = _BACKOFF.delay(failures, self._chance) if repeatable else None
        if wait is None:
            plain = unreachable(self.who, url, cause)
            raise UnknownOutcomeError(plain.message, hint=plain.hint) from cause
        return wait

    def _refused(self, response: httpx2.Response) -> Exception:
        try:
            words = self._failure(response.json())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            words = response.text[:200]
        words = redact(words)
        if response.status_code in (401, 403):
            return AuthError(f"{self.who} refused the credentials: {words}", hint="Check its keys in avyay.yaml.")
        return RejectedError(f"{self.who} refused: {words}", hint="Correct what it names and try again.")
