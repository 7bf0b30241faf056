"""Text from the scanned code, made harmless for where it is shown."""

from __future__ import annotations

import re

__all__ = ["markdown", "visible"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#])")


def visible(text: str) -> str:
    """Without characters that drive a terminal or turn the reading direction: a file's name must not hide a finding."""
    return _CONTROL.sub("\ufffd", text)


def markdown(text: str) -> str:
    """As plain text in Markdown: no links, no images, no mentions, no table breaks."""
    plain = _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
    return plain.replace("@", "@\u200b").replace("://", ":\u200b//")
