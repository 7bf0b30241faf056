"""What is asked of a gateway besides conversations: embeddings, token counts, lists of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from avyay.errors import AuthError, AvyayError, UsageError
from avyay.marga.backends.base import Backend, Outgoing
from avyay.marga.budgets import Spending, worst_case
from avyay.marga.call_record import begun_call
from avyay.marga.clearance import clear
from avyay.marga.cost import cost_of
from avyay.marga.dispatch import NoAnswerError, RejectedError
from avyay.marga.envelope import Inbound, Outbound, error_reply
from avyay.marga.gateway import Gateway
from avyay.marga.masking import Masker, scan_body
from avyay.marga.router import Router, no_provider
from avyay.marga.tokens import count_tokens as count_text
from avyay.marga.tokens import estimate_size
from avyay.marga.types import CallRecord, Candidate, Decision, Dialect, Hints, Ranked
from avyay.marga.view import RequestView, view_features
from avyay.marga.wire import (
    Failure,
    FailureKind,
    edit_body,
    failure_from_exception,
    forwarded_headers,
    inspect,
    load_body,
    map_text,
)
from avyay.money import Picodollars, usd_string

__all__ = ["count_tokens", "embeddings", "list_models", "list_tags", "show_model"]

_EMBEDDING_DIALECT: Dialect = "openai_chat"  # whose error envelope and whose providers hold for embeddings


async def embeddings(gateway: Gateway, inbound: Inbound) -> Outbound:
    """POST /v1/embeddings: passed on to a provider that has the model."""
    router = gateway.router
    began = router.clock.monotonic()
    try:
        body = load_body(inbound.raw)
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise UsageError("The request names no model.", code="missing_model")
        if not router.usable():
            raise no_provider(router.providers.values())
        if name == "auto":
            raise UsageError(
                "Embeddings of one model are of no use to another, so none is chosen for you.",
                hint="Name one that `avyay marga providers` lists.",
                code="missing_model",
            )
        candidates = [c for c in router.pinned(name) if c.provider.kind != "anthropic"]
    except (AuthError, UsageError) as error:
        kinds: Mapping[str, FailureKind] = {"model_not_found": "not_found", "no_provider": "unavailable"}
        kind = kinds.get(error.code, "invalid_request")
        return error_reply("openai_chat", Failure(kind, f"{error.message} {error.hint or ''}".strip(), code=error.code))
    if not candidates:
        failure = Failure("invalid_request", f"No provider offers embeddings of {name!r}.", code="no_capable_provider")
        return error_reply("openai_chat", failure)
    ranked = tuple(Ranked(candidate, None) for candidate in candidates)
    maskers: Mapping[str, Masker] = {}
    if gateway.pii is not None:
        cleared = clear(gateway.pii, body, ranked, inbound.key)
        ranked, maskers = cleared.ranked, cleared.maskers
        if not ranked:
            reason = "; ".join(cleared.reasons)
            failure = Failure("policy", f"Personal data keeps this request back: {reason}.", code="pii_refused")
            return error_reply("openai_chat", failure)
    texts = body.get("input")
    chars = len(texts) if isinstance(texts, str) else sum(len(t) for t in texts or () if isinstance(t, str))
    sized = estimate_size(chars, texts if isinstance(texts, str) else "")
    decision = Decision(
        router.new_id(),
        router.clock.now(),
        ranked[0].candidate.model.tier,
        0.0,
        (f"the caller named {name}",),
        ranked,
        Hints(name),
        {**RequestView("", chars=chars).features(), "input_tokens": sized},
        seconds=router.clock.monotonic() - began,
    )
    reported: dict[str, Any] = {}

    def render(candidate: Candidate, backend: Backend) -> Outgoing:
        gateway.begin(begun_call(decision, inbound, "openai_embeddings", candidate, spending=spending))
        masker = maskers.get(candidate.provider.name)
        if masker is None:
            raw = edit_body(inbound.raw, body, {"model": candidate.model.name})
        else:
            raw = orjson.dumps({**masker.mask_body(body), "model": candidate.model.name})
        return Outgoing(_EMBEDDING_DIALECT, candidate.model.name, raw, operation="embeddings")

    def accept(candidate: Candidate, data: bytes, headers: Mapping[str, str]) -> None:
        try:
            reply = orjson.loads(data)
            reported.update(reply.get("usage") or {})
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise RejectedError(Failure("server", "The answer is not JSON.", code="bad_reply")) from error

    headers = [("x-avyay-decision-id", decision.id)]
    spending: Spending | None = None
    if router.budgets is not None:
        scopes = router.budgets.scopes(inbound.key, inbound.service, inbound.customer)
        spending = router.budgets.spending(scopes) if scopes else None
    try:
        if spending is not None:
            model = ranked[0].candidate.model
            await spending.draw(worst_case(model, input_tokens=sized, max_tokens=None), model=model.name)
    except AvyayError as error:
        gateway.keep(CallRecord(decision, "openai_embeddings", "refused", key=inbound.key, error=error.message))
        return error_reply("openai_chat", failure_from_exception(error), headers)
    cost: Picodollars | None = None
    try:
        answer = await router.dispatcher.open(
            decision.ranked, render, accept=accept, endpoint=lambda _: "embeddings", stream=False, chars=chars
        )
        counted = reported.get("prompt_tokens")
        estimated = not isinstance(counted, int)
        tokens = counted if isinstance(counted, int) else sized
        cost = cost_of(answer.candidate.model, input_tokens=tokens, output_tokens=0)
    except NoAnswerError as error:
        gateway.keep(
            CallRecord(
                decision,
                "openai_embeddings",
                "error",
                key=inbound.key,
                attempts=error.attempts,
                error=str(error)[:300],
            )
        )
        return error_reply("openai_chat", error.failure, headers + forwarded_headers(error.headers))
    finally:
        if spending is not None:
            spending.settle(cost or Picodollars(0))
    candidate = answer.candidate
    gateway.keep(
        CallRecord(
            decision,
            "openai_embeddings",
            "ok",
            candidate.provider.name,
            candidate.model.name,
            candidate.model.tier,
            input=tokens,
            estimated=estimated,
            priced=cost is not None,
            cost=cost or Picodollars(0),
            key=inbound.key,
            service=inbound.service,
            customer=inbound.customer,
            session=inbound.session,
            first_byte=answer.first_byte,
            seconds=router.clock.monotonic() - began,
            attempts=tuple(answer.attempts),
            blocks=spending.paid_by if spending is not None else (),
        )
    )
    headers += [
        ("content-type", "application/json"),
        ("x-avyay-provider", candidate.provider.name),
        ("x-avyay-model", candidate.model.name),
        ("x-avyay-tier", candidate.model.tier),
        *forwarded_headers(answer.incoming.headers),
    ]
    if cost is not None:
        headers.append(("x-avyay-cost", usd_string(cost)))
    return Outbound(200, headers, answer.first)


async def count_tokens(gateway: Gateway, inbound: Inbound) -> Outbound:
    """POST /v1/messages/count_tokens: asked of Anthropic where it would serve, else counted or estimated here."""
    router = gateway.router
    try:
        body = load_body(inbound.raw)
        features = inspect("anthropic_messages", body)
        decision = router.decide(view_features(features), Hints(features.model))
    except UsageError as error:
        if error.code == "model_not_found":
            return error_reply("anthropic_messages", Failure("not_found", error.message, code=error.code))
        return error_reply("anthropic_messages", failure_from_exception(error))
    chosen = decision.chosen
    # Counting at the provider sends it the text: where rules are set, only text they have nothing to say about.
    harmless = gateway.pii is None or not scan_body(body)
    if chosen is not None and chosen.provider.kind == "anthropic" and harmless:
        ranked = tuple(entry for entry in decision.ranked if entry.candidate.provider.kind == "anthropic")

        def render(candidate: Candidate, backend: Backend) -> Outgoing:
            raw = edit_body(inbound.raw, body, {"model": candidate.model.name})
            return Outgoing(
                "anthropic_messages", candidate.model.name, raw, headers=inbound.forward, operation="count_tokens"
            )

        try:
            answer = await router.dispatcher.open(
                ranked, render, accept=_any, endpoint=lambda _: "count_tokens", stream=False
            )
        except NoAnswerError as error:
            if error.failure.kind in ("invalid_request", "not_found"):
                return error_reply("anthropic_messages", error.failure)
        else:
            return Outbound(200, [("content-type", "application/json")], answer.first)
    texts: list[str] = []
    map_text("anthropic_messages", body, lambda text: texts.append(text) or text)  # type: ignore[func-returns-value]
    name = chosen.model.known_as if chosen is not None else features.model
    counted = count_text("\n".join(texts), name)
    tools = body.get("tools")
    extra = count_text(orjson.dumps(tools).decode(), name).tokens if tools else 0
    tokens = router.ratios.apply(name, counted.tokens + extra + 4 * max(1, features.messages))
    headers = [("content-type", "application/json"), ("x-avyay-estimated", "true")]
    return Outbound(200, headers, orjson.dumps({"input_tokens": tokens}))


def _any(candidate: Candidate, data: bytes, headers: Mapping[str, str]) -> None:
    return None


def list_models(router: Router, *, anthropic: bool) -> Outbound:
    """GET /v1/models, as OpenAI or as Anthropic lists them."""
    found: dict[str, str] = {"auto": "avyay"}
    found.update(dict.fromkeys(router.settings.aliases, "avyay"))
    for provider in router.usable():
        for model in provider.models:
            found.setdefault(model.name, provider.name)
    if anthropic:
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"} for name in found
        ]
        first, last = data[0]["id"], data[-1]["id"]
        body = orjson.dumps({"data": data, "has_more": False, "first_id": first, "last_id": last})
    else:
        entries = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in found.items()]
        body = orjson.dumps({"object": "list", "data": entries})
    return Outbound(200, [("content-type", "application/json")], body)


def show_model(router: Router, name: str) -> Outbound:
    """GET /v1/models/NAME."""
    try:
        owner = "avyay" if name == "auto" else router.pinned(name)[0].provider.name
    except UsageError as error:
        return error_reply("openai_chat", Failure("not_found", error.message, code=error.code))
    body = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    return Outbound(200, [("content-type", "application/json")], orjson.dumps(body))


def list_tags(router: Router) -> Outbound:
    """GET /api/tags, as Ollama lists its models."""
    names = ["auto", *router.settings.aliases, *(m.name for p in router.usable() for m in p.models)]
    models = [
        {
            "name": name,
            "model": name,
            "modified_at": "1970-01-01T00:00:00Z",
            "size": 0,
            "digest": "",
            "details": {"family": "", "format": "", "parameter_size": "", "quantization_level": ""},
        }
        for name in dict.fromkeys(names)
    ]
    return Outbound(200, [("content-type", "application/json")], orjson.dumps({"models": models}))
