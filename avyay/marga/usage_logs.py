"""Calls another tool wrote down, read as our own past: what applications log of OpenAI, and LiteLLM's spend logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from avyay.errors import UsageError
from avyay.marga.complexity import score
from avyay.marga.cost import cost_of
from avyay.marga.replay import Past
from avyay.marga.router import Router
from avyay.marga.scoring import view_json
from avyay.marga.types import Hints
from avyay.marga.view import RequestView
from avyay.money import Picodollars

__all__ = ["read_usage", "tool_of"]

_NO_COMPLETION = ("embedding", "image", "transcription", "speech", "rerank", "moderation", "batch", "file")


def read_usage(path: Path, source: Literal["openai", "litellm"], router: Router) -> Iterator[Past]:
    """Calls another tool wrote down, one JSON object a line, or one array of them.

    `openai`: replies as an application logs them (`{model, usage, id?, created?}`, bare, under `response` beside
    `request`, or as lines of a batch's output), or pages and buckets of the organisation's usage API, which add calls
    up by model. `litellm`: rows of LiteLLM_SpendLogs, from the database or from `/spend/logs`. A line with messages is
    scored by them; one without is judged by its size, and so roughly.

    Raises:
        UsageError: the file cannot be read, or a line is no such row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.", hint="Name a file of JSON lines.") from error
    number = 0
    try:
        lines: Iterable[Any] = data.splitlines()
        if data.lstrip()[:1] == b"[":
            lines = orjson.loads(data)
        for number, line in enumerate(lines, 1):
            if line == b"":
                continue
            row = orjson.loads(line) if isinstance(line, bytes) else line
            yield from _openai(row, number, router) if source == "openai" else _litellm(row, number, router)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise UsageError(
            f"{path}, line {number}: not {source} usage as JSON lines ({type(error).__name__}: {error}).",
            hint="Each line needs a model and its token counts.",
        ) from error


def tool_of(path: Path) -> Literal["openai", "litellm"]:
    """Whose records a file holds, by its first one.

    Raises:
        UsageError: it cannot be read, or is neither's.
    """
    try:
        data = path.read_bytes().lstrip()
        first = orjson.loads(data)[0] if data[:1] == b"[" else orjson.loads(data.split(b"\n", 1)[0])
        names = set(first)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.", hint="Name a file of JSON lines.") from error
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path}: no records as JSON lines.", hint="Say whose they are: --from openai|litellm"
        ) from error
    if "spend" in names or "response_cost" in names or {"call_type", "prompt_tokens"} <= names:
        return "litellm"
    if names & {"usage", "response", "object"}:
        return "openai"
    raise UsageError(
        f"{path}: neither OpenAI's nor LiteLLM's records.", hint="Say whose they are: --from openai|litellm"
    )


def _openai(row: Mapping[str, Any], number: int, router: Router) -> Iterator[Past]:
    if row.get("object") in ("page", "bucket"):
        for bucket in row["data"] if row["object"] == "page" else [row]:
            yield from _bucket(bucket, number, router)
        return
    reply = row.get("response") or row
    reply = reply.get("body") or reply  # lines of the batch API
    usage = reply.get("usage")
    if usage is None and (row.get("error") or reply.get("error")):
        return  # a call that failed cost nothing
    if usage is None:
        raise KeyError("usage")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    request = row.get("request") or row
    request = request.get("body") or request
    yield _past(
        str(reply.get("id") or number),
        _time(reply.get("created") or reply.get("created_at") or 0),
        str(reply["model"]),
        int(usage.get("prompt_tokens", usage.get("input_tokens", 0))),
        int(usage.get("completion_tokens", usage.get("output_tokens", 0))),
        int(details.get("cached_tokens") or 0),
        None,
        request.get("messages") or request.get("input"),
        router,
    )


def _bucket(bucket: Mapping[str, Any], number: int, router: Router) -> Iterator[Past]:
    """Totals of a stretch of time by model: so many calls of the mean size."""
    for place, result in enumerate(bucket["results"]):
        count = int(result["num_model_requests"])
        if count < 1:
            continue
        if result.get("model") is None:
            raise UsageError("its totals are not by model: ask for group_by=model")
        yield _past(
            f"{number}.{place}",
            _time(bucket.get("start_time") or 0),
            str(result["model"]),
            round(int(result["input_tokens"]) / count),
            round(int(result["output_tokens"]) / count),
            round(int(result.get("input_cached_tokens") or 0) / count),
            None,
            None,
            router,
            count=count,
        )


def _litellm(row: Mapping[str, Any], number: int, router: Router) -> Iterator[Past]:
    if any(word in str(row.get("call_type") or "") for word in _NO_COMPLETION):
        return
    if not row.get("model") or str(row.get("status") or "").lower() == "failure":
        return  # nobody answered
    spend = row.get("spend", row.get("response_cost"))
    metadata = _loaded(row.get("metadata"))
    usage = _loaded(metadata.get("usage_object")) if isinstance(metadata, dict) else {}
    details = (usage.get("prompt_tokens_details") or {}) if isinstance(usage, dict) else {}
    cached = (usage.get("cache_read_input_tokens") if isinstance(usage, dict) else None) or details.get("cached_tokens")
    request = _loaded(row.get("proxy_server_request"))
    messages = _loaded(row.get("messages")) or (request.get("messages") if isinstance(request, dict) else None)
    yield _past(
        str(row.get("request_id") or row.get("id") or number),
        _time(row.get("startTime") or row.get("start_time") or 0),
        str(row["model"]),
        int(row.get("prompt_tokens") or 0),
        int(row.get("completion_tokens") or 0),
        int(cached or 0),
        None if spend is None else Picodollars(round(float(spend) * 1e12)),
        messages,
        router,
        hit=str(row.get("cache_hit") or "").lower() == "true",
    )


def _loaded(value: Any) -> Any:
    """A JSON column: as it is, or still as text, as some exports leave it."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return value if value is not None else {}


def _time(at: Any) -> float:
    if isinstance(at, int | float):
        return float(at)
    found = datetime.fromisoformat(str(at).replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _past(
    name: str,
    at: float,
    model: str,
    tokens_in: int,
    tokens_out: int,
    cached: int,
    cost: Picodollars | None,
    messages: Any,
    router: Router,
    *,
    hit: bool = False,
    count: int = 1,
) -> Past:
    if isinstance(messages, list) and messages:
        body = "messages" if all(isinstance(turn, dict) and "role" in turn for turn in messages) else "input"
        view = view_json({body: messages})
    elif isinstance(messages, str) and messages:
        view = view_json({"input": messages})
    else:
        view = RequestView("x" * min(4 * tokens_in, 100_000), chars=4 * tokens_in)
    if cost is None:
        known = router.catalogue.find(model.rpartition("/")[2], vendor=None)
        if known is not None:
            cost = cost_of(known, input_tokens=tokens_in, output_tokens=tokens_out, cache_read=cached)
    features = {**view.features(), "input_tokens": tokens_in}
    complexity = score(view).score
    return Past(
        name, at, model, cost, tokens_in, tokens_out, cached, 0, features, Hints(), complexity, hit=hit, count=count
    )
