"""Traps on the way back: what a translation says of an answer, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable

from avyay.marga.conformance.asking import Ask
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import TOOLS, plain
from avyay.marga.conformance.scripted import Call, Script, Tokens
from avyay.marga.conformance.trial import Trial
from avyay.marga.conformance.upstream import Answer
from avyay.marga.wire.model import Dialect

__all__: list[str] = []

_TOKENS = Tokens(plain=31, output=17)
_TWO = (Call("call_x1", "read_file", {"path": 'ä/"b"\n'}), Call("call_x2", "add", {"terms": [1, -2.5, 1e20]}))
_TALKS = ("chat", "responses", "messages", "ollama")


async def _check(
    trial: Trial,
    stream: bool,
    script: Script,
    *,
    tools: bool = False,
    form: bool = False,
    rewrite: Callable[[Dialect, bytes], bytes] | None = None,
) -> None:
    ask = Ask(plain().turns, tools=TOOLS if tools else ())
    got, arrived = await trial.send(ask, Answer(script, rewrite=rewrite), stream=stream)
    found = trial.observed(got, stream=stream, form=form)
    if found is not None:
        trial.same_answer(found, script, arrived)


@trap(
    "text",
    "answers",
    sent="a plain question",
    arrives="the question",
    back="the provider's text, stop reason and token counts, in the dialect's exact form",
)
async def text(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(text='Grüße, 世界 🌍!\n\n"quoted" \\n data: [DONE]', tokens=_TOKENS), form=True)


@trap(
    "tool-call",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="one call with its arguments, and the stop reason that makes clients run it",
    callers=_TALKS,
)
async def tool_call(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(calls=_TWO[:1], tokens=_TOKENS), tools=True)


@trap(
    "parallel-tool-calls",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="text, then two calls: each once, each with its own id and arguments, indices counting tools only",
    callers=_TALKS,
)
async def parallel_tool_calls(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(text="On it.", calls=_TWO, tokens=_TOKENS), tools=True)


@trap(
    "thinking-then-tool",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="the call with the right index although reasoning came first",
    callers=_TALKS,
)
async def thinking_then_tool(trial: Trial, stream: bool) -> None:
    signed = "" if trial.upstream in ("ollama_chat", "openai_chat") else "EqQBCgYIAxgCIkD="
    script = Script(thinking="Which file?", signature=signed, calls=_TWO[:1], tokens=_TOKENS)
    await _check(trial, stream, script, tools=True)


@trap(
    "no-argument-call",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="a call whose arguments are an empty object, not an empty string",
    callers=_TALKS,
)
async def no_argument_call(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(calls=(Call("call_n", "now", {}),), tokens=_TOKENS), tools=True)


def _stop_instead(dialect: Dialect, data: bytes) -> bytes:
    return data.replace(b'"finish_reason":"tool_calls"', b'"finish_reason":"stop"')


@trap(
    "stop-with-tool-calls",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="the tool-use stop reason although the provider said `stop`, as compatible servers do",
    callers=("messages",),
    upstreams=("chat", "ollama"),
)
async def stop_with_tool_calls(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(calls=_TWO[:1], tokens=_TOKENS), tools=True, rewrite=_stop_instead)


def _only_done(dialect: Dialect, data: bytes) -> bytes:
    """A Responses stream whose arguments come in the done events only."""
    out: list[bytes] = []
    for event in data.split(b"\n\n"):
        if not event or event.startswith(b"event: response.function_call_arguments.delta"):
            continue
        head, _, payload = event.partition(b"\ndata: ")
        body = json.loads(payload)
        body["sequence_number"] = len(out)
        out.append(head + b"\ndata: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n")
    return b"".join(out)


@trap(
    "arguments-only-in-done",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="the arguments once, although the provider sent no deltas of them",
    callers=("chat", "messages", "ollama"),
    upstreams=("responses",),
    modes=(True,),
)
async def arguments_only_in_done(trial: Trial, stream: bool) -> None:
    def rewrite(dialect: Dialect, data: bytes) -> bytes:
        return _only_done(dialect, data) if dialect == "openai_responses" else data

    await _check(trial, stream, Script(calls=_TWO, tokens=_TOKENS), tools=True, rewrite=rewrite)


@trap(
    "whole-call-in-one-chunk",
    "answers",
    sent="a question with tools",
    arrives="the question with tools",
    back="the call once, although id, name and all arguments came in one chunk",
    callers=_TALKS,
    upstreams=("chat",),
    modes=(True,),
)
async def whole_call_in_one_chunk(trial: Trial, stream: bool) -> None:
    def rewrite(dialect: Dialect, data: bytes) -> bytes:
        if dialect != "openai_chat":
            return data
        return b"".join(_merged(data))

    await _check(trial, stream, Script(calls=_TWO, tokens=_TOKENS), tools=True, rewrite=rewrite)


def _merged(data: bytes) -> list[bytes]:
    out: list[bytes] = []
    for event in data.split(b"\n\n"):
        if b'"tool_calls":[{' not in event:
            out += [event + b"\n\n"] if event else []
        elif b'"id":"call' in event:
            body = json.loads(event[6:])
            call = body["choices"][0]["delta"]["tool_calls"][0]
            call["function"]["arguments"] = json.dumps(_TWO[call["index"]].arguments, ensure_ascii=False)
            out.append(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")
    return out


@trap(
    "length",
    "answers",
    sent="a question",
    arrives="the question",
    back="the stop reason for an answer cut at the output limit",
)
async def length(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(text="Half a", stop="max_tokens", tokens=_TOKENS))


@trap(
    "refusal",
    "answers",
    sent="a question",
    arrives="the question",
    back="the stop reason for an answer withheld by a policy",
    upstreams=("chat", "responses", "messages"),
    callers=("chat", "responses", "messages"),
)
async def refusal(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(text="I cannot", stop="refusal", tokens=_TOKENS))


@trap(
    "reasoning-text",
    "answers",
    sent="a question",
    arrives="the question",
    back="the provider's reasoning apart from its text",
    callers=_TALKS,
)
async def reasoning_text(trial: Trial, stream: bool) -> None:
    signed = "" if trial.upstream in ("ollama_chat", "openai_chat") else "EqQBCgYIAxgCIkD="
    script = Script(text="Four.", thinking="Two and two.", signature=signed, tokens=Tokens(9, output=12))
    got, arrived = await trial.send(plain(), Answer(script), stream=stream)
    found = trial.observed(got, stream=stream)
    if found is not None:
        trial.same_answer(found, script, arrived)
        trial.equal(found.thinking, script.thinking, "reasoning")


@trap(
    "cached-tokens",
    "answers",
    sent="a question",
    arrives="the question",
    back="token counts in which cache reads and writes are counted once, by the caller's own convention",
    upstreams=("chat", "responses", "messages"),
)
async def cached_tokens(trial: Trial, stream: bool) -> None:
    written = 40 if trial.upstream == "anthropic_messages" else 0
    await _check(trial, stream, Script(text="Yes.", tokens=Tokens(20, 500, written, 7)))


@trap(
    "cumulative-usage",
    "answers",
    sent="a question",
    arrives="the question",
    back="the provider's last word on output tokens, not the sum of its words",
    upstreams=("messages",),
    modes=(True,),
)
async def cumulative_usage(trial: Trial, stream: bool) -> None:
    def rewrite(dialect: Dialect, data: bytes) -> bytes:
        """The first event counts some output already, the last one counts it again."""
        return data.replace(b'"output_tokens":1,', b'"output_tokens":11,', 1)

    await _check(trial, stream, Script(text="Yes.", tokens=Tokens(20, 0, 0, 17)), rewrite=rewrite)


@trap(
    "empty-answer",
    "answers",
    sent="a question",
    arrives="the question",
    back="an answer without text that is still complete",
)
async def empty_answer(trial: Trial, stream: bool) -> None:
    await _check(trial, stream, Script(tokens=Tokens(20, output=0)))


@trap(
    "stable-model",
    "answers",
    sent="a question",
    arrives="the question",
    back="a model name, and an id where the dialect has one",
)
async def stable_model(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), stream=stream)
    found = trial.observed(got, stream=stream)
    if found is not None:
        trial.expect(bool(found.model) and found.model != "None", "no model named")
        if not trial.caller.startswith("ollama"):
            trial.expect(bool(found.id), "no id")
