"""The port `Completer`, answered by the router in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from avyay.errors import AvyayError, UnreachableError
from avyay.marga.caching import AnswerCache
from avyay.marga.envelope import Inbound, Outbound
from avyay.marga.gateway import Gateway
from avyay.marga.plain import PlainReader, ProviderFailedError, encode_completion, error_of
from avyay.marga.router import Router, no_provider
from avyay.marga.types import Hints
from avyay.money import Picodollars
from avyay.ports import Completion, CompletionDelta, CompletionReply, Tier, Tokens

__all__ = ["LocalCompleter", "hints_of"]


def hints_of(request: Completion) -> Hints:
    """What a call through the port hints at."""
    return Hints(request.model, request.tier, request.request_class, request.quality_min, request.latency_budget_ms)


class LocalCompleter:
    """Completions by the router in this process. Connections stay open while the router is entered (`async with`)."""

    def __init__(self, router: Router, *, cache: AnswerCache | None = None) -> None:
        self._router = router
        self._gateway = Gateway(router, cache=cache)

    def available(self) -> bool:
        return bool(self._router.usable())

    async def complete(self, request: Completion) -> CompletionReply:
        reply: CompletionReply | None = None
        async for delta in self._run(request, stream=False):
            reply = delta.reply or reply
        assert reply is not None  # _run ends with a reply or raises
        return reply

    def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        return self._run(request, stream=True)

    async def _run(self, request: Completion, *, stream: bool) -> AsyncIterator[CompletionDelta]:
        router = self._router
        if not router.usable():
            raise no_provider(router.providers.values())
        router.open_store()  # before any money is spent: a call that cannot be kept is not made
        started = router.clock.monotonic()
        async with router:
            await router.learn_models()
            outbound = await self._gateway.open(
                Inbound(
                    "openai_chat",
                    encode_completion(request, stream=stream),
                    tier=request.tier,
                    request_class=request.request_class,
                    quality_min=request.quality_min,
                    latency_budget_ms=request.latency_budget_ms,
                    service=request.service,
                    customer=request.customer,
                    session=request.session,
                )
            )
            if outbound.status >= 400:
                raise _refusal(outbound)
            reader = PlainReader(stream)
            texts: list[str] = []
            try:
                async for text in _texts(outbound, reader):
                    texts.append(text)
                    yield CompletionDelta(text)
            except ProviderFailedError as error:
                name = _header(outbound, "x-avyay-provider")
                raise UnreachableError(
                    f"{name} broke off: {str(error).rstrip('.')}.", hint="Run it again.", code="stream_truncated"
                ) from error
            reply = _reply(outbound, reader, "".join(texts))
            if self._gateway.cache is not None:
                await self._gateway.cache.settle()  # the loop may end with this call
            yield CompletionDelta("", replace(reply, seconds=router.clock.monotonic() - started))


async def _texts(outbound: Outbound, reader: PlainReader) -> AsyncIterator[str]:
    if outbound.body is not None:
        reader.feed(outbound.body)
    else:
        async with aclosing(outbound.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if text := reader.feed(chunk):
                    yield text
    if text := reader.end():
        yield text


def _refusal(outbound: Outbound) -> AvyayError:
    """The router's error, with where its attempts can be read."""
    error = error_of(outbound.status, outbound.body or b"")
    decision = _header(outbound, "x-avyay-decision-id")
    if decision and isinstance(error, UnreachableError):
        error.hint = f"{error.hint}\nWhat was tried: avyay marga explain {decision}"
    return error


def _header(outbound: Outbound, name: str) -> str:
    return next((value for key, value in outbound.headers if key == name), "")


def _reply(outbound: Outbound, reader: PlainReader, text: str) -> CompletionReply:
    call = outbound.call
    assert call is not None
    usage = call.usage
    tokens = Tokens()
    if usage is not None:
        tokens = Tokens(usage.input, usage.output, usage.cache_read, usage.cache_write, usage.reasoning, call.estimated)
    model = _header(outbound, "x-avyay-model")
    unpriced = () if call.cost is not None else (f"no price is known for {model}",)
    tier: Tier = _header(outbound, "x-avyay-tier")  # type: ignore[assignment]
    return CompletionReply(
        text=text,
        model=model,
        provider=_header(outbound, "x-avyay-provider"),
        tier=tier,
        tokens=tokens,
        cost=call.cost or Picodollars(0),
        decision_id=call.decision.id,
        stop=reader.stop,
        reasons=(*call.decision.reasons, *unpriced),
    )
