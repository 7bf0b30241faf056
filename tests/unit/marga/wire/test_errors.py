"""Error envelopes in every dialect, before a reply and in the middle of one."""

import json

import anthropic.types.shared.error_response as anthropic_errors
import pytest
from pydantic import TypeAdapter

from avyay.errors import AuthError, InternalError, PolicyError, UnreachableError
from avyay.marga.conformance.observed import read_stream
from avyay.marga.conformance.scripted import Script, stream
from avyay.marga.wire import (
    DIALECTS,
    Failure,
    MalformedError,
    UntranslatableError,
    begin,
    default_target,
    failure_from_exception,
    forwarded_headers,
    load_body,
    parse_error,
    render_error,
)

MODELS = {"anthropic_messages": "claude-opus-4-8", "ollama_chat": "qwen3", "ollama_generate": "qwen3"}
PROMPTS = {
    "openai_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "openai_responses": {"input": "hi", "store": False},
    "anthropic_messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "ollama_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "ollama_generate": {"prompt": "hi"},
}


def pipe_for(caller, upstream):
    raw = json.dumps({"model": "auto", "stream": True, **PROMPTS[caller]}).encode()
    target = default_target(upstream, MODELS.get(upstream, "gpt-5.1"))
    return begin(caller, raw, load_body(raw), target, exchange_id="ex_1", created=1).stream()


def openai_error(kind=None, code=None, message="x"):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def messages_error(kind, message="x"):
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    "status, body, kind, code",
    [
        (400, openai_error("invalid_request_error"), "invalid_request", "invalid_request"),
        (401, openai_error("invalid_request_error", "invalid_api_key"), "authentication", "invalid_api_key"),
        (401, messages_error("authentication_error"), "authentication", "invalid_api_key"),
        (402, messages_error("billing_error"), "billing", "billing"),
        (403, messages_error("permission_error"), "permission", "permission_denied"),
        (404, {"error": "model 'x' not found"}, "not_found", "not_found"),
        (404, openai_error("invalid_request_error", "model_not_found"), "not_found", "model_not_found"),
        (413, messages_error("request_too_large"), "too_large", "request_too_large"),
        (429, openai_error("tokens", "rate_limit_exceeded"), "rate_limit", "rate_limit_exceeded"),
        (429, openai_error("insufficient_quota", "insufficient_quota"), "quota", "insufficient_quota"),
        (429, messages_error("rate_limit_error"), "rate_limit", "rate_limit_exceeded"),
        (500, {"error": "an error was encountered"}, "server", "server_error"),
        (500, messages_error("api_error"), "server", "server_error"),
        (504, messages_error("timeout_error"), "timeout", "timeout"),
        (529, messages_error("overloaded_error"), "overloaded", "overloaded"),
        (400, openai_error(None, "context_length_exceeded"), "context_length", "context_length_exceeded"),
        (
            400,
            messages_error("invalid_request_error", "prompt is too long: 9 > 8"),
            "context_length",
            "context_length_exceeded",
        ),
        (422, {"detail": "unprocessable"}, "invalid_request", "invalid_request"),
        (503, [], "overloaded", "overloaded"),
    ],
)
def test_errors_of_every_provider_are_understood(status, body, kind, code):
    failure = parse_error(status, json.dumps(body).encode())
    assert (failure.kind, failure.code, failure.status) == (kind, code, status)
    assert failure.message


@pytest.mark.parametrize("raw", [b"", b"<html>502 Bad Gateway</html>", b"\xff", b"null", b"[1]", b'"x"'])
def test_unreadable_errors_still_become_one(raw):
    failure = parse_error(502, raw)
    assert (failure.kind, failure.status) == ("unavailable", 502)
    assert failure.retryable


def test_retry_after_and_request_id_are_read():
    raw = b'{"type":"error","error":{"type":"rate_limit_error","message":"x"},"request_id":"req_1"}'
    failure = parse_error(429, raw, {"retry-after": "12"})
    assert (failure.retry_after, failure.request_id) == (12.0, "req_1")
    assert parse_error(429, raw, {"retry-after-ms": "1500", "retry-after": "2"}).retry_after == 1.5
    assert parse_error(429, raw, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}).retry_after is None
    assert parse_error(429, raw, {"retry-after": "nan"}).retry_after is None


def test_only_the_named_headers_of_the_serving_provider_are_forwarded():
    headers = {
        "retry-after": "1",
        "x-ratelimit-remaining-requests": "9",
        "anthropic-ratelimit-tokens-remaining": "8",
        "set-cookie": "secret",
        "server": "x",
        "openai-organization": "org",
    }
    assert forwarded_headers(headers) == [
        ("retry-after", "1"),
        ("x-ratelimit-remaining-requests", "9"),
        ("anthropic-ratelimit-tokens-remaining", "8"),
    ]


KINDS = [
    ("invalid_request", 400),
    ("context_length", 400),
    ("authentication", 401),
    ("billing", 402),
    ("permission", 403),
    ("not_found", 404),
    ("too_large", 413),
    ("rate_limit", 429),
    ("server", 500),
    ("timeout", 504),
    ("overloaded", 529),
]


