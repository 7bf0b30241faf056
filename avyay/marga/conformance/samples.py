"""What the traps send, and how they look at what arrived of it."""

from __future__ import annotations

from avyay.marga.conformance.asking import Ask, Result, Tool, Turn
from avyay.marga.conformance.scripted import Call
from avyay.marga.conformance.seen import Seen
from avyay.marga.conformance.trial import Got, Trial
from avyay.marga.conformance.upstream import MARKER

__all__ = ["CALLS", "LOOP", "TOOLS", "plain", "seen_or_refused", "seen_upstream", "text_of"]

TOOLS = (
    Tool(
        "read_file",
        "Reads a file.",
        {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    ),
    Tool(
        "add",
        "Adds numbers.",
        {
            "type": "object",
            "properties": {"terms": {"type": "array", "items": {"type": "number"}}},
            "required": ["terms"],
        },
    ),
    Tool("now", "Tells the time.", {"type": "object", "properties": {}}),
)
CALLS = (
    Call("call_a1", "read_file", {"path": 'C:\\tmp\\"ä\n'}),
    Call("call_b2", "add", {"terms": [1, 2.5, {"deep": None}]}),
)
LOOP = (
    Turn("user", ("Read and add.",)),
    Turn("assistant", ("On it.",), calls=CALLS),
    Turn("results", results=(Result(CALLS[0], "file text"), Result(CALLS[1], "3.5"))),
    Turn("user", ("Go on.",)),
)


def plain(text: str = "Say something.") -> Ask:
    """The simplest request."""
    return Ask((Turn("user", (text,)),))


def _bare(text: str) -> str:
    return MARKER.sub(b"", text.encode()).decode().strip()


def text_of(seen: Seen) -> str:
    """All text that arrived, without the marker of the case."""
    return "\n".join(_bare(text) for _, text in seen.texts)


async def seen_upstream(trial: Trial, ask: Ask, stream: bool) -> Seen | None:
    """Send a request; what the provider received of it, None after noting that nothing did."""
    got, arrived = await trial.send(ask, stream=stream)
    if arrived is None:
        trial.expect(False, f"nothing reached the provider; HTTP {got.status}: {_text(got)}")
        return None
    trial.observed(got, stream=stream)
    return trial.seen(arrived)


async def seen_or_refused(trial: Trial, ask: Ask, stream: bool) -> Seen | None:
    """For what a provider may have no words for: either it arrives, or the caller is told clearly."""
    got, arrived = await trial.send(ask, stream=stream)
    if arrived is None:
        trial.refusal(got)
        return None
    trial.observed(got, stream=stream)
    return trial.seen(arrived)


def _text(got: Got) -> str:
    return got.raw[:160].decode("utf-8", "replace")
