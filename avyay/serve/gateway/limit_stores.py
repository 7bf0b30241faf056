"""Where limits are counted: in this process, in the parent of several workers, or in Redis for several machines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avyay.clock import Clock
from avyay.errors import DependencyError, UnreachableError
from avyay.log import get_logger
from avyay.serve.gateway.limits import WINDOW, Claim, Counters, Limiter, LimitReport, Standing, Verdict, waiting_time
from avyay.worker_socket import MemberEnd, OwnerEnd, Peer

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["LimitMember", "LimitOwner", "LocalLimiter", "RedisLimiter"]

_PATIENCE = 2.0  # seconds a worker waits for its parent
_REDIS_PATIENCE = 0.25  # seconds for one answer of Redis
_REDIS_REST = 1.0  # seconds Redis is left alone after a failure
_LEASE = 90.0  # seconds a concurrent claim in Redis outlives its process; renewed meanwhile
_RENEW = 30.0


class LocalLimiter:
    """In this process."""

    def __init__(self, clock: Clock, counters: Counters | None = None) -> None:
        self._clock = clock
        self.counters = counters or Counters()

    async def acquire(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """See `Limiter`."""
        return self.counters.acquire(claims, lease, self._clock.now())

    async def settle(self, claim: Claim, difference: int, taken: float) -> None:
        """See `Limiter`."""
        self.counters.settle(claim, difference, taken, self._clock.now())

    async def release(self, claims: Sequence[Claim], lease: str) -> None:
        """See `Limiter`."""
        self.counters.release(claims, lease)

    async def report(self) -> LimitReport:
        """See `Limiter`."""
        return LimitReport(self.counters.held)


# ---------------------------------------------------------------- several workers of one machine


class LimitOwner:
    """Counts for all workers of this machine.

    worker -> owner   ["a", number, lease, [claim...]]  ["s", claim, difference, taken]  ["r", lease, [claim...]]
                      ["w", number] how does the counting do?

    A worker that dies gives back what it held.
    """

    def __init__(self, end: OwnerEnd, limiter: Limiter, counters: Counters) -> None:
        self._limiter = limiter
        end.handlers |= {"a": self._acquire, "s": self._settle, "r": self._release, "w": self._report}
        end.left.append(lambda peer: counters.release_all(f"{peer.number}/"))

    async def _acquire(self, peer: Peer, message: list[Any]) -> None:
        lease = f"{peer.number}/{message[2]}"
        try:
            verdict = await self._limiter.acquire([Claim(*claim) for claim in message[3]], lease)
        except UnreachableError:  # Redis is lost, and without it what is limited is refused
            peer.answer(message, None)
        else:
            peer.answer(message, _pack(verdict))

    async def _settle(self, peer: Peer, message: list[Any]) -> None:
        await self._limiter.settle(Claim(*message[1]), int(message[2]), float(message[3]))

    async def _release(self, peer: Peer, message: list[Any]) -> None:
        await self._limiter.release([Claim(*claim) for claim in message[2]], f"{peer.number}/{message[1]}")

    async def _report(self, peer: Peer, message: list[Any]) -> None:
        report = await self._limiter.report()
        peer.answer(message, [report.held, report.lost, report.fallbacks])


class LimitMember:
    """A worker's side of `LimitOwner`."""

    def __init__(self, end: MemberEnd) -> None:
        self._end = end

    async def acquire(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """See `Limiter`."""
        if not claims:
            return Verdict()
        found = None
        try:
            found = await self._end.ask("a", lease, [_claim(claim) for claim in claims], patience=_PATIENCE)
        except OSError:
            await self.release(claims, lease)  # it may be granted yet, to nobody
        except asyncio.CancelledError:
            await self.release(claims, lease)
            raise
        if found is None:
            raise UnreachableError("The limits cannot be counted just now.", code="limits_unreachable")
        return _unpack(found)

    async def settle(self, claim: Claim, difference: int, taken: float) -> None:
        """See `Limiter`."""
        self._end.send(["s", _claim(claim), difference, taken])

    async def release(self, claims: Sequence[Claim], lease: str) -> None:
        """See `Limiter`."""
        self._end.send(["r", lease, [_claim(claim) for claim in claims]])

    async def report(self) -> LimitReport:
        """See `Limiter`."""
        try:
            return LimitReport(*await self._end.ask("w", patience=_PATIENCE))
        except OSError:
            return LimitReport(lost=True)


def _claim(claim: Claim) -> list[Any]:
    return [claim.counter, claim.name, claim.unit, claim.limit, claim.amount]


def _standing(one: Standing) -> list[Any]:
    return [one.name, one.unit, one.limit, one.remaining, one.reset]


def _pack(verdict: Verdict) -> list[Any]:
    refused = None if verdict.refused is None else _standing(verdict.refused)
    return [[_standing(one) for one in verdict.standings], refused, verdict.retry_after, verdict.lease is not None]


def _unpack(data: list[Any]) -> Verdict:
    refused = None if data[1] is None else Standing(*data[1])
    return Verdict(tuple(Standing(*one) for one in data[0]), refused, data[2], "held" if data[3] else None)


# ---------------------------------------------------------------- several machines

# One call decides and takes all claims. Windows are hashes {n: number, c: this window's count, p: the last one's},
# leases are members of a sorted set by the time they run out. The time is Redis' own: all gateways share one clock.
_SCRIPT = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local size, lease, lasts = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local number, into = math.floor(now / size), now % size
local states, refused = {}, 0
for i, key in ipairs(KEYS) do
  local unit, limit, amount = ARGV[3 * i + 1], tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  if unit == 'concurrent' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local used = redis.call('ZCARD', key)
    states[i] = {used, 0}
    if refused == 0 and used >= limit then refused = i end
  else
    local found = redis.call('HMGET', key, 'n', 'c', 'p')
    local n, c, p = tonumber(found[1] or number), tonumber(found[2] or 0), tonumber(found[3] or 0)
    if n ~= number then
      if n == number - 1 then p = c else p = 0 end
      c = 0
    end
    states[i] = {c, p}
    if refused == 0 and p * (1 - into / size) + c + amount > limit then refused = i end
  end
end
if refused == 0 then
  for i, key in ipairs(KEYS) do
    local unit, amount = ARGV[3 * i + 1], tonumber(ARGV[3 * i + 3])
    if unit == 'concurrent' then
      redis.call('ZADD', key, now + lasts, lease)
      redis.call('EXPIRE', key, math.ceil(lasts))
      states[i][1] = states[i][1] + 1
    else
      states[i][1] = states[i][1] + amount
      redis.call('HSET', key, 'n', number, 'c', states[i][1], 'p', states[i][2])
      redis.call('EXPIRE', key, math.ceil(2 * size))
    end
  end
end
local out = {refused, tostring(into)}
for _, state in ipairs(states) do out[#out + 1] = tostring(state[1]); out[#out + 1] = tostring(state[2]) end
return out
"""
_SETTLE = """
local t = redis.call('TIME')
local size, difference, taken = tonumber(ARGV[1]), tonumber(ARGV[2]), math.floor(tonumber(ARGV[3]) / ARGV[1])
local number = math.floor(tonumber(t[1]) / size)
local found = redis.call('HMGET', KEYS[1], 'n', 'c', 'p')
local n, c, p = tonumber(found[1] or number), tonumber(found[2] or 0), tonumber(found[3] or 0)
if n ~= number then
  if n == number - 1 then p = c else p = 0 end
  c = 0
end
if difference > 0 or taken == number then c = math.max(0, c + difference)
elseif taken == number - 1 then p = math.max(0, p + difference) end
redis.call('HSET', KEYS[1], 'n', number, 'c', c, 'p', p)
redis.call('EXPIRE', KEYS[1], math.ceil(2 * size))
return 0
"""


class RedisLimiter:
    """In Redis, shared by every gateway that names the same one.

    Redis lost: with `fallback` each process goes on with counters of its own (a caller may then get up to as many
    times its limit as there are processes); without it, what is limited is refused. Either way Redis is asked again
    after a second.

    Args:
        url: redis://, rediss:// or unix://.
        fallback: None refuses.
    """

    def __init__(self, url: str, clock: Clock, *, fallback: LocalLimiter | None) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            raise DependencyError(
                "Limits in Redis need its client.", hint="pip install 'avyay[redis]'", code="no_redis_client"
            ) from error
        self._clock = clock
        self._fallback = fallback
        self._log = get_logger("gateway")
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=_REDIS_PATIENCE, socket_connect_timeout=_REDIS_PATIENCE, max_connections=64
        )
        self._take = self._redis.register_script(_SCRIPT)
        self._settle = self._redis.register_script(_SETTLE)
        self._rest_until = 0.0
        self._leases: dict[str, tuple[str, ...]] = {}
        self._renewing: asyncio.Task[None] | None = None
        self.lost = False
        self.fallbacks = 0

    async def acquire(self, claims: Sequence[Claim], lease: str) -> Verdict:
        """See `Limiter`."""
        if not claims:
            return Verdict()
        if self._clock.monotonic() >= self._rest_until:
            try:
                return await self._ask(claims, lease)
            except Exception as error:  # noqa: BLE001 - the client's errors, timeouts and resets alike mean one thing
                self._failed(error)
        if self._fallback is None:
            raise UnreachableError(
                "The limits cannot be counted: Redis does not answer.",
                hint="Try again shortly.",
                code="limits_unreachable",
            )
        self.fallbacks += 1
        return await self._fallback.acquire(claims, lease)

    async def settle(self, claim: Claim, difference: int, taken: float) -> None:
        """See `Limiter`."""
        if self._clock.monotonic() >= self._rest_until:
            try:
                await self._settle(keys=[_key(claim)], args=[WINDOW, difference, taken])
                return
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(error)
        if self._fallback is not None:
            await self._fallback.settle(claim, difference, taken)

    async def release(self, claims: Sequence[Claim], lease: str) -> None:
        """See `Limiter`."""
        keys = self._leases.pop(lease, None)
        if keys is None:
            if self._fallback is not None:
                await self._fallback.release(claims, lease)
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.zrem(key, lease)
                await pipe.execute()
        except Exception as error:  # noqa: BLE001 - as above; the lease runs out by itself
            self._failed(error)

    async def report(self) -> LimitReport:
        """See `Limiter`: whether Redis answered last time."""
        held = 0 if self._fallback is None else self._fallback.counters.held
        return LimitReport(held, self.lost, self.fallbacks)

    async def close(self) -> None:
        """Hang up."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self._redis.aclose()

    async def _ask(self, claims: Sequence[Claim], lease: str) -> Verdict:
        arguments: list[Any] = [WINDOW, lease, _LEASE]
        for claim in claims:
            arguments += [claim.unit, claim.limit, claim.amount]
        keys = [_key(claim) for claim in claims]
        answer = await self._take(keys=keys, args=arguments)
        if self.lost:
            self.lost = False
            self._log.warning("redis_back")
        refused, into = int(answer[0]), float(answer[1])
        counts = [float(value) for value in answer[2:]]
        standings = tuple(_seen(claim, counts[2 * i], counts[2 * i + 1], into) for i, claim in enumerate(claims))
        if refused:
            claim, current, previous = claims[refused - 1], counts[2 * refused - 2], counts[2 * refused - 1]
            concurrent = claim.unit == "concurrent"
            wait = 1.0 if concurrent else waiting_time(int(previous), int(current), claim, into, WINDOW)
            return Verdict(standings, standings[refused - 1], wait)
        held = tuple(key for key, claim in zip(keys, claims, strict=True) if claim.unit == "concurrent")
        if held:
            self._leases[lease] = held
            if self._renewing is None:
                self._renewing = asyncio.ensure_future(self._renew())
        return Verdict(standings, lease=lease if held else None)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW)
            if not self._leases:
                continue
            try:
                seconds, _ = await self._redis.time()
                async with self._redis.pipeline(transaction=False) as pipe:
                    for lease, keys in list(self._leases.items()):
                        for key in keys:
                            pipe.zadd(key, {lease: seconds + _LEASE})
                            pipe.expire(key, int(_LEASE))
                    await pipe.execute()
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._rest_until = self._clock.monotonic() + _REDIS_REST
        if not self.lost:
            self.lost = True
            self._log.error("redis_lost", error=type(error).__name__, then="local" if self._fallback else "refuse")


def _key(claim: Claim) -> str:
    return f"avyay:limit:{{{claim.counter}}}"


def _seen(claim: Claim, current: float, previous: float, into: float) -> Standing:
    if claim.unit == "concurrent":
        return Standing(
            claim.name, claim.unit, claim.limit, max(0, claim.limit - int(current)), 1.0 if current else 0.0
        )
    left = max(0, int(claim.limit - (previous * (1 - into / WINDOW) + current)))
    reset = 2 * WINDOW - into if current else WINDOW - into if previous else 0.0
    return Standing(claim.name, claim.unit, claim.limit, left, reset)
