"""Every daemon against its own OpenAPI contract: whatever is sent, no answer is a fault of ours."""

from __future__ import annotations

import json
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from server import running

from avyay.config import Environment
from avyay.serve.engine import build_app as build_engine
from avyay.serve.marga import build_app as build_marga
from avyay.serve.rag import build_app as build_rag
from avyay.serve.raksha import build_app as build_raksha
from avyay.serve.siddhi import build_app as build_siddhi
from avyay.wiring import Services, open_services

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis

STREAMS = {"/v1/events", "/v1/jobs/{identity}/events"}  # without an end, and have tests of their own


def services(home: Path) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    values |= {"AVYAY_RAG_EMBEDDER_NAME": "hashing", "AVYAY_RAG_POLL_INTERVAL": "0", "AVYAY_MARGA_DISCOVER": "false"}
    return open_services(directory=home, environment=Environment(values))


def rag(home: Path) -> Any:
    made = services(home)
    (home / "ops").mkdir()
    (home / "ops" / "kafka.md").write_text("# Kafka\n\nRestart the broker.\n")
    made.rag.index(str(home / "ops"))
    return build_rag(made, webhook_secret="s3cret")


def raksha(home: Path) -> Any:
    return build_raksha(services(home))


def siddhi(home: Path) -> Any:
    made = services(home)
    made.siddhi.store.discover("Invoices by hand", "billing", [], "8 complaints")
    return build_siddhi(made)


def engine(home: Path) -> Any:
    return build_engine(services(home))


def marga(home: Path) -> Any:
    provider = '{name: fake, kind: fake, endpoint: "http://127.0.0.1:9", models: [m]}'
    (home / "avyay.yaml").write_text(f"marga: {{discover: false, providers: [{provider}]}}\n")
    values = {"AVYAY_HOME": str(home / "avyay"), "HOME": str(home)}
    return build_marga(open_services(config_file=home / "avyay.yaml", environment=Environment(values)))


DAEMONS: dict[str, Callable[[Path], Any]] = {
    "rag": rag,
    "raksha": raksha,
    "siddhi": siddhi,
    "engine": engine,
    "marga": marga,
}


@pytest.fixture(params=sorted(DAEMONS))
def url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    with running(DAEMONS[request.param](home)) as found:
        yield found


def test_no_request_is_answered_with_a_fault(url: str) -> None:
    """Requests made from the contract, and broken ones: statuses below 500, or 503 where something is missing."""
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    assert document["openapi"].startswith("3.")
    assert {"/health", "/ready", "/metrics", "/v1/events"} <= set(document["paths"])
    schema = schemathesis.openapi.from_dict(document)
    asked: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in STREAMS:
            continue
        asked.add(operation.label)

        @settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @_given(operation)
        def send(case: Any) -> None:
            answer = case.call(base_url=url, timeout=30)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            if answer.status_code >= 400:
                assert "json" in str(answer.headers["content-type"]), answer.text

        send()
    assert len(asked) >= 8


def _given(operation: Any) -> Any:
    from hypothesis import given
    from hypothesis import strategies as st

    modes = schemathesis.GenerationMode
    strategies = [operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)]
    return given(case=st.one_of(*strategies))
