"""Embeddings from an Ollama server: `POST /api/embed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avyay.embed.service import Service
from avyay.embed.types import EmbedderOptions
from avyay.errors import ConfigError, DependencyError, UnreachableError

__all__ = ["DEFAULT_ENDPOINT", "Ollama", "endpoint_from_host", "from_options"]

DEFAULT_ENDPOINT = "http://127.0.0.1:11434"
MAX_TOKENS = 512  # the least that the embedding models in Ollama's library read


class Ollama(Service):
    """A model that the server has pulled. Texts beyond the model's context are cut off by the server."""

    def __init__(
        self,
        model: str,
        *,
        endpoint: str = DEFAULT_ENDPOINT,
        dimensions: int | None = None,
        max_tokens: int = MAX_TOKENS,
        timeout: float = 60.0,
        batch: int = 32,
    ) -> None:
        super().__init__(
            who="Ollama",
            kind="ollama",
            model=model,
            endpoint=endpoint,
            dimensions=dimensions,
            max_tokens=max_tokens,
            timeout=timeout,
            batch=batch,
        )

    def _vectors(self, texts: Sequence[str]) -> Any:
        body: dict[str, Any] = {"model": self.model, "input": list(texts)}
        if self._requested_dimensions is not None:
            body["dimensions"] = self._requested_dimensions
        try:
            answer = self._post("/api/embed", body)
        except UnreachableError as error:
            if error.code == "http_404":
                raise DependencyError(
                    f"Ollama at {self.endpoint} has no model {self.model!r}.", hint=f"Run: ollama pull {self.model}"
                ) from error
            raise
        return answer.get("embeddings")


def endpoint_from_host(host: str) -> str:
    """The base URL for a value of OLLAMA_HOST, which may lack scheme and port or name the address listened on."""
    scheme, _, rest = host.strip().rpartition("://")
    authority, _, _ = rest.partition("/")
    address, _, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
    if not port:
        port = {"http": "80", "https": "443"}.get(scheme, "11434")
    if address in ("", "0.0.0.0", "[::]"):  # noqa: S104 - "all interfaces" is reached through loopback
        address = "127.0.0.1"
    return f"{scheme or 'http'}://{address}:{port}"


def from_options(options: EmbedderOptions) -> Ollama:
    """The registry's way in.

    Raises:
        ConfigError: no model is named.
    """
    if not options.model:
        raise ConfigError("The embedder ollama needs a model.", hint="Set rag.embedder.model, e.g. nomic-embed-text.")
    return Ollama(
        options.model,
        endpoint=options.endpoint or DEFAULT_ENDPOINT,
        dimensions=options.dimensions,
        max_tokens=options.max_tokens or MAX_TOKENS,
        timeout=options.timeout,
    )
