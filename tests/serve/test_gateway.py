"""The gateway in front of the real router and a scripted provider: who enters, what passes, what is counted."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import jwt
import openai
import pytest
from daemon import Daemon, Got, Served, services_in, wait_for
from gate import Gate, keys_in, make_key
from typer.testing import CliRunner
from upstream import Reply, Upstream

from avyay.cli.app import application
from avyay.db import open_database
from avyay.errors import ConfigError, PolicyError, UsageError
from avyay.serve.gateway import door
from avyay.serve.gateway.daemon import check_authentication, serve_gateway
from avyay.serve.launch import Launch

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def router(upstream: Upstream, folder: Path) -> Iterator[Daemon]:
    provider = {
        "name": "scripted",
        "kind": "openai-compatible",
        "endpoint": f"{upstream.url}/v1",
        "models": [{"name": "test-model", "input_price": "1", "output_price": "2"}],
    }
    with Daemon(folder, {"providers": [provider]}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return make_key(folder, "app", scopes=["marga", "rag:ask"], customer="acme", service="web")


@pytest.fixture(scope="module")
def gate(router: Daemon, folder: Path, key: str) -> Iterator[Gate]:
    with Gate(folder, {"marga": router.url}) as gate:
        yield gate


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ---------------------------------------------------------------- who enters


def test_both_headers_are_understood(gate: Gate, key: str) -> None:
    assert gate.chat(**bearer(key)).status == 200
    assert gate.chat(x_api_key=key).status == 200
    assert gate.chat(authorization=f"bearer   {key}").status == 200


@pytest.mark.parametrize("credential", ["", "Basic YTpi", "Bearer nonsense", f"Bearer avy_{'a' * 8}_{'b' * 43}"])
def test_strangers_are_refused_in_the_dialect_of_the_endpoint(gate: Gate, credential: str) -> None:
    headers = {"authorization": credential} if credential else {}
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/embeddings", {}), ("/v1/responses", {})):
        got = gate.post(path, body, **headers)
        assert got.status == 401
        assert got.body["error"]["type"] == "authentication_error"
        assert got.headers["www-authenticate"].startswith("Bearer")
    got = gate.post("/v1/messages", {}, **headers)
    assert (got.status, got.body["type"], got.body["error"]["type"]) == (401, "error", "authentication_error")
    assert got.body["request_id"] == got.headers["request-id"] == got.headers["x-request-id"]
    assert isinstance(gate.post("/api/chat", {}, **headers).body["error"], str)
    got = gate.post("/v1/ask", {}, **headers)
    assert got.headers["content-type"] == "application/problem+json"
    assert (got.body["status"], got.body["code"] != "") == (401, True)
    assert "key" not in got.raw.decode().lower() or credential == "" or credential.split()[-1] not in got.raw.decode()


def test_scopes_hold(gate: Gate, key: str, folder: Path) -> None:
    got = gate.post("/v1/scan", {"files": []}, **bearer(key))
    assert (got.status, got.body["code"]) == (403, "missing_scope")
    assert "raksha:scan" in got.body["hint"]
    assert gate.post("/v1/search", {"query": "x"}, **bearer(key)).status == 403  # rag:ask is not all of rag
    assert gate.get("/marga/decisions", **bearer(key)).status == 403  # of other callers
    assert gate.get("/metrics", **bearer(key)).status == 403
    only = make_key(folder, "embeddings", scopes=["marga:embeddings"])
    got = gate.post("/v1/messages", {}, x_api_key=only)
    assert (got.status, got.body["error"]["type"]) == (403, "permission_error")
    for path in ("/v1/embeddings/../chat/completions", "/v1/embeddings%2f..%2fchat", "//v1/chat/completions"):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {only}\r\ncontent-length: 2\r\nconnection: close\r\n"
        assert gate.raw(f"{head}\r\n{{}}".encode()).startswith(b"HTTP/1.1 400")
    admin = make_key(folder, "admin", scopes=["admin"])
    assert gate.get("/marga/stats", **bearer(admin)).status == 200
    assert gate.get("/metrics", **bearer(admin)).raw.startswith(b"# HELP gateway_requests_total")
    assert gate.chat(**bearer(admin)).status == 403


def test_revoked_rotated_and_expired_keys(gate: Gate, folder: Path) -> None:
    book = keys_in(folder)
    made = book.create("short")
    dead = book.create("dead", lifetime=-1)
    assert gate.chat(**bearer(made.secret)).status == 200
    assert gate.chat(**bearer(dead.secret)).body["error"]["code"] == "key_expired"
    second = book.rotate("short", grace=0.0)
    wait_for(lambda: gate.chat(**bearer(made.secret)).status == 401)  # cached, and forgotten all the same
    assert gate.chat(**bearer(second.secret)).status == 200
    book.revoke("short")
    wait_for(lambda: gate.chat(**bearer(second.secret)).status == 401)
    assert gate.chat(**bearer(second.secret)).body["error"]["code"] == "key_revoked"
    book.close()


def test_two_credentials_of_a_kind_are_refused(gate: Gate, key: str) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nauthorization: Bearer x\r\n"
    )
    assert gate.raw(f"{head}content-length: 0\r\nconnection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 401")


def test_guessing_is_slowed_down(router: Daemon, folder: Path, key: str) -> None:
    with Gate(folder, {"marga": router.url}, {"failed_attempts": 3, "proxies": ["127.0.0.0/8"]}) as gate:
        assert gate.chat(**bearer(key), x_forwarded_for="203.0.113.7").status == 200
        found = [gate.chat(**bearer("nonsense"), x_forwarded_for="203.0.113.7") for _ in range(5)]
        assert [got.status for got in found] == [401, 401, 401, 429, 429]
        assert found[-1].headers["retry-after"] == "60"
        assert gate.chat(**bearer(key), x_forwarded_for="203.0.113.7").status == 200  # known to be good
        assert gate.chat(**bearer("nonsense"), x_forwarded_for="198.51.100.1").status == 401  # somebody else
        assert gate.chat(**bearer("nonsense"), x_forwarded_for="2001:db8::1, 203.0.113.7").status == 429


def test_who_was_let_in_is_not_locked_out_by_others_guesses_when_keys_change(
    router: Daemon, folder: Path, key: str
) -> None:
    gone = make_key(folder, "gone")
    address = "203.0.113.7"
    with Gate(folder, {"marga": router.url}, {"failed_attempts": 3, "proxies": ["127.0.0.0/8"]}) as gate:
        known = gate.gateway.authenticator.known
        for one in (key, gone):
            assert gate.chat(**bearer(one), x_forwarded_for=address).status == 200
        book = keys_in(folder)
        book.revoke("gone")
        book.close()
        wait_for(lambda: known(key.encode()) is None)  # what was known is looked at again
        found = [gate.chat(**bearer("nonsense"), x_forwarded_for=address).status for _ in range(4)]
        assert found == [401, 401, 401, 429]
        assert gate.chat(**bearer(key), x_forwarded_for=address).status == 200
        found = [gate.chat(**bearer(gone), x_forwarded_for=address).status for _ in range(2)]
        assert found == [401, 429]  # what is no longer good is a guess like any other
        assert gate.chat(**bearer(make_key(folder, "new")), x_forwarded_for=address).status == 429


def test_tokens(router: Daemon, folder: Path, key: str) -> None:
    secret = "s" * 40
    issuer = {
        "issuer": "https://issuer.example",
        "audience": "avyay",
        "algorithms": ["HS256"],
        "secret_env": "JWT_SECRET",
        "customer_claim": "org",
    }
    claims = {"iss": issuer["issuer"], "aud": "avyay", "sub": "alice", "exp": time.time() + 60, "org": "acme"}
    with Gate(folder, {"marga": router.url}, {"jwt": [issuer]}, JWT_SECRET=secret) as gate:
        good = jwt.encode({**claims, "scope": "marga:chat"}, secret, "HS256")
        got = gate.chat(**bearer(good))
        assert got.status == 200
        call = router.services.calls.call(got.headers["x-avyay-decision-id"]) if wait_for_row(router, got) else {}
        assert (call["key"], call["customer"]) == ("https://issuer.example#alice", "acme")
        assert gate.chat(**bearer(jwt.encode(claims, secret, "HS256"))).status == 403
        got = gate.chat(**bearer(jwt.encode({**claims, "exp": 1}, secret, "HS256")))
        assert (got.status, got.body["error"]["code"]) == (401, "token_expired")
        assert gate.chat(**bearer(jwt.encode(claims, "x" * 40, "HS256"))).status == 401
        body = good.split(".")[1]
        assert gate.chat(**bearer(f"eyJhbGciOiJub25lIn0.{body}.")).status == 401
        assert gate.chat(**bearer(key)).status == 200  # keys hold beside tokens
    with pytest.raises(ConfigError, match="JWT_SECRET"):
        Gate(folder, {}, {"jwt": [issuer]})


def wait_for_row(router: Daemon, got: Any) -> bool:
    decision = got.headers["x-avyay-decision-id"]
    wait_for(lambda: any(row["id"] == decision for row in router.services.calls.calls(limit=10_000)))
    return True


def test_without_keys_only_this_machine_enters_and_no_web_page(router: Daemon, tmp_path: Path) -> None:
    with Gate(tmp_path, {"marga": router.url}) as gate:
        # Another home: its principals are not this router's, which says so rather than believing them.
        assert gate.get("/health").body["authentication"] == "none"
        assert gate.get("/v1/models").status == 200
        assert gate.get("/v1/models", host="evil.example").body["error"]["code"] == "foreign_host"
        assert gate.get("/v1/models", origin="https://evil.example").status == 403
        assert gate.get("/v1/models", sec_fetch_site="cross-site").status == 403
        assert gate.get("/v1/models", origin="http://localhost:3000").status == 200
        assert gate.chat().status == 401
        make_key(tmp_path)
        wait_for(lambda: gate.get("/v1/models").status == 401)  # from now on


def test_strangers_need_authentication(folder: Path, tmp_path: Path, router: Daemon) -> None:
    from daemon import services_in

    for host in ("0.0.0.0", "100.64.0.1", "::"):
        with pytest.raises(PolicyError) as caught:
            serve_gateway(services_in(tmp_path, {"gateway": {}}), Launch(host=host, port=0))
        assert "avyay keys create" in (caught.value.hint or "")
    check_authentication(services_in(tmp_path, {"gateway": {}}), "127.0.0.1")
    make_key(tmp_path)
    check_authentication(services_in(tmp_path, {"gateway": {}}), "0.0.0.0")


# ---------------------------------------------------------------- what passes


def test_the_ledger_knows_the_caller(gate: Gate, router: Daemon, key: str) -> None:
    got = gate.chat(**bearer(key), x_avyay_customer="somebody-else", x_avyay_session="s1")
    assert wait_for_row(router, got)
    call = router.services.calls.call(got.headers["x-avyay-decision-id"])
    assert (call["customer"], call["service"], call["session"]) == ("acme", "web", "s1")
    assert call["key"].startswith("key_")
    assert router.chat().status == 200  # directly, as before
    got = router.chat(x_avyay_principal="forged.word")
    assert (got.status, got.body["error"]["code"]) == (401, "invalid_principal")


def test_the_official_clients(gate: Gate, upstream: Upstream, key: str) -> None:
    upstream.default = Reply(text="one two three", pause=0.01)
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key=key, max_retries=0) as client:
        stream = client.chat.completions.create(model="auto", messages=CHAT["messages"], stream=True)  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "one two three"
        assert client.responses.create(model="auto", input="hi").output_text == "one two three"
        assert [model.id for model in client.models.list()]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
    asked: Any = {"model": "auto", "max_tokens": 50, "messages": CHAT["messages"]}
    with anthropic.Anthropic(base_url=gate.url, api_key=key, max_retries=0) as other:
        with other.messages.stream(**asked) as events:
            assert "".join(events.text_stream) == "one two three"
        with pytest.raises(anthropic.AuthenticationError):
            other.with_options(api_key="wrong").messages.create(**asked)
    upstream.default = Reply()


def test_a_stream_is_not_held_back(gate: Gate, upstream: Upstream, key: str) -> None:
    import http.client

    upstream.default = Reply(text="first second third", pause=0.3)
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**CHAT, "stream": True}), bearer(key))
    reply = connection.getresponse()
    pieces = []
    while piece := reply.read1(65_536):
        pieces.append(piece)
    connection.close()
    upstream.default = Reply()
    assert len(pieces) >= 4  # each word came by itself
    assert b"first" in b"".join(pieces[:2])
    assert b"third" not in b"".join(pieces[:2])


def test_a_caller_who_goes_is_told_to_the_provider(gate: Gate, upstream: Upstream, key: str, router: Daemon) -> None:
    import http.client

    upstream.default = Reply(text=" ".join(["word"] * 200), pause=0.05)
    for number, stream in enumerate((True, False), upstream.gone + 1):
        connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
        if not stream:
            upstream.default = Reply(delay=30.0)
        connection.request("POST", "/v1/chat/completions", json.dumps({**CHAT, "stream": stream}), bearer(key))
        if stream:
            connection.getresponse().read(100)
        else:
            wait_for(lambda: bool(gate.gateway.passages))
        connection.close()
        wait_for(partial(lambda wanted: upstream.gone >= wanted, number))
    upstream.default = Reply()
    wait_for(lambda: not gate.gateway.passages)


class Echo:
    """A component that says what it was sent."""

    def __init__(self) -> None:
        self.fail: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"].endswith("shutdown"):
                    return
        size, pieces, message = 0, 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            size += len(message.get("body", b""))
            pieces += 1
        seen = {
            "method": scope["method"],
            "path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
            "size": size,
            "pieces": pieces,
        }
        body = json.dumps(seen).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"connection", b"x-secret, close"),
            (b"x-secret", b"internal"),
            (b"keep-alive", b"timeout=5"),
            (b"proxy-authenticate", b"Basic"),
            (b"set-cookie", b"a=b"),
            (b"access-control-allow-origin", b"*"),
            (b"x-ratelimit-remaining-requests", b"7"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.fail == "cut":
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            return
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def echo(folder: Path) -> Iterator[Served]:
    from daemon import services_in

    with Served(services_in(folder, {"log": {}}), Echo()) as served:
        yield served


@pytest.fixture(scope="module")
def echo_gate(echo: Served, folder: Path) -> Iterator[Gate]:
    options = {"max_body": 1_000_000, "head_timeout": 0.5, "body_timeout": 0.5, "max_head": 8_000}
    with Gate(folder, {"marga": echo.url, "raksha": echo.url}, options) as gate:
        yield gate


@pytest.fixture(scope="module")
def all_scopes(folder: Path) -> str:
    return make_key(folder, "all", scopes=["*"])


def unchunked(data: bytes) -> bytes:
    """A body of chunks, put together."""
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


def test_headers_that_end_here(echo_gate: Gate, echo: Served, all_scopes: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {
        "host": "x",
        "authorization": f"Bearer {all_scopes}",
        "connection": "close, X-Hop",
        "x-hop": "1",
        "te": "trailers",
        "keep-alive": "timeout=5",
        "proxy-authorization": "Basic YTpi",
        "x-forwarded-for": "1.2.3.4",
        "x-real-ip": "1.2.3.4",
        "forwarded": "for=1.2.3.4",
        "x-avyay-principal": "forged",
        "tailscale-user-login": "root@example.com",
        "cookie": "session=1",
        "x-request-id": "mine-1",
        "traceparent": trace,
        "tracestate": "vendor=1",
        "openai-beta": "assistants=v2",
        "x-http-method-override": "DELETE",
        "content-length": "2",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    answer = echo_gate.raw(f"POST /v1/chat/completions?beta=true HTTP/1.1\r\n{lines}\r\n{{}}".encode())
    head, _, text = answer.partition(b"\r\n\r\n")
    fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    got = Got(200, {name.decode(): value.decode() for name, value in fields}, unchunked(text))
    names = [name for name, _ in got.body["headers"]]
    headers = dict(got.body["headers"])
    assert (got.body["path"], got.body["query"]) == ("/v1/chat/completions", "beta=true")
    assert len(names) == len(set(names))
    ended = {
        *("connection", "x-hop", "te", "keep-alive", "proxy-authorization", "x-real-ip", "forwarded", "cookie"),
        *("tailscale-user-login", "authorization", "x-http-method-override", "transfer-encoding"),
    }
    assert not ended & set(names)
    assert headers["host"] == echo.url.removeprefix("http://")
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-request-id"] == got.headers["x-request-id"] == "mine-1"
    assert (headers["traceparent"], headers["tracestate"]) == (trace, "vendor=1")
    assert headers["openai-beta"] == "assistants=v2"
    assert headers["x-avyay-principal"] != "forged"
    answered = {name.lower() for name in got.headers}
    assert not {"x-secret", "keep-alive", "proxy-authenticate", "set-cookie", "access-control-allow-origin"} & answered


def test_names_some_servers_would_confuse_are_dropped(echo_gate: Gate, all_scopes: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\nx_avyay_principal: forged\r\n"
    head += "traceparent: 00-nonsense\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    answer = echo_gate.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x_avyay_principal" not in answer
    assert b"nonsense" not in answer


def test_a_component_with_a_key_of_its_own(echo: Served, folder: Path) -> None:
    key = make_key(folder, "elsewhere", scopes=["marga"], customer="acme")
    place = {"upstreams": {"marga": {"url": echo.url, "api_key_env": "ROUTER_KEY"}}}
    with Gate(folder, {}, place, ROUTER_KEY="component-key") as gate:
        headers = dict(gate.post("/v1/chat/completions", {}, **bearer(key), x_avyay_customer="other").body["headers"])
        assert headers["authorization"] == "Bearer component-key"
        assert "x-avyay-principal" not in headers  # it shares no secret with us, and would refuse it
        assert headers["x-avyay-customer"] == "acme"
    with pytest.raises(ConfigError, match="ROUTER_KEY"):
        Gate(folder, {}, place)


def far(router: Daemon, *, principal: bool) -> dict[str, Any]:
    place = {"url": router.url, "api_key_env": "ROUTER_KEY"}
    return {"upstreams": {"marga": place | ({"principal_key_env": "SHARED"} if principal else {})}}


def far_router(folder: Path, upstream: Upstream, **environment: str) -> Daemon:
    """A router of another home, which asks for a key."""
    provider = {
        "name": "scripted",
        "kind": "openai-compatible",
        "endpoint": f"{upstream.url}/v1",
        "models": [{"name": "test-model", "input_price": "1", "output_price": "2"}],
    }
    (folder / "elsewhere").mkdir()
    return Daemon(folder / "elsewhere", {"providers": [provider]}, key="component-key", **environment)


def test_a_component_elsewhere_knows_who_calls(upstream: Upstream, tmp_path: Path) -> None:
    key, secret = make_key(tmp_path, "far", customer="acme", service="web"), "s" * 40
    config = {"serve": {"principal_secret_env": "SHARED"}}
    with far_router(tmp_path, upstream, more=config, SHARED=secret) as router:
        with Gate(tmp_path, {}, far(router, principal=True), ROUTER_KEY="component-key", SHARED=secret) as gate:
            got = gate.chat(**bearer(key), x_avyay_customer="somebody-else")
            assert got.status == 200
            assert wait_for_row(router, got)
            call = router.services.calls.call(got.headers["x-avyay-decision-id"])
            gate.gateway.journal.flush()
            used = gate.get("/v1/usage", **bearer(key)).body
            (identity,) = {row["key"] for row in used["gateway"]}
            assert (call["key"], call["customer"], call["service"]) == (identity, "acme", "web")
            assert [(row["key"], row["calls"]) for row in used["router"]] == [(identity, 1)]
            assert [one["agrees"] for one in used["reconciled"]] == [True]
            assert gate.get("/health").body["components"]["marga"]["problem"] is None
        for wrong in ("x" * 40, "short"):  # not the one they share; none at all
            try:
                with Gate(tmp_path, {}, far(router, principal=True), ROUTER_KEY="component-key", SHARED=wrong) as gate:
                    assert gate.chat(**bearer(key)).body["error"]["code"] == "invalid_principal"
            except ConfigError as error:
                assert wrong == "short", error
        with pytest.raises(ConfigError, match="SHARED"):
            Gate(tmp_path, {}, far(router, principal=True), ROUTER_KEY="component-key")


def test_usage_agrees_where_the_router_does_not_know_who_calls(upstream: Upstream, tmp_path: Path) -> None:
    key, admin = make_key(tmp_path, "near"), make_key(tmp_path, "seer", scopes=["*", "admin"])
    with far_router(tmp_path, upstream) as router:
        place = far(router, principal=False)
        with Gate(tmp_path, {}, place, ROUTER_KEY="component-key") as gate:
            decisions = [gate.chat(**bearer(one)) for one in (key, key, admin)]
            assert all(wait_for_row(router, got) for got in decisions)
            gate.gateway.journal.flush()
            own = gate.get("/v1/usage", **bearer(key)).body
            assert [(one["gateway"], one["ledger"], one["agrees"]) for one in own["reconciled"]] == [(2, 2, True)]
            assert own["router"] is None  # the ledger has all callers under one key: not his to see
            assert "principal_key_env" in own["router_problem"]
            everybody = gate.get("/v1/usage", **bearer(admin)).body
            assert sum(row["calls"] for row in everybody["router"]) == 3
            assert all(one["agrees"] for one in everybody["reconciled"])


def test_a_component_under_its_own_name(echo_gate: Gate, all_scopes: str) -> None:
    got = echo_gate.get("/v1/raksha/jobs/ab12", **bearer(all_scopes))
    assert got.body["path"] == "/v1/jobs/ab12"
    assert echo_gate.get("/v1/jobs/raksha_12", **bearer(all_scopes)).body["path"] == "/v1/jobs/raksha_12"
    assert echo_gate.get("/v1/jobs/nobody_12", **bearer(all_scopes)).status == 404


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_large_bodies_pass_in_pieces_and_end_at_the_limit(echo_gate: Gate, all_scopes: str, framing: str) -> None:
    import http.client

    def send(size: int) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", echo_gate.port, timeout=60)
        pieces = (b"x" * 50_000 for _ in range(size // 50_000))
        headers = bearer(all_scopes) | ({"content-length": str(size)} if framing == "length" else {})
        try:
            connection.request("POST", "/v1/scan", pieces, headers, encode_chunked=framing == "chunks")
        except (BrokenPipeError, ConnectionResetError):
            pass
        reply = connection.getresponse()
        found = reply.status, json.loads(reply.read())
        connection.close()
        return found

    status, body = send(900_000)
    assert (status, body["size"], body["pieces"] > 1) == (200, 900_000, True)
    status, body = send(1_500_000)
    assert (status, body["code"]) == (413, "request_too_large")


SMUGGLED = {
    "two lengths": "content-length: 2\r\ncontent-length: 30",
    "length and chunks": "content-length: 4\r\ntransfer-encoding: chunked",
    "chunks that are not last": "transfer-encoding: chunked, identity",
    "a length with a sign": "content-length: +2",
    "a length with a comma": "content-length: 2, 2",
    "a folded line": "x-a: 1\r\n  folded: 2\r\ncontent-length: 2",
    "a space before the colon": "content-length : 2",
    "a bare line feed": "x-a: 1\nx-b: 2\r\ncontent-length: 2",
    "a null byte": "x-a: \0\r\ncontent-length: 2",
    "another coding": "transfer-encoding: gzip, chunked",
    "two hosts": "host: y\r\ncontent-length: 2",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_requests_with_unclear_framing(echo_gate: Gate, all_scopes: str, name: str) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\n{SMUGGLED[name]}\r\n"
    attack = f"{head}\r\n{{}}GET /v1/engine HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\nconnection: close\r\n\r\n"
    answer = echo_gate.raw(attack.encode("latin-1"), finish=True)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_head_that_is_too_large_or_too_slow(echo_gate: Gate, all_scopes: str) -> None:
    line = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
    assert echo_gate.raw(line + b"x-a: " + b"a" * 9_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431")
    assert echo_gate.raw(line + b"x-a: " + b"a" * 20_000).startswith(b"HTTP/1.1 431")  # never ends
    assert echo_gate.raw(line + b"a: b\r\n" * 200 + b"\r\n").startswith(b"HTTP/1.1 431")
    assert echo_gate.raw(b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 431")
    assert echo_gate.raw(line).startswith(b"HTTP/1.1 408")  # nothing more comes
    assert echo_gate.raw(b"").startswith(b"HTTP/1.1 408")


def test_a_body_that_does_not_come(echo_gate: Gate, all_scopes: str) -> None:
    for size in (100, 500_000):
        head = f"POST /v1/scan HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\ncontent-length: {size}\r\n\r\n"
        assert echo_gate.raw(head.encode() + b"abc").startswith(b"HTTP/1.1 408")
    wait_for(lambda: not echo_gate.gateway.passages)


CLOSED = "reset by peer|Broken pipe"


def drip(caller: socket.socket) -> None:
    for _ in range(400):
        caller.sendall(b"x")
        time.sleep(0.05)


def pour(caller: socket.socket) -> None:
    for _ in range(100_000):
        caller.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 10)


def test_a_body_that_comes_byte_by_byte(folder: Path, echo: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte in time, and the body never: at a form that asks for no key as well."""
    monkeypatch.setattr(door, "_SPARE", 0.1)
    key = make_key(folder, "slow", scopes=["*"])
    with Gate(folder, {"raksha": echo.url}, {"body_timeout": 0.4}) as gate:
        lines = {
            "/console/sign-in": "",
            "/v1/scan": f"x-api-key: {key}\r\n",
            "/v1/webhooks/push": "",
            "/v1/usage": "",  # answered before its body is here: then nobody waits for the rest
        }
        for path, more in lines.items():
            size = 500_000 if path == "/v1/scan" else 1_000
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {size}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", gate.port), timeout=60) as caller:
                caller.sendall(head.encode())
                with pytest.raises(OSError, match=CLOSED):
                    drip(caller)
        wait_for(lambda: not gate.gateway.passages)


