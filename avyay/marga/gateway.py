"""The gateway's service: decides about a request in any dialect, and keeps what became of it.

Knows no server: `asgi.py` gives it what came in over HTTP, `completer.py` what came in through the port.
"""

from __future__ import annotations

from avyay.errors import AvyayError, UsageError
from avyay.log import get_logger
from avyay.marga.caching import AnswerCache
from avyay.marga.call import Call
from avyay.marga.compliance import PiiPolicy, answer_kinds, pii_policy
from avyay.marga.context_limit import drop_too_long, near_limit
from avyay.marga.envelope import Inbound, Outbound, error_reply
from avyay.marga.router import Router, no_provider
from avyay.marga.shadowing import Shadowing
from avyay.marga.sticky import conversation_of
from avyay.marga.types import BegunCall, CallRecord, Hints
from avyay.marga.view import view_features
from avyay.marga.wire import Failure, RequestFeatures, failure_from_exception, inspect, load_body

__all__ = ["Gateway"]


class Gateway:
    """Answers requests with a router's providers, and keeps what became of them.

    Args:
        cache: Where answers are kept to be given again; None keeps none.
    """

    def __init__(self, router: Router, *, cache: AnswerCache | None = None) -> None:
        self.router = router
        self.pii: PiiPolicy | None = pii_policy(router.settings.pii)
        self.answers = answer_kinds(router.settings.pii)
        self.shadowing: Shadowing | None = None
        self.cache = cache
        self.active = 0
        self.finished: dict[str, int] = {}
        self._log = get_logger("marga")

    async def open(self, inbound: Inbound) -> Outbound:
        """Answer a request. Never raises for what a caller or a provider did wrong: that is an answer too."""
        router = self.router
        began = router.clock.monotonic()
        try:
            body = load_body(inbound.raw)
            features = inspect(inbound.dialect, body)
        except UsageError as error:
            return self._refuse(inbound, failure_from_exception(error))
        hints = Hints(
            features.model,
            inbound.tier,
            inbound.request_class,
            inbound.quality_min,
            inbound.latency_budget_ms,
            inbound.residency,
        )
        conversation = conversation_of(inbound.key, inbound.session, features, body)
        last = router.last_model(conversation)
        try:
            decision = router.decide(
                view_features(features), hints, at=began, conversation=conversation, dialect=inbound.dialect
            )
        except UsageError as error:
            if not router.usable():
                return self._refuse(inbound, _no_provider(router))
            return self._refuse(inbound, Failure("not_found", f"{error.message} {error.hint}", code=error.code))
        if not decision.ranked:
            return self._refuse(inbound, _no_provider(router) if not router.usable() else _nobody_able(features))
        # Counting exactly sends the text to its provider: not before the rules on personal data have been asked.
        if self.pii is None and any(near_limit(decision, entry.candidate) for entry in decision.ranked):
            decision = await drop_too_long(router, inbound.dialect, body, decision)
            if not decision.ranked:
                failure = Failure("context_length", "No configured model has a context for this request.")
                return self._refuse(inbound, failure)
        call = Call(self, inbound, body, features, decision, began)
        call.conversation, call.last_model = conversation, last
        if self.pii is not None and (refused := call.comply(self.pii)) is not None:
            return refused
        if router.budgets is not None:
            scopes = router.budgets.scopes(inbound.key, inbound.service, inbound.customer)
            if scopes:
                call.spending = router.budgets.spending(scopes)
        if self.cache is not None:
            return await self.cache.through(call, inbound, body, features, keep=self.keep, began=began)
        return await call.open()

    def _refuse(self, inbound: Inbound, failure: Failure) -> Outbound:
        self.finished["refused"] = self.finished.get("refused", 0) + 1
        return error_reply(inbound.dialect, failure)

    def begin(self, call: BegunCall) -> None:
        """A call goes to a provider; a disk that fails does not fail it."""
        try:
            self.router.store.begin(call)
        except AvyayError as error:
            self._log.error("call_not_recorded", decision=call.id, error=str(error))

    def keep(self, record: CallRecord) -> None:
        """Put a call into the ledger; a disk that fails does not fail the call."""
        self.finished[record.status] = self.finished.get(record.status, 0) + 1
        try:
            self.router.store.record(record)
        except AvyayError as error:
            self._log.error("call_not_recorded", decision=record.decision.id, error=str(error))


def _no_provider(router: Router) -> Failure:
    error = no_provider(router.providers.values())
    return Failure("unavailable", f"{error.message} {error.hint}", code="no_provider")


def _nobody_able(features: RequestFeatures) -> Failure:
    needs = [
        name
        for name, wanted in (("tools", features.tools), ("vision", features.images), ("its length", True))
        if wanted
    ]
    return Failure(
        "invalid_request",
        f"No configured model can take this request (it needs {', '.join(needs)})."
        " See `avyay marga providers` and name a model that can.",
        code="no_capable_provider",
    )
