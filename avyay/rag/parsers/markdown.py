"""Markdown by markdown-it's line maps; the text itself is never rewritten."""

from __future__ import annotations

import re
from functools import cache

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from avyay.rag.parsers.types import Heading, Outline, Span, merge_spans, split_lines

__all__ = ["parse"]

KEPT_WHOLE = {"fence", "code_block", "table_open"}
HTML_HEADING = re.compile(r"<h([1-6])\b[^>]*>(.*?)</h\1>", re.IGNORECASE | re.DOTALL)
HTML_TAG = re.compile(r"<[^>]*>")
ATTRIBUTES = re.compile(r"\s*\{[:#.][^{}]*\}\s*$")  # {#anchor} and {: .class} of kramdown, Hugo and MkDocs
FENCES = {"---": ("---", "..."), "+++": ("+++",)}
TOML_TITLE = re.compile(r"""^title\s*=\s*(["'])(.*)\1\s*$""", re.MULTILINE)


def parse(text: str) -> Outline:
    """Headings at the top level (ATX, setext, HTML); code and tables at any depth stay whole."""
    lines = split_lines(text)
    metadata, title = _front_matter(lines)
    body = [line.rstrip("\r\n") for line in lines]
    if metadata:
        body[: metadata.last] = [""] * metadata.last
    tokens = _blocks().parse("\n".join(body))
    headings: list[Heading] = []
    whole: list[Span] = []
    for index, token in enumerate(tokens):
        if token.map is None:
            continue
        first, end = token.map
        if token.type == "heading_open" and token.level == 0:
            headings.append(Heading(_plain(tokens[index + 1].content), int(token.tag[1:]), first + 1))
        elif token.type == "html_block" and token.level == 0:
            headings.extend(_html_headings(token.content, first + 1))
        elif token.type in KEPT_WHOLE:
            whole.append(Span(first + 1, max(first + 1, end)))
    outermost = next((heading for heading in headings if heading.text), None)
    if outermost and outermost.level == 1:
        title = outermost.text
    return Outline(title, tuple(heading for heading in headings if heading.text), merge_spans(whole), metadata)


@cache
def _blocks() -> MarkdownIt:
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.core.ruler.enableOnly(["normalize", "block"])  # inline text is read for headings alone
    return markdown


@cache
def _inline() -> MarkdownIt:
    return MarkdownIt("commonmark")


def _plain(markup: str) -> str:
    """The words of a heading: no emphasis, no link targets, no anchors."""
    words: list[str] = []

    def collect(tokens: list[Token]) -> None:
        for token in tokens:
            if token.children:
                collect(token.children)
            elif token.type in {"text", "code_inline"}:
                words.append(token.content)
            elif token.type in {"softbreak", "hardbreak"}:
                words.append(" ")

    collect(_inline().parseInline(ATTRIBUTES.sub("", markup)))
    return " ".join("".join(words).split())


def _html_headings(html: str, line: int) -> list[Heading]:
    found = []
    for match in HTML_HEADING.finditer(html):
        words = " ".join(HTML_TAG.sub(" ", match.group(2)).split())
        found.append(Heading(words, int(match.group(1)), line + html.count("\n", 0, match.start())))
    return found


def _front_matter(lines: list[str]) -> tuple[Span | None, str]:
    """Where YAML or TOML front matter stands, and the title it gives."""
    opening = lines[0].rstrip().removeprefix("\ufeff") if lines else ""
    for number, line in enumerate(lines[1:], 2):
        if opening not in FENCES:
            break
        if line.rstrip() in FENCES[opening]:
            block = "".join(lines[1 : number - 1])
            return Span(1, number), _yaml_title(block) if opening == "---" else _toml_title(block)
    return None, ""


def _yaml_title(block: str) -> str:
    try:
        values = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        return ""
    title = values.get("title") if isinstance(values, dict) else None
    return " ".join(str(title).split()) if isinstance(title, str | int | float) else ""


def _toml_title(block: str) -> str:
    match = TOML_TITLE.search(block)
    return match.group(2) if match else ""
