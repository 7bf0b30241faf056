"""The gateway against its own contract: whatever is sent, no answer is a fault of ours."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, services_in
from gate import Gate, make_key
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from server import running
from upstream import Upstream

from avyay.serve.gateway.openapi import openapi_document
from avyay.serve.gateway.routes import find_route
from avyay.serve.rag import build_app as build_rag
from avyay.serve.raksha import build_app as build_raksha

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("contract")
    (folder / "ops").mkdir()
    (folder / "ops" / "kafka.md").write_text("# Kafka\n\nRestart the broker.\n")
    small = {"AVYAY_RAG_EMBEDDER_NAME": "hashing", "AVYAY_RAG_POLL_INTERVAL": "0", "PATH": "/usr/bin:/bin"}
    runbooks = services_in(folder, {"rag": {}}, **small)
    runbooks.rag.index(str(folder / "ops"))
    with Upstream() as provider:
        provided = {
            "name": "scripted",
            "kind": "openai-compatible",
            "endpoint": f"{provider.url}/v1",
            "models": [{"name": "test-model"}],
        }
        with (
            Daemon(folder, {"providers": [provided]}) as router,
            running(build_rag(runbooks)) as rag,
            running(build_raksha(services_in(folder, {"raksha": {}}, **small))) as raksha,
            Gate(folder, {"marga": router.url, "rag": rag, "raksha": raksha}) as gate,
        ):
            yield gate


# The servers beside it in this process draw random numbers, which hypothesis takes for the strategy's.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
def test_no_request_is_answered_with_a_fault(gate: Gate) -> None:
    key = make_key(gate.folder, "everything", scopes=["*"])
    document = json.loads(gate.get("/openapi.json").raw)
    assert document == json.loads(json.dumps(openapi_document()))
    schema = schemathesis.openapi.from_dict(document)
    modes = schemathesis.GenerationMode
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        asked += 1
        cases = [operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)]

        @settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(*cases))
        def send(case: Any) -> None:
            answer = case.call(base_url=gate.url, headers={"x-api-key": key}, timeout=30)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert "json" in str(answer.headers["content-type"]), answer.text
            assert answer.headers["x-request-id"]

        send()
    assert asked >= 16


def test_without_a_key_nothing_of_the_contract_is_open(gate: Gate) -> None:
    make_key(gate.folder)
    gate.gateway.authenticator.refresh()
    for path, methods in openapi_document()["paths"].items():
        for method, operation in methods.items():
            got = gate.request(method.upper(), path, b"{}" if method == "post" else None)
            assert got.status == (200 if operation.get("security") == [] else 401), path


def test_every_path_of_the_contract_has_a_route() -> None:
    for path in openapi_document()["paths"]:
        route = find_route(path.encode())
        assert route is not None
        assert route.public == (openapi_document()["paths"][path].get("get", {}).get("security") == [])


@pytest.mark.parametrize("url", ["http://169.254.169.254/x.git", "file:///etc", "ext::sh -c id", "ssh://127.0.0.1/x"])
def test_repositories_elsewhere_are_not_fetched(gate: Gate, url: str) -> None:
    # SSRF through git URLs: the scanner's list of hosts holds behind the gateway as in front of it.
    key = make_key(gate.folder, "scanner", scopes=["raksha"])
    got = gate.post("/v1/scan?wait=true", {"git": {"url": url}}, authorization=f"Bearer {key}")
    assert 400 <= got.status < 500
    assert got.headers["content-type"] == "application/problem+json"


def test_jobs_are_found_under_their_component(gate: Gate) -> None:
    key = make_key(gate.folder, "jobs", scopes=["raksha"])
    body = {"files": [{"path": "a.py", "content": "x = 1\n"}]}
    started = gate.post("/v1/scan?wait=false", body, authorization=f"Bearer {key}")
    assert started.status == 202
    place = {name.lower(): value for name, value in started.headers.items()}["location"]
    assert gate.get(place, authorization=f"Bearer {key}").body["id"] == started.body["id"]
    listed = gate.get("/v1/raksha/jobs", authorization=f"Bearer {key}").body["jobs"]
    assert [job["id"] for job in listed] == [started.body["id"]]
    stranger = make_key(gate.folder, "other", scopes=["rag"])
    assert gate.get(place, authorization=f"Bearer {stranger}").status == 403


def test_a_question_passes_through_to_the_runbooks(gate: Gate) -> None:
    key = make_key(gate.folder, "asker", scopes=["rag:ask"])
    got = gate.post(
        "/v1/ask", {"question": "How do I restart Kafka?", "extractive": True}, authorization=f"Bearer {key}"
    )
    assert got.status == 200
    assert "kafka.md" in got.raw.decode()


def test_the_folder_is_its_own(gate: Gate) -> None:
    assert Path(gate.folder, "home", "state", "principal.key").stat().st_mode & 0o777 == 0o600
