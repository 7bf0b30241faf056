"""The kinds of provider; each is loaded when the first provider of its kind is."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from avyay.errors import ConfigError
from avyay.marga.types import Provider

if TYPE_CHECKING:
    from avyay.marga.backends.base import Backend
    from avyay.marga.transport import Transport

__all__ = ["REGISTRY", "open_backend"]

REGISTRY = {
    "anthropic": "avyay.marga.backends.anthropic:AnthropicBackend",
    "azure": "avyay.marga.backends.azure:AzureBackend",
    "fake": "avyay.marga.backends.fake:FakeBackend",
    "ollama": "avyay.marga.backends.ollama:OllamaBackend",
    "openai": "avyay.marga.backends.openai:OpenAIBackend",
    "openai-compatible": "avyay.marga.backends.openai:CompatibleBackend",
}


def open_backend(provider: Provider, transport: Transport) -> Backend:
    """The backend of a provider's kind; other packages may add kinds through the entry points `avyay.backends`.

    Raises:
        ConfigError: nothing is registered for the kind.
    """
    target = REGISTRY.get(provider.kind)
    if target is None:
        found = entry_points(group="avyay.backends", name=provider.kind)
        if not found:
            raise ConfigError(f"No backend is called {provider.kind!r}.", hint=f"Known: {', '.join(sorted(REGISTRY))}.")
        factory = next(iter(found)).load()
    else:
        module, _, name = target.partition(":")
        factory = getattr(importlib.import_module(module), name)
    backend: Backend = factory(provider, transport)
    return backend
