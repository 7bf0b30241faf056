"""The life of a hypothesis, as a table of allowed transitions. Everything else is refused.

    DISCOVERED -> SCORED -> GENERATING -> TESTING -> ANALYZING -> VALIDATED | KILLED
                                ^                        |
                                +------ PROMISING <------+     (iterate: another variant, another test)

A person may override the table; the event then says so and carries the person's reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from avyay.errors import UsageError

__all__ = ["FINAL", "TRANSITIONS", "Change", "IllegalTransitionError", "State", "change", "replay"]


class State(StrEnum):
    """Where a hypothesis stands."""

    DISCOVERED = "DISCOVERED"  # a cluster of complaints was found
    SCORED = "SCORED"  # it has a score with reasons
    GENERATING = "GENERATING"  # pages and copy are being made
    TESTING = "TESTING"  # visitors are being bought or brought
    ANALYZING = "ANALYZING"  # the test is over, its data are checked
    PROMISING = "PROMISING"  # not decided: worth another round
    VALIDATED = "VALIDATED"  # worth building
    KILLED = "KILLED"  # not worth more money


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.DISCOVERED: frozenset({State.SCORED}),
        State.SCORED: frozenset({State.GENERATING}),
        State.GENERATING: frozenset({State.TESTING}),
        State.TESTING: frozenset({State.ANALYZING}),
        State.ANALYZING: frozenset({State.PROMISING, State.VALIDATED, State.KILLED}),
        State.PROMISING: frozenset({State.GENERATING}),
        State.VALIDATED: frozenset(),
        State.KILLED: frozenset(),
    }
)
FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)


class IllegalTransitionError(UsageError):
    """The table does not allow this change."""

    default_code = "illegal_transition"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a hypothesis: from where, to where, why, and whether a person forced it.

    `before` is None for the first, which makes it DISCOVERED.
    """

    before: State | None
    after: State
    reason: str
    manual: bool = False


def change(before: State | None, after: State, reason: str, *, manual: bool = False) -> Change:
    """Check a step against the table.

    Args:
        before: The present state; None when the hypothesis is new.
        manual: A person overrides the table. A change from a state to itself is refused all the same.

    Raises:
        IllegalTransitionError: The table has no such step.
        UsageError: No reason is given.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise UsageError("Every change of a hypothesis needs a reason.", hint="Say why in one sentence.")
    if before is None:
        legal = after is State.DISCOVERED
    else:
        legal = after is not before and (manual or after in TRANSITIONS[before])
    if not legal:
        raise IllegalTransitionError(
            f"A hypothesis cannot go from {before or 'nothing'} to {after}.",
            hint=_way_forward(before, after),
        )
    return Change(before, after, reason, manual)


def replay(changes: Iterable[Change]) -> State:
    """The state a history ends in, checked step by step.

    Raises:
        IllegalTransitionError: A step does not start where the last one ended, or was never allowed.
    """
    state: State | None = None
    for step in changes:
        if step.before is not state:
            raise IllegalTransitionError(f"The history leaves {state} but the next step starts from {step.before}.")
        state = change(state, step.after, step.reason, manual=step.manual).after
    if state is None:
        raise IllegalTransitionError("A hypothesis without a history has no state.")
    return state


def _way_forward(before: State | None, after: State) -> str:
    if before is None:
        return "A new hypothesis begins as DISCOVERED."
    if before is after:
        return "It is there already."
    following = sorted(TRANSITIONS[before])
    allowed = f"From {before} it goes to {' or '.join(following)}" if following else f"{before} is final"
    return f"{allowed}; a person can override that with: avyay siddhi override ID {after} --reason TEXT"