def test_callers_that_do_not_read(folder: Path, all_scopes: str) -> None:
    """A page asked for a thousand times and never read; an answer that is left lying: neither is kept for ever."""
    with Gate(folder, {}, {"send_timeout": 0.5}) as gate:
        connections = gate._server.server_state.connections
        greedy = socket.socket()
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        greedy.connect(("127.0.0.1", gate.port))
        greedy.settimeout(20)
        with pytest.raises(OSError, match=CLOSED):  # it is cut off while it still asks
            pour(greedy)
        greedy.close()
        wait_for(lambda: not connections)


def test_what_comes_after_the_body_is_no_header(echo_gate: Gate, all_scopes: str) -> None:
    head = "POST /v1/scan HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
    late = f"2\r\n{{}}\r\n0\r\nx-api-key: {all_scopes}\r\nx-forwarded-for: 6.6.6.6\r\nx-avyay-customer: late\r\n\r\n"
    assert echo_gate.raw(f"{head}\r\n{late}".encode()).startswith(b"HTTP/1.1 401")
    answer = echo_gate.raw(f"{head}x-api-key: {all_scopes}\r\n\r\n{late}".encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"late" not in answer
    assert b"6.6.6.6" not in answer


def test_methods(echo_gate: Gate, all_scopes: str) -> None:
    for method in ("TRACE", "CONNECT", "OPTIONS", "PROPFIND"):
        path = "/v1/models" if method != "CONNECT" else "x:1"
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\nconnection: close\r\n\r\n"
        assert echo_gate.raw(head.encode(), finish=True)[:12] in (b"HTTP/1.1 405", b"HTTP/1.1 400", b"")
    assert echo_gate.post("/v1/usage", {}, **bearer(all_scopes)).status == 405


def test_cors_is_off_unless_asked_for(echo_gate: Gate, echo: Served, folder: Path, all_scopes: str) -> None:
    origin = "https://app.example"
    got = echo_gate.post("/v1/chat/completions", {}, **bearer(all_scopes), origin=origin)
    assert not [name for name in got.headers if name.lower().startswith("access-control")]
    asked = {"origin": origin, "access_control_request_method": "POST", "access_control_request_headers": "x-api-key"}
    assert echo_gate.request("OPTIONS", "/v1/chat/completions", **asked).status == 405
    with Gate(folder, {"marga": echo.url}, {"cors_origins": [origin]}) as gate:
        got = gate.request("OPTIONS", "/v1/chat/completions", **asked)
        assert (got.status, got.headers["access-control-allow-origin"]) == (204, origin)
        assert got.headers["access-control-allow-headers"] == "x-api-key"
        got = gate.post("/v1/chat/completions", {}, **bearer(all_scopes), origin=origin)
        assert (got.status, got.headers["access-control-allow-origin"], got.headers["vary"]) == (200, origin, "origin")
        assert "access-control-allow-credentials" not in got.headers
        assert gate.post("/v1/messages", {}, origin=origin).headers["access-control-allow-origin"] == origin  # a 401
        for other in ("https://evil.example", "https://app.example.evil.example", "null", "HTTPS://APP.EXAMPLE"):
            got = gate.post("/v1/chat/completions", {}, **bearer(all_scopes), origin=other)
            assert "access-control-allow-origin" not in got.headers
            assert got.headers["vary"] == "origin"  # no cache may give this answer to the page that is let in
    for wrong in ("*", "app.example", "https://app.example/"):
        with pytest.raises(ConfigError):
            Gate(folder, {}, {"cors_origins": [wrong]})


def test_nothing_a_caller_writes_makes_a_line_of_the_log(
    echo_gate: Gate, all_scopes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from avyay.log import configure_logging

    configure_logging("info", json=True)
    echo_gate.gateway._log = __import__("avyay.log", fromlist=["get_logger"]).get_logger("gateway")
    capsys.readouterr()
    for path, extra in (
        ("/v1/models/a%0d%0ainjected", ""),
        ("/v1/\x1b[31minjected", ""),
        ("/v1/models", "x-request-id: a\tinjected\x7f\r\n"),
        ("/v1/models", "user-agent: \x1b]0;injected\x07\r\n"),
    ):
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {all_scopes}\r\n{extra}connection: close\r\n\r\n"
        echo_gate.raw(head.encode("latin-1"), finish=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in lines]
    assert all(row["event"] == "request" for row in rows)
    assert all("injected" not in row["request_id"] and row["path"].isprintable() for row in rows)
    assert not any(all_scopes in line or all_scopes[13:] in line for line in lines)


def test_webhooks_need_no_key_and_are_slowed_down_when_they_are_wrong(folder: Path, tmp_path: Path) -> None:
    import hashlib
    import hmac

    from avyay.serve.rag import build_app as build_rag

    push = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": "https://x.example/r.git"}}).encode()
    signed = "sha256=" + hmac.new(b"hook", push, hashlib.sha256).hexdigest()
    options = {"failed_attempts": 3, "max_push_body": 5_000, "proxies": ["127.0.0.0/8"]}
    services = services_in(tmp_path, {"rag": {}})
    with (
        Served(services, build_rag(services, webhook_secret="hook")) as rag,
        Gate(folder, {"rag": rag.url}, options) as gate,
    ):

        def deliver(signature: str, address: str, body: bytes = push) -> int:
            names = {"x_github_event": "push", "x_hub_signature_256": signature, "x_forwarded_for": address}
            return gate.post("/v1/webhooks/push", body, **names).status

        assert [deliver(signed, "203.0.113.1") for _ in range(6)] == [202] * 6  # what is genuine is not counted
        assert [deliver("sha256=forged", "203.0.113.1") for _ in range(5)] == [401, 401, 401, 429, 429]
        assert deliver(signed, "198.51.100.1") == 202  # somebody else
        assert deliver(signed, "198.51.100.1", b"x" * 6_000) == 413
        head = b"POST /v1/webhooks/push HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        assert gate.raw(head + b"1000\r\n" + b"x" * 4096 + b"\r\n1000\r\n" + b"x" * 4096 + b"\r\n").startswith(
            b"HTTP/1.1 413"
        )
        for path in ("/v1/webhooks/push/", "/v1/webhooks", "/v1/webhooks/other", "/v1/webhooks/push/x"):
            assert gate.post(path, push).status == 401, path


def test_a_stranger_is_lent_no_key(echo: Served, folder: Path) -> None:
    place = {"upstreams": {"rag": {"url": echo.url, "api_key_env": "RAG_KEY"}}}
    with Gate(folder, {}, place, RAG_KEY="component-key") as gate:
        headers = dict(gate.post("/v1/webhooks/push", {}).body["headers"])
        assert not {"authorization", "x-avyay-principal"} & set(headers)


# ---------------------------------------------------------------- the other side fails


def free_port() -> int:
    from avyay.serve.run import bind

    listener = bind("127.0.0.1", 0, name="nobody")
    port = int(listener.getsockname()[1])
    listener.close()
    return port


def test_a_component_that_is_not_there_and_then_is(folder: Path, all_scopes: str) -> None:
    port = free_port()
    with Gate(folder, {"marga": f"http://127.0.0.1:{port}"}) as gate:
        for _ in range(6):
            got = gate.chat(**bearer(all_scopes))
            assert (got.status, got.body["error"]["type"]) == (503, "server_error")
            assert int(got.headers["retry-after"]) >= 1
        assert "5 failures in a row" in got.body["error"]["message"]
        health = gate.get("/health").body
        assert health["status"] == "degraded"
        assert health["components"]["marga"]["state"] in ("open", "half_open")
        assert gate.get("/ready").status == 200
        component = Upstream()
        component.port = port
        with component:
            # The gateway's own check of /health lets callers in again, not a caller's request.
            gate.gateway.upstreams["marga"].breaker._open_until = 0.0
            wait_for(lambda: gate.chat(**bearer(all_scopes)).status == 200)


def test_components_that_break_off(folder: Path, all_scopes: str) -> None:
    with Upstream() as component:
        places = {"upstreams": {"marga": {"url": component.url, "first_byte": "300ms", "idle": "300ms"}}}
        with Gate(folder, {}, places) as gate:
            wait_for(lambda: gate.gateway.upstreams["marga"].checked_at is not None)  # which takes a reply too
            component.script.extend([Reply(fault="refuse")] * 2)  # on a kept connection, and on a new one
            assert gate.chat(**bearer(all_scopes)).status == 502
            component.script.append(Reply(fault="hang"))
            assert gate.chat(**bearer(all_scopes)).status == 504
            component.script.append(Reply(text="a b c d e", fault="cut", cut=2))
            connection_cut(gate, all_scopes)


def connection_cut(gate: Gate, key: str) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**CHAT, "stream": True}), bearer(key))
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    assert b'"code":"answer_cut"' in caught.value.partial  # an event for SDKs, and no clean end
    connection.close()


