"""What came of an attempt, judged from four witnesses: exit status, terminal event, git, verification. Pure.

No witness is believed alone. Agents exit 0 when they were interrupted, say "success" when the provider refused them,
and report work as done that left no change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avyay.engine.agents.base import Terminal, Transcript

__all__ = ["EndedBy", "Ending", "GitEvidence", "Kind", "Outcome", "classify"]

Kind = Literal[
    "done",  # changed something, and the verification passed
    "no change",  # ended well and changed nothing
    "refused",  # the agent would or could not, or its result was turned down
    "provider-permanent",  # the model's provider refuses, and would again
    "provider-transient",  # the provider fails, or limits the rate
    "capped",  # used up its dollars, time, turns or patience
    "cancelled",  # a person ended it, or its lease was lost
    "crashed",  # ended without saying how
]

EndedBy = Literal["cancel", "lease", "dollars", "wall", "turns", "stall", "provider", "abandoned", "start"]

_PERMANENT = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422})
_LIMITED = frozenset({429, 529})
_CAPS: dict[EndedBy, str] = {
    "dollars": "spent what it may",
    "wall": "ran as long as it may",
    "turns": "took as many turns as it may",
    "stall": "showed no progress",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process ended. `ended_by` is set when the engine ended it, `detail` says more."""

    code: int | None
    signal: int | None = None
    ended_by: EndedBy | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GitEvidence:
    """What an attempt left in its worktree, against the commit it began with."""

    files: tuple[str, ...] = ()
    commits: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.files)

    @property
    def summary(self) -> str:
        """How much it changed, in words."""
        return f"{len(self.files)} file{'' if len(self.files) == 1 else 's'} changed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The class of an attempt's outcome and the reason in words.

    limited: The provider limits the rate: not the task's fault, and not an attempt.
    """

    kind: Kind
    reason: str
    limited: bool = False


def classify(
    ending: Ending,
    transcript: Transcript,
    git: GitEvidence,
    verified: bool | None = None,
    *,
    verdict: str = "",
) -> Outcome:
    """The outcome of an attempt.

    Args:
        verified: None when nothing was verified yet: "done" then means "worth verifying".
        verdict: What the verification said.
    """
    terminal = transcript.terminal
    if (outcome := _ended_by_engine(ending, transcript)) is not None:
        return outcome
    if terminal is not None and terminal.kind == "capped":
        return Outcome("capped", terminal.message or "a limit of the agent's own")
    if ending.signal is not None or (transcript.has_terminal and terminal is None):
        how = f"signal {ending.signal}" if ending.signal is not None else f"exit {ending.code} without a last word"
        return _provider(transcript.hopeless) if transcript.hopeless else Outcome("crashed", how)
    if transcript.interrupted:
        return Outcome("crashed", "was interrupted by a signal")
    if terminal is not None and terminal.kind in ("error", "unreachable"):
        return _provider(terminal)
    if ending.code != 0:
        said = f": {transcript.said[:200]}" if transcript.said else ""
        return Outcome("crashed", f"exit {ending.code}{said}")
    if not git.changed:
        if transcript.denied:
            return Outcome("refused", f"was not allowed to use {', '.join(sorted(set(transcript.denied)))}")
        said = f"; it said: {transcript.said[:200]}" if transcript.said else ""
        return Outcome("no change", f"ended well and changed nothing{said}")
    if verified is False:
        return Outcome("refused", verdict or "the verification failed")
    return Outcome("done", verdict or git.summary)


def _ended_by_engine(ending: Ending, transcript: Transcript) -> Outcome | None:
    by = ending.ended_by
    if by is None:
        return None
    if by == "cancel":
        return Outcome("cancelled", ending.detail or "cancelled by hand")
    if by == "lease":
        return Outcome("cancelled", ending.detail or "the lease was lost")
    if by == "provider":
        return _provider(transcript.hopeless or Terminal("error", ending.detail))
    if by == "start":
        return Outcome("crashed", f"could not be started: {ending.detail}")
    if by == "abandoned":
        return Outcome("crashed", ending.detail or "its keeper ended")
    if by == "stall" and transcript.hopeless is not None:
        return _provider(transcript.hopeless)
    return Outcome("capped", ending.detail or _CAPS[by])


def _provider(terminal: Terminal) -> Outcome:
    what = terminal.message or "no message"
    status = f"{terminal.status} " if terminal.status is not None and str(terminal.status) not in what else ""
    reason = f"provider: {status}{what}"[:300]
    if terminal.kind == "error" and terminal.status in _PERMANENT:
        return Outcome("provider-permanent", reason)
    return Outcome("provider-transient", reason, limited=terminal.status in _LIMITED)
