"""`avyay route`: a prompt goes to the cheapest model that can do it; the answer streams to stdout."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

if TYPE_CHECKING:
    from avyay.marga.types import Decision
    from avyay.ports import Completion, CompletionReply

app = command_group("Send a prompt to the cheapest model that can do it.")


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
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _answer(run: Run, request: Completion) -> None:
    import asyncio

    completer = run.services.completer

    async def work() -> CompletionReply:
        if run.out.json:
            return await completer.complete(request)
        reply: CompletionReply | None = None
        ended = True
        try:
            async for delta in completer.stream(request):
                if delta.text:
                    run.out.write(delta.text)
                    ended = delta.text.endswith("\n")
                reply = delta.reply or reply
        finally:
            if not ended:
                run.out.line()
        assert reply is not None
        return reply

    try:
        reply = asyncio.run(work())
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
    import asyncio

    from avyay.marga.completer import hints_of
    from avyay.marga.providers import SETUP_HINT, catalogue_providers
    from avyay.marga.router import Router
    from avyay.marga.tokens import count_tokens
    from avyay.marga.types import Hints
    from avyay.marga.view import view_completion

    router = run.services.router
    configured = bool(router.usable())
    if configured and any(provider.lists_models for provider in router.usable()):

        async def learn() -> None:
            async with router:
                await router.learn_models()

        asyncio.run(learn())
    if not router.candidates():
        configured = False
        offers = [_as_usable(provider) for provider in catalogue_providers()]
        router = Router(offers, run.loaded.settings.marga, store=lambda: run.services.calls)
    decision = router.decide(view_completion(request, stream=True), hints_of(request))
    view = view_completion(request, stream=True)
    tiers = [router.decide(view, Hints("auto", tier, request.request_class)) for tier in ("local", "medium", "premium")]
    chosen = decision.chosen
    counted = sum(
        count_tokens(message.content, chosen.model.known_as if chosen else "gpt-4o").tokens
        for message in request.messages
    )
    data = {**_decision_data(decision), "configured": configured, "input_tokens": counted}
    data["tiers"] = [_offer(each) for each in tiers]
    run.out.result(data, lambda: _print_explanation(run, decision, tiers, counted, configured))
    if not configured:
        for provider in run.services.router.providers.values():
            run.out.note(f"{provider.name}: {provider.problem or 'says of no model that it holds it'}")
        run.out.note(f"No provider can be used: these are models one could have.\n{SETUP_HINT}")
    run.services.close()


def _as_usable(provider: Any) -> Any:
    from dataclasses import replace

    return replace(provider, problem=None)


def _offer(decision: Decision) -> dict[str, Any]:
    from avyay.money import usd_string

    if not decision.ranked:
        return {"tier": decision.tier, "provider": None, "model": None, "estimated_cost_usd": None}
    first = decision.ranked[0]
    asked = decision.hints.tier
    return {
        "tier": asked,
        "provider": first.candidate.provider.name,
        "model": first.candidate.model.name,
        "serves_tier": first.candidate.model.tier,
        "estimated_cost_usd": usd_string(first.cost) if first.cost is not None else None,
    }


def _decision_data(decision: Decision) -> dict[str, Any]:
    from avyay.money import usd_string

    chosen = decision.chosen
    cost = decision.ranked[0].cost if decision.ranked else None
    return {
        "tier": decision.tier,
        "complexity": decision.complexity,
        "provider": chosen.provider.name if chosen else None,
        "model": chosen.model.name if chosen else None,
        "estimated_cost_usd": usd_string(cost) if cost is not None else None,
        "reasons": list(decision.reasons),
        "failover": [ranked.candidate.name for ranked in decision.ranked[1:]],
    }


def _print_explanation(run: Run, decision: Decision, tiers: list[Decision], tokens: int, configured: bool) -> None:
    from avyay.marga.cost import EXPECTED_OUTPUT
    from avyay.money import format_usd

    chosen = decision.chosen
    label = "" if configured else " (not configured)"
    run.out.line(f"{decision.tier} -> {chosen.name if chosen else 'nobody'}{label}")
    for reason in decision.reasons:
        run.out.line(f"  {reason}")
    run.out.line(f"\n{tokens} tokens in; an answer is taken to have {EXPECTED_OUTPUT}:")
    for each in tiers:
        mark = ">" if each.ranked and chosen and each.ranked[0].candidate.name == chosen.name else " "
        if not each.ranked:
            run.out.line(f"  {each.hints.tier}: nobody")
            continue
        first = each.ranked[0]
        cost = "no price known" if first.cost is None else f"about {format_usd(first.cost, places=6)}"
        instead = "" if first.candidate.model.tier == each.hints.tier else f" (of tier {first.candidate.model.tier})"
        run.out.line(f"{mark} {str(each.hints.tier).ljust(8)} {first.candidate.name}{instead}{label}: {cost}")