def test_a_port_that_is_taken(folder: Path, gate: Gate) -> None:
    from daemon import services_in

    with pytest.raises(UsageError, match="taken"):
        serve_gateway(services_in(folder, {"gateway": {}}), Launch(port=gate.port))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "http://user:pw@127.0.0.1:1",
        "http://127.0.0.1:1/path",
        "http://127.0.0.1:1?x=1",
        "file:///etc/passwd",
    ],
    ids=["scheme", "user", "path", "query", "file"],
)
def test_places_that_are_no_component(folder: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        Gate(folder, {"marga": url})


def test_a_request_cannot_name_its_own_upstream(gate: Gate, upstream: Upstream, key: str) -> None:
    # The provider is configuration; nothing in a request moves it (SSRF through base URLs).
    before = len(upstream.calls)
    body = {**CHAT, "base_url": "http://169.254.169.254/", "api_base": "http://169.254.169.254/"}
    headers = {"x_base_url": "http://169.254.169.254/", "host": "evil.example"}
    got = gate.post("/v1/chat/completions", body, **bearer(key), **headers)
    assert got.status == 200
    assert len(upstream.calls) == before + 1


# ---------------------------------------------------------------- what is counted


def test_usage_is_counted_shown_and_reconciled(router: Daemon, folder: Path, gate: Gate) -> None:
    key, admin = make_key(folder, "counted"), make_key(folder, "seer", scopes=["admin"])
    for _ in range(3):
        assert gate.chat(**bearer(key)).status == 200
    assert gate.post("/v1/chat/completions", b"{", **bearer(key)).status == 400
    gate.gateway.journal.flush()
    wait_for(lambda: gate.get("/v1/usage", **bearer(key)).body["reconciled"][0]["ledger"] == 3)
    got = gate.get("/v1/usage?days=1", **bearer(key)).body
    (counted,) = [row for row in got["gateway"] if row["endpoint"] == "marga:chat"]  # looking at usage counts as well
    assert (counted["requests"], counted["errors"], counted["decided"]) == (4, 1, 3)
    assert {row["key"] for row in got["router"]} == {counted["key"]}
    assert (got["router"][0]["calls"], got["router"][0]["cost_usd"]) == (3, "0.000066")
    assert got["reconciled"][0]["agrees"]
    assert got["compared"] == {"by": "decision", "since": got["since"]}
    assert gate.get(f"/v1/usage?key={'key_other'}", **bearer(key)).status == 400
    everybody = gate.get("/v1/usage", **bearer(admin)).body
    assert len({row["key"] for row in everybody["gateway"]}) > 1
    for days in ("0", "-1", "x", "99999999999", "%D9%A1"):
        assert gate.get(f"/v1/usage?days={days}", **bearer(key)).status == 400
    runner = CliRunner()
    config = folder / "log.yaml"
    config.write_text("log: {}\n")
    shown = runner.invoke(
        application(),
        ["usage", "--json", "--key", "counted", "--config", str(config)],
        env={"AVYAY_HOME": str(folder / "home")},
    )
    data = json.loads(shown.stdout[shown.stdout.index("{\n") :])
    assert [row["requests"] for row in data["gateway"] if row["endpoint"] == "marga:chat"] == [4]
    (line,) = data["reconciled"]
    assert (line["gateway"], line["ledger"], line["agrees"]) == (3, 3, True)


def test_http_and_the_command_line_compare_decision_by_decision(router: Daemon, folder: Path, gate: Gate) -> None:
    """As many on either side, and yet not the same: numbers alone would agree."""
    key = make_key(folder, "twisted")
    got = gate.chat(**bearer(key))
    assert wait_for_row(router, got)
    gate.gateway.journal.flush()
    database = open_database(folder / "home" / "data" / "gateway" / "usage.db")
    decided = got.headers["x-avyay-decision-id"]
    with database.transaction():
        changed = database.execute("UPDATE requests SET decision = 'dec_invented' WHERE decision = ?", (decided,))
        assert changed.rowcount == 1
    database.close()
    (line,) = gate.get("/v1/usage", **bearer(key)).body["reconciled"]
    assert (line["gateway"], line["ledger"], line["missing_in_ledger"], line["unseen_by_gateway"]) == (1, 1, 1, 1)
    assert not line["agrees"]
    assert set(line["examples"]) == {"dec_invented", decided}
    config = folder / "log.yaml"
    config.write_text("log: {}\n")
    shown = CliRunner().invoke(
        application(),
        ["usage", "--json", "--key", "twisted", "--config", str(config)],
        env={"AVYAY_HOME": str(folder / "home")},
    )
    assert json.loads(shown.stdout[shown.stdout.index("{\n") :])["reconciled"] == [line]


def test_the_usage_of_a_router_that_is_away(folder: Path, all_scopes: str) -> None:
    with Upstream() as component:
        component.down()
        with Gate(folder, {"marga": component.url}) as gate:
            got = gate.get("/v1/usage", **bearer(all_scopes)).body
            assert got["router"] is None
            assert "cannot be asked" in got["router_problem"]


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    runner, environment = CliRunner(), {"AVYAY_HOME": str(tmp_path)}

    def run(*words: str) -> Any:
        return runner.invoke(application(), ["keys", *words], env=environment)

    made = run("create", "app", "--scope", "marga:chat", "--expires", "90d", "--customer", "acme")
    secret = made.stdout.strip()
    assert secret.startswith("avy_")
    assert "only time" in made.stderr
    (row,) = json.loads(run("list", "--json").stdout)["keys"]
    assert (row["name"], row["scopes"], row["customer"], row["state"]) == ("app", ["marga:chat"], "acme", "active")
    assert secret not in run("list").stdout
    again = json.loads(run("rotate", "app", "--grace", "0s", "--json").stdout)
    assert again["key"]["id"] == row["id"]
    assert again["secret"] != secret
    assert "revoked" in run("revoke", row["id"]).stdout
    assert isinstance(run("create", "x", "--scope", "nothing").exception, UsageError)
    assert isinstance(run("create", "x", "--expires", "soon").exception, UsageError)
    assert isinstance(run("revoke", "nobody").exception, UsageError)


def test_the_application_is_made_without_side_effects_elsewhere(tmp_path: Path) -> None:
    gate = Gate(tmp_path, {})
    made = sorted(str(file.relative_to(tmp_path / "home")) for file in (tmp_path / "home").rglob("*") if file.is_file())
    with gate:  # which closes what it opened
        pass
    assert [name for name in made if "gateway/" not in name] == ["state/principal.key"]
