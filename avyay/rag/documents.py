"""From the bytes of a file to a document in chunks, or to the reason why not."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from avyay.rag.chunk import chunk_document, sections
from avyay.rag.parsers import pdf
from avyay.rag.sources.base import Unread
from avyay.rag.types import Chunk, Section

__all__ = ["Document", "decode", "read_document"]

_ALERT = re.compile(r"(?m)^[ \t]*(?:-[ \t]+)?[\"']?alert[\"']?[ \t]*:")
_LFS = b"version https://git-lfs.github.com/spec/"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it will be indexed. `damaged` when some of its bytes were no text and are replaced."""

    path: str
    title: str
    chunks: tuple[Chunk, ...]
    sections: tuple[Section, ...]
    damaged: bool = False


def read_document(
    path: str, data: bytes, *, count_tokens: Callable[[str], int], max_tokens: int
) -> Document | Unread | None:
    """Cut a file into chunks.

    Returns:
        The document; or why it cannot be read; or None when it is readable and none of ours (YAML without alert rules).
    """
    suffix = PurePosixPath(path).suffix.lower()
    if data.startswith(_LFS):
        return Unread(path, "a Git LFS pointer: its content is not in the repository")
    if suffix == ".pdf":
        text, why = pdf.extract(data)
        damaged = False
        if why:
            return Unread(path, why)
    else:
        decoded = decode(data)
        if decoded is None:
            return Unread(path, "a binary file")
        text, damaged = decoded
    if suffix in (".yaml", ".yml") and not _ALERT.search(text):
        return None
    chunks = chunk_document(path, text, count_tokens=count_tokens, max_tokens=max_tokens)
    title = chunks[0].title if chunks else PurePosixPath(path).stem
    return Document(path, title, chunks, sections(path, text) if chunks else (), damaged)


def decode(data: bytes) -> tuple[str, bool] | None:
    """The text of a file and whether something in it had to be replaced; None when it is binary."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            text = data.decode(encoding, "replace").removeprefix("\ufeff")
            return text, "\ufffd" in text
    if b"\0" in data[:8_192]:
        return None
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") > max(16, len(text) // 5):
        return None
    # Old European files: every byte means something there, and nothing is lost.
    return data.decode("cp1252", "replace"), True
