"""One decided request: sent to a provider, answered to its caller, billed and recorded."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from avyay.errors import AvyayError, PolicyError, UnreachableError
from avyay.log import redact
from avyay.marga.answer_headers import answer_headers
from avyay.marga.backends.base import Backend, Outgoing, dialect_towards
from avyay.marga.bill import Bill, bill_of
from avyay.marga.budgets import Spending, worst_case
from avyay.marga.call_privacy import CallPrivacy
from avyay.marga.call_record import begun_call, ended_call
from avyay.marga.compliance import PiiPolicy
from avyay.marga.dispatch import Answer, NoAnswerError, RejectedError
from avyay.marga.envelope import Inbound, Outbound, error_reply
from avyay.marga.spans import record_call_span
from avyay.marga.sticky import Answered
from avyay.marga.transport import TransportError
from avyay.marga.types import Attempt, CallStatus, Candidate, Decision, Dialect, Endpoint, Kind
from avyay.marga.wire import (
    Exchange,
    Failure,
    RequestFeatures,
    StopReason,
    StreamPipe,
    Target,
    Usage,
    begin,
    default_target,
    failure_from_exception,
    forwarded_headers,
    stream_content_type,
    truncated,
)
from avyay.money import Picodollars, usd_string
from avyay.resilience.breaker import Outcome
from avyay.telemetry import tracing_enabled

if TYPE_CHECKING:
    from avyay.marga.gateway import Gateway

__all__ = ["Call"]

_FIRST_BYTES = {True: b"{", False: b"dei:r\r\n"}  # how an NDJSON and an SSE stream may begin
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[^"]{1,200})"')


@lru_cache(maxsize=4096)
def _target(dialect: Dialect, kind: Kind, model: str, max_output: int | None) -> Target:
    return default_target(dialect, model, compatible=kind == "openai-compatible", max_output_tokens=max_output)


class Call:
    """One decided request, from its first attempt to its row in the ledger."""

    __slots__ = (
        "_answer",
        "_attempts",
        "_began",
        "_body",
        "_candidate",
        "_ended",
        "_exchange",
        "_exchanges",
        "_features",
        "_first",
        "_found",
        "_gateway",
        "_inbound",
        "_out",
        "_pipe",
        "_privacy",
        "conversation",
        "cost",
        "decision",
        "estimated",
        "last_model",
        "spending",
        "status",
        "usage",
    )

    def __init__(
        self,
        gateway: Gateway,
        inbound: Inbound,
        body: dict[str, Any],
        features: RequestFeatures,
        decision: Decision,
        began: float,
    ) -> None:
        self.decision = decision
        self.usage: Usage | None = None
        self.cost: Picodollars | None = None
        self.estimated = False
        self.spending: Spending | None = None
        self.conversation: str | None = None
        self.last_model: str | None = None
        self.status: CallStatus | None = None  # None until it has ended
        self._gateway = gateway
        self._inbound = inbound
        self._body = body
        self._features = features
        self._began = began
        self._exchanges: dict[str, Exchange] = {}
        self._exchange: Exchange | None = None
        self._candidate: Candidate | None = None
        self._answer: Answer | None = None
        self._attempts: tuple[Attempt, ...] = ()
        self._pipe: StreamPipe | None = None
        self._first = b""
        self._out: Any = None
        self._ended = False
        self._privacy: CallPrivacy | None = None  # None: no rule on personal data was ever asked

    @property
    def candidate(self) -> Candidate | None:
        """Who answered."""
        return self._candidate

    @property
    def streaming(self) -> bool:
        """Whether the answer is a stream."""
        return self._pipe is not None

    @property
    def stop(self) -> StopReason | None:
        """Why the answer ended."""
        if self._pipe is not None:
            return self._pipe.stop
        return self._out.stop if self._out is not None else None

    @property
    def masked(self) -> bool:
        """Whether personal data was masked for the provider that answered."""
        privacy, candidate = self._privacy, self._candidate
        return privacy is not None and candidate is not None and privacy.masks(candidate.provider.name)

    # ------------------------------------------------------------ personal data

    def comply(self, policy: PiiPolicy) -> Outbound | None:
        """Leave out the providers that may not see this request, and note what to mask for the others.

        Returns:
            The refusal, when nobody is left.
        """
        self._privacy = CallPrivacy()
        message = self._privacy.clear(policy, self._body, self.decision.ranked, self._inbound.key)
        if message is None:
            return None
        self._gateway.active += 1
        self._finish("refused", message)
        failure = Failure("policy", f"{message} See marga.pii in the configuration.", code="pii_refused")
        return error_reply(self._inbound.dialect, failure, [("x-avyay-decision-id", self.decision.id)])

    # ------------------------------------------------------------ towards the provider

    def _render(self, candidate: Candidate, backend: Backend) -> Outgoing:
        inbound, model = self._inbound, candidate.model
        dialect = dialect_towards(model, backend.dialects, inbound.dialect)
        target = _target(dialect, candidate.provider.kind, model.name, model.max_output)
        raw, body = inbound.raw, self._body
        masked = self._privacy is not None and self._privacy.masks(candidate.provider.name)
        if self._privacy is not None and masked:
            raw, body = self._privacy.mask(candidate.provider.name, body)
        exchange = begin(
            inbound.dialect,
            raw,
            body,
            target,
            edited=masked,
            exchange_id=self.decision.id,
            created=int(self.decision.at),
            foreign_thinking=self._features.foreign_thinking,
            model_switched=self._features.signed_thinking and self.last_model not in (None, candidate.name),
        )
        self._exchanges[candidate.name] = exchange
        features = self._features
        self._gateway.begin(
            begun_call(
                self.decision,
                inbound,
                inbound.dialect,
                candidate,
                stream=features.stream,
                session=features.session,
                spending=self.spending,
            )
        )
        same = exchange.passthrough
        return Outgoing(
            dialect,
            model.name,
            exchange.body,
            exchange.streaming,
            inbound.forward if same else {},
            query=inbound.query if same else "",
        )

    async def _admit(self, candidate: Candidate) -> None:
        """Draw what this candidate may cost beyond the first, whose worst case is drawn already.

        Raises:
            PolicyError: the budget does not cover it, or cannot be asked.
        """
        if self.spending is None or candidate is self.decision.ranked[0].candidate:
            return
        try:
            await self.spending.cover(self._worst_case(candidate), model=candidate.model.name)
        except AvyayError as error:
            if isinstance(error, PolicyError):
                raise
            raise PolicyError(error.message, hint=error.hint, code=error.code) from error

    def _endpoint(self, candidate: Candidate) -> Endpoint:
        return self._gateway.router.endpoint_of(candidate, self._inbound.dialect)

    def _worst_case(self, candidate: Candidate) -> Picodollars | None:
        tokens = self._gateway.router.estimate_input(self.decision, candidate)
        return worst_case(candidate.model, input_tokens=tokens, max_tokens=self._features.max_tokens)

    def _accept(self, candidate: Candidate, first: bytes, headers: Mapping[str, str]) -> None:
        exchange = self._exchanges[candidate.name]
        if not exchange.streaming:
            try:
                self._out = exchange.reply(first)
            except UnreachableError as error:
                raise RejectedError(Failure("server", error.message, code=error.code)) from error
            if self._out.failure is not None and self._out.failure.retryable:
                raise RejectedError(self._out.failure)
            return
        lines = exchange.target.dialect.startswith("ollama")
        start = first.lstrip()[:1]
        if not start or start not in _FIRST_BYTES[lines]:
            raise RejectedError(
                Failure("server", f"{candidate.provider.name} answered something that is no stream.", code="bad_reply")
            )
        pipe = exchange.stream()
        out = pipe.feed(first)
        if pipe.failure is not None:
            raise RejectedError(pipe.failure)  # an error as the first word: nothing has been shown yet
        self._pipe, self._first = pipe, out

    async def open(self) -> Outbound:
        """Find a candidate that answers; of a whole answer, all of it."""
        gateway, features, decision = self._gateway, self._features, self.decision
        gateway.active += 1
        ranked = decision.ranked if self._privacy is None else self._privacy.permitted
        if features.previous_response_id is not None:
            home = gateway.router.homes.of(features.previous_response_id)
            if home is not None:
                ranked = tuple(entry for entry in ranked if entry.candidate.provider.name == home) or ranked
        budget = decision.hints.latency_budget_ms
        if self.spending is not None:
            try:
                first = decision.ranked[0].candidate
                await self.spending.draw(self._worst_case(first), model=first.model.name)
            except AvyayError as error:  # over the cap, or the ledger cannot be asked: nobody spends unseen
                self._finish("refused", error.message)
                headers = [("x-avyay-decision-id", decision.id)]
                return error_reply(self._inbound.dialect, failure_from_exception(error), headers)
        try:
            answer = await gateway.router.dispatcher.open(
                ranked,
                self._render,
                accept=self._accept,
                endpoint=self._endpoint,
                stream=features.stream,
                chars=features.prompt_chars,
                budget=budget / 1000 if budget is not None else None,
                displaced=decision.displaced,
                admit=None if self.spending is None else self._admit,
            )
        except NoAnswerError as error:
            self._attempts = error.attempts
            self._finish("error", redact(str(error))[:300])
            headers = [("x-avyay-decision-id", decision.id)]
            if error.headers:
                headers += forwarded_headers(error.headers)
            return error_reply(self._inbound.dialect, error.failure, headers)
        except BaseException:
            self._finish("aborted")
            raise
        self._answer = answer
        self._attempts = tuple(answer.attempts)
        self._candidate = answer.candidate
        self._exchange = self._exchanges[answer.candidate.name]
        self._remember_model(0)
        if gateway.answers is not None and self._privacy is None:
            self._privacy = CallPrivacy()
        if self._privacy is not None:
            stream = self._inbound.dialect if self._exchange.streaming else None
            self._privacy.answered(answer.candidate.provider.name, self._body, gateway.answers, stream=stream)
        if self._exchange.streaming:
            kind = answer.incoming.headers.get("content-type") if self._exchange.passthrough else None
            kind = kind or stream_content_type(self._inbound.dialect)
            return Outbound(200, self._headers(kind), None, self)
        return self._whole()

    def _whole(self) -> Outbound:
        out, answer, exchange = self._out, self._answer, self._exchange
        assert answer is not None
        assert exchange is not None
        self.usage = out.usage
        self._account(out.output_chars)
        self._remember(answer.first)
        shown = out.body if self._privacy is None else self._privacy.restore(out.body)
        if self._privacy is not None and (failure := self._privacy.blocked) is not None:
            self._finish("refused", failure.message)
            return error_reply(self._inbound.dialect, failure, [("x-avyay-decision-id", self.decision.id)])
        self._finish("ok" if out.failure is None else "error")
        cost = [("x-avyay-cost", usd_string(self.cost))] if self.cost is not None else []
        if self.estimated:
            cost.append(("x-avyay-cost-estimated", "true"))
        status = 200 if out.failure is None or exchange.passthrough else out.failure.status
        return Outbound(status, self._headers("application/json") + cost, shown, self)

    def _headers(self, content_type: str) -> list[tuple[str, str]]:
        assert self._answer is not None
        assert self._exchange is not None
        return answer_headers(
            self._gateway.router,
            self.decision,
            self._answer,
            self._exchange,
            content_type,
            max_tokens=self._features.max_tokens,
        )

    # ------------------------------------------------------------ towards the caller

    async def chunks(self) -> AsyncIterator[bytes]:
        """The stream for the caller; ends in the dialect's error event when the provider breaks off."""
        privacy = self._privacy
        restorer = privacy.restorer if privacy is not None else None
        if privacy is None or restorer is None:
            async with aclosing(self._chunks()) as pieces:
                async for piece in pieces:
                    yield piece
            return
        async with aclosing(self._chunks()) as pieces:
            async for piece in pieces:
                out = restorer.feed(piece)
                if self._pipe is not None and (failure := privacy.blocked) is not None:
                    self._settle("refused", failure.message)
                    yield self._pipe.fail(failure)
                    return
                if self._pipe is not None and self._pipe.ended:
                    self._conclude()
                if out:
                    yield out
        if rest := restorer.close():
            yield rest

    async def _chunks(self) -> AsyncGenerator[bytes]:
        answer, pipe = self._answer, self._pipe
        assert answer is not None
        assert pipe is not None
        incoming, plain = answer.incoming, self._privacy is None or self._privacy.restorer is None
        try:
            first, self._first = self._first, b""
            self._remember(answer.first)
            if first:
                if plain and pipe.ended:
                    self._conclude()
                yield first
            try:
                while piece := await incoming.piece():
                    if out := pipe.feed(piece):
                        if plain and pipe.ended:
                            self._conclude()
                        yield out
                rest = pipe.close()
            except TransportError as error:
                rest = pipe.fail(truncated(str(error)))
            self._conclude()
            if rest:
                yield rest
        finally:
            incoming.close()
            self._settle("aborted")

    def _conclude(self) -> None:
        """Record how the stream ended: before the caller gets what he may take for the end of it."""
        answer, pipe = self._answer, self._pipe
        assert answer is not None
        assert pipe is not None
        if self._ended:
            return
        if pipe.failure is None:
            self._settle("ok")
            return
        if pipe.failure.kind == "truncated":
            self._gateway.router.health.failed(
                answer.health, answer.candidate, Outcome.FAILURE, generation=answer.generation
            )
        status: CallStatus = "truncated" if pipe.failure.kind == "truncated" else "error"
        self._settle(status, redact(pipe.failure.message)[:300])

    def _settle(self, status: CallStatus, error: str | None = None) -> None:
        pipe = self._pipe
        if self._ended or pipe is None:
            return
        self.usage = pipe.usage
        if status == "ok" and pipe.usage is not None:
            self._account(0)
        else:
            # Cut short: events seen are near the tokens written, and what was reported so far is a floor.
            self._account(pipe.frames * 4, complete=False)
        self._finish(status, error)

    def _remember(self, data: bytes) -> None:
        """Note whose a stored response is."""
        exchange, answer = self._exchange, self._answer
        if exchange is None or answer is None or not exchange.passthrough:
            return
        if self._inbound.dialect == "openai_responses" and self._features.stores:
            found = _RESPONSE_ID.search(data)
            if found is not None:
                self._gateway.router.homes.remember(found[1].decode(), answer.candidate.provider.name)

    # ------------------------------------------------------------ the bill

    def _account(self, output_chars: int, *, complete: bool = True) -> None:
        assert self._candidate is not None
        bill = bill_of(
            self._gateway.router,
            self.decision,
            self._candidate,
            self.usage,
            service_tier=self._body.get("service_tier"),
            output_chars=output_chars,
            complete=complete,
        )
        self.usage, self.cost, self.estimated = bill.usage, bill.cost, bill.estimated

    def _finish(self, status: CallStatus, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        gateway, inbound, candidate, answer = self._gateway, self._inbound, self._candidate, self._answer
        gateway.active -= 1
        self.status = status
        if self.spending is not None:
            self.spending.settle(self.cost or Picodollars(0))
        usage, now = self.usage or Usage(), gateway.router.clock.monotonic()
        if candidate is not None and status == "ok":
            self._remember_model(usage.cache_read + usage.cache_write)
            if gateway.shadowing is not None:
                gateway.shadowing.consider(
                    inbound, self._body, self.decision, candidate.model.tier, int(self.cost or 0)
                )
        record = ended_call(
            self.decision,
            inbound,
            status,
            candidate,
            Bill(usage, self.cost, self.estimated),
            stream=self._features.stream,
            session=self._features.session,
            answer=answer,
            attempts=self._attempts,
            notes=self._exchange.notes if self._exchange is not None else (),
            spending=self.spending,
            error=error,
            seconds=now - self._began,
            now=now,
        )
        gateway.keep(record)
        if tracing_enabled():
            record_call_span(record, ended=gateway.router.clock.now(), parent=inbound.traceparent)

    def _remember_model(self, cached: int) -> None:
        """Note who answers this conversation, and how much of it is warm there."""
        if self.conversation is None or self._candidate is None:
            return
        router = self._gateway.router
        router.conversations.remember(
            self.conversation, Answered(self._candidate.name, router.clock.monotonic(), cached)
        )
