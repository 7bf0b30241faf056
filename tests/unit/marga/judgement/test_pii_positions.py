"""Personal data wherever it stands in a request, in every dialect, under every policy."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson
import pytest

from avyay.clock import FakeClock
from avyay.config.marga import MargaSettings, PiiAnswerSettings, PiiRuleSettings, PiiSettings
from avyay.marga.backends.fake import FakeAnswer
from avyay.marga.envelope import Inbound
from avyay.marga.gateway import Gateway
from avyay.marga.masking import AnswerMasker, Masker
from avyay.marga.restore import StreamRestorer
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.types import Dialect, Model, Prices, Provider
from avyay.money import Picodollars

EMAIL, CARD = "ada@example.com", "4111 1111 1111 1111"
DATA = f"{EMAIL} {CARD}"
CARD_NUMBER = 4111111111111111


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": list(turns), **more}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


ARGUMENTS = orjson.dumps({"to": EMAIL, "card": CARD_NUMBER}).decode()
HI = user("hi")
TOOL_SCHEMA = {"type": "object", "properties": {"to": {"type": "string", "description": f"not {DATA}"}}}
TOOL_RESULT = {"role": "tool", "tool_call_id": "c", "content": f"sent to {DATA}"}
OPENAI_TOOL = {"type": "function", "function": {"name": "send", "description": "d", "parameters": TOOL_SCHEMA}}

POSITIONS: list[tuple[str, Dialect, dict[str, Any]]] = [
    ("system", "openai_chat", chat({"role": "system", "content": DATA}, HI)),
    ("developer", "openai_chat", chat({"role": "developer", "content": DATA}, HI)),
    ("user", "openai_chat", chat(user(DATA))),
    ("user-parts", "openai_chat", chat(user([{"type": "text", "text": DATA}]))),
    ("earlier-user", "openai_chat", chat(user(DATA), {"role": "assistant", "content": "ok"}, HI)),
    ("earlier-assistant", "openai_chat", chat(HI, {"role": "assistant", "content": DATA}, HI)),
    ("tool-arguments", "openai_chat", chat(HI, called(ARGUMENTS), {**TOOL_RESULT, "content": "ok"})),
    ("tool-result", "openai_chat", chat(HI, called("{}"), TOOL_RESULT)),
    ("tool-definition", "openai_chat", chat(HI, tools=[OPENAI_TOOL])),
    ("name", "openai_chat", chat({"role": "user", "name": EMAIL, "content": CARD})),
    ("system", "anthropic_messages", chat(HI, system=DATA, max_tokens=9)),
    ("system-blocks", "anthropic_messages", chat(HI, system=[{"type": "text", "text": DATA}], max_tokens=9)),
    ("user", "anthropic_messages", chat(user([{"type": "text", "text": DATA}]), max_tokens=9)),
    ("earlier", "anthropic_messages", chat(user(DATA), {"role": "assistant", "content": DATA}, HI, max_tokens=9)),
    (
        "tool-arguments",
        "anthropic_messages",
        chat(
            HI,
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "t", "name": "send", "input": {"to": EMAIL, "card": CARD_NUMBER}}
                ],
            },
            user([{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]),
            max_tokens=9,
        ),
    ),
    (
        "tool-result",
        "anthropic_messages",
        chat(
            HI,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "send", "input": {}}]},
            user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": DATA}]}]),
            max_tokens=9,
        ),
    ),
    ("instructions", "openai_responses", {"model": "auto", "instructions": DATA, "input": "hi"}),
    ("input", "openai_responses", {"model": "auto", "input": DATA}),
    (
        "input-items",
        "openai_responses",
        {
            "model": "auto",
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": DATA}]}],
        },
    ),
    (
        "tool-arguments",
        "openai_responses",
        {
            "model": "auto",
            "input": [
                HI,
                {"type": "function_call", "call_id": "c", "name": "send", "arguments": ARGUMENTS},
                {"type": "function_call_output", "call_id": "c", "output": "ok"},
            ],
        },
    ),
    (
        "tool-result",
        "openai_responses",
        {
            "model": "auto",
            "input": [
                HI,
                {"type": "function_call", "call_id": "c", "name": "send", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": DATA},
            ],
        },
    ),
    ("system", "ollama_chat", chat({"role": "system", "content": DATA}, HI)),
    ("user", "ollama_chat", chat(user(DATA))),
    (
        "tool-arguments",
        "ollama_chat",
        chat(
            HI,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "send", "arguments": {"to": EMAIL, "card": CARD_NUMBER}}}],
            },
            {"role": "tool", "tool_name": "send", "content": "ok"},
        ),
    ),
    ("prompt", "ollama_generate", {"model": "auto", "prompt": DATA, "stream": False}),
    ("system", "ollama_generate", {"model": "auto", "system": DATA, "prompt": "hi", "stream": False}),
]
IDS = [f"{dialect}-{name}" for name, dialect, _ in POSITIONS]
PRICE = Prices(Picodollars(1), Picodollars(1))
PROVIDERS = (
    Provider("cloud", "fake", "https://cloud.example", models=(Model("big", "local", PRICE),)),
    Provider("mine", "fake", "http://127.0.0.1:9", models=(Model("small", "medium", PRICE),)),
)


def gateway(pii: PiiSettings) -> Gateway:
    return Gateway(Router(PROVIDERS, MargaSettings(pii=pii), store=MemoryStore, clock=FakeClock()))


def rule(action: Any) -> PiiSettings:
    return PiiSettings(default=PiiRuleSettings(action=action))


def send(served: Gateway, dialect: Dialect, body: dict[str, Any]) -> tuple[int, str, bytes, list[bytes]]:
    """(status, provider, answer, everything providers were sent)."""

    async def run() -> tuple[int, str, bytes]:
        outbound = await served.open(Inbound(dialect, orjson.dumps({"stream": False, **body}), tier="local"))
        return outbound.status, dict(outbound.headers).get("x-avyay-provider", ""), outbound.body or b""

    status, provider, answer = asyncio.run(run())
    sent = [orjson.dumps(call) for p in PROVIDERS for call in served.router.backends[p.name].calls]  # type: ignore[attr-defined]
    return status, provider, answer, sent


def leaks(data: bytes) -> bool:
    return any(secret in data for secret in (EMAIL.encode(), CARD.encode(), str(CARD_NUMBER).encode()))


@pytest.mark.parametrize(("name", "dialect", "body"), POSITIONS, ids=IDS)
def test_masked_in_every_position(name: str, dialect: Dialect, body: dict[str, Any]) -> None:
    status, provider, _, (sent,) = send(gateway(rule("mask")), dialect, body)
    assert (status, provider) == (200, "cloud")
    assert not leaks(sent), sent
    assert b"[EMAIL_1]" in sent
    assert b"[CARD_1]" in sent


@pytest.mark.parametrize(("name", "dialect", "body"), POSITIONS, ids=IDS)
def test_blocked_in_every_position(name: str, dialect: Dialect, body: dict[str, Any]) -> None:
    settings = PiiSettings(default=PiiRuleSettings(action="block"), providers={"mine": PiiRuleSettings(action="block")})
    status, _, answer, sent = send(gateway(settings), dialect, body)
    assert status == 403
    assert sent == []
    assert not leaks(answer)


@pytest.mark.parametrize(("name", "dialect", "body"), POSITIONS, ids=IDS)
def test_local_only_in_every_position(name: str, dialect: Dialect, body: dict[str, Any]) -> None:
    status, provider, _, (sent,) = send(gateway(rule("local_only")), dialect, body)
    assert (status, provider) == (200, "mine")
    assert leaks(sent)  # nothing leaves the machine, so nothing is changed


@pytest.mark.parametrize(("name", "dialect", "body"), POSITIONS, ids=IDS)
def test_allowed_in_every_position(name: str, dialect: Dialect, body: dict[str, Any]) -> None:
    status, provider, _, (sent,) = send(gateway(rule("allow")), dialect, body)
    assert (status, provider) == (200, "cloud")
    assert leaks(sent)


def test_what_cannot_be_read_counts_as_everything() -> None:
    """Nested deeper than can be walked, or than can be written again once it is masked."""
    settings = PiiSettings(default=PiiRuleSettings(action="mask"), providers={"mine": PiiRuleSettings(action="block")})
    for depth in (300, 900):
        served = gateway(settings)
        deep = b"[" * depth + orjson.dumps(DATA) + b"]" * depth
        raw = orjson.dumps(chat(HI))[:-1] + b',"extra":' + deep + b"}"

        async def run(served: Gateway = served, raw: bytes = raw) -> tuple[int, bytes]:
            outbound = await served.open(Inbound("openai_chat", raw, tier="local"))
            return outbound.status, outbound.body or b""

        status, answer = asyncio.run(run())
        assert status == 403
        assert not leaks(answer)
        assert not any(served.router.backends[p.name].calls for p in PROVIDERS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages", "openai_responses", "ollama_chat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_answer_is_put_back_in_every_dialect(dialect: Dialect, stream: bool) -> None:
    body: dict[str, Any] = {"model": "auto", "stream": stream}
    said = f"Tell {EMAIL} about {CARD} now"
    if dialect == "openai_responses":
        body["input"] = said
    else:
        body["messages"] = [user(said)]
        body["max_tokens"] = 99
    served = gateway(rule("mask"))

    async def run() -> bytes:
        outbound = await served.open(Inbound(dialect, orjson.dumps(body), tier="local"))
        if outbound.body is not None:
            return outbound.body
        return b"".join([chunk async for chunk in outbound.chunks()])

    answer = asyncio.run(run())
    sent = orjson.dumps(served.router.backends["cloud"].calls)  # type: ignore[attr-defined]
    assert not leaks(sent)
    texts = []
    for line in answer.split(b"\n"):
        data = line.removeprefix(b"data: ")
        if data.startswith(b"{"):
            texts.append(_text(dialect, orjson.loads(data), stream))
    assert "".join(texts) == f"You said: {said}"


def _text(dialect: Dialect, event: dict[str, Any], stream: bool) -> str:
    if dialect == "openai_chat":
        return "".join((c.get("delta") or c.get("message") or {}).get("content") or "" for c in event["choices"])
    if dialect == "anthropic_messages":
        if stream:
            return str(event.get("delta", {}).get("text", ""))
        return "".join(block.get("text", "") for block in event["content"])
    if dialect == "openai_responses":
        if stream:
            return event["delta"] if event["type"] == "response.output_text.delta" else ""
        return "".join(c["text"] for item in event["output"] for c in item.get("content", ()))
    return str(event["message"]["content"])


# ---------------------------------------------------------------- what models write


def ask(action: str, text: str, said: str, *, stream: bool, mask: bool = False) -> tuple[Gateway, int, bytes]:
    """What a caller sees of an answer under a rule for answers."""
    rules = PiiSettings(
        default=PiiRuleSettings(action="mask" if mask else "allow"),
        answers=PiiAnswerSettings(action=action),  # type: ignore[arg-type]
    )
    served = gateway(rules)
    served.router.backends["cloud"].script.append(FakeAnswer(said))  # type: ignore[attr-defined]
    body = {"model": "auto", "stream": stream, "messages": [user(text)]}

    async def run() -> tuple[int, bytes]:
        outbound = await served.open(Inbound("openai_chat", orjson.dumps(body), tier="local"))
        if outbound.body is not None:
            return outbound.status, outbound.body
        return outbound.status, b"".join([chunk async for chunk in outbound.chunks()])

    return served, *asyncio.run(run())


def shown(answer: bytes) -> str:
    events = [line.removeprefix(b"data: ") for line in answer.split(b"\n")]
    return "".join(_text("openai_chat", orjson.loads(e), True) for e in events if e.startswith(b"{"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_a_model_makes_known_is_masked_and_what_it_was_told_is_not(stream: bool) -> None:
    said = f"Write to {EMAIL}, or to bob@example.org, card {CARD} please."
    _, status, answer = ask("mask", f"I am {EMAIL}", said, stream=stream)
    assert status == 200
    assert shown(answer) == f"Write to {EMAIL}, or to [EMAIL_1], card [CARD_1] please."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_masked_both_ways(stream: bool) -> None:
    said = "Write to [EMAIL_1], or to bob@example.org please."
    _, _, answer = ask("mask", f"I am {EMAIL}", said, stream=stream, mask=True)
    assert shown(answer) == f"Write to {EMAIL}, or to [EMAIL_1] please."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_with_forbidden_data_is_refused(stream: bool) -> None:
    served, status, answer = ask("block", "Who is it?", "It is bob@example.org and that is that.", stream=stream)
    assert b"bob@" not in answer
    assert b"pii_in_answer" in answer or b"marga.pii.answers" in answer
    assert status == (200 if stream else 403)
    record = served.router.store.calls[0]  # type: ignore[attr-defined]
    assert record.status == "refused"
    assert record.cost > 0  # the provider wants its money all the same
    assert "bob" not in record.error


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages", "openai_responses"])
def test_streamed_tool_arguments_are_put_back_and_masked(dialect: str) -> None:
    """Arguments arrive as JSON text cut anywhere: values are escaped into it, and numbers that are masked stay JSON."""
    masker = Masker(frozenset({"email", "card"}))
    name = masker.mask(EMAIL)
    arguments = f'{{"to": "{name}", "n": {CARD_NUMBER}, "cc": ["bob@example.org", {CARD_NUMBER}], "q": 7}}'
    rng = random.Random(3)
    for _ in range(40):
        guard = AnswerMasker(frozenset({"email", "card"}), frozenset(), {"asked": EMAIL})
        cuts = sorted(rng.sample(range(1, len(arguments)), 6))
        parts = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
        restorer = StreamRestorer(dialect, masker, guard)  # type: ignore[arg-type]
        out = b"".join(restorer.feed(frame) for frame in tool_frames(dialect, parts)) + restorer.close()
        found = orjson.loads("".join(tool_text(dialect, out)))
        assert found == {"to": EMAIL, "n": "[CARD_1]", "cc": ["[EMAIL_1]", "[CARD_1]"], "q": 7}


def tool_frames(dialect: str, parts: list[str]) -> list[bytes]:
    frames: list[dict[str, Any]] = []
    for part in parts:
        if dialect == "openai_chat":
            call = {"index": 0, "function": {"arguments": part}}
            frames.append({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})
        elif dialect == "anthropic_messages":
            delta = {"type": "input_json_delta", "partial_json": part}
            frames.append({"type": "content_block_delta", "index": 1, "delta": delta})
        else:
            frames.append({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": part})
    ends: dict[str, dict[str, Any]] = {
        "openai_chat": {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        "anthropic_messages": {"type": "content_block_stop", "index": 1},
        "openai_responses": {"type": "response.function_call_arguments.done", "output_index": 0},
    }
    return [b"data: " + orjson.dumps(frame) + b"\n\n" for frame in (*frames, ends[dialect])]


def tool_text(dialect: str, stream: bytes) -> list[str]:
    found = []
    for line in stream.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        event = orjson.loads(line[6:])
        if dialect == "openai_chat":
            calls = event["choices"][0]["delta"].get("tool_calls", ())
            found += [call["function"]["arguments"] for call in calls]
        elif dialect == "anthropic_messages":
            found.append(event.get("delta", {}).get("partial_json", ""))
        else:
            found.append(event.get("delta", ""))
    return found
