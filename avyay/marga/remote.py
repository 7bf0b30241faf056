"""The port `Completer`, answered by a router daemon over its OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping

import httpx2

from avyay.errors import UnreachableError
from avyay.http import async_client
from avyay.log import redact
from avyay.marga.plain import PlainReader, ProviderFailedError, encode_completion, error_of
from avyay.money import Picodollars, parse_usd
from avyay.ports import Completion, CompletionDelta, CompletionReply, Tier, Tokens

__all__ = ["RemoteCompleter"]

_FIRST_BYTE_TIMEOUT = 600.0


class RemoteCompleter:
    """Completions by the router at `url`, for example http://127.0.0.1:8081.

    Args:
        key: Sent as a bearer token, where the router asks for one.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        self._root = root
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def available(self) -> bool:
        return True  # whether it answers is known when it is asked

    async def complete(self, request: Completion) -> CompletionReply:
        reply: CompletionReply | None = None
        async for delta in self._run(request, stream=False):
            reply = delta.reply or reply
        assert reply is not None  # _run ends with a reply or raises
        return reply

    def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        return self._run(request, stream=True)

    async def _run(self, request: Completion, *, stream: bool) -> AsyncIterator[CompletionDelta]:
        reader = PlainReader(stream)
        started = time.monotonic()
        texts: list[str] = []
        try:
            async with (
                async_client(read=_FIRST_BYTE_TIMEOUT, headers={**self._headers, **_hint_headers(request)}) as http,
                http.stream(
                    "POST", f"{self._root}/v1/chat/completions", content=encode_completion(request, stream=stream)
                ) as response,
            ):
                if response.status_code >= 400:
                    raise error_of(response.status_code, await response.aread())
                headers = response.headers
                async for chunk in response.aiter_bytes():
                    if text := reader.feed(chunk):
                        texts.append(text)
                        yield CompletionDelta(text)
                if text := reader.end():
                    texts.append(text)
                    yield CompletionDelta(text)
                decision = headers.get("x-avyay-decision-id", "")
                cost = headers.get("x-avyay-cost")
                if cost is None and decision:
                    cost = await self._cost(http, decision)
        except (httpx2.HTTPError, ProviderFailedError) as error:
            what = f"{type(error).__name__}: {redact(str(error))[:200]}"
            raise UnreachableError(
                f"The router at {self._root} gave no whole answer ({what}).",
                hint="Check that `avyay serve marga` is running there.",
            ) from error
        reply = CompletionReply(
            text="".join(texts),
            model=headers.get("x-avyay-model", ""),
            provider=headers.get("x-avyay-provider", ""),
            tier=_tier(headers),
            tokens=reader.tokens or Tokens(estimated=True),
            cost=parse_usd(cost) if cost else Picodollars(0),
            decision_id=decision,
            stop=reader.stop,
            seconds=time.monotonic() - started,
        )
        yield CompletionDelta("", reply)

    async def _cost(self, http: httpx2.AsyncClient, decision: str) -> str | None:
        """The final cost of a stream, which its headers could not hold."""
        try:
            response = await http.get(f"{self._root}/marga/decisions/{decision}", timeout=5.0)
            data = response.json() if response.is_success else {}
        except (httpx2.HTTPError, ValueError):
            return None
        value = data.get("cost_usd")
        return str(value) if value is not None else None


def _tier(headers: Mapping[str, str]) -> Tier:
    tier = headers.get("x-avyay-tier")
    return tier if tier in ("local", "medium", "premium") else "medium"  # type: ignore[return-value]


def _hint_headers(request: Completion) -> dict[str, str]:
    hints = {
        "content-type": "application/json",
        "x-cost-tier": request.tier,
        "x-request-class": request.request_class,
        "x-quality-min": request.quality_min,
        "x-latency-budget": request.latency_budget_ms,
        "x-avyay-service": request.service,
        "x-avyay-customer": request.customer,
        "x-avyay-session": request.session,
    }
    return {name: str(value) for name, value in hints.items() if value is not None}
