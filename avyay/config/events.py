"""The settings of events and of who is told of them."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from avyay.config.types import Fraction, Name, Seconds, Section

__all__ = ["EventsSettings", "RedisStreamSettings", "WebhookSettings"]


class WebhookSettings(Section):
    """A receiver of signed messages about what happened."""

    name: Name = Field(description="How it appears in lists and logs.")
    url: str = Field(description="Where messages are POSTed.")
    secret_env: str = Field(description="Environment variable with its secret: whsec_ and base64; two while rotating.")
    events: tuple[str, ...] = Field((), description="Globs of event names, such as marga.*; by default all.")
    timeout: Seconds = Field(10.0, gt=0, le=60, description="Time it has to answer.")
    attempts: int = Field(10, ge=1, le=100, description="Tries before a message becomes a dead letter.")
    private: bool = Field(False, description="Whether its name may lead into this machine's own network.")

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if scheme not in ("http", "https") or not separator or not rest.split("/")[0] or "@" in rest.split("/")[0]:
            raise ValueError("not an address: write https://HOST/PATH, without credentials")
        return value


class RedisStreamSettings(Section):
    """A Redis stream that gets what happened (extra: redis)."""

    url: str | None = Field(None, description="redis://HOST:PORT/DB, where it needs no password.")
    url_env: str | None = Field(None, description="Environment variable with the address, where it holds a password.")
    stream: str = Field("avyay:events", description="Key of the stream.")
    events: tuple[str, ...] = Field((), description="Globs of event names; by default all.")
    length: int = Field(100_000, ge=1, description="Entries it is kept to, about.")

    @model_validator(mode="after")
    def _one_address(self) -> RedisStreamSettings:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("name either url or url_env")
        return self


class EventsSettings(Section):
    """What happened: how long it is kept, and who is told."""

    keep: int = Field(10_000, ge=100, description="Events kept of each component.")
    keep_for: Seconds = Field(2_592_000.0, gt=0, description="Time after which events and deliveries may go.")
    budget_share: Fraction = Field(0.8, description="Share of a cap from which a budget is told to be near it.")
    webhooks: tuple[WebhookSettings, ...] = Field((), description="Receivers of signed messages.")
    redis: RedisStreamSettings | None = Field(None, description="A Redis stream.")

    @field_validator("webhooks")
    @classmethod
    def _unique(cls, value: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        names = [hook.name for hook in value]
        if len(set(names)) != len(names) or "redis" in names:
            raise ValueError("webhooks need different names, none of them redis")
        return value
