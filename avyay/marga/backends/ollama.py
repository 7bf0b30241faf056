"""Ollama's native API."""

from __future__ import annotations

from dataclasses import replace
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
            return "/v1/embeddings"
        return "/api/generate" if call.dialect == "ollama_generate" else "/api/chat"

    def parse_models(self, data: Any) -> tuple[Model, ...]:
        return tuple(_model(str(entry.get("model") or entry["name"])) for entry in data["models"])


def _model(name: str) -> Model:
    model = local_model(name)
    return replace(model, mode="embedding") if "embed" in name.lower() else model
