"""Where paths lead, and which are refused."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.serve.gateway.routes import AREAS, COMPONENTS, PathError, events_seen, find_route, scope_allows, valid_scope


@pytest.mark.parametrize(
    "path, scope, target",
    [
        ("/v1/chat/completions", "marga:chat", None),
        ("/v1/messages", "marga:messages", None),
        ("/v1/messages/count_tokens", "marga:messages", None),
        ("/v1/responses", "marga:responses", None),
        ("/v1/responses/resp_1", "marga:responses", None),
        ("/v1/embeddings", "marga:embeddings", None),
        ("/v1/models/gpt-4o", "marga:models", None),
        ("/api/chat", "marga:ollama", None),
        ("/api/tags", "marga:models", None),
        ("/marga/decisions/dec_1", "marga:records", None),
        ("/v1/ask", "rag:ask", None),
        ("/v1/search", "rag:search", None),
        ("/mcp", "rag:mcp", None),
        ("/v1/scan", "raksha:scan", None),
        ("/v1/raksha/jobs/ab12", "raksha:jobs", "/v1/jobs/ab12"),
        ("/v1/rag/jobs/ab12/events", "rag:jobs", "/v1/jobs/ab12/events"),
        ("/v1/jobs/raksha_56f1c4cc", "raksha:jobs", None),
        ("/v1/jobs/rag_56f1c4cc/events", "rag:jobs", None),
        ("/v1/siddhi/pages", "siddhi:api", None),
        ("/v1/engine", "engine:api", None),
        ("/v1/usage", "gateway:usage", None),
        ("/v1/events", "gateway:events", None),
    ],
)
def test_paths_lead_somewhere(path: str, scope: str, target: str | None) -> None:
    route = find_route(path.encode())
    assert route is not None
    assert (route.scope, route.target.decode()) == (scope, target or path)
    assert not route.public


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v2/chat",
        "/v1/chatty",
        "/admin",
        "/v1/jobs/1",
        "/v1/rag/sync",
        "/v1/engine-x",
        "/api",
        "/api/pull",
    ],
)
def test_other_paths_lead_nowhere(path: str) -> None:
    assert find_route(path.encode()) is None


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//usage",
        "/v1/chat/../usage",
        "/v1/chat/./completions",
        "/v1/chat/..",
        "/v1/chat/%2e%2e/usage",
        "/v1/chat/%2E./usage",
        "/v1/chat%2fcompletions",
        "/v1%2Fusage",
        "/v1/chat/%5c..%5cusage",
        "/v1/chat\\completions",
        "/v1/models/a%00b",
        "/v1/models/a%0d%0ab",
        "/v1/models/%252e%252e",
        "/v1/models/a%3fb",
        "/v1/models/a%23b",
        "/v1/models/a;b",
        "/v1/models/%zz",
        "/v1/models/%",
        "/v1/models/a b",
        "/v1/models/\u00e9",
        "v1/models",
        "",
        "*",
        "http://127.0.0.1/v1/models",
        "/v1/models/" + "a" * 3_000,
    ],
    ids=lambda path: repr(path)[:40],
)
def test_paths_two_parties_might_read_differently_are_refused(path: str) -> None:
    with pytest.raises(PathError):
        find_route(path.encode())


@given(st.text(alphabet=st.sampled_from("/.%2efvV1chatmodels5cC\\?#;u-_"), max_size=40))
def test_an_accepted_path_means_the_same_however_it_is_read(rest: str) -> None:
    raw = ("/v1/models/" + rest).encode()
    try:
        route = find_route(raw)
    except PathError:
        return
    assert route is not None
    for reading in (raw.decode(), unquote(raw.decode()), unquote(unquote(raw.decode()))):
        plain = posixpath.normpath(re.sub(r"/+", "/", reading.replace("\\", "/")))
        assert plain.startswith("/v1/models")
        assert plain.count("/") == reading.rstrip("/").count("/")


def test_scopes() -> None:
    chat, records, usage = (find_route(path) for path in (b"/v1/chat/completions", b"/marga/stats", b"/v1/usage"))
    assert chat is not None
    assert records is not None
    assert usage is not None
    assert scope_allows(frozenset({"marga"}), chat)
    assert scope_allows(frozenset({"marga:chat"}), chat)
    assert scope_allows(frozenset({"*"}), records)
    assert not scope_allows(frozenset({"marga:embeddings", "rag", "admin"}), chat)
    assert not scope_allows(frozenset({"marga"}), records)  # they tell of other callers
    assert scope_allows(frozenset({"admin"}), records)
    assert scope_allows(frozenset(), usage)  # one's own
    assert valid_scope("marga:chat")
    assert not valid_scope("marga:")
    assert not valid_scope("marga:chat:x")
    assert not valid_scope("Marga")
    assert set(AREAS) == set(COMPONENTS)


def test_events_are_seen_by_those_whose_scopes_name_their_component() -> None:
    events = find_route(b"/v1/events")
    assert events is not None
    for scopes, seen in (
        ({"*"}, ()),
        ({"gateway:events", "rag"}, ()),
        ({"rag", "engine:events"}, ("engine.*", "rag.*")),
        ({"raksha:jobs"}, ("raksha.job.*",)),
        ({"marga", "gateway"}, None),  # they tell of other callers
        (set(), None),
    ):
        assert events_seen(frozenset(scopes)) == seen
        assert scope_allows(frozenset(scopes), events) is (seen is not None)
    assert valid_scope("engine:events")
    assert valid_scope("gateway:events")
