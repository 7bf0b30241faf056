"""Traps of streaming: framing, pieces, flow, and callers who hang up."""

from __future__ import annotations

import asyncio
import json

import httpx2

from avyay.marga.conformance.asking import Ask
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import TOOLS, plain
from avyay.marga.conformance.scripted import Call, Script, Tokens
from avyay.marga.conformance.trial import Trial
from avyay.marga.conformance.upstream import Answer
from avyay.marga.wire.model import Dialect

__all__: list[str] = []

_SCRIPT = Script(
    text="Zeile eins\nzwei 世界 🌍",
    calls=(Call("call_s1", "add", {"terms": [1, 2], "note": "ü\n"}),),
    tokens=Tokens(11, output=9),
)
_LONG = Script(text="One two three four five six seven eight nine ten.", tokens=Tokens(11, output=9))


@trap(
    "split-anywhere",
    "streams",
    sent="a question with tools",
    arrives="the question with tools",
    back="the same answer although the provider's bytes come one, two and three at a time",
    callers=("chat", "responses", "messages", "ollama"),
    modes=(True,),
)
async def split_anywhere(trial: Trial, stream: bool) -> None:
    got, arrived = await trial.send(Ask(plain().turns, TOOLS), Answer(_SCRIPT, sizes=(1, 2, 3)), stream=True)
    found = trial.observed(got, stream=True)
    if found is not None:
        trial.same_answer(found, _SCRIPT, arrived)


def _noisy(dialect: Dialect, data: bytes) -> bytes:
    """What the standard allows: comments, CRLF line ends, no blank after the colon."""
    if dialect.startswith("ollama"):
        return data
    commented = b": keep-alive\n\n" + data.replace(b"\n\n", b"\n\n: ping\n\n", 2)
    return commented.replace(b"data: {", b"data:{").replace(b"\n", b"\r\n")


@trap(
    "lenient-framing",
    "streams",
    sent="a question",
    arrives="the question",
    back="the answer although the provider sends comments, CRLF line ends and no blank after `data:`",
    upstreams=("chat", "responses", "messages"),
    modes=(True,),
    same=False,
)
async def lenient_framing(trial: Trial, stream: bool) -> None:
    got, arrived = await trial.send(plain(), Answer(_LONG, rewrite=_noisy), stream=True)
    found = trial.observed(got, stream=True)
    if found is not None:
        trial.same_answer(found, _LONG, arrived)


@trap(
    "usage-asked-upstream",
    "streams",
    sent="a stream, by a Chat client that did not ask for usage",
    arrives="stream_options.include_usage, at a Chat provider, so that the call can be billed",
    back="no usage chunk",
    callers=("chat",),
    modes=(True,),
)
async def usage_asked_upstream(trial: Trial, stream: bool) -> None:
    got, arrived = await trial.send(Ask(plain().turns, include_usage=False), Answer(_LONG), stream=True)
    found = trial.observed(got, stream=True)
    if found is not None:
        trial.equal(found.text, _LONG.text, "text")
        trial.expect(b'"choices":[]' not in got.raw.replace(b" ", b""), "a usage chunk nobody asked for")
    trial.expect(arrived is not None, "nothing reached the provider")
    if arrived is not None and arrived.dialect == "openai_chat":
        asked = (arrived.body.get("stream_options") or {}).get("include_usage")
        trial.expect(asked is True, "usage was not asked for")


@trap(
    "usage-with-last-choice",
    "streams",
    sent="a stream",
    arrives="the question",
    back="the usage although the provider sends it with the finish reason, not in a chunk of its own",
    callers=("responses", "messages", "ollama"),
    upstreams=("chat",),
    modes=(True,),
)
async def usage_with_last_choice(trial: Trial, stream: bool) -> None:
    def rewrite(dialect: Dialect, data: bytes) -> bytes:
        if dialect != "openai_chat":
            return data
        events = [event for event in data.split(b"\n\n") if event]
        usage = json.loads(events[-2][6:])
        last = json.loads(events[-3][6:]) | {"usage": usage["usage"]}
        events[-3:-1] = [b"data: " + json.dumps(last).encode()]
        return b"".join(event + b"\n\n" for event in events)

    got, arrived = await trial.send(plain(), Answer(_LONG, rewrite=rewrite), stream=True)
    found = trial.observed(got, stream=True)
    if found is not None:
        trial.same_answer(found, _LONG, arrived)


@trap(
    "not-buffered",
    "streams",
    sent="a stream whose provider pauses after a part of the answer",
    arrives="the question",
    back="that part before the provider goes on",
    modes=(True,),
)
async def not_buffered(trial: Trial, stream: bool) -> None:
    answer = Answer(_LONG, hold_at=0.6)
    async with trial.opened(plain(), answer, stream=True) as (task, _):
        try:
            async with asyncio.timeout(trial.bench.patience):
                response = await task
                if not trial.equal(response.status_code, 200, "HTTP status"):
                    return
                received = b""
                pieces = response.aiter_bytes()
                async for piece in pieces:
                    received += piece
                    if b"two" in received or received.count(b"\n") > 8:
                        break
                trial.expect(not answer.release.is_set(), "nothing came before the end")
        except TimeoutError:
            trial.expect(False, "nothing came while the provider paused: the answer is buffered")
        except httpx2.HTTPError as error:
            trial.expect(False, f"the connection broke: {type(error).__name__}")


@trap(
    "hang-up",
    "streams",
    sent="a request whose caller hangs up while the provider is at work",
    arrives="the question, and then the end of the connection",
    back="nothing: nobody listens",
)
async def hang_up(trial: Trial, stream: bool) -> None:
    answer = Answer(_LONG, hold_at=0.5 if stream else 0)
    async with trial.opened(plain(), answer, stream=stream) as (task, _):
        try:
            async with asyncio.timeout(trial.bench.patience):
                held = asyncio.ensure_future(answer.held.wait())
                await asyncio.wait({held, task}, return_when=asyncio.FIRST_COMPLETED)
                held.cancel()
                if not trial.expect(answer.held.is_set(), "the request did not reach the provider"):
                    return
                if stream:
                    await task
        except TimeoutError:
            trial.expect(False, "the request did not reach the provider")
            return
        if not task.done():
            task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(found, httpx2.Response):
            await found.aclose()
        try:
            async with asyncio.timeout(trial.bench.patience):
                await answer.gone.wait()
        except TimeoutError:
            trial.expect(False, "the provider kept working although its caller had gone")
