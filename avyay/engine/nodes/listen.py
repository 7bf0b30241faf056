"""Listens to an agent as it works, and says when it must end: provider, turns, dollars, going in circles."""

from __future__ import annotations

from avyay.engine.agents.base import Transcript
from avyay.engine.agents.outcome import EndedBy
from avyay.engine.nodes.base import Control, Order

__all__ = ["Listener"]

_REPEATS = 20  # a poll that waits for something is legitimate for a while; a loop is not


class Listener:
    """Takes in an agent's output line by line.

    Args:
        turns: Cap on answers of the model.
        budget: Cap on US dollars by the agent's own count; None where the router counts, or nobody.
        control: Told of every answer of the model.
    """

    def __init__(
        self, transcript: Transcript, turns: int, *, budget: float | None = None, control: Control | None = None
    ) -> None:
        self.transcript = transcript
        self._turns = turns
        self._budget = budget
        self._control = control

    @classmethod
    def of(cls, order: Order, transcript: Transcript, control: Control) -> Listener:
        """A listener to an attempt."""
        budget = float(order.access.budget) if order.access.budget is not None else None
        return cls(transcript, order.caps.turns, budget=budget, control=control)

    def line(self, text: str) -> tuple[EndedBy, str] | None:
        """Take in a line of standard output; returns why the agent must end now, or None."""
        before = self.transcript.turns
        self.transcript.feed(text)
        if self._control is not None and self.transcript.turns != before:
            self._control.turned()
        return self._verdict()

    def error_line(self, text: str) -> tuple[EndedBy, str] | None:
        """Take in a line of standard error; the same answer."""
        self.transcript.complaint(text)
        return self._verdict()

    def _verdict(self) -> tuple[EndedBy, str] | None:
        transcript = self.transcript
        if transcript.terminal is not None and transcript.terminal.kind in ("success", "capped"):
            return None
        if transcript.hopeless is not None:
            return "provider", transcript.hopeless.message
        if transcript.terminal is not None:
            return None
        if self._budget is not None and transcript.cost is not None and transcript.cost >= self._budget:
            return "dollars", f"spent ${transcript.cost:.2f} of ${self._budget:.2f} by its own count"
        if transcript.repeats >= _REPEATS:
            return "stall", f"asked for the same thing {transcript.repeats} times in a row"
        if transcript.turns > self._turns or (transcript.turns == self._turns and transcript.wants_more):
            return "turns", f"took {transcript.turns} turns"
        return None
