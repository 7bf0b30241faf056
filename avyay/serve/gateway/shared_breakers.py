"""What several workers of one gateway share about the components: their owner keeps the breakers and asks for health.

    worker -> owner   ["o", component, successes, failures]
    owner -> worker   ["t", component, open, reason]  ["h", component, problem, checked_at]

Failures are sent at once, successes in batches: they only end a row of failures. A worker whose owner is gone counts by
itself for as long as it still answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from avyay.resilience.breaker import Outcome, Transition
from avyay.serve.gateway.relay import Upstream
from avyay.worker_socket import MemberEnd, OwnerEnd, Peer

__all__ = ["BreakerMember", "BreakerOwner"]

_BATCH = 0.05  # seconds that successes wait to be reported together
_MOST_REPORTED = 1_000


class BreakerOwner:
    """The owner's side: tells every worker what becomes of a component.

    Args:
        interval: Seconds between two looks at a component that does well.
    """

    def __init__(self, end: OwnerEnd, upstreams: Mapping[str, Upstream], interval: float) -> None:
        self._end = end
        self._upstreams = upstreams
        self._interval = interval
        self._watching: list[asyncio.Task[None]] = []
        end.handlers["o"] = self._ended
        end.joined.append(self._joined)
        for name, upstream in upstreams.items():
            upstream.news = partial(self._changed, name)

    def start(self) -> None:
        """Begin to look at the components."""
        self._watching = [asyncio.ensure_future(one.watch(self._interval)) for one in self._upstreams.values()]

    async def stop(self) -> None:
        """Look no more, and hang up."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for upstream in self._upstreams.values():
            await upstream.close()

    def _ended(self, peer: Peer, message: list[Any]) -> None:
        if (upstream := self._upstreams.get(message[1])) is not None:
            for _ in range(min(message[2], _MOST_REPORTED)):
                upstream.count(Outcome.SUCCESS)
            for _ in range(min(message[3], _MOST_REPORTED)):
                upstream.count(Outcome.FAILURE)

    def _joined(self, peer: Peer) -> None:
        for name, upstream in self._upstreams.items():
            peer.send(["h", name, upstream.problem, upstream.checked_at])
            if not upstream.breaker.allow():
                peer.send(["t", name, True, upstream.breaker.reason])

    def _changed(self, name: str, change: Transition | None) -> None:
        upstream = self._upstreams[name]
        self._end.tell(["h", name, upstream.problem, upstream.checked_at])
        if change is not None:
            self._end.tell(["t", name, not upstream.breaker.allow(), change.reason])


class BreakerMember:
    """A worker's side: reports how calls end, and takes over what the owner says."""

    def __init__(self, end: MemberEnd, upstreams: Mapping[str, Upstream]) -> None:
        self._end = end
        self._upstreams = upstreams
        self._successes: dict[str, int] = {}
        self._flush: asyncio.TimerHandle | None = None
        end.handlers |= {"t": self._changed, "h": self._looked}
        end.leaving.append(self._alone)
        end.losing.append(self._alone)
        for name, upstream in upstreams.items():
            upstream.reporter = partial(self._ended, name)

    def _ended(self, name: str, outcome: Outcome) -> None:
        if outcome is Outcome.SUCCESS:
            self._successes[name] = self._successes.get(name, 0) + 1
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(_BATCH, self._report)
        elif outcome is Outcome.FAILURE:
            self._report()  # in order: a success before it ends a row of failures
            self._end.send(["o", name, 0, 1])

    def _report(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for name, count in self._successes.items():
            self._end.send(["o", name, count, 0])
        self._successes.clear()

    def _alone(self) -> None:
        self._report()
        for upstream in self._upstreams.values():
            upstream.reporter = None

    def _changed(self, message: list[Any]) -> None:
        if (upstream := self._upstreams.get(message[1])) is not None:
            upstream.mirror(is_open=bool(message[2]), reason=str(message[3]))

    def _looked(self, message: list[Any]) -> None:
        if (upstream := self._upstreams.get(message[1])) is not None:
            upstream.problem, upstream.checked_at = message[2], message[3]
