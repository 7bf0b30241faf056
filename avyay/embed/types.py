"""What an embedder is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["EmbedderOptions"]


@dataclass(frozen=True, slots=True)
class EmbedderOptions:
    """Everything a factory may need; each takes what applies to it.

    `endpoint` is a base URL. `dimensions` and `max_tokens` are what the model is known to have, where the service
    does not say. `timeout` is in seconds, for one call. `threads` is for embedders that compute here.
    """

    model: str | None = None
    endpoint: str | None = None
    api_key: str | None = field(default=None, repr=False)
    dimensions: int | None = None
    max_tokens: int | None = None
    timeout: float = 60.0
    threads: int | None = None
