"""Which component answers a path, what a caller must be allowed for it, and in which dialect it is refused.

Pure. A path is looked at as it came over the wire and passed on the same way: no two parties can read it differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

__all__ = [
    "AREAS",
    "COMPONENTS",
    "FORMS",
    "Component",
    "ErrorDialect",
    "PathError",
    "Route",
    "events_seen",
    "find_route",
    "scope_allows",
    "valid_scope",
]

Component: TypeAlias = Literal["marga", "rag", "raksha", "siddhi", "engine", "gateway"]
ErrorDialect: TypeAlias = Literal["openai", "anthropic", "ollama", "problem"]

COMPONENTS: tuple[Component, ...] = ("marga", "rag", "raksha", "siddhi", "engine", "gateway")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path goes.

    Attributes:
        area: With the component the scope it asks for.
        dialect: How its errors look.
        public: Answered without authentication: the component checks a signature of its own.
        target: The path at the component.
    """

    component: Component
    area: str
    dialect: ErrorDialect = "problem"
    public: bool = False
    target: bytes = b""

    @property
    def scope(self) -> str:
        return f"{self.component}:{self.area}"


class PathError(Exception):
    """A path that two parties might read differently."""


# The first that fits holds: an exact path, or a prefix up to a slash.
_TABLE: tuple[tuple[str, Component, str, ErrorDialect], ...] = (
    ("/v1/chat", "marga", "chat", "openai"),
    ("/v1/messages", "marga", "messages", "anthropic"),
    ("/v1/responses", "marga", "responses", "openai"),
    ("/v1/embeddings", "marga", "embeddings", "openai"),
    ("/v1/models", "marga", "models", "openai"),
    ("/api/chat", "marga", "ollama", "ollama"),
    ("/api/generate", "marga", "ollama", "ollama"),
    ("/api/tags", "marga", "models", "ollama"),
    ("/marga", "marga", "records", "problem"),
    ("/v1/ask", "rag", "ask", "problem"),
    ("/v1/search", "rag", "search", "problem"),
    ("/v1/feedback", "rag", "feedback", "problem"),
    ("/v1/sources", "rag", "sources", "problem"),
    ("/v1/sync", "rag", "sync", "problem"),
    ("/v1/webhooks", "rag", "webhooks", "problem"),
    ("/mcp", "rag", "mcp", "problem"),
    ("/v1/scan", "raksha", "scan", "problem"),
    ("/v1/rules", "raksha", "rules", "problem"),
    ("/v1/siddhi", "siddhi", "api", "problem"),
    ("/v1/engine", "engine", "api", "problem"),
    ("/v1/usage", "gateway", "usage", "problem"),
    ("/v1/events", "gateway", "events", "problem"),
    ("/metrics", "gateway", "metrics", "problem"),
)
_PREFIXES = {path.encode(): (component, area, dialect) for path, component, area, dialect in _TABLE}
FORMS = frozenset({b"/console/sign-in", b"/console/sign-out"})
"""What the console's forms are posted to."""
_HOUSE = frozenset({b"/", b"/health", b"/ready", b"/openapi.json"}) | FORMS
_WITH_JOBS: tuple[Component, ...] = ("marga", "rag", "raksha", "siddhi", "engine")  # /v1/NAME/jobs is its /v1/jobs
_PLAIN = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*\Z")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_LONGEST = 2_048
OTHERS = frozenset({"marga:records", "gateway:metrics", "marga:events"})
"""What tells of other callers: not part of a component's scope, to be named or had with `admin`."""
AREAS: dict[str, frozenset[str]] = {
    name: frozenset({area for _, component, area, _ in _TABLE if component == name})
    | (frozenset({"jobs", "events"}) if name in _WITH_JOBS else frozenset())
    for name in COMPONENTS
}
_SEEN: dict[str, str] = {  # an area whose callers cause events may see those
    "rag:ask": "rag.documents.*",
    "rag:search": "rag.documents.*",
    "rag:sources": "rag.*",
    "rag:sync": "rag.*",
    "raksha:scan": "raksha.*",
    "siddhi:api": "siddhi.*",
    "engine:api": "engine.*",
}


@lru_cache(maxsize=2_048)
def find_route(raw: bytes) -> Route | None:
    """The route of a path as it stands in the request line, without its query; None when there is none.

    Raises:
        PathError: an empty, dot or encoded-dot segment, an encoded slash, percent sign or control character, a
            backslash, anything that is no path.
    """
    _check(raw)
    if raw in _HOUSE:
        return Route("gateway", "house", public=True, target=raw)
    parts = raw.split(b"/")
    if len(parts) >= 4 and parts[1] == b"v1" and parts[3] == b"jobs":
        owner = next((name for name in _WITH_JOBS if name.encode() == parts[2]), None)
        if owner is not None:
            return Route(owner, "jobs", target=b"/v1/" + b"/".join(parts[3:]))
    if len(parts) >= 4 and parts[1:3] == [b"v1", b"jobs"]:  # a job's id begins with its component's name
        owner = next((name for name in _WITH_JOBS if parts[3].startswith(name.encode() + b"_")), None)
        return Route(owner, "jobs", target=raw) if owner is not None else None
    for length in (3, 2):  # /v1/chat, then /marga
        found = _PREFIXES.get(b"/".join(parts[:length])) if len(parts) >= length else None
        if found is not None:
            component, area, dialect = found
            return Route(component, area, dialect, public=raw == b"/v1/webhooks/push", target=raw)
    return None


def _check(raw: bytes) -> None:
    if len(raw) > _LONGEST or _PLAIN.match(raw) is None:
        raise PathError("The path holds characters that a path does not have, or is too long.")
    if raw != b"/" and any(part in (b"", b".", b"..") for part in raw[1:].removesuffix(b"/").split(b"/")):
        raise PathError("The path has an empty or a dot segment.")
    for escape in _ESCAPE.finditer(raw):
        value = int(escape[1], 16)
        if value <= 0x20 or value >= 0x7F or value in b"./\\%?#;":
            raise PathError(f"The path holds {escape[0].decode()}, which hides a character that changes its meaning.")


def scope_allows(scopes: frozenset[str], route: Route) -> bool:
    """Whether one of a caller's scopes covers a route. Everybody may see his own usage."""
    if "*" in scopes or route.scope in scopes or route.scope == "gateway:usage":
        return True
    if route.scope == "gateway:events":
        return events_seen(scopes) is not None
    if route.scope in OTHERS:
        return "admin" in scopes
    return route.component in scopes


def events_seen(scopes: frozenset[str]) -> tuple[str, ...] | None:
    """Globs of the events a caller's scopes let him see; none of them stands for all, None for nothing at all.

    The router's events tell of other callers: they are had with `marga:events`, not with `marga`.
    """
    if scopes & {"*", "admin", "gateway:events"}:
        return ()
    found = {glob for scope, glob in _SEEN.items() if scope in scopes}
    for name in _WITH_JOBS:
        if f"{name}:events" in scopes or (name != "marga" and name in scopes):
            found.add(f"{name}.*")
        elif f"{name}:jobs" in scopes:
            found.add(f"{name}.job.*")
    return tuple(sorted(found)) or None


def valid_scope(scope: str) -> bool:
    """Whether a scope names something: `*`, a component, or one of its areas (`admin` sees everybody's usage)."""
    if scope in ("*", "admin"):
        return True
    component, colon, area = scope.partition(":")
    return component in AREAS and (not colon or area in AREAS[component])
