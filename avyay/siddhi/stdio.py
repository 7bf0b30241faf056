"""`decide --stdio`: the policy as a process that speaks JSON lines, so that any simulator or platform can drive it.

In: start, offer, result, end. Out, for each offer and result: {"id", "action": "buy", "usd"} or
{"id", "action": "decide", "verdict", "reason"}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from avyay.errors import UsageError
from avyay.siddhi.decide import Buy, Mode, Policy, Rules, Test
from avyay.siddhi.power import expensive
from avyay.siddhi.prior import BetaPrior

__all__ = ["converse"]


def converse(lines: Iterable[str], mode: Mode = "value", warn: Callable[[str], None] | None = None) -> Iterator[str]:
    """Answer a conversation line by line.

    Args:
        warn: Told once when clicks are so dear that the money can hardly decide anything.

    Raises:
        UsageError: a line is not JSON, lacks a field, or comes out of order; names the line and the field.
    """
    policy: Policy | None = None
    tests: dict[str, Test] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        message = _parse(line, number)
        kind = message.get("type")
        try:
            if kind == "start":
                policy = Policy(_rules(message), mode, _prior(message.get("prior")))
                continue
            if kind == "end":
                return
            if policy is None:
                raise UsageError(f"Line {number}: {kind!r} before 'start'.", hint="Begin with a start message.")
            name = str(message["id"])
            if kind == "offer":
                if warn is not None and (words := expensive(policy.rules, float(message["cpc_usd"]))):
                    warn(words)
                    warn = None
                tests[name] = policy.open(str(message["segment"]), float(message["cpc_usd"]))
            elif kind == "result":
                if name not in tests:
                    raise UsageError(
                        f"Line {number}: a result for {name!r}, which is not under test.", hint="Offer it first."
                    )
                tests[name].seen(
                    clicks=int(message["clicks_total"]),
                    conversions=int(message["conversions_total"]),
                    billed=float(message["billed_total_usd"]),
                )
            else:
                raise UsageError(f"Line {number}: unknown type {kind!r}.", hint="Use start, offer, result or end.")
            yield _answer(name, tests, policy)
        except KeyError as error:
            raise UsageError(
                f"Line {number}: the field {error} is missing.", hint="See the protocol's fields."
            ) from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"Line {number}: {error}.", hint="Numbers must be numbers, in range.") from error


def _answer(name: str, tests: dict[str, Test], policy: Policy) -> str:
    step = tests[name].next()
    if isinstance(step, Buy):
        return json.dumps({"id": name, "action": "buy", "usd": step.usd})
    policy.close(tests.pop(name))
    return json.dumps({"id": name, "action": "decide", "verdict": step.verdict, "reason": step.reason})


def _parse(line: str, number: int) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise UsageError(f"Line {number} is not JSON: {error}.", hint="One JSON object a line.") from error
    if not isinstance(message, dict):
        raise UsageError(f"Line {number} is not a JSON object.", hint="One JSON object a line.")
    return message


def _rules(message: dict[str, Any]) -> Rules:
    return Rules(
        cap=float(message["cap_usd"]),
        bar=float(message["bar"]),
        gain=float(message["gain_usd"]),
        overspend=float(message.get("overspend", 1.0)),
    )


def _prior(prior: dict[str, Any] | None) -> BetaPrior | None:
    return None if prior is None else BetaPrior(float(prior["a"]), float(prior["b"]))
