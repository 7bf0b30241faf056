"""Data URLs, as OpenAI's dialects carry pictures and files. Nothing is ever fetched."""

from __future__ import annotations

import re

from avyay.marga.wire.notes import MalformedError

__all__ = ["data_url", "parse_data_url"]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?(;base64)?,", re.ASCII)


def data_url(media_type: str | None, data: str) -> str:
    return f"data:{media_type or 'application/octet-stream'};base64,{data}"


def parse_data_url(url: str) -> tuple[str | None, str] | None:
    """Media type and base64 data of a data URL; None for any other URL. Nothing is ever fetched."""
    if not url.startswith("data:"):
        return None
    found = _DATA_URL.match(url)
    if found is None or not found[2]:
        raise MalformedError("A data URL must be base64-encoded.", field="image_url.url", code="invalid_image_url")
    return found[1], url[found.end() :]
