"""The console's pages: sign in with a key, look, sign out. It changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from avyay.clock import Clock
from avyay.errors import AuthError, AvyayError
from avyay.serve.board import board, clock_time
from avyay.serve.console.panels import DAYS, gather
from avyay.serve.console.session import COOKIE, LIFETIME, SCOPES, Sessions
from avyay.serve.gateway.app import GatewayApp, Page
from avyay.serve.gateway.auth import Identity, address_of
from avyay.serve.gateway.heads import check_local
from avyay.serve.gateway.keys import parse_key
from avyay.serve.gateway.replies import Refusal

__all__ = ["Console", "wants_page"]

_LARGEST_FORM = 4_096


def wants_page(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a caller would rather read a page than JSON."""
    return any(name == b"accept" and b"text/html" in value for name, value in headers)


class Console:
    """Answers `/`, `/console/sign-in` and `/console/sign-out` of the gateway.

    Args:
        plain: Answers `/` for callers that are no browsers.
        sessions: Of readers with keys; a gateway without keys shows its console to this machine.
    """

    def __init__(self, app: GatewayApp, sessions: Sessions, clock: Clock, *, plain: Page) -> None:
        self._app = app
        self._sessions = sessions
        self._clock = clock
        self._plain = plain

    async def home(self, scope: Any, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        """The console, or the form to sign in with."""
        if not wants_page(scope["headers"]):
            return await self._plain(scope, receive, send, identity, request_id)
        who = await self._reader(scope)
        response = self._sign_in_form() if who is None else await self._overview(who)
        await response(scope, receive, send)
        return response.status_code

    async def sign_in(self, scope: Any, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        """Check the key of the form and begin a session."""
        _same_site(scope)
        if scope["method"] != "POST":
            return await self._go_home(scope, receive, send)
        form = parse_qs((await _body(receive)).decode("latin-1"))
        text = form.get("key", [""])[0].strip()
        prefix = parse_key(text)
        try:
            if prefix is None:
                raise AuthError("That is not a key of this gateway: those begin with avy_.")
            found = await self._app.authenticator.identify(text.encode(), address_of(scope, self._app.options.proxies))
            if not SCOPES.intersection(found.scopes):
                raise AuthError("This key has not the scope `admin`: the console shows everybody's calls.")
        except AvyayError as error:
            response: Response = self._sign_in_form(error.message, 401 if isinstance(error, AuthError) else 429)
        else:
            response = RedirectResponse("/", 303)
            value = self._sessions.begin(prefix or "")
            response.set_cookie(
                COOKIE, value, max_age=int(LIFETIME), httponly=True, samesite="strict", secure=_encrypted(scope)
            )
        await response(scope, receive, send)
        return response.status_code

    async def sign_out(self, scope: Any, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        """End the session of this browser."""
        _same_site(scope)
        if scope["method"] == "POST":
            await _body(receive)
        return await self._go_home(scope, receive, send, forget=scope["method"] == "POST")

    async def _go_home(self, scope: Any, receive: Any, send: Any, *, forget: bool = False) -> int:
        response = RedirectResponse("/", 303)
        if forget:
            response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        await response(scope, receive, send)
        return response.status_code

    async def _reader(self, scope: Any) -> str | None:
        """Who is signed in; None when nobody is."""
        if self._app.authenticator.open:
            check_local(scope["headers"])
            return ""
        try:
            given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
            morsel = SimpleCookie("; ".join(given)).get(COOKIE)
        except CookieError:
            return None
        secret = None if morsel is None else await asyncio.to_thread(self._sessions.reader, morsel.value)
        return None if secret is None else secret.key.name

    def _sign_in_form(self, problem: str | None = None, status: int = 200) -> Response:
        alarms = [problem] if problem else []
        return board("sign_in.html", "avyay", "Console", self._clock.now(), alarms, status=status, forms=True)

    async def _overview(self, who: str) -> Response:
        now = self._clock.now()
        panels = await gather(self._app.upstreams, now)
        return await asyncio.to_thread(self._render, who, panels, now)

    def _render(self, who: str, panels: Mapping[str, Any], now: float) -> Response:
        alarms = []
        if (siddhi := panels["siddhi"].data) and siddhi["halted"]:
            alarms.append(f"SIDDHI's spending is halted: {siddhi['halted']}")
        alarms += siddhi.get("alarms", [])
        subtitle = f"signed in with the key {who}" if who else "open to this machine: this gateway has no keys"
        return board(
            "console.html",
            "avyay",
            subtitle,
            now,
            alarms,
            forms=True,
            days=DAYS,
            panels=panels,
            signed_in=bool(who),
            age=lambda at: _age(now - at),
            ago=_age,
            clock_time=clock_time,
        )


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _same_site(scope: Any) -> None:
    """Refuse forms that another site's page sends: the browser says so.

    Raises:
        Refusal: it came from elsewhere.
    """
    named = dict(scope["headers"])
    origin, host = named.get(b"origin"), named.get(b"host", b"")
    foreign = origin is not None and origin.partition(b"://")[2] != host
    if foreign or named.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        raise Refusal(403, "This form came from another site.", code="foreign_origin")


async def _body(receive: Any) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The form was cut off.", code="bad_request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LARGEST_FORM:
            raise Refusal(413, "The form is too large.", code="body_too_large")
        if not message.get("more_body"):
            return b"".join(parts)


def _encrypted(scope: Any) -> bool:
    """Whether the browser speaks TLS, to us or to the proxy in front of us."""
    forwarded = dict(scope["headers"]).get(b"x-forwarded-proto", b"")
    return bool(scope.get("scheme") == "https" or forwarded == b"https")
