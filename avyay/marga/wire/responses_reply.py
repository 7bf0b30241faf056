"""Reading answers of the OpenAI Responses API, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.failure import Failure, parse_error_object, truncated
from avyay.marga.wire.framing import SseDecoder
from avyay.marga.wire.ids import open_carry, tool_id
from avyay.marga.wire.model import (
    Carry,
    Event,
    JsonObject,
    Reply,
    ReplyBlock,
    StopReason,
    Usage,
)
from avyay.marga.wire.sequence import Sequencer

__all__ = ["StreamParser", "parse_reply", "parse_stop", "parse_usage", "reply_failure"]


def parse_stop(response: JsonObject) -> StopReason:
    calls = any(
        isinstance(i, dict) and i.get("type") in ("function_call", "custom_tool_call")
        for i in response.get("output") or ()
    )
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        return "refusal" if reason == "content_filter" else "max_tokens"
    return "tool_use" if calls else "end"


def reply_failure(response: JsonObject) -> Failure | None:
    """The failure inside an answer that HTTP called a success."""
    if response.get("status") not in ("failed", "cancelled") and not response.get("error"):
        return None
    return parse_error_object(response.get("error") or f"The response was {response.get('status')}.")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usage(raw: Any, tier: Any = None) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    given = raw.get("input_tokens_details") or {}
    written = raw.get("output_tokens_details") or {}
    total = _count(raw.get("input_tokens"))
    read = min(_count(given.get("cached_tokens")), total)
    return Usage(
        input=total,
        output=_count(raw.get("output_tokens")),
        cache_read=read,
        cache_write=min(_count(given.get("cache_write_tokens")), total - read),
        reasoning=_count(written.get("reasoning_tokens")),
        tier=tier if isinstance(tier, str) else None,
    )


def _thought(item: JsonObject) -> str:
    for key in ("summary", "content"):
        texts = [p.get("text") or "" for p in item.get(key) or () if isinstance(p, dict)]
        if any(texts):
            return "\n\n".join(texts)
    return ""


def _carry(item: JsonObject) -> Carry | None:
    token = item.get("encrypted_content")
    return open_carry("openai_responses", token, item.get("id")) if isinstance(token, str) else None


def parse_reply(body: JsonObject, exchange_id: str) -> Reply:
    blocks: list[ReplyBlock] = []
    tools = 0
    for item in body.get("output") or ():
        kind = item.get("type")
        if kind == "reasoning":
            thought, carry = _thought(item), _carry(item)
            if thought or carry is not None:
                blocks.append(ReplyBlock("thinking", thought, carry=carry))
        elif kind == "message":
            for part in item.get("content") or ():
                if part.get("type") == "output_text" and part.get("text"):
                    blocks.append(ReplyBlock("text", part["text"]))
                elif part.get("type") == "refusal" and part.get("refusal"):
                    blocks.append(ReplyBlock("refusal", part["refusal"]))
        elif kind in ("function_call", "custom_tool_call"):
            call_id = item.get("call_id") or tool_id(exchange_id, tools)
            text = item.get("arguments" if kind == "function_call" else "input") or ""
            if kind == "function_call" and not text.strip():
                text = "{}"
            tools += 1
            blocks.append(ReplyBlock("tool_use", text, call_id, item.get("name") or ""))
    created = body.get("created_at")
    return Reply(
        id=str(body.get("id") or ""),
        model=str(body.get("model") or ""),
        blocks=tuple(blocks),
        stop=parse_stop(body),
        usage=parse_usage(body.get("usage"), body.get("service_tier")),
        created=int(created) if isinstance(created, int | float) else None,
    )


class StreamParser:
    """Reads a Responses stream. What deltas left out is taken from the done events, down to the final response."""

    def __init__(self, exchange_id: str) -> None:
        self._sse = SseDecoder()
        self._out = Sequencer(exchange_id)
        self._sent: dict[tuple[int, str, int], int] = {}  # (item, part kind, part): characters sent
        self._part: tuple[int, str, int] | None = None
        self._done: set[int] = set()

    def feed(self, data: bytes) -> list[Event]:
        for event, payload in self._sse.feed(data):
            self._event(event, payload)
        return self._out.take()

    def close(self) -> list[Event]:
        for event, payload in self._sse.flush():
            self._event(event, payload)
        if not self._out.ended:
            self._out.fail(truncated())
        return self._out.take()

    def _event(self, event: str, payload: bytes) -> None:
        if self._out.ended or payload.startswith(b"[DONE]"):
            return
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self._out.fail(truncated("the provider sent an event that is no JSON"))
            return
        if not isinstance(body, dict):
            return
        kind = body.get("type") or event
        item = body.get("output_index")
        item = item if isinstance(item, int) else 0
        if kind.endswith(".delta"):
            self._delta(kind, item, body)
        elif kind.endswith(".done"):
            self._finished(kind, item, body)
        elif kind == "response.output_item.added":
            self._added(item, body.get("item") or {})
        elif kind == "response.created":
            self._begin(body.get("response") or {})
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            self._end(body.get("response") or {})
        elif kind == "error":
            self._out.fail(parse_error_object(body.get("error") or body))

    def _begin(self, response: JsonObject) -> None:
        created = response.get("created_at")
        stamp = int(created) if isinstance(created, int | float) else None
        self._out.begin(str(response.get("id") or ""), str(response.get("model") or ""), stamp)

    def _added(self, number: int, item: JsonObject) -> None:
        self._out.begin("", "")
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            free = kind == "custom_tool_call"
            key = f"o{number}"
            self._out.tool(key, item.get("call_id") or "", item.get("name") or "", "", free_text=free)

    def _delta(self, kind: str, number: int, body: JsonObject) -> None:
        self._out.begin("", "")
        text = body.get("delta")
        if not isinstance(text, str) or not text:
            return
        if kind == "response.output_text.delta":
            self._piece("text", number, body.get("content_index") or 0, text)
        elif kind == "response.function_call_arguments.delta":
            self._out.tool(f"o{number}", "", "", text)
        elif kind == "response.custom_tool_call_input.delta":
            self._out.tool(f"o{number}", "", "", text, free_text=True)
        elif kind == "response.reasoning_summary_text.delta":
            self._piece("summary", number, body.get("summary_index") or 0, text)
        elif kind == "response.reasoning_text.delta":
            self._piece("thinking", number, body.get("content_index") or 0, text)
        elif kind == "response.refusal.delta":
            self._piece("refusal", number, body.get("content_index") or 0, text)

    def _piece(self, kind: str, item: int, part: int, text: str) -> None:
        key = (item, kind, part)
        block = "thinking" if kind == "summary" else kind
        if key != self._part:
            before = self._part
            same_thought = before is not None and before[:2] == key[:2] and block == "thinking"
            if same_thought:
                self._out.piece("thinking", "\n\n")
            elif before is not None:
                self._out.settle()
            self._part = key
        self._sent[key] = self._sent.get(key, 0) + len(text)
        self._out.piece(block, text)  # type: ignore[arg-type]

    def _rest(self, kind: str, item: int, part: int, text: Any) -> None:
        """What the deltas of a part did not send."""
        if isinstance(text, str):
            rest = text[self._sent.get((item, kind, part), 0) :]
            if rest:
                self._piece(kind, item, part, rest)

    def _finished(self, kind: str, number: int, body: JsonObject) -> None:
        self._out.begin("", "")
        part = body.get("content_index") or 0
        if kind == "response.output_text.done":
            self._rest("text", number, part, body.get("text"))
        elif kind == "response.refusal.done":
            self._rest("refusal", number, part, body.get("refusal"))
        elif kind == "response.reasoning_summary_text.done":
            self._rest("summary", number, body.get("summary_index") or 0, body.get("text"))
        elif kind == "response.reasoning_text.done":
            self._rest("thinking", number, part, body.get("text"))
        elif kind == "response.function_call_arguments.done":
            self._out.tool_done(f"o{number}", "", body.get("name") or "", body.get("arguments") or "")
        elif kind == "response.custom_tool_call_input.done":
            self._out.tool_done(f"o{number}", "", "", body.get("input") or "", free_text=True)
        elif kind == "response.output_item.done":
            self._item(number, body.get("item") or {})

    def _item(self, number: int, item: JsonObject) -> None:
        if number in self._done:
            return
        self._done.add(number)
        kind = item.get("type")
        if kind == "message":
            for i, part in enumerate(item.get("content") or ()):
                name = "refusal" if part.get("type") == "refusal" else "text"
                self._rest(name, number, i, part.get(name))
        elif kind == "reasoning":
            self._reasoning(number, item)
        elif kind in ("function_call", "custom_tool_call"):
            free = kind == "custom_tool_call"
            text = item.get("input" if free else "arguments") or ""
            call, name = item.get("call_id") or "", item.get("name") or ""
            self._out.tool_done(f"o{number}", call, name, text, free_text=free)

    def _reasoning(self, number: int, item: JsonObject) -> None:
        shown = any(key[0] == number for key in self._sent)
        for name, key in (("summary", "summary"), ("thinking", "content")):
            others = any(k[0] == number and k[1] != name for k in self._sent)
            for i, part in enumerate(item.get(key) or ()):
                if not others and isinstance(part, dict):
                    self._rest(name, number, i, part.get("text"))
        shown = shown or any(key[0] == number for key in self._sent)
        carry = _carry(item)
        if carry is not None:
            if not shown:
                self._out.settle()
            self._out.sign(carry)
        elif shown:
            self._out.settle()
        self._part = None

    def _end(self, response: JsonObject) -> None:
        self._begin(response)
        failure = reply_failure(response)
        if failure is not None:
            self._out.fail(failure)
            return
        for number, item in enumerate(response.get("output") or ()):
            if isinstance(item, dict):
                self._item(number, item)
        usage = parse_usage(response.get("usage"), response.get("service_tier"))
        if usage is not None:
            self._out.report(usage)
        stop = parse_stop(response)
        self._out.finish("tool_use" if stop == "end" and self._out.has_tools else stop)
