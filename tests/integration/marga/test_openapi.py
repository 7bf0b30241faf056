"""The router's contract: it names every endpoint, and whatever is made from it gets an answer of its dialect."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from upstream import Upstream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis

WIRE = (
    *("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"),
    *("/api/chat", "/api/generate"),
)
REST = {
    *("/v1/models", "/v1/models/{model}", "/api/tags", "/health", "/ready", "/metrics", "/marga/providers"),
    *("/marga/decisions", "/marga/decisions/{identity}", "/marga/stats", "/marga/budgets"),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder: Path = tmp_path_factory.mktemp("openapi")
    with Upstream() as upstream:
        provider = {
            "name": "p",
            "kind": "openai",
            "endpoint": f"{upstream.url}/v1",
            "api_key_env": "K",
            "models": [{"name": "m", "input_price": 1, "output_price": 2}],
        }
        with Daemon(folder, {"providers": [provider]}, K="k") as running:
            yield running


@pytest.mark.parametrize("path", WIRE)
def test_requests_made_from_the_contract_are_answered_as_it_says(daemon: Daemon, path: str) -> None:
    document = daemon.get("/openapi.json").body
    assert {*WIRE, *REST} <= set(document["paths"])
    stated = set(document["paths"][path]["post"]["responses"])
    schema = schemathesis.openapi.from_dict(document)
    operation = next(r.ok() for r in schema.get_all_operations() if r.ok().path == path)
    modes = schemathesis.GenerationMode
    strategies = [operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)]

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(*strategies))
    def send(case: Any) -> None:
        answer = case.call(base_url=daemon.url, timeout=30)
        assert str(answer.status_code) in stated or answer.status_code == 405, answer.text
        if answer.status_code != 200 and answer.status_code != 405:
            error = answer.json()["error"]
            assert error if path.startswith("/api/") else error["message"]

    send()
