"""Traps on the way to the provider: what a translation loses, moves, doubles or makes refusable."""

from __future__ import annotations

import json

from avyay.marga.conformance.asking import PIXEL, Ask, Picture, Result, Tool, Turn
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.scripted import Call
from avyay.marga.conformance.seen import Seen
from avyay.marga.conformance.trial import Got, Trial
from avyay.marga.conformance.upstream import MARKER

__all__ = ["LOOP", "TOOLS", "plain"]

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
_CALLS = (
    Call("call_a1", "read_file", {"path": 'C:\\tmp\\"ä\n'}),
    Call("call_b2", "add", {"terms": [1, 2.5, {"deep": None}]}),
)
LOOP = (
    Turn("user", ("Read and add.",)),
    Turn("assistant", ("On it.",), calls=_CALLS),
    Turn("results", results=(Result(_CALLS[0], "file text"), Result(_CALLS[1], "3.5"))),
    Turn("user", ("Go on.",)),
)
_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string"}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def plain(text: str = "Say something.") -> Ask:
    """The simplest request."""
    return Ask((Turn("user", (text,)),))


def _bare(text: str) -> str:
    return MARKER.sub(b"", text.encode()).decode().strip()


def _said(seen: Seen) -> str:
    return "\n".join(_bare(text) for _, text in seen.texts)


async def _seen(trial: Trial, ask: Ask, stream: bool) -> Seen | None:
    got, arrived = await trial.send(ask, stream=stream)
    if arrived is None:
        trial.expect(False, f"nothing reached the provider; HTTP {got.status}: {_text(got)}")
        return None
    trial.observed(got, stream=stream)
    return trial.seen(arrived)


async def _seen_or_refused(trial: Trial, ask: Ask, stream: bool) -> Seen | None:
    """For what a provider may have no words for: either it arrives, or the caller is told clearly."""
    got, arrived = await trial.send(ask, stream=stream)
    if arrived is None:
        trial.refusal(got)
        return None
    trial.observed(got, stream=stream)
    return trial.seen(arrived)


def _text(got: Got) -> str:
    return got.raw[:160].decode("utf-8", "replace")


@trap(
    "system-anywhere",
    "requests",
    sent="instructions first, as a list of two blocks where the dialect has lists, and again in mid-conversation",
    arrives="every instruction, in order, where the provider accepts it",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama"),
)
async def system_anywhere(trial: Trial, stream: bool) -> None:
    ask = Ask(
        (
            Turn("system", ("Be brief.", "Be kind."), blocks=True),
            Turn("user", ("First.",)),
            Turn("assistant", ("Yes?",)),
            Turn("system", ("Now be formal.",)),
            Turn("user", ("Second.",)),
        )
    )
    seen = await _seen(trial, ask, stream)
    if seen is not None:
        said = _said(seen)
        places = [said.find(text) for text in ("Be brief.", "Be kind.", "First.", "Yes?", "Second.")]
        trial.expect(-1 not in places and places == sorted(places), f"texts lost or out of order: {said!r}")
        trial.expect("Now be formal." in said, "the later instruction is lost")
        trial.expect(said.count("Be brief.") == 1, "the instruction is doubled")


@trap(
    "developer-role",
    "requests",
    sent="a developer message",
    arrives="its text, in a role the provider knows",
    back="an ordinary answer",
    callers=("chat", "responses"),
)
async def developer_role(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask((Turn("developer", ("Be exact.",)), Turn("user", ("Go.",)))), stream)
    if seen is not None:
        role = next((role for role, text in seen.texts if "Be exact." in text), None)
        trial.expect(role in ("system", "developer"), f"the developer message arrived as {role}")


@trap(
    "system-blocks",
    "requests",
    sent="`system` as a list of blocks",
    arrives="every block, in order",
    back="an ordinary answer",
    callers=("messages",),
)
async def system_blocks(trial: Trial, stream: bool) -> None:
    ask = Ask((Turn("system", ("Be brief.", "Be kind."), blocks=True), Turn("user", ("Go.",))))
    seen = await _seen(trial, ask, stream)
    if seen is not None:
        system = "\n".join(text for role, text in seen.texts if role in ("system", "developer"))
        places = [system.find("Be brief."), system.find("Be kind.")]
        trial.expect(-1 not in places and places == sorted(places), f"instructions arrived as {seen.texts!r}")


