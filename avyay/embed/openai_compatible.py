"""Embeddings from OpenAI and the many servers that speak its protocol: `POST /embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from avyay.embed.service import Service
from avyay.embed.types import EmbedderOptions
from avyay.errors import AuthError, ConfigError

__all__ = ["OPENAI_ENDPOINT", "OpenAICompatible", "from_options"]

OPENAI_ENDPOINT = "https://api.openai.com/v1"
OPENAI_MAX_TOKENS = 8191
MAX_TOKENS = 512  # of a server we know nothing about: the context of BERT-sized models


class OpenAICompatible(Service):
    """A model behind `<endpoint>/embeddings`; `dimensions`, when given, is also requested (text-embedding-3)."""

    def __init__(
        self,
        model: str,
        *,
        endpoint: str = OPENAI_ENDPOINT,
        api_key: str | None = None,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        timeout: float = 60.0,
        batch: int = 128,
    ) -> None:
        own = endpoint.rstrip("/") == OPENAI_ENDPOINT
        super().__init__(
            who="OpenAI" if own else "The embedding service",
            kind="openai" if own else "openai-compatible",
            model=model,
            endpoint=endpoint,
            dimensions=dimensions,
            max_tokens=max_tokens or (OPENAI_MAX_TOKENS if own else MAX_TOKENS),
            timeout=timeout,
            batch=batch,
            headers={"authorization": f"Bearer {api_key}"} if api_key else None,
        )

    def _vectors(self, texts: Sequence[str]) -> Any:
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        if self._requested_dimensions is not None:
            body["dimensions"] = self._requested_dimensions
        data = self._post("/embeddings", body).get("data")
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise self._useless("no list of embeddings")
        places = [item.get("index", place) for place, item in enumerate(data)]
        if sorted(map(str, places)) != sorted(map(str, range(len(texts)))):
            raise self._useless(f"{len(data)} vectors for {len(texts)} texts")
        ordered = sorted(zip(places, data, strict=True), key=lambda pair: int(pair[0]))
        return [self._decoded(item.get("embedding")) for _, item in ordered]

    def _decoded(self, embedding: Any) -> Any:
        """Some servers answer base64 (little-endian float32) whatever was asked for."""
        if not isinstance(embedding, str):
            return embedding
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        except ValueError as error:
            raise self._useless("something that is no vector") from error


def from_options(options: EmbedderOptions) -> OpenAICompatible:
    """The registry's way in.

    Raises:
        ConfigError: no model is named.
        AuthError: OpenAI itself is meant and there is no key.
    """
    if not options.model:
        raise ConfigError(
            "The embedder openai-compatible needs a model.",
            hint="Set rag.embedder.model, e.g. text-embedding-3-small.",
        )
    endpoint = options.endpoint or OPENAI_ENDPOINT
    if endpoint.rstrip("/") == OPENAI_ENDPOINT and not options.api_key:
        raise AuthError(
            "Embeddings from OpenAI need a key.",
            hint="Set OPENAI_API_KEY, or rag.embedder.endpoint for another server, or rag.embedder.name to minilm.",
        )
    return OpenAICompatible(
        options.model,
        endpoint=endpoint,
        api_key=options.api_key,
        dimensions=options.dimensions,
        max_tokens=options.max_tokens,
        timeout=options.timeout,
    )
