"""The port `Completer`, answered by the router in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson

from avyay.errors import AuthError, AvyayError, UnreachableError, UsageError
from avyay.log import redact
from avyay.marga.backends.base import Backend, Outgoing
from avyay.marga.cost import cost_of
from avyay.marga.dispatch import Answer, NoAnswerError
from avyay.marga.plain import PlainReader, ProviderFailedError, encode_completion
from avyay.marga.router import Router, no_provider
from avyay.marga.tokens import count_tokens
from avyay.marga.transport import TransportError
from avyay.marga.types import Attempt, CallRecord, CallStatus, Candidate, Decision, Dialect, Hints
from avyay.marga.view import view_completion
from avyay.money import Picodollars
from avyay.ports import Completion, CompletionDelta, CompletionReply, Tokens

__all__ = ["LocalCompleter", "hints_of"]


def hints_of(request: Completion) -> Hints:
    """What a call through the port hints at."""
    return Hints(request.model, request.tier, request.request_class, request.quality_min, request.latency_budget_ms)


class LocalCompleter:
    """Completions by the router in this process."""

    def __init__(self, router: Router) -> None:
        self._router = router

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
            raise no_provider()
        store = router.store  # before any money is spent: a call that cannot be kept is not made
        async with router:
            await router.learn_models()
            decision = router.decide(view_completion(request, stream=stream), hints_of(request))
            if not decision.ranked:
                raise _nobody(router)
            call = _Call(router, request, decision, stream=stream)
            try:
                async for delta in call.run():
                    yield delta
            finally:
                store.record(call.record())


def _nobody(router: Router) -> AvyayError:
    names = ", ".join(provider.name for provider in router.usable())
    return UnreachableError(
        f"No provider has a model that can take this request (asked: {names}).",
        hint="See what they hold and whether they answer: avyay marga providers",
    )


class _Call:
    """One completion on its way, and what the ledger will say of it."""

    def __init__(self, router: Router, request: Completion, decision: Decision, *, stream: bool) -> None:
        self._router = router
        self._request = request
        self._decision = decision
        self._stream = stream
        self._started = router.clock.monotonic()
        self._reader: PlainReader | None = None
        self._candidate: Candidate | None = None
        self._status: CallStatus = "aborted"  # until it is known better: the caller may go at any time
        self._error: str | None = None
        self._attempts: tuple[Attempt, ...] = ()
        self._first_byte: float | None = None
        self._text: list[str] = []
        self._dialect: Dialect = "openai_chat"

    def _render(self, candidate: Candidate, backend: Backend) -> Outgoing:
        dialect = backend.dialects[0]
        body = encode_completion(self._request, candidate, dialect, stream=self._stream)
        return Outgoing(dialect, candidate.model.name, body, self._stream)

    async def run(self) -> AsyncIterator[CompletionDelta]:
        try:
            answer = await self._router.dispatcher.open(self._decision.ranked, self._render)
        except NoAnswerError as error:
            self._attempts = error.attempts
            self._status, self._error = "error", str(error)[:300]
            raise _explain(error) from error
        self._attempts = tuple(answer.attempts)
        self._candidate = answer.candidate
        self._first_byte = answer.first_byte
        self._dialect = self._router.backends[answer.candidate.provider.name].dialects[0]
        self._reader = PlainReader(self._dialect, self._stream)
        try:
            async for text in self._read(answer, self._reader):
                self._text.append(text)
                yield CompletionDelta(text)
        except (TransportError, ProviderFailedError) as error:
            self._status, self._error = "truncated", redact(str(error))
            raise UnreachableError(
                f"{answer.candidate.name} broke off: {self._error}.", hint="Run it again.", code="stream_truncated"
            ) from error
        finally:
            answer.close()
        self._status = "ok"
        yield CompletionDelta("", self._reply())

    async def _read(self, answer: Answer, reader: PlainReader) -> AsyncIterator[str]:
        async for chunk in answer.chunks():
            if text := reader.feed(chunk):
                yield text
        if text := reader.end():
            yield text

    def _tokens(self) -> Tokens:
        reader, candidate = self._reader, self._candidate
        if reader is None or candidate is None:
            return Tokens()
        if reader.usage_seen and self._status == "ok":
            return Tokens(reader.input, reader.output, reader.cached, reader.cache_written, reader.reasoning)
        name = candidate.model.known_as
        counted = [count_tokens(message.content, name).tokens for message in self._request.messages]
        produced = count_tokens("".join(self._text), name).tokens
        return Tokens(
            max(reader.input, sum(counted) + 4 * len(counted)),
            max(reader.output, produced),
            reader.cached,
            reader.cache_written,
            reader.reasoning,
            estimated=True,
        )

    def _cost(self, tokens: Tokens) -> Picodollars | None:
        if self._candidate is None or self._reader is None:
            return Picodollars(0)
        return cost_of(
            self._candidate.model,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read=tokens.cached,
            cache_write=tokens.cache_written,
            cache_write_1h=self._reader.cache_written_1h,
        )

    def _reply(self) -> CompletionReply:
        assert self._candidate is not None
        assert self._reader is not None
        tokens = self._tokens()
        reasons = self._decision.reasons
        if self._cost(tokens) is None:
            reasons = (*reasons, f"no price is known for {self._candidate.model.name}")
        return CompletionReply(
            text="".join(self._text),
            model=self._candidate.model.name,
            provider=self._candidate.provider.name,
            tier=self._candidate.model.tier,
            tokens=tokens,
            cost=self._cost(tokens) or Picodollars(0),
            decision_id=self._decision.id,
            stop=self._reader.stop or "stop",
            reasons=reasons,
            seconds=self._router.clock.monotonic() - self._started,
        )

    def record(self) -> CallRecord:
        """The row of the ledger."""
        tokens = self._tokens()
        cost = self._cost(tokens)
        request, candidate = self._request, self._candidate
        record = CallRecord(
            self._decision,
            self._dialect,
            self._status,
            stream=self._stream,
            input=tokens.input,
            output=tokens.output,
            cached=tokens.cached,
            cache_written=tokens.cache_written,
            reasoning=tokens.reasoning,
            estimated=tokens.estimated,
            priced=cost is not None,
            cost=cost or Picodollars(0),
            service=request.service,
            customer=request.customer,
            session=request.session,
            first_byte=self._first_byte,
            seconds=self._router.clock.monotonic() - self._started,
            attempts=self._attempts,
            error=self._error,
        )
        if candidate is None:
            return record
        return replace(record, provider=candidate.provider.name, model=candidate.model.name, tier=candidate.model.tier)


def _explain(error: NoAnswerError) -> AvyayError:
    """A failed call as the caller of the port sees it."""
    said = _message(error.body)
    tried = "; ".join(f"{a.provider}: {f'HTTP {a.status}' if a.status else a.outcome}" for a in error.attempts)
    if error.status in (400, 413, 415, 422):
        return UsageError(f"{error.detail}: {said}.", hint="Change the request.", code="invalid_request")
    if error.attempts and all(attempt.status in (401, 403) for attempt in error.attempts):
        return AuthError(f"Every provider refused its key ({tried}).", hint="Check the keys: avyay marga providers")
    reason = f" The last said: {said}." if said else ""
    return UnreachableError(
        f"No provider answered ({tried}).{reason}", hint="Check the connection and try again: avyay marga providers"
    )


def _message(body: bytes) -> str:
    try:
        value = orjson.loads(body)
        error = value.get("error", value)
        text = error if isinstance(error, str) else str(error.get("message") or "")
    except (ValueError, AttributeError):
        text = ""
    return redact(text)[:300].rstrip(".")
