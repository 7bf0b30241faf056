"""The settings of daemons and of the gateway."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from avyay.config.types import Port, Seconds, Section, Workers

__all__ = ["GatewaySettings", "JwtSettings", "LimitSettings", "ServeSettings", "UpstreamSettings", "UpstreamsSettings"]


class ServeSettings(Section):
    """What all daemons share."""

    host: str = Field("127.0.0.1", description="Address to bind; wider than loopback needs authentication.")
    port: Port | None = Field(None, description="By default each daemon's own.")
    workers: Workers = Field(1, description="Processes that serve a daemon; each component may set its own.")
    worker_timeout: Seconds = Field(
        30.0,
        description="Silence after which a worker, or a component of `serve all`, is killed and replaced; 0: never.",
    )
    tailscale_serve: bool = Field(False, description="Publish through `tailscale serve`; see also --tailscale-serve.")
    tailnet_users: tuple[str, ...] = Field(
        (), description="Logins that need no key when they come through `tailscale serve`; *@example.com for a domain."
    )
    principal_secret_env: str | None = Field(
        None,
        description="Environment variable with the secret the gateway signs callers with; default: a file in the home.",
    )

    @field_validator("worker_timeout")
    @classmethod
    def _some_beats(cls, value: float) -> float:
        if 0 < value < 2:
            raise ValueError("write 2s or more, since a worker says twice a second that it lives; 0 for never")
        return value


class UpstreamSettings(Section):
    """Where the gateway finds a component, and how long it waits for it."""

    url: str | None = Field(None, description="Base URL; by default the component's port on this machine.")
    api_key_env: str | None = Field(None, description="Environment variable with a key the component asks for.")
    principal_key_env: str | None = Field(
        None, description="Environment variable with the secret shared with this component, to sign callers with."
    )
    connect: Seconds = Field(2.0, description="Time to connect.")
    first_byte: Seconds = Field(600.0, description="Time from the request to the first byte of the answer.")
    idle: Seconds = Field(300.0, description="Silence in the middle of an answer after which it is given up.")

    @field_validator("url")
    @classmethod
    def _plain_base(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from urllib.parse import urlsplit

        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/"):
            raise ValueError("write http://HOST:PORT or https://HOST, without a path")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("a component's URL holds no user, query or fragment")
        return value.rstrip("/")


class UpstreamsSettings(Section):
    """The components behind the gateway."""

    marga: UpstreamSettings = UpstreamSettings()
    rag: UpstreamSettings = UpstreamSettings()
    raksha: UpstreamSettings = UpstreamSettings()
    siddhi: UpstreamSettings = UpstreamSettings()
    engine: UpstreamSettings = UpstreamSettings()


class JwtSettings(Section):
    """An issuer of tokens the gateway accepts."""

    issuer: str = Field(description="What `iss` must be.")
    audience: str = Field(description="What `aud` must be or contain.")
    algorithms: tuple[
        Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...
    ] = Field(description="Accepted algorithms, of one kind: HS* with secret_env, the others with jwks.")
    secret_env: str | None = Field(None, description="Environment variable with the secret, 32 characters or more.")
    jwks: str | None = Field(None, description="URL (https) or file of the issuer's public keys.")
    jwks_ttl: Seconds = Field(300.0, description="Time after which the keys are fetched again.")
    leeway: Seconds = Field(30.0, description="How far clocks may differ.")
    scopes: tuple[str, ...] = Field((), description="Scopes of every token of this issuer, besides its own.")
    scope_claim: str = Field("scope", description="Claim with scopes: a list, or words in a string.")
    customer_claim: str | None = Field(None, description="Claim that names the customer to bill.")
    tier_claim: str | None = Field(None, description="Claim that names the tier for rate limits.")

    @model_validator(mode="after")
    def _one_kind(self) -> JwtSettings:
        symmetric = [name for name in self.algorithms if name.startswith("HS")]
        if not self.algorithms or (symmetric and len(symmetric) != len(self.algorithms)):
            raise ValueError("name algorithms of one kind: HS*, or RS/PS/ES/EdDSA")
        if bool(symmetric) != (self.secret_env is not None) or bool(symmetric) == (self.jwks is not None):
            raise ValueError("HS* takes secret_env and no jwks; the others take jwks and no secret_env")
        if self.jwks is not None and "://" in self.jwks:
            from urllib.parse import urlsplit

            parts = urlsplit(self.jwks)
            if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise ValueError("fetch keys over https")
        return self


class LimitSettings(Section):
    """A rate limit for every key it applies to, each counted by itself; all that apply must hold."""

    key: str | None = Field(None, description="Only this key (its id).")
    tier: str | None = Field(None, description="Only keys of this tier.")
    endpoint: str | None = Field(None, description="Only this scope: marga, marga:embeddings, rag:ask, ...")
    requests: int | None = Field(None, ge=1, description="Requests in a minute.")
    tokens: int | None = Field(None, ge=1, description="Tokens in a minute, as the router counts them.")
    concurrent: int | None = Field(None, ge=1, description="Answers under way at once, streams included.")


class GatewaySettings(Section):
    """The one door in front of the components."""

    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    upstreams: UpstreamsSettings = UpstreamsSettings()
    jwt: tuple[JwtSettings, ...] = Field((), description="Issuers of tokens that are accepted besides API keys.")
    limits: tuple[LimitSettings, ...] = Field((), description="Rate limits.")
    redis_url: str | None = Field(None, description="Redis that several gateways share their limits in.")
    on_redis_loss: Literal["local", "refuse"] = Field(
        "local", description="Without Redis: each process limits by itself, or everything limited is refused."
    )
    failed_attempts: int = Field(
        20, ge=1, description="Failed authentications, and webhooks refused, in a minute from one address."
    )
    proxies: tuple[str, ...] = Field((), description="Networks whose X-Forwarded-For is believed.")
    cors_origins: tuple[str, ...] = Field((), description="Origins of web pages that may call; none by default.")
    max_body: int = Field(32_000_000, ge=1_000, description="Bytes of a request's body at most.")
    max_push_body: int = Field(
        2_000_000, ge=1_000, description="Bytes of a webhook's body, which needs no key, at most."
    )
    max_head: int = Field(65_536, ge=1_024, description="Bytes of a request's line and headers at most.")
    head_timeout: Seconds = Field(10.0, description="Time a client has to send its line and headers.")
    body_timeout: Seconds = Field(30.0, description="Silence in the middle of a request's body that ends it.")
    send_timeout: Seconds = Field(120.0, description="How long a client may not read before it is cut off.")
    max_connections: int = Field(4_096, ge=1, description="Open connections of one process at most.")
    keep_requests: Seconds = Field(3_024_000.0, description="How long single requests are kept; totals stay.")
