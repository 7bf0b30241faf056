"""Which providers there are: those of the configuration, those the environment names, and a local Ollama."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from avyay.config.environment import Environment
from avyay.config.marga import MargaSettings, ProviderSettings
from avyay.marga.catalogue import (
    USUAL_MODELS,
    Catalogue,
    bundled_catalogue,
    configured_model,
    local_model,
    vendor_of,
)
from avyay.marga.types import Kind, Model, Provider

__all__ = ["SETUP_HINT", "catalogue_providers", "infer_kind", "ollama_url", "resolve_providers"]

SETUP_HINT = (
    "Three ways to get one:\n"
    "  1. export OPENAI_API_KEY=… or ANTHROPIC_API_KEY=… (or AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT)\n"
    "  2. install Ollama from https://ollama.com, run: ollama pull qwen3:4b (or set OLLAMA_HOST to another machine's)\n"
    "  3. list providers in avyay.yaml (start with: avyay init)"
)
_KEY_VARIABLES: Mapping[Kind, str] = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
}
_LOCAL_OLLAMA = "http://127.0.0.1:11434"


def is_listening(host: str, port: int, timeout: float = 0.2) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False


def infer_kind(name: str, endpoint: str) -> Kind:
    """The dialect of a provider from its endpoint, else from its name."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    if host == "api.openai.com" or host.endswith(".api.openai.com"):
        return "openai"
    if host == "api.anthropic.com":
        return "anthropic"
    if host.endswith((".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")):
        return "azure"
    if url.port == 11434 and not url.path.rstrip("/").endswith("/v1"):
        return "ollama"
    lowered = name.lower()
    for kind in ("ollama", "anthropic", "azure"):
        if lowered.startswith(kind) and not (kind == "ollama" and url.path.rstrip("/").endswith("/v1")):
            return kind
    return "openai-compatible"


