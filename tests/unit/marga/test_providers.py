"""Which providers there are, from configuration and environment."""

from __future__ import annotations

import pytest

from avyay.config.environment import Environment
from avyay.config.marga import MargaSettings
from avyay.errors import ConfigError, UsageError
from avyay.marga.backends import REGISTRY, open_backend
from avyay.marga.backends.base import Outgoing
from avyay.marga.providers import infer_kind, ollama_url, resolve_providers
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.transport import Transport
from avyay.marga.types import Provider


def resolve(settings: dict[str, object] | None = None, *, listening: bool = False, **env: str) -> dict[str, Provider]:
    found = resolve_providers(
        MargaSettings.model_validate(settings or {}), Environment(env), listening=lambda _host, _port: listening
    )
    return {provider.name: provider for provider in found}


def test_environment() -> None:
    assert resolve() == {}
    found = resolve(
        OPENAI_API_KEY="sk-1",
        ANTHROPIC_API_KEY="sk-2",
        AZURE_OPENAI_API_KEY="k",
        AZURE_OPENAI_ENDPOINT="https://x.openai.azure.com/",
        AZURE_OPENAI_DEPLOYMENT="gpt-4o, mine",
        OLLAMA_HOST="100.64.0.7",
    )
    assert set(found) == {"openai", "anthropic", "azure", "ollama"}
    assert all(provider.usable for provider in found.values())
    assert [model.name for model in found["azure"].models] == ["gpt-4o", "mine"]
    assert found["azure"].models[0].prices is not None
    assert found["ollama"].endpoint == "http://100.64.0.7:11434"
    assert "sk-1" not in repr(found)


def test_azure_without_deployments_says_so() -> None:
    found = resolve(AZURE_OPENAI_API_KEY="k", AZURE_OPENAI_ENDPOINT="https://x.openai.azure.com")
    assert "AZURE_OPENAI_DEPLOYMENT" in (found["azure"].problem or "")


def test_a_listening_ollama_is_found_unless_configured() -> None:
    assert resolve(listening=True)["ollama"].origin == "listening on port 11434"
    configured = {"providers": [{"name": "mine", "endpoint": "http://localhost:11434"}]}
    assert set(resolve(configured, listening=True)) == {"mine"}
    assert resolve({"discover": False}, listening=True, OPENAI_API_KEY="sk-1") == {}


def test_configuration_wins_over_the_environment() -> None:
    settings = {"providers": [{"name": "first", "endpoint": "https://api.openai.com/v1", "models": ["gpt-4o"]}]}
    found = resolve(settings, OPENAI_API_KEY="sk-1")
    assert set(found) == {"first"}
    assert found["first"].key == "sk-1"
    assert [model.name for model in found["first"].models] == ["gpt-4o"]


def test_models_of_ones_own() -> None:
    settings = {
        "providers": [
            {
                "name": "vllm",
                "endpoint": "http://10.0.0.1:8000/v1",
                "models": [
                    {"name": "llama", "input_price": 0.15, "output_price": "0.60", "tier": "local", "context": 8192},
                    "other",
                ],
            }
        ]
    }
    llama, other = resolve(settings)["vllm"].models
    assert llama.prices is not None
    assert (llama.prices.input, llama.prices.output, llama.tier, llama.context) == (150_000, 600_000, "local", 8192)
    assert other.prices is None


@pytest.mark.parametrize(
    ("name", "endpoint", "kind"),
    [
        ("x", "https://api.openai.com/v1", "openai"),
        ("x", "https://api.anthropic.com/v1", "anthropic"),
        ("x", "https://me.openai.azure.com", "azure"),
        ("ollama-mac", "http://100.64.0.7:11434", "ollama"),
        ("mac", "http://100.64.0.7:11434", "ollama"),
        ("mac", "http://100.64.0.7:11434/v1", "openai-compatible"),
        ("ollama-proxy", "https://ollama.example.com", "ollama"),
        ("groq", "https://api.groq.com/openai/v1", "openai-compatible"),
    ],
)
def test_kinds(name: str, endpoint: str, kind: str) -> None:
    assert infer_kind(name, endpoint) == kind


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("https://ollama.example.com", "https://ollama.example.com:443"),
        ("http://mac:11434/", "http://mac:11434"),
        ("mac/sub", "http://mac:11434/sub"),
    ],
)
def test_ollama_host(host: str, url: str) -> None:
    assert ollama_url(host) == url


@pytest.mark.parametrize("kind", [kind for kind in REGISTRY if kind != "fake"])
def test_paths(kind: str) -> None:
    endpoints = {
        "openai": "https://api.openai.com/v1",
        "openai-compatible": "https://host/v1",
        "azure": "https://me.openai.azure.com",
        "anthropic": "https://api.anthropic.com",
        "ollama": "http://mac:11434",
    }
    expected = {
        "openai": "https://api.openai.com/v1/chat/completions",
        "openai-compatible": "https://host/v1/chat/completions",
        "azure": "https://me.openai.azure.com/openai/v1/chat/completions",
        "anthropic": "https://api.anthropic.com/v1/messages",
        "ollama": "http://mac:11434/api/chat",
    }
    backend = open_backend(Provider("p", kind, endpoints[kind], "key"), Transport())  # type: ignore[arg-type]
    call = Outgoing(backend.dialects[0], "m", b"{}")
    assert backend._base + backend.path(call) == expected[kind]  # type: ignore[attr-defined]


def test_azure_paths_by_deployment() -> None:
    provider = Provider("p", "azure", "https://me.openai.azure.com", "key", api_version="2024-10-21")
    backend = open_backend(provider, Transport())
    path = backend.path(Outgoing("openai_chat", "my model", b"{}"))  # type: ignore[attr-defined]
    assert path == "/deployments/my%20model/chat/completions?api-version=2024-10-21"


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="No backend"):
        open_backend(Provider("p", "carrier-pigeon", "http://x"), Transport())  # type: ignore[arg-type]


def router(**env: str) -> Router:
    settings = MargaSettings.model_validate({"aliases": {"fast": "gpt-4o-mini"}})
    providers = resolve_providers(settings, Environment(env), listening=lambda _host, _port: False)
    return Router(providers, settings, store=MemoryStore)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("fast", "openai/gpt-4o-mini"),
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai/a-new-one", "openai/a-new-one"),
        ("claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        ("claude-from-the-future", "anthropic/claude-from-the-future"),
    ],
)
def test_pinned_models(name: str, found: str) -> None:
    made = router(OPENAI_API_KEY="sk-1", ANTHROPIC_API_KEY="sk-2")
    assert [candidate.name for candidate in made.pinned(name)] == [found]


def test_nobody_has_it() -> None:
    with pytest.raises(UsageError, match="no-such"):
        router(OPENAI_API_KEY="sk-1").pinned("no-such")
