"""The public collector: an application of its own, the only one meant for strangers."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from avyay.errors import AvyayError, UsageError
from avyay.siddhi.landing import read_token
from avyay.siddhi.mail import Mailer
from avyay.siddhi.visitors import Visitors

__all__ = ["collector_app", "is_bot"]

_GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
_BOT = re.compile(
    r"bot|crawl|spider|slurp|preview|fetch|scan|monitor|headless|python|curl|wget|java/|go-http|http-?client|facebookexternal"
    r"|lighthouse|pingdom|axios|okhttp",
    re.IGNORECASE,
)
_LARGEST = 8192
_TEMPLATES = Path(__file__).parent / "templates"
_SAFE = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
}
log = structlog.get_logger(__name__)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_bot(agent: str, purpose: str = "") -> bool:
    """Whether a request comes from a program, or from a browser that looks ahead."""
    return not agent.strip() or "prefetch" in purpose or _BOT.search(agent) is not None


def collector_app(
    visitors: Visitors,
    *,
    mailer: Mailer | None,
    public_url: str,
    contact: str,
    own: Sequence[str] = (),
    proxies: Sequence[str] = (),
) -> Starlette:
    """The application.

    Args:
        mailer: Sends the request to confirm; None where no mail is configured, and the visitor is told so.
        public_url: Where strangers reach this application: links in messages begin with it.
        contact: Who asks; stands in every message.
        own: Networks whose visits do not count.
        proxies: Networks whose `X-Forwarded-For` is believed.
    """
    ours = [ipaddress.ip_network(network) for network in own]
    trusted = [ipaddress.ip_network(network) for network in proxies]
    base = public_url.rstrip("/")

    async def view(request: Request) -> Response:
        # avyay: ignore[token-in-url] names the page, public and signed: it opens nothing
        page = read_token(visitors.page_secret, request.query_params.get("token", ""))
        if page is not None:
            await asyncio.to_thread(record, request, page)
        return Response(_GIF, media_type="image/gif", headers=_SAFE)

    def record(request: Request, page: tuple[str, str, int]) -> None:
        agent = request.headers.get("user-agent", "")
        address = client_address(request, trusted)
        if _inside(address, ours):
            return
        if is_bot(agent, request.headers.get("sec-purpose", request.headers.get("purpose", ""))):
            visitors.count(page, "bot")
        elif request.headers.get("sec-gpc") == "1" or request.headers.get("dnt") == "1":
            visitors.count(page, "anonymous")
        else:
            visitors.visit(page, address, agent)

    async def sign_up(request: Request) -> Response:
        fields = await form(request)
        page = read_token(visitors.page_secret, fields.get("token", ""))
        if page is None:
            return message("This form is not ours", ["Please open the page again and retry."], 400)
        if _inside(client_address(request, trusted), ours):
            return message("Not counted", ["You come from a network marked as our own."])
        if not fields.get("website"):  # people do not see that field
            try:
                code = await asyncio.to_thread(visitors.sign_up, page, fields.get("email", ""))
                if code is not None and mailer is not None:
                    await asyncio.to_thread(mailer.send, fields["email"].strip(), "Please confirm", letter(code))
            except UsageError as error:
                return message(error.message, [error.hint or ""], 400)
            except AvyayError as error:
                log.warning("siddhi_mail_failed", error=str(error))
        lines = ["This product does not exist yet. You have told us that it should: thank you."]
        if mailer is not None:
            lines.append("We have sent you one message. Your address counts only when you confirm it there.")
        return message("Thank you", [*lines, f"Asked by {contact}."])

    def letter(code: str) -> str:
        return (
            "Somebody, we hope you, asked to be told if a product is ever made. It does not exist yet.\n\n"
            f"Yes, that was me:  {base}/confirm?code={code}\nForget my address: {base}/forget?code={code}\n\n"
            f"Without your yes we write no more.\n{contact}\n"
        )

    async def ask(request: Request) -> Response:
        # Mail scanners open links: only the button does something.
        what = "confirm" if request.url.path == "/confirm" else "forget"
        code = request.query_params.get("code", "")
        if not re.fullmatch(r"[\w-]{10,64}", code):
            return message("This link is not complete", ["Copy all of it from the message."], 400)
        title = "Confirm your address" if what == "confirm" else "Forget your address"
        button = (
            f'<form method="post" action="/{what}"><input type="hidden" name="code" value="{code}">'
            f'<button type="submit">{title}</button></form>'
        )
        return message(title, [], extra=button)

    async def act(request: Request) -> Response:
        code = (await form(request)).get("code", "")
        if request.url.path == "/confirm":
            known = await asyncio.to_thread(visitors.confirm, code)
            done = "Your address is confirmed"
        else:
            known = await asyncio.to_thread(lambda: visitors.delete(code=code) > 0)
            done = "Your address is deleted"
        return message(done, []) if known else message("We do not know this link", ["It may be used up."], 404)

    async def form(request: Request) -> dict[str, str]:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _LARGEST:
                return {}
        try:
            return {name: values[0] for name, values in parse_qs(body.decode(), max_num_fields=10).items()}
        except (UnicodeDecodeError, ValueError):
            return {}

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/view.gif", view),
            Route("/signup", sign_up, methods=["POST"]),
            Route("/confirm", ask, methods=["GET"]),
            Route("/confirm", act, methods=["POST"]),
            Route("/forget", ask, methods=["GET"]),
            Route("/forget", act, methods=["POST"]),
            Route("/health", health),
        ]
    )


def client_address(request: Request, trusted: Sequence[Network]) -> str:
    """Who asks: the peer, or what a trusted proxy says."""
    address = request.client.host if request.client else ""
    for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        if not _inside(address, trusted) or not hop.strip():
            break
        address = hop.strip()
    return address


def message(title: str, lines: Sequence[str], status: int = 200, *, extra: str = "") -> Response:
    """A small page of our own. `extra` is trusted markup."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    shown: list[str] = [*lines, Markup(extra)] if extra else list(lines)  # noqa: S704 - ours
    text = environment.get_template("message.html").render(title=title, lines=shown, style=style)
    return HTMLResponse(text, status_code=status, headers=_SAFE)


def _inside(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)
