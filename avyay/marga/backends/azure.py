"""Azure OpenAI: the v1 paths, or those per deployment when an api-version is configured."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from avyay.marga.backends.base import Outgoing
from avyay.marga.backends.openai import OpenAIBackend
from avyay.marga.types import Model

__all__ = ["AzureBackend"]


class AzureBackend(OpenAIBackend):
    """A resource of one's own; the models are its deployments."""

    def base_url(self, endpoint: str) -> str:
        url = endpoint.rstrip("/")
        if self.provider.api_version is None:
            return url if url.endswith("/v1") else f"{url.removesuffix('/openai')}/openai/v1"
        return url if urlsplit(url).path.endswith("/openai") else f"{url}/openai"

    def auth_headers(self) -> dict[str, str]:
        return {"api-key": self.provider.key} if self.provider.key else {}

    def path(self, call: Outgoing) -> str:
        path = super().path(call)
        if self.provider.api_version is None:
            return path
        version = f"?api-version={quote(self.provider.api_version)}"
        if call.dialect == "openai_responses":
            return f"{path}{version}"
        return f"/deployments/{quote(call.model, safe='')}{path}{version}"

    @property
    def models_path(self) -> str:  # type: ignore[override]
        version = self.provider.api_version
        return "/models" if version is None else f"/models?api-version={quote(version)}"

    def parse_models(self, data: Any) -> tuple[Model, ...]:
        # The listing names the models a resource may deploy, not its deployments: only the configuration knows those.
        if not isinstance(data["data"], list):
            raise ValueError("no list")
        return self.provider.models
