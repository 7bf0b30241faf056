"""Parsers, one a format: text to outline, by the file name's ending."""

from __future__ import annotations

from importlib import import_module
from pathlib import PurePosixPath
from typing import cast

from avyay.rag.parsers.types import Heading, Outline, Span, split_lines

__all__ = ["SUFFIXES", "Heading", "Outline", "Span", "parse", "split_lines"]

SUFFIXES = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdown": "markdown",
    ".mdx": "markdown",
    ".rst": "restructuredtext",
    ".rest": "restructuredtext",
    ".adoc": "asciidoc",
    ".asciidoc": "asciidoc",
    ".asc": "asciidoc",
    ".yaml": "alert_rules",
    ".yml": "alert_rules",
    ".pdf": "pdf",
    ".txt": "text",
    ".text": "text",
}


def parse(path: str, text: str) -> Outline:
    """The outline of `text`; a name whose ending says nothing is read as plain text. Never fails on any text."""
    name = SUFFIXES.get(PurePosixPath(path).suffix.lower(), "text")
    return cast("Outline", import_module(f"avyay.rag.parsers.{name}").parse(text))