@trap(
    "parallel-tool-results",
    "requests",
    sent="a turn with two tool calls, their two results, and more from the user",
    arrives="both calls and both results, each bound to its call, in the order and grouping the provider demands",
    back="an ordinary answer",
    callers=("chat", "responses", "messages", "ollama"),
)
async def parallel_tool_results(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(LOOP, tools=TOOLS), stream)
    if seen is not None:
        trial.equal(seen.calls, [(c.name, c.arguments) for c in _CALLS], "calls")
        trial.equal([(r.call, r.text) for r in seen.results], [(0, "file text"), (1, "3.5")], "results by call")
        trial.expect("Go on." in _said(seen), "what the user said after the results is lost")


@trap(
    "tool-result-error",
    "requests",
    sent="a tool result marked as an error",
    arrives="the mark, or words that say so",
    back="an ordinary answer",
    callers=("messages",),
)
async def tool_result_error(trial: Trial, stream: bool) -> None:
    turns = (LOOP[0], Turn("assistant", calls=_CALLS[:1]))
    ask = Ask((*turns, Turn("results", results=(Result(_CALLS[0], "no such file", error=True),)), LOOP[3]), TOOLS)
    seen = await _seen(trial, ask, stream)
    if seen is not None and trial.equal(len(seen.results), 1, "results"):
        result = seen.results[0]
        trial.expect("no such file" in result.text, "the error's text is lost")
        said = result.error or "error" in result.text.lower()
        trial.expect(said, "nothing says that the tool failed")


@trap(
    "tool-shapes",
    "requests",
    sent="three tools in the caller's shape",
    arrives="the same names, descriptions and schemas in the same order, in the provider's shape",
    back="an ordinary answer",
    callers=("chat", "responses", "messages", "ollama"),
)
async def tool_shapes(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, tools=TOOLS), stream)
    if seen is not None:
        trial.equal(seen.tools, [(t.name, t.description, t.schema) for t in TOOLS], "tools")


async def _choice(trial: Trial, stream: bool, choice: str, accepted: tuple[str | None, ...]) -> None:
    seen = await _seen_or_refused(trial, Ask(plain().turns, tools=TOOLS, choice=choice), stream)
    if seen is None:
        return
    if choice == "none" and not seen.tools:
        return  # nothing can be called that is not offered
    trial.expect(seen.choice in accepted, f"tool choice {seen.choice!r} instead of {choice!r}")


