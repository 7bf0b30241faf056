"""What the router asks of a provider: open a call, list its models, say whether it is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import orjson

from avyay import __version__
from avyay.errors import AuthError, UnreachableError
from avyay.marga.transport import Deadline, Endpoint, Incoming, Transport, TransportError
from avyay.marga.types import Dialect, Model, Provider

__all__ = ["Backend", "HttpBackend", "Outgoing", "dialect_towards"]

_MOST_PATHS = 1000


@dataclass(slots=True)
class Outgoing:
    """A request in a dialect the backend speaks. `path` overrides the dialect's own (embeddings, count_tokens)."""

    dialect: Dialect
    model: str
    body: bytes
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    operation: str = "chat"
    query: str = ""


class Backend(Protocol):
    """A provider that can be called."""

    provider: Provider
    dialects: tuple[Dialect, ...]

    async def open(self, call: Outgoing, deadline: Deadline | None = None) -> Incoming:
        """Send a request and wait for the head of the answer, whatever its status.

        Raises:
            TransportError: there is no answer.
        """
        ...

    async def list_models(self) -> tuple[Model, ...]:
        """The models it holds.

        Raises:
            UnreachableError: it does not say.
        """
        ...

    async def check(self) -> None:
        """A health check that costs nothing; the same errors."""
        ...


def dialect_towards(model: Model, spoken: tuple[Dialect, ...], inbound: Dialect) -> Dialect:
    """The dialect a request is sent in: the caller's own where the provider speaks it and the model can be had so."""
    if model.mode == "responses" and "openai_responses" in spoken:
        return "openai_responses"
    return inbound if inbound in spoken else spoken[0]


class HttpBackend(ABC):
    """A provider behind HTTP: subclasses say where and with which headers."""

    dialects: tuple[Dialect, ...]  # the first is preferred
    models_path: ClassVar[str] = "/models"

    def __init__(self, provider: Provider, transport: Transport) -> None:
        self.provider = provider
        self._transport = transport
        self._base = self.base_url(provider.endpoint)
        self._endpoints: dict[str, Endpoint] = {}
        self._headers = {
            "content-type": "application/json",
            "user-agent": f"avyay/{__version__}",
            "accept-encoding": "identity",
            **self.auth_headers(),
        }

    def base_url(self, endpoint: str) -> str:
        """The endpoint as this kind's paths expect it."""
        return endpoint.rstrip("/")

    @abstractmethod
    def auth_headers(self) -> dict[str, str]:
        """Headers that carry the key."""

    @abstractmethod
    def path(self, call: Outgoing) -> str:
        """Where a call goes, below the base URL."""

    @abstractmethod
    def parse_models(self, data: Any) -> tuple[Model, ...]:
        """The models in a listing.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is no listing.
        """

    async def open(self, call: Outgoing, deadline: Deadline | None = None) -> Incoming:
        path = self.path(call)
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            if len(self._endpoints) >= _MOST_PATHS:
                self._endpoints.clear()  # a path may hold a caller's model name
            endpoint = self._endpoints[path] = Endpoint("POST", self._base + path, self._headers)
        return await self._transport.send(endpoint, call.body, call.headers, deadline)

    async def list_models(self) -> tuple[Model, ...]:
        status, body = await self._get(self.models_path)
        name = self.provider.name
        if status in (401, 403):
            raise AuthError(f"{name} refused the key (HTTP {status}).", hint="Check the key.")
        try:
            if status >= 400:
                raise ValueError(f"HTTP {status}")
            return self.parse_models(orjson.loads(body))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreachableError(
                f"{name} answered something that is no list of models (HTTP {status}).",
                hint=f"Is {self.provider.endpoint} the right address?",
            ) from error

    async def check(self) -> None:
        status, _ = await self._get(self.models_path)
        if status in (401, 403):
            raise AuthError(f"{self.provider.name} refused the key (HTTP {status}).", hint="Check the key.")
        if status >= 500:  # any other answer, be it 404, shows that somebody is there
            raise UnreachableError(f"{self.provider.name} answered HTTP {status}.", hint="Try again later.")

    async def _get(self, path: str) -> tuple[int, bytes]:
        try:
            reply = await self._transport.send(Endpoint("GET", self._base + path, self._headers))
            try:
                return reply.status, await reply.read()
            finally:
                reply.close()
        except TransportError as error:
            raise UnreachableError(
                f"{self.provider.name} does not answer: {error}.",
                hint=f"Check that {self.provider.endpoint} is reachable from here.",
            ) from error
