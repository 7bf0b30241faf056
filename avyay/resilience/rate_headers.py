"""What a provider's response headers say about its rate limits, in all the dialects in use.

Delays come as seconds (integer or float), milliseconds, Go durations ("6m0s", "20ms"), epoch seconds or milliseconds,
RFC 3339 and HTTP dates. Read from the providers' documentation and drafts: OpenAI and Azure (`x-ratelimit-*-requests`,
`-tokens`, `retry-after-ms`), Anthropic (`anthropic-ratelimit-*-reset`), GitHub and X (epoch), Reddit (seconds left),
the IETF httpapi drafts (`ratelimit-*`, and the structured `ratelimit`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["RateLimit", "read_rate_limits", "read_retry_after", "seconds_until"]

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|[dhms]))+", re.ASCII | re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|[dhms])", re.IGNORECASE)
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
# Nobody asks to wait 30 years in seconds, so larger numbers are points in time.
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11
_LONGEST = 64

# Header names by resource: (limit, remaining, reset).
_DIALECTS: tuple[tuple[str, str, str, str], ...] = tuple(
    (resource, f"{prefix}limit{suffix}", f"{prefix}remaining{suffix}", f"{prefix}reset{suffix}")
    for resource, prefix, suffix in (
        ("requests", "x-ratelimit-", "-requests"),
        ("tokens", "x-ratelimit-", "-tokens"),
        ("requests", "x-ratelimit-", ""),
        ("requests", "x-rate-limit-", ""),
        ("requests", "ratelimit-", ""),
    )
) + tuple(
    (resource, f"anthropic-ratelimit-{name}-limit", f"anthropic-ratelimit-{name}-remaining",
     f"anthropic-ratelimit-{name}-reset")
    for resource, name in (
        ("requests", "requests"),
        ("tokens", "tokens"),
        ("input_tokens", "input-tokens"),
        ("output_tokens", "output-tokens"),
    )
)  # fmt: skip
_DELAY_MS = ("retry-after-ms", "x-ms-retry-after-ms")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One limit as the provider states it.

    Args:
        resource: "requests", "tokens", "input_tokens" or "output_tokens".
        limit: Units per window; the window's length is rarely said.
        remaining: Units left in it.
        reset_after: Seconds until it is full again.
    """

    resource: str
    limit: float | None
    remaining: float | None
    reset_after: float | None

    @property
    def exhausted(self) -> bool:
        return self.remaining is not None and self.remaining <= 0


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the provider asks to be left alone, or None when it does not say.

    `retry-after-ms`, then `Retry-After`, then the reset of the limits that are used up (the latest of them).

    Args:
        headers: With lower-case names, or a mapping that ignores case.
        now: Seconds since the epoch, on the wall clock: some dialects name a point in time.
    """
    for name in _DELAY_MS:
        if (text := headers.get(name)) is not None and (number := _number(text)) is not None:
            return max(0.0, number / 1000)
    if (text := headers.get("retry-after")) is not None and (seconds := seconds_until(text, now)) is not None:
        return seconds
    waits = [limit.reset_after for limit in read_rate_limits(headers, now) if limit.exhausted]
    return max((wait for wait in waits if wait is not None), default=None)


def read_rate_limits(headers: Mapping[str, str], now: float) -> tuple[RateLimit, ...]:
    """Every limit the headers state; empty when they state none. Arguments as in `read_retry_after`."""
    found = []
    for resource, limit_name, remaining_name, reset_name in _DIALECTS:
        limit, remaining, reset = headers.get(limit_name), headers.get(remaining_name), headers.get(reset_name)
        if limit is remaining is reset is None:
            continue
        found.append(
            RateLimit(
                resource,
                _number(limit.split(",", 1)[0]) if limit is not None else None,
                _number(remaining) if remaining is not None else None,
                seconds_until(reset, now) if reset is not None else None,
            )
        )
    if (structured := headers.get("ratelimit")) is not None:
        found += _structured(structured, now)
    return tuple(found)


def seconds_until(text: str, now: float) -> float | None:
    """Seconds from `now` (wall clock) to what a header value says, never negative; None when it cannot be read."""
    text = text.strip().strip('"')
    if not text or len(text) > _LONGEST:
        return None
    if (number := _number(text)) is not None:
        if number >= _EPOCH_MILLISECONDS:
            number = number / 1000 - now
        elif number >= _EPOCH_SECONDS:
            number -= now
        return max(0.0, number)
    if _DURATION.fullmatch(text):
        return math.fsum(float(count) * _UNITS[unit.lower()] for count, unit in _DURATION_PART.findall(text))
    moment = _moment(text)
    return None if moment is None else max(0.0, moment - now)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _moment(text: str) -> float | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, IndexError, TypeError):
            continue
    return None


def _structured(text: str, now: float) -> list[RateLimit]:
    """`limit=100, remaining=0, reset=30` (draft 07) or `"burst";r=0;t=30, "day";r=5;t=900` (draft 08 and later)."""
    members: list[dict[str, str]] = []
    older: dict[str, str] = {}
    for member in text[:1000].split(","):
        parts = [part.partition("=") for part in member.split(";")]
        fields = {name.strip().lower(): value.strip() for name, equals, value in parts if equals}
        if parts[0][1]:
            older.update(fields)
        elif fields:
            members.append({"remaining": fields.get("r", ""), "reset": fields.get("t", "")})
    if older:
        members.append(older)
    return [
        RateLimit(
            "requests",
            _number(fields.get("limit", "")),
            _number(fields.get("remaining", "")),
            seconds_until(fields.get("reset", ""), now),
        )
        for fields in members
    ]
