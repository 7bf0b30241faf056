"""A request as it came in, and what goes back: what the gateway and the servers around it hand one another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from avyay.marga.types import Dialect
from avyay.marga.wire import Failure, render_error

if TYPE_CHECKING:
    from avyay.marga.types import Decision
    from avyay.marga.wire import Usage
    from avyay.money import Picodollars

__all__ = ["Inbound", "Outbound", "Served", "error_reply"]


@dataclass(slots=True)
class Inbound:
    """A request as it came in. `forward` are the caller's headers that a provider of the same dialect shall see."""

    dialect: Dialect
    raw: bytes
    tier: Any = None
    request_class: str | None = None
    quality_min: float | None = None
    latency_budget_ms: int | None = None
    residency: str | None = None
    key: str | None = None
    service: str | None = None
    customer: str | None = None
    session: str | None = None
    forward: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    traceparent: str | None = None
    operation: str = "chat"
    cache_control: str | None = None


class Served(Protocol):
    """What became of a request that was decided."""

    @property
    def decision(self) -> Decision: ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def cost(self) -> Picodollars | None: ...

    @property
    def estimated(self) -> bool: ...

    def chunks(self) -> AsyncIterator[bytes]: ...


@dataclass(slots=True)
class Outbound:
    """What goes back: a whole `body`, or `chunks` when it is None. `call` is None when nothing was decided."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None
    call: Served | None = None

    def chunks(self) -> AsyncIterator[bytes]:
        """The stream. Closing it early cancels the upstream at once."""
        assert self.call is not None
        return self.call.chunks()


def error_reply(dialect: Dialect, failure: Failure, headers: list[tuple[str, str]] | None = None) -> Outbound:
    """An error in the caller's dialect."""
    found = [("content-type", "application/json"), *(headers or ())]
    if failure.retry_after is not None and not any(name == "retry-after" for name, _ in found):
        found.append(("retry-after", str(max(1, round(failure.retry_after)))))
    if failure.code == "provider_key_refused":
        found.append(("x-should-retry", "false"))  # a 502 that clients would else try again for minutes
    return Outbound(failure.status, found, render_error(dialect, failure))
