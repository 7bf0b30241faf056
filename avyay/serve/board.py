"""Boards: pages that the server renders whole, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse

from avyay import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["board", "clock_time", "stages"]

_TEMPLATES = Path(__file__).parent / "templates"
_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)


def board(
    template: str,
    title: str,
    subtitle: str,
    now: float,
    alarms: Sequence[str] = (),
    *,
    status: int = 200,
    forms: bool = False,
    **rows: Any,
) -> HTMLResponse:
    """A rendered board.

    Args:
        now: Unix seconds.
        forms: Whether it has forms, which go to where it came from.
    """
    style = (_TEMPLATES / "board.css").read_text(encoding="utf-8")
    page = _environment().get_template(template)
    text = page.render(
        title=title, subtitle=subtitle, now=clock_time(now), alarms=alarms, style=style, version=__version__, **rows
    )
    headers = dict(_HEADERS)
    if forms:
        policy = headers["content-security-policy"]
        headers["content-security-policy"] = policy.replace("form-action 'none'", "form-action 'self'")
        headers["referrer-policy"] = "same-origin"  # else a browser hides even from us where a form was
    return HTMLResponse(text, status, headers)


def stages(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Counts as bars, the longest across the whole width."""
    most = max(counts.values(), default=0) or 1
    return [{"name": name, "count": count, "width": round(100 * count / most)} for name, count in counts.items()]


def clock_time(at: float) -> str:
    """A time as boards show it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