def ollama_url(host: str) -> str:
    """What `OLLAMA_HOST` means to Ollama's own client: `host`, `host:port`, `:port` or a URL."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "http", host
    address, _, path = rest.partition("/")
    name, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        name, port = address, {"https": "443", "http": "80"}[scheme] if separator and scheme == "https" else "11434"
    name = name or "127.0.0.1"
    if name in ("0.0.0.0", "[::]"):  # noqa: S104 - the address a server binds is not one to call
        name = "127.0.0.1"
    return f"{scheme}://{name}:{port}" + (f"/{path.rstrip('/')}" if path.strip("/") else "")


def resolve_providers(
    settings: MargaSettings,
    environment: Environment,
    *,
    catalogue: Catalogue | None = None,
    listening: Callable[[str, int], bool] = is_listening,
) -> tuple[Provider, ...]:
    """Every provider, usable or not, those of the configuration first.

    Args:
        listening: How a local Ollama is noticed; the only look outside this process.
    """
    catalogue = catalogue or bundled_catalogue()
    found = [_configured(setting, environment, catalogue) for setting in settings.providers]
    if settings.discover:
        taken = {(provider.kind, _place(provider.endpoint)) for provider in found}
        names = {provider.name for provider in found}
        for provider in _discovered(environment, catalogue, listening, found):
            if (provider.kind, _place(provider.endpoint)) in taken:
                continue
            unique = provider if provider.name not in names else replace(provider, name=f"{provider.name}-env")
            found.append(unique)
    return tuple(found)


def _configured(setting: ProviderSettings, environment: Environment, catalogue: Catalogue) -> Provider:
    kind = setting.kind or infer_kind(setting.name, setting.endpoint)
    vendor = vendor_of(kind, setting.endpoint)
    models = tuple(
        configured_model(model, kind=kind, vendor=vendor, tier=setting.tier, catalogue=catalogue)
        for model in setting.models
    )
    if not models:
        models = _usual(kind, setting.endpoint, catalogue)
        if setting.tier is not None:
            models = tuple(replace(model, tier=setting.tier) for model in models)
    variable = setting.api_key_env or _KEY_VARIABLES.get(kind)
    key = environment.value(variable) if variable else None
    problem = None
    if variable and key is None:
        problem = f"no key: set {variable}"
    elif kind == "azure" and not models:
        problem = "no deployments: list them under models"
    return Provider(
        name=setting.name,
        kind=kind,
        endpoint=setting.endpoint,
        key=key,
        models=models,
        vendor=vendor,
        region=setting.region,
        priority=setting.priority,
        origin="configuration",
        problem=problem,
        api_version=setting.api_version,
        lists_models=not setting.models and kind in ("ollama", "openai-compatible"),
    )


def _usual(kind: Kind, endpoint: str, catalogue: Catalogue) -> tuple[Model, ...]:
    if kind in ("ollama", "openai-compatible", "azure"):
        return ()  # they hold what their owner put there: they are asked
    vendor = vendor_of(kind, endpoint)
    models = (catalogue.find(name, vendor=vendor) for name in USUAL_MODELS.get(kind, ()))
    return tuple(model for model in models if model is not None)


def _discovered(
    environment: Environment,
    catalogue: Catalogue,
    listening: Callable[[str, int], bool],
    configured: list[Provider],
) -> list[Provider]:
    found: list[Provider] = []

    def add(name: str, kind: Kind, endpoint: str, key: str | None, origin: str) -> None:
        models = _usual(kind, endpoint, catalogue)
        found.append(
            Provider(
                name,
                kind,
                endpoint.rstrip("/"),
                key,
                models,
                vendor_of(kind, endpoint),
                origin=origin,
                lists_models=kind == "ollama",
            )
        )

    if key := environment.value("OPENAI_API_KEY"):
        add("openai", "openai", environment.value("OPENAI_BASE_URL") or "https://api.openai.com/v1", key, "environment")
    if key := environment.value("ANTHROPIC_API_KEY"):
        base = environment.value("ANTHROPIC_BASE_URL") or "https://api.anthropic.com"
        add("anthropic", "anthropic", base, key, "environment")
    endpoint, key = environment.value("AZURE_OPENAI_ENDPOINT"), environment.value("AZURE_OPENAI_API_KEY")
    if endpoint and key:
        add("azure", "azure", endpoint, key, "environment")
        deployments = environment.value("AZURE_OPENAI_DEPLOYMENT") or ""
        models = tuple(
            configured_model(name.strip(), kind="azure", vendor="azure", tier=None, catalogue=catalogue)
            for name in deployments.split(",")
            if name.strip()
        )
        found[-1] = replace(
            found[-1],
            models=models,
            api_version=environment.value("OPENAI_API_VERSION"),
            problem=None if models else "no deployments: set AZURE_OPENAI_DEPLOYMENT=NAME[,NAME]",
        )
    if host := environment.value("OLLAMA_HOST"):
        add("ollama", "ollama", ollama_url(host), None, "environment")
    elif not any(p.kind == "ollama" and _is_local(p.endpoint) for p in configured) and listening("127.0.0.1", 11434):
        add("ollama", "ollama", _LOCAL_OLLAMA, None, "listening on port 11434")
    return found


def _place(endpoint: str) -> str:
    """An endpoint without what clients add or leave out as they like."""
    return endpoint.rstrip("/").removesuffix("/v1").lower()


def _is_local(endpoint: str) -> bool:
    url = urlsplit(endpoint)
    return url.hostname in ("127.0.0.1", "localhost", "::1") and url.port == 11434


def catalogue_providers(catalogue: Catalogue | None = None) -> tuple[Provider, ...]:
    """What could be had: each kind's usual models, none of them configured. For explaining without a provider."""
    catalogue = catalogue or bundled_catalogue()
    problem = "not configured"
    return (
        Provider("ollama", "ollama", _LOCAL_OLLAMA, models=(local_model("qwen3:4b"),), problem=problem),
        Provider(
            "openai",
            "openai",
            "https://api.openai.com/v1",
            models=_usual("openai", "https://api.openai.com/v1", catalogue),
            vendor="openai",
            problem=problem,
        ),
        Provider(
            "anthropic",
            "anthropic",
            "https://api.anthropic.com",
            models=_usual("anthropic", "https://api.anthropic.com", catalogue),
            vendor="anthropic",
            problem=problem,
        ),
    )