@pytest.mark.parametrize("kind, status", KINDS)
def test_error_bodies_have_the_dialects_own_shape(kind, status):
    failure = Failure(kind, "What went wrong.", param="messages")
    assert failure.status == status
    body = json.loads(render_error("anthropic_messages", failure, "req_9"))
    assert body["type"] == "error"
    assert body["request_id"] == "req_9"
    assert body["error"]["code"] == failure.code
    if kind != "too_large":  # documented, but missing from the SDK's list of types
        TypeAdapter(anthropic_errors.ErrorResponse).validate_python(body)
    for dialect in ("openai_chat", "openai_responses"):
        error = json.loads(render_error(dialect, failure))["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (failure.code, "messages")
    for dialect in ("ollama_chat", "ollama_generate"):
        assert json.loads(render_error(dialect, failure)) == {"error": "What went wrong.", "code": failure.code}


def test_context_overflow_is_said_in_the_words_clients_look_for():
    failure = parse_error(400, b'{"error":{"message":"maximum context length is 5","code":"context_length_exceeded"}}')
    message = json.loads(render_error("anthropic_messages", failure))["error"]["message"]
    assert message.startswith("prompt is too long")
    back = parse_error(400, render_error("anthropic_messages", failure))
    assert json.loads(render_error("openai_chat", back))["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind, status", KINDS)
def test_an_error_survives_its_own_dialect(dialect, kind, status):
    again = parse_error(status, render_error(dialect, Failure(kind, "What went wrong.")))
    assert (again.kind, again.status) == (kind, status)


@pytest.mark.parametrize(
    "error, kind, code",
    [
        (MalformedError("Bad.", field="n"), "invalid_request", "malformed_request"),
        (UntranslatableError("No.", field="n"), "untranslatable", "untranslatable"),
        (UntranslatableError("No.", code="unsupported_state"), "invalid_request", "unsupported_state"),
        (AuthError("Who?"), "authentication", "unauthorised"),
        (PolicyError("Budget spent.", code="budget_exceeded"), "policy", "budget_exceeded"),
        (UnreachableError("Gone."), "unavailable", "unreachable"),
        (InternalError("Bug."), "server", "internal"),
    ],
)
def test_our_own_errors_become_failures_with_their_remedy(error, kind, code):
    error.hint = "Do this."
    failure = failure_from_exception(error)
    assert (failure.kind, failure.code) == (kind, code)
    assert failure.message.endswith("Do this.")


PROVIDER_ERRORS = {
    "openai_chat": b'data: {"error":{"message":"Busy.","type":"server_error","code":"server_error"}}\n\n',
    "anthropic_messages": (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Busy."}}\n\n'
    ),
    "openai_responses": (
        b'event: error\ndata: {"type":"error","code":"server_error","message":"Busy.","param":null}\n\n'
    ),
    "ollama_chat": b'{"error":"Busy."}\n',
    "ollama_generate": b'{"error":"Busy."}\n',
}


@pytest.mark.parametrize("upstream", DIALECTS)
@pytest.mark.parametrize("caller", DIALECTS)
def test_an_error_in_the_middle_ends_the_stream_in_the_callers_dialect(caller, upstream):
    source = stream(upstream, Script(text="Hello there, this will break."))
    half = source[: len(source) // 2]
    end = b"\n" if upstream.startswith("ollama") else b"\n\n"
    half = half[: half.rindex(end) + len(end)]
    pipe = pipe_for(caller, upstream)
    sent = pipe.feed(half) + pipe.feed(PROVIDER_ERRORS[upstream]) + pipe.close()
    assert pipe.failure is not None
    assert pipe.failure.message == "Busy."
    assert not pipe.finished
    seen = read_stream(caller, sent)
    assert seen.error is not None
    assert seen.error["message"] == "Busy."
    assert seen.text
    if caller != upstream:
        assert pipe.feed(b"data: more\n\n") == b""


@pytest.mark.parametrize("upstream", DIALECTS)
@pytest.mark.parametrize("caller", DIALECTS)
def test_a_cut_stream_ends_in_a_typed_error(caller, upstream):
    source = stream(upstream, Script(text="Hello there, this will break."))
    pipe = pipe_for(caller, upstream)
    sent = pipe.feed(source[: len(source) * 2 // 3]) + pipe.close()
    assert pipe.failure is not None
    assert pipe.failure.kind == "truncated"
    error = read_stream(caller, sent).error
    assert error is not None
    assert "stream_truncated" in (error.get("code"), error.get("type"))
    assert pipe.close() == b""


@pytest.mark.parametrize("upstream", DIALECTS)
@pytest.mark.parametrize("caller", DIALECTS)
def test_a_stream_cut_before_its_first_byte_is_an_error_too(caller, upstream):
    pipe = pipe_for(caller, upstream)
    assert b"cut off" in pipe.close()
    assert pipe.failure is not None


@pytest.mark.parametrize("upstream", DIALECTS)
@pytest.mark.parametrize("caller", DIALECTS)
def test_our_own_error_ends_a_running_stream_once(caller, upstream):
    source = stream(upstream, Script(text="Hello there, this will break."))
    pipe = pipe_for(caller, upstream)
    sent = pipe.feed(source[: len(source) // 2])
    sent += pipe.fail(Failure("timeout", "The provider fell silent."))
    assert pipe.fail(Failure("server", "again")) == b""
    assert pipe.close() == b""
    error = read_stream(caller, sent).error
    assert error is not None
    assert error["message"] == "The provider fell silent."


@pytest.mark.parametrize("upstream", DIALECTS)
def test_garbage_in_a_stream_is_an_error(upstream):
    caller = "openai_chat" if upstream != "openai_chat" else "anthropic_messages"
    pipe = pipe_for(caller, upstream)
    garbage = b"<html>\n" if upstream.startswith("ollama") else b"data: <html>\n\n"
    assert b"no JSON" in pipe.feed(garbage)
    assert pipe.failure is not None


def test_failed_response_continues_the_numbering_and_names_the_response():
    source = stream("openai_responses", Script(text="Hello there, this will break."))
    pipe = pipe_for("openai_responses", "openai_responses")
    sent = pipe.feed(source[: len(source) // 2]) + pipe.close()
    seen = read_stream("openai_responses", sent)
    assert seen.id == "resp_scripted"
    assert not [v for v in seen.violations if "sequence_number" in v]
