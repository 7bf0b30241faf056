"""The traps, by name: what is sent, what must arrive at the provider, what must come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from avyay.marga.conformance.trial import NAMES, Trial
from avyay.marga.wire.model import Dialect

__all__ = ["CALLERS", "GROUPS", "UPSTREAMS", "Case", "Trap", "cases_of", "trap", "traps"]

Check: TypeAlias = Callable[[Trial, bool], Awaitable[None]]
Group: TypeAlias = Literal["requests", "answers", "streams", "errors", "endpoints", "avyay"]

GROUPS: Final[dict[str, str]] = {
    "requests": "what reaches the provider",
    "answers": "what comes back",
    "streams": "framing, flow and hanging up",
    "errors": "before the answer, in its middle, and for bad input",
    "endpoints": "models, token counts, embeddings, liveness",
    "avyay": "headers and bills of this router only",
}
CALLERS: Final[tuple[Dialect, ...]] = tuple(NAMES.values())
UPSTREAMS: Final[tuple[Dialect, ...]] = ("openai_chat", "openai_responses", "anthropic_messages", "ollama_chat")
_SHORT: Final[dict[Dialect, str]] = {dialect: name for name, dialect in NAMES.items()}

_TRAPS: dict[str, Trap] = {}


@dataclass(frozen=True, slots=True)
class Trap:
    """A trap. `modes` are the streamings it is tried with; `pair` decides for which dialects it is a question."""

    id: str
    group: Group
    sent: str
    arrives: str
    back: str
    check: Check
    modes: tuple[bool, ...]
    pair: Callable[[Dialect, Dialect], bool]
    isolated: bool = False  # a provider that fails may be given up: the next case must find it forgiven


@dataclass(frozen=True, slots=True)
class Case:
    """A trap for one pair of dialects; its id is stable."""

    trap: Trap
    caller: Dialect
    upstream: Dialect

    @property
    def id(self) -> str:
        return f"{self.trap.id}:{_SHORT[self.caller]}>{_SHORT[self.upstream]}"


def trap(
    name: str,
    group: Group,
    *,
    sent: str,
    arrives: str,
    back: str,
    modes: Iterable[bool] = (False, True),
    callers: Iterable[str] = (),
    upstreams: Iterable[str] = (),
    same: bool | None = None,
    isolated: bool = False,
) -> Callable[[Check], Check]:
    """Register a check as a trap.

    Args:
        modes: Unstreamed (False), streamed (True) or both.
        callers, upstreams: Short names; all when empty.
        same: Only pairs of one dialect, or (False) only of two.
        isolated: The provider fails in it.
    """
    wanted_callers = {NAMES[n] for n in callers}
    wanted_upstreams = {NAMES[n] for n in upstreams}

    def pair(caller: Dialect, upstream: Dialect) -> bool:
        return (
            (not wanted_callers or caller in wanted_callers)
            and (not wanted_upstreams or upstream in wanted_upstreams)
            and (same is None or same == (caller == upstream))
        )

    def register(check: Check) -> Check:
        assert name not in _TRAPS
        _TRAPS[name] = Trap(name, group, sent, arrives, back, check, tuple(modes), pair, isolated)
        return check

    return register


def traps() -> tuple[Trap, ...]:
    """All traps, in the order of their groups."""
    # They register themselves when their modules are read.
    from avyay.marga.conformance import (  # noqa: F401
        traps_answers,
        traps_avyay,
        traps_endpoints,
        traps_errors,
        traps_parameters,
        traps_requests,
        traps_streams,
    )

    order = list(GROUPS)
    return tuple(sorted(_TRAPS.values(), key=lambda t: order.index(t.group)))


def cases_of(callers: Iterable[Dialect] = CALLERS, upstreams: Iterable[Dialect] = UPSTREAMS) -> list[Case]:
    """Every case, pair by pair, so that a provider's failures stand apart."""
    wanted = tuple(upstreams)
    return [
        Case(found, caller, upstream)
        for caller in callers
        for upstream in wanted
        for found in traps()
        if found.pair(caller, upstream)
    ]
