"""Embedders by name. A name is imported when it is asked for; packages add theirs as `avyay.embedders` entry points."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from avyay.embed.types import EmbedderOptions
from avyay.errors import AuthError, ConfigError, DependencyError

if TYPE_CHECKING:
    from avyay.config.rag import EmbedderSettings
    from avyay.ports import Embedder

__all__ = ["ENTRY_POINTS", "configured_embedder", "embedder_names", "open_embedder"]

ENTRY_POINTS = "avyay.embedders"
BUILT_IN = {
    "minilm": "avyay.embed.minilm:from_options",
    "ollama": "avyay.embed.ollama:from_options",
    "openai-compatible": "avyay.embed.openai_compatible:from_options",
    "hashing": "avyay.embed.hashing:from_options",
}


def embedder_names() -> tuple[str, ...]:
    """What `open_embedder` knows, plug-ins included."""
    return tuple(sorted({*BUILT_IN, *_plug_ins()}))


def open_embedder(name: str = "minilm", options: EmbedderOptions | None = None) -> Embedder:
    """Make the embedder of that name. Nothing is loaded or contacted until it is used.

    Raises:
        ConfigError: no embedder has that name, or an option it needs is missing.
        DependencyError: it is there and cannot be imported.
    """
    target = BUILT_IN.get(name)  # a plug-in cannot take the place of a built-in name
    if target is None:
        plug_in = _plug_ins().get(name)
        if plug_in is None:
            close = difflib.get_close_matches(name, embedder_names(), n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(embedder_names())}."
            raise ConfigError(f"No embedder is called {name!r}.", hint=hint)
        target = plug_in.value
    module, _, attribute = target.partition(":")
    try:
        factory: Callable[[EmbedderOptions], Embedder] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"The embedder {name!r} cannot be loaded from {target}: {error}.",
            hint="Reinstall the package that provides it, or choose another: rag.embedder.name.",
        ) from error
    return factory(options or EmbedderOptions())


def configured_embedder(settings: EmbedderSettings, environment: Mapping[str, str]) -> Embedder:
    """The embedder that the configuration describes; keys and OLLAMA_HOST come from the environment.

    OPENAI_API_KEY goes to OpenAI alone: another endpoint gets the key that `api_key_env` names, or none.

    Raises:
        AuthError: the variable that should hold the key is empty, or OpenAI is meant and there is no key.
        ConfigError, DependencyError: as `open_embedder`.
    """
    endpoint, api_key = settings.endpoint, None
    if settings.api_key_env:
        api_key = environment.get(settings.api_key_env, "").strip()
        if not api_key:
            raise AuthError(
                f"The embedder's key is expected in {settings.api_key_env}, which is not set.",
                hint=f"Set {settings.api_key_env}, or change rag.embedder.api_key_env.",
            )
    if settings.name == "openai-compatible" and not endpoint and not api_key:
        api_key = environment.get("OPENAI_API_KEY", "").strip() or None
    if settings.name == "ollama" and not endpoint and (host := environment.get("OLLAMA_HOST", "").strip()):
        from avyay.embed.ollama import endpoint_from_host

        endpoint = endpoint_from_host(host)
    options = EmbedderOptions(
        model=settings.model,
        endpoint=endpoint,
        api_key=api_key,
        dimensions=settings.dimensions,
        max_tokens=settings.max_tokens,
        timeout=settings.timeout,
        threads=settings.threads,
    )
    return open_embedder(settings.name, options)


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
