from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from avyay.embed.ollama import Ollama, endpoint_from_host
from avyay.embed.ollama import from_options as open_ollama
from avyay.embed.openai_compatible import OpenAICompatible
from avyay.embed.openai_compatible import from_options as open_openai
from avyay.embed.service import MAX_BATCH_BYTES, Service
from avyay.embed.types import EmbedderOptions
from avyay.errors import AuthError, ConfigError, DependencyError, UnreachableError, UsageError
from avyay.ports import TokenEmbedder

if TYPE_CHECKING:
    from tests.unit.embed.conftest import Endpoint

pytestmark = pytest.mark.usefixtures("no_waiting")

KINDS: dict[str, type[Ollama | OpenAICompatible]] = {"ollama": Ollama, "openai": OpenAICompatible}


def vector(text: str) -> list[float]:
    return [float(len(text)), 1.0, 0.0]


def ollama_answer(body: Any) -> tuple[int, Any]:
    return 200, {"model": body["model"], "embeddings": [vector(text) for text in body["input"]]}


def openai_answer(body: Any) -> tuple[int, Any]:
    # Last first: the protocol orders by index, not by place.
    data = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return 200, {"object": "list", "data": data[::-1], "model": body["model"]}


ANSWERS = {"ollama": ollama_answer, "openai": openai_answer}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(kind: str, endpoint: Endpoint) -> Iterator[Service]:
    endpoint.answer = ANSWERS[kind]
    with KINDS[kind]("m", endpoint=endpoint.url + "/", timeout=5.0) as embedder:
        yield embedder


def wrapped(kind: str, vectors: list[Any]) -> Any:
    if kind == "ollama":
        return {"embeddings": vectors}
    return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}


def test_satisfies_the_port(service: Service) -> None:
    assert isinstance(service, TokenEmbedder)


def test_rows_come_in_order_with_length_one(service: Service) -> None:
    vectors = service.embed(["abc", "a"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[3 / math.sqrt(10), 1 / math.sqrt(10), 0], [0.5**0.5, 0.5**0.5, 0]], rtol=1e-6)


def test_dimensions_are_learned_once(service: Service, endpoint: Endpoint) -> None:
    assert endpoint.requests == []
    assert (service.dimensions, service.dimensions) == (3, 3)
    assert len(endpoint.requests) == 1
    assert service.embed([]).shape == (0, 3)


