"""PDF, by pypdf (the extra `pdf`): the text of each page is a section called after it, so a citation names the page.

Line numbers are those of the extracted text, in which a line with a form feed ends a page.
"""

from __future__ import annotations

import io
import logging

from avyay.rag.parsers.text import command_runs
from avyay.rag.parsers.types import Heading, Outline, split_lines

__all__ = ["extract", "parse"]

PAGE_END = "\f\n"
# What pypdf raises on files that are not what they say; its own errors derive from the first two.
BROKEN = (
    *(ValueError, OSError, KeyError, IndexError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError, AssertionError, NotImplementedError, MemoryError),
)


def extract(data: bytes) -> tuple[str, str]:
    """The text of a PDF, or else why there is none."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        return "", 'a PDF: reading it needs the extra pdf (python -m pip install "avyay[pdf]")'
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # every oddity of every file, otherwise
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return "", "a PDF that needs a password"
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, *BROKEN) as error:
        return "", f"a PDF that cannot be read: {type(error).__name__}"
    if not any(page.strip() for page in pages):
        return "", "a PDF without text: its pages are pictures"
    return "".join(page.replace("\f", " ").rstrip() + "\n" + PAGE_END for page in pages), ""


def parse(text: str) -> Outline:
    """One section a page that has text."""
    headings = []
    lines = split_lines(text)
    page, begins = 1, 1
    for number, line in enumerate(lines, 1):
        if line == PAGE_END:
            if any(one.strip() for one in lines[begins - 1 : number - 1]):
                headings.append(Heading(f"page {page}", 2, begins))
            page, begins = page + 1, number + 1
    return Outline("", tuple(headings), command_runs(lines))
