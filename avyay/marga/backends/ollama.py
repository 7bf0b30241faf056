"""Ollama's native API."""

from __future__ import annotations

from typing import Any

from avyay.marga.backends.base import HttpBackend, Outgoing
from avyay.marga.catalogue import local_model
from avyay.marga.types import Dialect, Model

__all__ = ["OllamaBackend"]


class OllamaBackend(HttpBackend):
    """A machine that runs models itself; free, and asked what it holds."""

    dialects: tuple[Dialect, ...] = ("ollama_chat", "ollama_generate")
    models_path = "/api/tags"

    def auth_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.provider.key}"} if self.provider.key else {}

    def path(self, call: Outgoing) -> str:
        if call.operation == "embeddings":
            return "/api/embed"
        return "/api/generate" if call.dialect == "ollama_generate" else "/api/chat"

    def parse_models(self, data: Any) -> tuple[Model, ...]:
        return tuple(
            local_model(str(entry.get("model") or entry["name"]))
            for entry in data["models"]
            if "embed" not in str(entry.get("name", ""))
        )
