"""The conformance kit: our own gateway passes it, and a gateway that sins is found out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sinner import Sin, sinning_gateway

from avyay.cli.app import run
from avyay.config.environment import Environment
from avyay.errors import UnreachableError, UsageError
from avyay.marga.conformance.kit import DEFAULT_MODELS, Report, choose, detect_models, run_kit
from avyay.marga.conformance.own import own_gateway
from avyay.marga.conformance.registry import cases_of, traps
from avyay.marga.conformance.upstream import Upstream

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "conformance.md"
# What waits for retries of our own gateway: `avyay marga conformance --self` tries these too.
SLOW = {"error-500", "cut-whole-answer"}


def test_our_own_gateway_passes() -> None:
    async def work() -> Report:
        only = [trap.id for trap in traps() if trap.id not in SLOW] + ["agreement", "error-500:chat>messages"]
        async with Upstream() as upstream, own_gateway(upstream.url, Environment()) as urls:
            return await run_kit(urls, upstream, only=only, splits=60, priced=True)

    report = asyncio.run(work())
    assert [(outcome.id, outcome.problems) for outcome in report.failed] == []
    assert len(report.outcomes) > 700
    assert report.examples == 60
    assert {row["group"] for row in report.groups()} >= {"requests", "answers", "streams", "errors", "avyay"}


# ---------------------------------------------------------------- sins


def twice(data: bytes) -> bytes:
    """A tool call's opening is sent again as another call."""
    events = [event + b"\n\n" for event in data.split(b"\n\n") if event]
    out = []
    for event in events:
        out.append(event)
        if b'"id":"call_' in event:
            out.append(event.replace(b'"index":0,"id"', b'"index":1,"id"'))
    return b"".join(out)


def without_second_result(body: dict[str, Any]) -> dict[str, Any]:
    results = [m for m in body["messages"] if m["role"] == "tool"]
    return {**body, "messages": [m for m in body["messages"] if m not in results[1:]]}


def without(*names: str) -> Any:
    return lambda body: {name: value for name, value in body.items() if name not in names}


def without_falsy(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value}


SINS: dict[str, tuple[Sin, tuple[str, ...]]] = {
    "wrong stop reason, whole": (
        Sin(whole=lambda b: b.replace(b'"stop_reason":"tool_use"', b'"stop_reason":"end_turn"')),
        ("tool-call:messages>chat", "stop-with-tool-calls:messages>chat"),
    ),
    "wrong stop reason, streamed": (
        Sin(piece=lambda b: b.replace(b'"stop_reason":"tool_use"', b'"stop_reason":"end_turn"')),
        ("tool-call:messages>chat", "parallel-tool-calls:messages>chat"),
    ),
    "a tool call twice": (Sin(piece=twice), ("tool-call:chat>chat",)),
    "no [DONE]": (Sin(piece=lambda b: b.replace(b"data: [DONE]\n\n", b"")), ("text:chat>chat",)),
    "no event lines": (Sin(piece=lambda b: b.replace(b"event: message_stop\n", b"")), ("text:messages>chat",)),
    "no sequence": (
        Sin(piece=lambda b: b.replace(b'"sequence_number":3', b'"sequence_number":2')),
        ("text:responses>chat",),
    ),
    "usage not asked for": (
        Sin(body=without("stream_options")),
        ("usage-asked-upstream:chat>chat", "text:messages>chat"),
    ),
    "usage lost": (
        Sin(whole=lambda b: b.replace(b'"prompt_tokens":31', b'"prompt_tokens":0')),
        ("text:chat>messages",),
    ),
    "cache counted twice": (
        Sin(whole=lambda b: b.replace(b'"prompt_tokens":560', b'"prompt_tokens":1060')),
        ("cached-tokens:chat>messages",),
    ),
    "buffers": (Sin(buffers=True), ("not-buffered:chat>chat", "not-buffered:messages>chat")),
    "does not hang up": (Sin(deaf=True), ("hang-up:chat>chat",)),
    "swallows errors": (Sin(swallows=True), ("error-400:chat>chat", "error-500:messages>chat")),
    "drops retry-after": (Sin(headers=lambda h: {}), ("error-429:chat>chat", "rate-limit-headers:chat>chat")),
    "completes what was cut": (Sin(completes=True), ("cut-mid-stream:chat>chat",)),
    "passes the caller's key on": (Sin(passes_key=True), ("keys-stay:chat>chat",)),
    "fetches pictures": (Sin(fetches=True), ("image-url:chat>chat",)),
    "loses a tool result": (Sin(body=without_second_result), ("parallel-tool-results:messages>chat",)),
    "reorders tools": (Sin(body=lambda b: {**b, "tools": b["tools"][::-1]}), ("tool-shapes:chat>chat",)),
    "takes zero for nothing": (Sin(body=without_falsy), ("temperature-zero:chat>chat",)),
    "drops what it does not know": (Sin(body=without("future_field")), ("unknown-fields:chat>chat",)),
    "drops the tool choice": (
        Sin(body=without("tool_choice")),
        ("tool-choice-required:messages>chat", "tool-choice-named:chat>chat"),
    ),
    "drops the schema": (Sin(body=without("output_config")), ("structured-output:chat>messages",)),
    "decodes pieces": (
        Sin(upstream_piece=lambda b: b.decode("utf-8", "replace").encode()),
        ("split-anywhere:chat>chat", "agreement:chat>chat"),
    ),
}


