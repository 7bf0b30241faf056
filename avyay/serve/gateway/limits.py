"""Rate limits: which rules hold for a caller, what is left of each, and the headers that say so.

A window slides by weighing the last minute's count with the part of it that still matters, so a key costs two numbers
whatever its limit. Tokens are estimated when a request comes and put right when the router has counted them; an
estimate that was too low is a debt that the next requests wait for. Pure: told the time, in seconds since the epoch,
so that several machines cut their windows alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Literal, Protocol, TypeAlias

__all__ = [
    "Claim",
    "Counters",
    "LimitReport",
    "Limiter",
    "Rule",
    "Standing",
    "Unit",
    "Verdict",
    "claims_for",
    "estimated",
    "limit_headers",
    "waiting_time",
]

Unit: TypeAlias = Literal["requests", "tokens", "concurrent"]
WINDOW = 60.0
_MOST_IDLE = 50_000  # windows kept before those that are over are dropped


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit for every caller it fits; None fits all."""

    unit: Unit
    amount: int
    key: str | None = None
    tier: str | None = None
    endpoint: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the other rules: a name for headers and for counters."""
        return "-".join([self.unit, *(part for part in (self.endpoint, self.tier, self.key) if part)])

    def fits(self, key: str, tier: str | None, component: str, scope: str) -> bool:
        """Whether it holds for a caller's request."""
        return (
            (self.key is None or self.key == key)
            and (self.tier is None or self.tier == tier)
            and (self.endpoint is None or self.endpoint in (component, scope))
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request would take of one counter. `counter` is unique to rule and caller."""

    counter: str
    name: str
    unit: Unit
    limit: int
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left under a limit; `reset` is seconds until all of it is there again."""

    name: str
    unit: Unit
    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may pass. `lease` gives back what it holds while it is under way.

    Attributes:
        refused: The rule that says no.
        retry_after: Seconds until it would not.
    """

    standings: tuple[Standing, ...] = ()
    refused: Standing | None = None
    retry_after: float = 0.0
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class LimitReport:
    """How those do who count.

    Args:
        held: Places among answers at once that are taken, as far as they are counted on this machine.
        lost: Whether what counts does not answer: Redis, or the parent of the workers.
        fallbacks: Requests that were limited here while Redis was lost; None where there is no Redis.
    """

    held: int = 0
    lost: bool = False
    fallbacks: int | None = None


class Limiter(Protocol):
    """Where limits are counted."""

    async def acquire(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """Take all claims or none. `lease` names what is held by concurrent ones.

        Raises:
            AvyayError: the counters cannot be reached, and the configuration says to refuse then.
        """
        ...

    async def settle(self, claim: Claim, difference: int, taken: float) -> None:
        """Put a claim taken at a time (seconds since the epoch) right by a difference, up or down."""
        ...

    async def release(self, claims: Sequence[Claim], lease: str) -> None:
        """Give back what a lease holds."""
        ...

    async def report(self) -> LimitReport:
        """How it does."""
        ...


def claims_for(rules: Iterable[Rule], *, key: str, tier: str | None, component: str, scope: str) -> tuple[Claim, ...]:
    """The claims of a request that costs one of everything; tokens are set by `estimated`."""
    return tuple(
        Claim(f"{rule.name}|{key}", rule.name, rule.unit, rule.amount)
        for rule in rules
        if rule.fits(key, tier, component, scope)
    )


def estimated(claim: Claim, size: int) -> Claim:
    """A claim of tokens for a body of so many bytes: a held guess, put right once the router has counted.

    A third of the bytes is above what text of most scripts costs; never more than the limit itself, or a picture in a
    body could wait for ever.
    """
    return Claim(claim.counter, claim.name, claim.unit, claim.limit, min(claim.limit, max(1, size // 3)))


@dataclass(slots=True)
class _Window:
    number: int
    current: int = 0
    previous: int = 0

    def turn(self, number: int) -> None:
        if number != self.number:
            self.previous = self.current if number == self.number + 1 else 0
            self.current = 0
            self.number = number


class Counters:
    """The counters of one process."""

    def __init__(self, window: float = WINDOW) -> None:
        self._size = window
        self._windows: dict[str, _Window] = {}
        self._held: dict[str, set[str]] = {}

    def acquire(self, claims: Sequence[Claim], lease: str, now: float) -> Verdict:
        """Take all claims or none."""
        for claim in claims:
            if claim.unit == "concurrent":
                if len(self._held.get(claim.counter, ())) >= claim.limit:
                    standing = Standing(claim.name, claim.unit, claim.limit, 0, 1.0)
                    return Verdict((*self._standings(claims, now, claim), standing), standing, 1.0)
            elif self._weight(claim.counter, now) + claim.amount > claim.limit:
                standing = self._standing(claim, now)
                return Verdict((*self._standings(claims, now, claim), standing), standing, self._wait(claim, now))
        holds = False
        for claim in claims:
            if claim.unit == "concurrent":
                holds = True
                self._held.setdefault(claim.counter, set()).add(lease)
            else:
                self._window(claim.counter, now).current += claim.amount
        return Verdict(self._standings(claims, now), lease=lease if holds else None)

    def settle(self, claim: Claim, difference: int, taken: float, now: float) -> None:
        """Put a claim right: what is given back goes to the window it was taken from, a debt to this one."""
        window = self._window(claim.counter, now)
        number = int(taken // self._size)
        if difference > 0 or number == window.number:
            window.current = max(0, window.current + difference)
        elif number == window.number - 1:
            window.previous = max(0, window.previous + difference)

    def release(self, claims: Sequence[Claim], lease: str) -> None:
        """Give back what a lease holds."""
        for claim in claims:
            if claim.unit == "concurrent" and (held := self._held.get(claim.counter)) is not None:
                held.discard(lease)
                if not held:
                    del self._held[claim.counter]

    def release_all(self, prefix: str) -> None:
        """Give back every lease whose name starts so: its process is gone."""
        for counter, held in list(self._held.items()):
            held -= {lease for lease in held if lease.startswith(prefix)}
            if not held:
                del self._held[counter]

    @property
    def held(self) -> int:
        """Leases under way."""
        return sum(map(len, self._held.values()))

    def _standings(self, claims: Sequence[Claim], now: float, but: Claim | None = None) -> tuple[Standing, ...]:
        return tuple(self._standing(claim, now) for claim in claims if claim is not but)

    def _standing(self, claim: Claim, now: float) -> Standing:
        if claim.unit == "concurrent":
            used = len(self._held.get(claim.counter, ()))
            return Standing(claim.name, claim.unit, claim.limit, max(0, claim.limit - used), 1.0 if used else 0.0)
        left = max(0, int(claim.limit - self._weight(claim.counter, now)))
        window = self._window(claim.counter, now)
        into = now % self._size
        reset = 2 * self._size - into if window.current else self._size - into if window.previous else 0.0
        return Standing(claim.name, claim.unit, claim.limit, left, reset)

    def _window(self, counter: str, now: float) -> _Window:
        number = int(now // self._size)
        window = self._windows.get(counter)
        if window is None:
            if len(self._windows) >= _MOST_IDLE:
                self._windows = {name: one for name, one in self._windows.items() if one.number >= number - 1}
            window = self._windows[counter] = _Window(number)
        else:
            window.turn(number)
        return window

    def _weight(self, counter: str, now: float) -> float:
        window = self._window(counter, now)
        return window.previous * (1 - now % self._size / self._size) + window.current

    def _wait(self, claim: Claim, now: float) -> float:
        window = self._window(claim.counter, now)
        return waiting_time(window.previous, window.current, claim, now % self._size, self._size)


def waiting_time(previous: int, current: int, claim: Claim, into: float, size: float) -> float:
    """Seconds until a claim would fit, if nothing else is taken meanwhile.

    Args:
        previous, current: The counts of the last window and of this one.
        into: Seconds since this window began.
    """
    room = claim.limit - claim.amount
    if room - current >= 0 and previous > 0:  # it fits once enough of the last window has slid out
        at = size * (1 - (room - current) / previous)
        return max(0.0, at - into)
    # This window's own count must slide out, during the next one.
    at = size * (1 - max(0, room) / current) if current > 0 else 0.0
    return size - into + max(0.0, at)


def limit_headers(verdict: Verdict, *, anthropic: bool, now: float) -> list[tuple[bytes, bytes]]:
    """What a caller is told of its limits: the IETF draft's fields, and those its SDK knows.

    RateLimit and RateLimit-Policy are draft-ietf-httpapi-ratelimit-headers-10 (structured fields; `qu` names the
    unit). The x-ratelimit-* fields are OpenAI's, the anthropic-ratelimit-* ones Anthropic's; they speak of the
    tightest rule of their unit.

    Args:
        now: Seconds since the epoch: Anthropic's fields name moments.
    """
    if not verdict.standings:
        return []
    policies, states = [], []
    tightest: dict[Unit, Standing] = {}
    for one in verdict.standings:
        quota = {"requests": "", "tokens": ';qu="tokens"', "concurrent": ';qu="concurrent-requests"'}[one.unit]
        window = "" if one.unit == "concurrent" else f";w={WINDOW:.0f}"
        policies.append(f'"{one.name}";q={one.limit}{window}{quota}')
        states.append(f'"{one.name}";r={one.remaining};t={ceil(one.reset)}')
        if one.unit not in tightest or one.remaining < tightest[one.unit].remaining:
            tightest[one.unit] = one
    found = [(b"ratelimit-policy", ", ".join(policies).encode()), (b"ratelimit", ", ".join(states).encode())]
    for unit in ("requests", "tokens"):
        if (standing := tightest.get(unit)) is None:
            continue
        if anthropic:
            prefix = f"anthropic-ratelimit-{unit}-".encode()
            found += [
                (prefix + b"limit", b"%d" % standing.limit),
                (prefix + b"remaining", b"%d" % standing.remaining),
                (prefix + b"reset", _moment(now + standing.reset)),
            ]
        else:
            found += [
                (b"x-ratelimit-limit-" + unit.encode(), b"%d" % standing.limit),
                (b"x-ratelimit-remaining-" + unit.encode(), b"%d" % standing.remaining),
                (b"x-ratelimit-reset-" + unit.encode(), b"%ds" % ceil(standing.reset)),
            ]
    if verdict.refused is not None:
        found.append((b"retry-after", b"%d" % max(1, ceil(verdict.retry_after))))
    return found


def _moment(at: float) -> bytes:
    return datetime.fromtimestamp(ceil(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
