"""Scoring requests that stand as lines of JSON, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from avyay.errors import UsageError
from avyay.marga.complexity import Complexity, score
from avyay.marga.select import tier_for
from avyay.marga.types import Hints
from avyay.marga.view import RequestView, view_features
from avyay.marga.wire import inspect

__all__ = ["score_lines", "view_json"]

_NO_HINTS = Hints()


def view_json(request: dict[str, Any]) -> RequestView:
    """The view of `{prompt}`, or of a body in the chat, Responses or Anthropic dialect.

    Raises:
        UsageError: it is neither.
    """
    prompt = request.get("prompt")
    if isinstance(prompt, str):
        return RequestView(prompt, chars=len(prompt))
    body = {"model": "auto", **request}
    if isinstance(request.get("messages"), list):
        anthropic = "system" in request or "stop_sequences" in request
        return view_features(inspect("anthropic_messages" if anthropic else "openai_chat", body))
    if isinstance(request.get("input"), str | list):
        return view_features(inspect("openai_responses", body))
    raise UsageError("a request needs prompt, messages or input", hint='For example: {"id": 1, "prompt": "hello"}')


def score_lines(
    lines: Iterable[bytes | str],
    *,
    local_below: float,
    premium_from: float,
    scorer: Callable[[RequestView], Complexity] = score,
) -> Iterator[bytes]:
    """For each request line one line `{id, complexity, tier, reasons}`; empty lines are passed over.

    Raises:
        UsageError: a line is no request; names it.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = orjson.loads(line)
            if not isinstance(request, dict):
                raise UsageError("not an object")
            view = view_json(request)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"Line {number} is not JSON: {error}.", hint="One JSON object a line.") from error
        except UsageError as error:
            raise UsageError(f"Line {number}: {error.message}.", hint=error.hint) from error
        found = scorer(view)
        tier, _ = tier_for(found.score, _NO_HINTS, local_below=local_below, premium_from=premium_from)
        yield orjson.dumps(
            {"id": request.get("id"), "complexity": found.score, "tier": tier, "reasons": found.reasons},
            option=orjson.OPT_APPEND_NEWLINE,
        )
