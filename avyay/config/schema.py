"""The settings tree: every key avyay.yaml may hold, its type, its default and what it means.

Each component's part is in a module of its own beside this one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from avyay.config.engine import EngineSettings
from avyay.config.events import EventsSettings
from avyay.config.marga import MargaSettings
from avyay.config.rag import RagSettings
from avyay.config.raksha import RakshaSettings
from avyay.config.serve import GatewaySettings, ServeSettings
from avyay.config.siddhi import SiddhiSettings
from avyay.config.types import Section, project_safe

__all__ = ["LogSettings", "Settings", "TelemetrySettings"]


class LogSettings(Section):
    """What is logged, and how; always to stderr."""

    level: Literal["debug", "info", "warning", "error"] = project_safe("warning", "Least severe level written.")
    format: Literal["auto", "text", "json"] = project_safe("auto", "auto: text on a terminal, JSON elsewhere.")


class TelemetrySettings(Section):
    """Traces over OTLP/HTTP; nothing is sent unless an endpoint is set."""

    otlp_endpoint: str | None = Field(None, description="Base URL of an OpenTelemetry collector or Datadog Agent.")


class Settings(BaseSettings):
    """The whole tree. Built by `avyay.config.load_settings`, which also knows where each value came from."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    marga: MargaSettings = MargaSettings()
    rag: RagSettings = RagSettings()
    raksha: RakshaSettings = RakshaSettings()
    siddhi: SiddhiSettings = SiddhiSettings()
    engine: EngineSettings = EngineSettings()
    serve: ServeSettings = ServeSettings()
    events: EventsSettings = EventsSettings()
    gateway: GatewaySettings = GatewaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Our own sources arrive through the loader, in order; nothing is read behind its back.
        sources: tuple[PydanticBaseSettingsSource, ...] = getattr(init_settings, "init_kwargs", {}).pop("_sources", ())
        return sources or (init_settings,)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of avyay.yaml, for editors."""
        return cls.model_json_schema()
