"""OpenAI, and every server that speaks its format."""

from __future__ import annotations

from typing import Any

from avyay.marga.backends.base import HttpBackend, Outgoing
from avyay.marga.catalogue import bundled_catalogue, configured_model
from avyay.marga.types import Dialect, Model

__all__ = ["CompatibleBackend", "OpenAIBackend"]


class OpenAIBackend(HttpBackend):
    """https://api.openai.com/v1, or what OPENAI_BASE_URL names."""

    dialects: tuple[Dialect, ...] = ("openai_chat", "openai_responses")

    def auth_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.provider.key}"} if self.provider.key else {}

    def path(self, call: Outgoing) -> str:
        if call.operation == "embeddings":
            return "/embeddings"
        return "/responses" if call.dialect == "openai_responses" else "/chat/completions"

    def parse_models(self, data: Any) -> tuple[Model, ...]:
        catalogue = bundled_catalogue()
        return tuple(
            configured_model(
                str(entry["id"]), kind=self.provider.kind, vendor=self.provider.vendor, tier=None, catalogue=catalogue
            )
            for entry in data["data"]
        )


class CompatibleBackend(OpenAIBackend):
    """vLLM, LM Studio, llama.cpp, Groq, DeepSeek and the like: chat only, unless they say more."""

    dialects: tuple[Dialect, ...] = ("openai_chat",)
