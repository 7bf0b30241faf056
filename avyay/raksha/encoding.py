"""In which encoding a source file is written: what its byte-order mark says, for Python its coding line, else UTF-8."""

from __future__ import annotations

import codecs
import io
import tokenize

__all__ = ["MARKS", "encoding_of"]

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(data: bytes, language: str) -> str:
    """The name of a text codec; `utf-8` when nothing is declared, or when what is declared is no encoding of text."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    if language != "python" or b"coding" not in data[:4096]:
        return "utf-8"
    try:
        name, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        "".encode(name)  # names such as `rot13` and `hex` are codecs, but none of text
    except (SyntaxError, LookupError, UnicodeError):
        return "utf-8"
    return name