def test_batches_are_bounded(kind: str, endpoint: Endpoint) -> None:
    endpoint.answer = ANSWERS[kind]
    long = "é" * (MAX_BATCH_BYTES // 3)
    with KINDS[kind]("m", endpoint=endpoint.url, batch=2) as embedder:
        assert len(embedder.embed(["a", "b", long, long, "c"])) == 5
    assert [len(body["input"]) for _, _, body in endpoint.requests] == [2, 1, 2]


def test_empty_and_broken_texts_are_sendable(service: Service, endpoint: Endpoint) -> None:
    assert service.embed(["", " \n", "a\ud800b"]).shape == (3, 3)
    assert endpoint.requests[0][2]["input"] == [".", ".", "a?b"]


def test_token_counts_are_estimates_and_token_vectors_refused(service: Service) -> None:
    assert service.count_tokens("restart the pod") == len(service.offsets("restart the pod")) > 2
    with pytest.raises(UsageError, match="single tokens"):
        service.embed_tokens(["x"])


def test_requests_are_as_documented(endpoint: Endpoint) -> None:
    endpoint.answer = ollama_answer
    with Ollama("all-minilm", endpoint=endpoint.url, dimensions=3) as ollama:
        assert ollama.name == "ollama/all-minilm"
        ollama.embed(["a"])
    endpoint.answer = openai_answer
    with OpenAICompatible("m", endpoint=endpoint.url + "/v1", api_key="k3y", dimensions=3) as openai:
        assert openai.name == "openai-compatible/m"
        openai.embed(["a"])
    (path, _, body), (openai_path, headers, openai_body) = endpoint.requests
    assert (path, body) == ("/api/embed", {"model": "all-minilm", "input": ["a"], "dimensions": 3})
    assert openai_path == "/v1/embeddings"
    assert openai_body == {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": 3}
    assert headers["authorization"] == "Bearer k3y"


@pytest.mark.parametrize(
    ("model", "query", "document"),
    [
        ("nomic-embed-text:v1.5", "search_query: q", "search_document: q"),
        ("intfloat/e5-large-v2", "query: q", "passage: q"),
        ("snowflake-arctic-embed2:latest", "query: q", "q"),
        ("text-embedding-3-small", "q", "q"),
    ],
)
def test_models_get_the_prefixes_they_were_trained_with(
    endpoint: Endpoint, model: str, query: str, document: str
) -> None:
    endpoint.answer = ollama_answer
    with Ollama(model, endpoint=endpoint.url) as embedder:
        embedder.embed(["q"], kind="query")
        embedder.embed(["q"])
    assert [body["input"] for _, _, body in endpoint.requests] == [[query], [document]]


def test_base64_vectors_are_read(endpoint: Endpoint) -> None:
    encoded = base64.b64encode(np.array([3, 4], dtype="<f4").tobytes()).decode()
    endpoint.answer = lambda body: (200, wrapped("openai", [encoded]))
    with OpenAICompatible("m", endpoint=endpoint.url) as embedder:
        np.testing.assert_allclose(embedder.embed(["x"]), [[0.6, 0.8]], rtol=1e-6)


# ---------------------------------------------------------------- the other side failing


def test_refused(service: Service, endpoint: Endpoint) -> None:
    endpoint.close()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
        service.embed(["x"])


def test_too_slow(kind: str, endpoint: Endpoint) -> None:
    endpoint.hang.clear()
    with KINDS[kind]("m", endpoint=endpoint.url, timeout=0.05) as embedder, pytest.raises(UnreachableError) as caught:
        embedder.embed(["x"])
    assert "Timeout" in caught.value.message
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_is_tried_three_times(service: Service, endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda body: (status, {"error": "busy"})
    with pytest.raises(UnreachableError, match=str(status)):
        service.embed(["x"])
    assert len(endpoint.requests) == 3


def test_recovers_from_one_failure(service: Service, kind: str, endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (503, {}) if len(endpoint.requests) == 1 else ANSWERS[kind](body)
    assert service.embed(["x"]).shape == (1, 3)


def test_wrong_key_is_not_tried_again_nor_shown(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (401, {"error": "no"})
    with OpenAICompatible("m", endpoint=endpoint.url, api_key="k3y") as embedder, pytest.raises(AuthError) as caught:
        embedder.embed(["x"])
    assert len(endpoint.requests) == 1
    assert "k3y" not in f"{caught.value}{caught.value.hint}"


def test_a_model_that_is_not_pulled(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (404, {"error": "model 'm' not found"})
    with Ollama("m", endpoint=endpoint.url) as embedder, pytest.raises(DependencyError) as caught:
        embedder.embed(["x"])
    assert caught.value.hint == "Run: ollama pull m"


def test_refused_input(service: Service, endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: (400, {"error": "the input length exceeds the context length"})
    with pytest.raises(UnreachableError, match="exceeds the context length"):
        service.embed(["x"])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"", b"[]", b"null", b"{}", b'{"embeddings": 3, "data": 3}'])
def test_garbage(service: Service, endpoint: Endpoint, answer: bytes) -> None:
    endpoint.answer = lambda body: (200, answer)
    with pytest.raises(UnreachableError):
        service.embed(["x"])


Make = Callable[[int], list[Any]]


@pytest.mark.parametrize(
    "make",
    [
        lambda count: [[1.0, 2.0]] * (count - 1),
        lambda count: [[1.0, 2.0]] * (count + 1),
        lambda count: [[1.0]] * (count - 1) + [[1.0, 2.0]],
        lambda count: [["a", "b"]] * count,
        lambda count: [[]] * count,
        lambda count: [None] * count,
        lambda count: [[0.0, 0.0]] * count,
        lambda count: [[1e60, 1.0]] * count,
        lambda count: [[float("nan"), 1.0]] * count,
        lambda count: ["***"] * count,
    ],
    ids=["fewer", "more", "ragged", "words", "empty", "null", "zero", "huge", "nan", "no-base64"],
)
def test_useless_vectors(service: Service, kind: str, endpoint: Endpoint, make: Make) -> None:
    endpoint.answer = lambda body: (200, wrapped(kind, make(len(body["input"]))))
    with pytest.raises(UnreachableError, match="m"):
        service.embed(["x", "y"])


def test_another_size_than_expected(kind: str, endpoint: Endpoint) -> None:
    endpoint.answer = ANSWERS[kind]
    with KINDS[kind]("m", endpoint=endpoint.url, dimensions=4) as embedder, pytest.raises(UnreachableError) as caught:
        embedder.embed(["x"])
    assert "3 dimensions" in caught.value.message
    assert "4" in caught.value.message


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("factory", [open_ollama, open_openai])
def test_a_model_must_be_named(factory: Callable[[EmbedderOptions], Service]) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        factory(EmbedderOptions(api_key="k"))


def test_openai_itself_wants_a_key() -> None:
    with pytest.raises(AuthError, match="key"):
        open_openai(EmbedderOptions(model="text-embedding-3-small"))
    with closing(open_openai(EmbedderOptions(model="text-embedding-3-small", api_key="k"))) as embedder:
        assert (embedder.name, embedder.max_tokens) == ("openai/text-embedding-3-small", 8191)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("box", "http://box:11434"),
        ("box:8000", "http://box:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8000", "http://127.0.0.1:8000"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("https://box:8443", "https://box:8443"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:11434"),
    ],
)
def test_ollama_host_as_ollama_reads_it(host: str, url: str) -> None:
    assert endpoint_from_host(host) == url
