"""`avyay route`: a prompt goes to the cheapest model that can do it; the answer streams to stdout."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

if TYPE_CHECKING:
    from collections.abc import Callable

    from avyay.marga.explain import Explanation
    from avyay.ports import Completion, CompletionReply

app = command_group("Send a prompt to the cheapest model that can do it.")


# What belongs to another command: sent as a prompt it would cost money and tell nothing.
_COMMANDS = frozenset(
    ("budgets", "calibrate", "decisions", "explain", "prices", "providers", "replay", "stats", "usage")
)


class TierChoice(StrEnum):
    """The tiers."""

    LOCAL = "local"
    MEDIUM = "medium"
    PREMIUM = "premium"


@command(app, results=True)
def route(
    run: Run,
    text: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A model to pin, or auto.")] = "auto",
    tier: Annotated[TierChoice | None, typer.Option("--tier", "-t", help="Ask for a tier.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system prompt.")] = None,
    request_class: Annotated[
        str | None, typer.Option("--class", help="What kind of request this is, for statistics and experiments.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the decision and its cost; call nobody.")] = False,
) -> None:
    """Route a prompt.

    The answer goes to stdout as it arrives, one line about the decision to stderr.
    """
    from avyay.errors import UsageError
    from avyay.ports import Completion, Message

    prompt = _prompt(text)
    if not prompt.strip():
        raise UsageError("There is no prompt.", hint='Try: avyay route "What is a monad?"')
    messages = (Message("system", system),) if system else ()
    request = Completion(
        (*messages, Message("user", prompt)),
        model=model,
        tier=tier.value if tier else None,
        request_class=request_class,
        max_tokens=max_tokens,
        service="cli",
    )
    if explain:
        _explain(run, request)
    else:
        _answer(run, request)


def _prompt(text: str | None) -> str:
    from avyay.errors import UsageError

    if text in _COMMANDS:
        whole = "avyay usage" if text == "usage" else f"avyay marga {text}"
        raise UsageError(
            f"{text!r} alone is taken for a command, not for a prompt.",
            hint=f"Try: {whole} (or, to send the word: echo {text} | avyay route)",
        )
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _answer(run: Run, request: Completion) -> None:
    import asyncio

    completer = run.services.completer

    async def work(answered: Callable[[], None]) -> CompletionReply:
        if run.out.json:
            return await completer.complete(request)
        reply: CompletionReply | None = None
        ended = True
        try:
            async for delta in completer.stream(request):
                if delta.text:
                    answered()
                    run.out.write(delta.text)
                    ended = delta.text.endswith("\n")
                reply = delta.reply or reply
        finally:
            if not ended:
                run.out.write("\n")  # at once: an error goes below it, not behind it
        assert reply is not None
        return reply

    try:
        with run.out.waiting("Waiting for an answer") as answered:
            reply = asyncio.run(work(answered))
    finally:
        run.services.close()
    run.out.result(_reply_data(reply))
    if not run.out.json:
        run.out.note(_line(reply))


def _line(reply: CompletionReply) -> str:
    from avyay.money import format_usd

    tokens = reply.tokens
    about = "about " if tokens.estimated else ""
    why = f" ({reply.reasons[0]})" if reply.reasons else ""
    return (
        f"{reply.provider}/{reply.model} · {reply.tier}{why} · {about}{tokens.input} tokens in, {tokens.output} out"
        f" · {about}{format_usd(reply.cost)} · {reply.seconds:.2f} s · {reply.decision_id}"
    )


def _reply_data(reply: CompletionReply) -> dict[str, Any]:
    from dataclasses import asdict

    from avyay.money import usd_string

    data = asdict(reply)
    del data["cost"]
    return {**data, "cost_usd": usd_string(reply.cost)}


def _explain(run: Run, request: Completion) -> None:
    from avyay.marga.explain import explain
    from avyay.marga.providers import SETUP_HINT

    found = explain(run.services.router, request)
    run.out.result(found.as_data(), lambda: _print_explanation(run, found))
    if not found.configured:
        for problem in found.problems:
            run.out.note(problem)
        run.out.note(f"No provider can be used: these are models one could have.\n{SETUP_HINT}")
    run.services.close()


def _print_explanation(run: Run, found: Explanation) -> None:
    from avyay.marga.cost import EXPECTED_OUTPUT
    from avyay.money import format_usd

    decision, chosen = found.decision, found.decision.chosen
    label = "" if found.configured else " (not configured)"
    run.out.line(f"{decision.tier} -> {chosen.name if chosen else 'nobody'}{label}")
    for reason in decision.reasons:
        run.out.line(f"  {reason}")
    run.out.line(f"\n{found.input_tokens} tokens in; an answer is taken to have {EXPECTED_OUTPUT}:")
    for each in found.tiers:
        mark = ">" if each.ranked and chosen and each.ranked[0].candidate.name == chosen.name else " "
        if not each.ranked:
            run.out.line(f"  {each.hints.tier}: nobody")
            continue
        first = each.ranked[0]
        cost = "no price known" if first.cost is None else f"about {format_usd(first.cost, places=6)}"
        instead = "" if first.candidate.model.tier == each.hints.tier else f" (of tier {first.candidate.model.tier})"
        run.out.line(f"{mark} {str(each.hints.tier).ljust(8)} {first.candidate.name}{instead}{label}: {cost}")