async def judge(sin: Sin, only: tuple[str, ...], patience: float) -> Report:
    async with Upstream() as upstream, sinning_gateway(upstream.url, sin) as url:
        return await run_kit(url, upstream, only=only, splits=8, patience=patience)


def test_the_gateway_of_the_sins_is_right_without_them() -> None:
    only = tuple(sorted({name for _, names in SINS.values() for name in names}))
    report = asyncio.run(judge(Sin(), only, patience=10))
    assert [(outcome.id, outcome.problems) for outcome in report.failed] == []
    assert {outcome.id for outcome in report.outcomes} == set(only)


@pytest.mark.parametrize("name", SINS)
def test_every_sin_is_found(name: str) -> None:
    sin, only = SINS[name]
    report = asyncio.run(judge(sin, only, patience=0.3))
    assert {outcome.id for outcome in report.failed} == set(only)
    assert not report.passed


# ---------------------------------------------------------------- the command


def test_the_command_judges_a_foreign_gateway(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def work(*more: str) -> int:
        async with Upstream() as spare:  # only to find a port
            port = spare.url.rpartition(":")[2]
        async with sinning_gateway(f"http://127.0.0.1:{port}", SINS["no [DONE]"][0]) as url:
            words = ["marga", "conformance", "--target", url, "--upstream-port", port, "--json", "--splits", "0", *more]
            return await asyncio.to_thread(run, words)

    assert asyncio.run(work("--case", "text:messages>chat", "--model", "conformance-chat")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], [case["id"] for case in found["cases"]]) == (True, ["text:messages>chat"])
    assert asyncio.run(work("--case", "text", "--dialect", "chat", "--model", "chat=conformance-chat")) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["cases"][0]["problems"] == ["streamed: no single [DONE] at the end"]


def test_bad_words_and_silent_gateways(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["marga", "conformance"]) == 2
    assert run(["marga", "conformance", "--target", "http://127.0.0.1:1", "--self"]) == 2
    assert run(["marga", "conformance", "--self", "--case", "nonsense"]) == 2
    assert run(["marga", "conformance", "--self", "--dialect", "latin"]) == 2
    assert run(["marga", "conformance", "--self", "--model", "x"]) == 2
    assert run(["marga", "conformance", "--target", "http://127.0.0.1:1", "--key-env", "NOT_SET_ANYWHERE"]) == 2
    for model in ("latin=x", "generate=x"):
        words = ["marga", "conformance", "--target", "http://127.0.0.1:1", "--upstream-port", "0", "--model", model]
        assert run(words) == 2
    assert run(["marga", "conformance", "--target", "http://127.0.0.1:1", "--upstream-port", "0"]) == 3
    assert "Nothing answers" in capsys.readouterr().err


def test_a_gateway_that_forwards_elsewhere_is_told() -> None:
    async def work() -> None:
        async with Upstream() as one, Upstream() as other, sinning_gateway(one.url, Sin()) as url:
            assert await detect_models(url, one, {None: "conformance-chat"}, None) == {
                "openai_chat": "conformance-chat"
            }
            with pytest.raises(UnreachableError, match="nothing reached"):
                await detect_models(url, other, {None: "conformance-chat"}, None)

    asyncio.run(work())


def test_the_listing_and_the_guide_name_every_trap(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["marga", "conformance", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["traps"]
    assert [trap["trap"] for trap in listed] == [trap.id for trap in traps()]
    assert all(trap["cases"] and trap["sent"] and trap["arrives"] and trap["back"] for trap in listed)
    guide = GUIDE.read_text(encoding="utf-8")
    assert [trap.id for trap in traps() if f"`{trap.id}`" not in guide] == []


def test_ids_are_unique_and_chosen_by_name() -> None:
    ids = [case.id for case in cases_of()]
    assert len(set(ids)) == len(ids)
    cases, pairs = choose(only=["text:chat>messages", "agreement:chat>chat"])
    assert ([case.id for case in cases], pairs) == (["text:chat>messages"], [("openai_chat", "openai_chat")])
    with pytest.raises(UsageError):
        choose(only=["text:chat>latin"])
    assert set(DEFAULT_MODELS) == {case.upstream for case in cases_of()}
