"""Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from avyay.marga.backends.base import HttpBackend, Outgoing
from avyay.marga.catalogue import bundled_catalogue, configured_model
from avyay.marga.types import Dialect, Model

__all__ = ["API_VERSION", "AnthropicBackend"]

API_VERSION = "2023-06-01"


class AnthropicBackend(HttpBackend):
    """https://api.anthropic.com, with or without /v1 at the end."""

    dialects: tuple[Dialect, ...] = ("anthropic_messages",)

    def base_url(self, endpoint: str) -> str:
        url = endpoint.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    def auth_headers(self) -> dict[str, str]:
        key = {"x-api-key": self.provider.key} if self.provider.key else {}
        return {"anthropic-version": API_VERSION, **key}

    def path(self, call: Outgoing) -> str:
        path = "/messages/count_tokens" if call.operation == "count_tokens" else "/messages"
        return f"{path}?{call.query}" if call.query else path

    def parse_models(self, data: Any) -> tuple[Model, ...]:
        catalogue = bundled_catalogue()
        return tuple(
            configured_model(str(entry["id"]), kind="anthropic", vendor="anthropic", tier=None, catalogue=catalogue)
            for entry in data["data"]
        )