@trap(
    "tool-choice-auto",
    "requests",
    sent="tool_choice auto",
    arrives="auto, or nothing where that is the default",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_auto(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "auto", ("auto", None))


@trap(
    "tool-choice-none",
    "requests",
    sent="tool_choice none",
    arrives="none, or no tools at all",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_none(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "none", ("none",))


@trap(
    "tool-choice-required",
    "requests",
    sent="tool_choice required (any)",
    arrives="the provider's word for it; where it has none, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_required(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "required", ("required",))


@trap(
    "tool-choice-named",
    "requests",
    sent="tool_choice naming a tool",
    arrives="that name in the provider's shape; where it cannot be forced, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_named(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "tool:add", ("tool:add",))


@trap(
    "tool-choice-serial",
    "requests",
    sent="at most one tool call a turn",
    arrives="parallel_tool_calls false, or disable_parallel_tool_use true",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    upstreams=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_serial(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, tools=TOOLS, parallel=False), stream)
    if seen is not None:
        trial.equal(seen.parallel, False, "parallel tool calls")


@trap(
    "image-data",
    "requests",
    sent="a picture as base64 data beside text",
    arrives="the same data in the provider's shape",
    back="an ordinary answer",
)
async def image_data(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask((Turn("user", ("What is this?",), pictures=(Picture(PIXEL),)),)), stream)
    if seen is not None:
        trial.equal(seen.pictures, [PIXEL], "pictures")
        trial.expect("What is this?" in _said(seen), "the text beside the picture is lost")


@trap(
    "image-url",
    "requests",
    sent="a picture by URL",
    arrives="the URL; where the provider takes none, a clear refusal instead. The gateway never fetches it",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def image_url(trial: Trial, stream: bool) -> None:
    upstream = trial.bench.upstream
    url = f"{upstream.url}/picture-{id(trial):x}.png"
    seen = await _seen_or_refused(trial, Ask((Turn("user", ("What is this?",), pictures=(Picture(url=url),)),)), stream)
    if seen is not None:
        trial.equal(seen.pictures, [url], "pictures")
    fetched = [request.path for request in upstream.others if request.path in url]
    trial.expect(not fetched, "the gateway fetched the URL")


@trap(
    "image-in-tool-result",
    "requests",
    sent="a tool result with text and a picture",
    arrives="both; where results hold only text, the picture follows as user content",
    back="an ordinary answer",
    callers=("responses", "messages"),
    modes=(False,),
)
async def image_in_tool_result(trial: Trial, stream: bool) -> None:
    call = _CALLS[0]
    result = Result(call, "the screen", Picture(PIXEL))
    turns = (LOOP[0], Turn("assistant", calls=(call,)), Turn("results", results=(result,)), LOOP[3])
    seen = await _seen(trial, Ask(turns, tools=TOOLS), stream)
    if seen is not None and trial.equal(len(seen.results), 1, "results"):
        trial.expect("the screen" in seen.results[0].text, "the result's text is lost")
        trial.equal(seen.results[0].pictures + seen.pictures, [PIXEL], "pictures")


@trap(
    "stop-strings",
    "requests",
    sent="two stop strings",
    arrives="both; where the provider takes none, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "messages", "ollama", "generate"),
    modes=(False,),
)
async def stop_strings(trial: Trial, stream: bool) -> None:
    seen = await _seen_or_refused(trial, Ask(plain().turns, stop=("END", "###")), stream)
    if seen is not None:
        trial.equal(seen.stop, ["END", "###"], "stop strings")


@trap(
    "temperature-range",
    "requests",
    sent="temperature 1.7, which the Messages API refuses",
    arrives="a temperature in the provider's range; the same where it is allowed",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "ollama", "generate"),
    modes=(False,),
)
async def temperature_range(trial: Trial, stream: bool) -> None:
    seen = await _seen_or_refused(trial, Ask(plain().turns, temperature=1.7), stream)
    if seen is not None:
        wanted = (1, 1.0) if trial.upstream == "anthropic_messages" else (1.7,)
        trial.expect(seen.temperature in wanted, f"temperature {seen.temperature} instead of {wanted[-1]}")


@trap(
    "temperature-zero",
    "requests",
    sent="temperature 0, which is easily taken for absent",
    arrives="0",
    back="an ordinary answer",
    modes=(False,),
)
async def temperature_zero(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, temperature=0), stream)
    if seen is not None:
        trial.equal(seen.temperature, 0, "temperature")


@trap(
    "top-k",
    "requests",
    sent="top_k 7",
    arrives="top_k 7 where the provider has it",
    back="an ordinary answer",
    callers=("messages", "ollama", "generate"),
    upstreams=("messages", "ollama"),
    modes=(False,),
)
async def top_k(trial: Trial, stream: bool) -> None:
    ask = Ask(plain().turns, top_k=7)
    got, arrived = await trial.send(ask, stream=stream)
    seen = trial.seen(arrived)
    if seen is not None and arrived is not None:
        found = seen.top_k if seen.top_k is not None else (arrived.body.get("options") or {}).get("top_k")
        trial.equal(found, 7, "top_k")
        trial.observed(got, stream=stream)


@trap(
    "reasoning-effort",
    "requests",
    sent="reasoning effort high",
    arrives="the provider's own way of asking for it: effort, a thinking object, or `think`",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama"),
    modes=(False,),
)
async def reasoning_effort(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, effort="high", max_tokens=8000), stream)
    if seen is not None:
        trial.equal(seen.reasons, True, "asks for reasoning")


@trap(
    "thinking-budget",
    "requests",
    sent="a thinking budget of 2,000 tokens",
    arrives="thinking asked for, in a way the provider accepts",
    back="an ordinary answer",
    callers=("messages",),
    upstreams=("messages", "ollama"),
    modes=(False,),
)
async def thinking_budget(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, budget=2000, max_tokens=8000), stream)
    if seen is not None:
        trial.equal(seen.reasons, True, "asks for reasoning")


@trap(
    "signed-thinking",
    "requests",
    sent="an earlier turn of signed thinking with a tool call, and its result",
    arrives="at its signer the block unchanged; elsewhere no trace of the signature",
    back="an ordinary answer",
    callers=("messages",),
)
async def signed_thinking(trial: Trial, stream: bool) -> None:
    call = _CALLS[0]
    turns = (
        LOOP[0],
        Turn("assistant", ("On it.",), calls=(call,), thinking="Which file?", signature="EqQBCgYIAxgCIkD="),
        Turn("results", results=(Result(call, "file text"),)),
        LOOP[3],
    )
    got, arrived = await trial.send(Ask(turns, tools=TOOLS), stream=stream)
    seen = trial.seen(arrived)
    if seen is None or arrived is None:
        return
    trial.observed(got, stream=stream)
    trial.equal(len(seen.results), 1, "results")
    if arrived.dialect == "anthropic_messages":
        trial.equal(seen.signatures, ["EqQBCgYIAxgCIkD="], "signatures")
    else:
        trial.expect(b"EqQBCgYIAxgCIkD=" not in arrived.raw, "the signature went to a provider that did not sign")


@trap(
    "cache-control",
    "requests",
    sent="a long prefix marked with cache_control",
    arrives="the mark, at a provider that knows it; no mark at one that would refuse it",
    back="an ordinary answer",
    callers=("chat", "messages"),
    modes=(False,),
)
async def cache_control(trial: Trial, stream: bool) -> None:
    ask = Ask((Turn("system", ("A long text.",), blocks=True, cached=True), Turn("user", ("Go.",))))
    seen = await _seen(trial, ask, stream)
    if seen is not None and trial.caller != trial.upstream:  # within a dialect the caller knows what it does
        trial.equal(seen.cache_marks, int(trial.upstream == "anthropic_messages"), "cache marks")


@trap(
    "structured-output",
    "requests",
    sent="a JSON schema the answer must match",
    arrives="the schema in the provider's own place",
    back="an ordinary answer",
    modes=(False,),
)
async def structured_output(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, Ask(plain().turns, schema=_SCHEMA), stream)
    if seen is not None:
        trial.equal(seen.schema, _SCHEMA, "schema")


@trap(
    "max-tokens",
    "requests",
    sent="a limit of 200 output tokens",
    arrives="the limit under the provider's own name",
    back="an ordinary answer",
    modes=(False,),
)
async def max_tokens(trial: Trial, stream: bool) -> None:
    seen = await _seen(trial, plain(), stream)
    if seen is not None:
        trial.equal(seen.max_tokens, 200, "output limit")


@trap(
    "max-tokens-default",
    "requests",
    sent="no output limit",
    arrives="a limit all the same, since the Messages API demands one",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama", "generate"),
    upstreams=("messages",),
    modes=(False,),
)
async def max_tokens_default(trial: Trial, stream: bool) -> None:
    await _seen(trial, Ask(plain().turns, max_tokens=None), stream)


@trap(
    "unknown-fields",
    "requests",
    sent="a field nobody knows yet, to a provider of the same dialect",
    arrives="the field, unchanged",
    back="an ordinary answer",
    same=True,
)
async def unknown_fields(trial: Trial, stream: bool) -> None:
    ask = Ask(plain().turns, extra={"future_field": {"deep": [1, None]}})
    got, arrived = await trial.send(ask, stream=stream)
    trial.observed(got, stream=stream)
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        trial.equal(arrived.body.get("future_field"), {"deep": [1, None]}, "the unknown field")


@trap(
    "beta-header",
    "requests",
    sent="/v1/messages?beta=true with an anthropic-beta header, to a Messages provider",
    arrives="the header",
    back="an ordinary answer",
    callers=("messages",),
    upstreams=("messages",),
)
async def beta_header(trial: Trial, stream: bool) -> None:
    headers = {"anthropic-beta": "some-feature-2026-01-01"}
    got, arrived = await trial.send(plain(), stream=stream, headers=headers, query="?beta=true")
    trial.observed(got, stream=stream)
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        found = arrived.headers.get("anthropic-beta", "")
        trial.expect("some-feature-2026-01-01" in found, f"anthropic-beta is {found!r}")


@trap(
    "keys-stay",
    "requests",
    sent="the caller's key for the gateway",
    arrives="the provider's own key, not the caller's",
    back="an ordinary answer",
    modes=(False,),
    callers=("chat", "messages"),
)
async def keys_stay(trial: Trial, stream: bool) -> None:
    _, arrived = await trial.send(plain(), stream=stream)
    key = trial.bench.key or "sk-conformance"
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        trial.expect(key not in json.dumps(arrived.headers), "the caller's key was passed on")
