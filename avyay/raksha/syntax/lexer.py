"""Text to tokens for Python, JavaScript/TypeScript and Go. Interpolations of strings become holes with their source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["HOLE", "Token", "lex"]

HOLE = "\x00"  # stands in a string's value where something is interpolated

Kind = Literal["name", "number", "string", "regex", "op"]


@dataclass(slots=True)
class Token:
    """One token.

    Attributes:
        start: Offset of the first character; `end` is exclusive.
        first: Whether it is the first token on its line.
        column: 0-based column of the first character.
        value: For strings: the content without quotes, `HOLE` for each interpolation. Else the text.
        holes: For strings: the source of each interpolation, in order.
        prefix: For strings: the letters before the quote, or the tag of a template literal.
    """

    kind: Kind
    text: str
    start: int
    end: int
    first: bool
    column: int
    value: str
    holes: tuple[str, ...] = ()
    prefix: str = ""


# Blanks before a token belong to its match: half as many matches.
_SPACE = r"(?:[ \t\f\u00a0\ufeff]|\\\r?\n)*+(?:(?P<space>[\r\n\v][ \t\f\r\n\v\u00a0\ufeff]*)"
_NUMBER = r"(?P<number>\.?\d(?:[eE][+-]|[\w.])*)"
_PYTHON = re.compile(
    _SPACE
    + r"|(?P<comment>\#[^\n]*)"
    + r"|(?P<plain>(?i:rb|br|u|b|r)?(?:"
    + r"'''[^\\']*+(?:(?:\\.|'(?!''))[^\\']*+)*+'''|\"\"\"[^\\\"]*+(?:(?:\\.|\"(?!\"\"))[^\\\"]*+)*+\"\"\""
    + r"|'(?!'')[^\\\n']*+(?:\\.[^\\\n']*+)*+'|\"(?!\"\")[^\\\n\"]*+(?:\\.[^\\\n\"]*+)*+\"))"
    + r"|(?P<open>(?i:rb|br|f|fr|rf|t|tr|rt|u|b|r)?(?:'''|\"\"\"|'|\"))"
    + r"|(?P<name>[^\W\d]\w*)|"
    + _NUMBER
    + r"|(?P<op>\*\*=|//=|>>=|<<=|\.\.\.|->|:=|[-+*/%&|^@=!<>]=|\*\*|//|<<|>>|.))",
    re.DOTALL,
)
_SCRIPT = re.compile(
    _SPACE
    + r"|(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z)|<!--.*?-->)"
    + r"|(?P<string>'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\")"
    + r"|(?P<template>`)"
    + r"|(?P<name>[#@]?[^\W\d][\w$]*|\$[\w$]*)|"
    + _NUMBER
    + r"|(?P<op>>>>=|\.\.\.|===|!==|\*\*=|<<=|>>=|&&=|\|\|=|\?\?=|=>|\?\.(?!\d)|\?\?|&&|\|\||\+\+|--"
    + r"|[-+*/%&|^=!<>]=|\*\*|<<|>>|.))",
    re.DOTALL,
)
_GO = re.compile(
    _SPACE
    + r"|(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))"
    + r"|(?P<string>\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|'(?:\\.|[^'\\\n])+')"
    + r"|(?P<name>[^\W\d]\w*)|"
    + _NUMBER
    + r"|(?P<op>\.\.\.|:=|&\^=|<<=|>>=|<-|&&|\|\||\+\+|--|[-+*/%&|^=!<>]=|<<|>>|&\^|.))",
    re.DOTALL,
)
_REGEX = re.compile(r"/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*")
_BEFORE_REGEX = frozenset(
    ["return", "typeof", "case", "in", "of", "do", "else", "void", "delete", "throw", "new", "await", "yield"]
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\n": ""}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_RAW_END = {quote: re.compile(rf"(?:\\.|[^\\])*?{quote}", re.DOTALL) for quote in ("'''", '"""')}
_RAW_END |= {quote: re.compile(rf"(?:\\.|[^\\\n{quote}])*{quote}", re.DOTALL) for quote in ("'", '"')}


def lex(text: str, language: str) -> list[Token]:
    """The tokens of a source text without comments and space. Never raises: odd characters become operators."""
    if language == "python":
        return _lex(text, _PYTHON, 0, len(text), "")[0]
    return _lex(text, _GO if language == "go" else _SCRIPT, 0, len(text), "")[0]


def _lex(text: str, pattern: re.Pattern[str], position: int, stop: int, closing: str) -> tuple[list[Token], int]:
    """Tokens from `position`; with `closing`, up to that bracket at depth 0 (its offset is the second result)."""
    tokens: list[Token] = []
    first = True
    line_start = text.rfind("\n", 0, position) + 1
    depth = 0
    script = pattern is _SCRIPT
    match_at = pattern.match
    while position < stop:
        match = match_at(text, position, stop)
        if match is None:  # blanks at the end
            break
        group = match.lastgroup or "op"
        position = match.start(group)
        end = match.end()
        piece = text[position:end]
        if group in ("space", "comment"):
            newline = piece.rfind("\n")
            if newline >= 0:
                first = True
                line_start = position + newline + 1
            position = end
            continue
        token: Token | None = None
        column = position - line_start
        if group in ("name", "number"):
            tokens.append(Token(group, piece, position, end, first, column, piece))  # type: ignore[arg-type]
            first = False
            position = end
            continue
        if group == "plain":
            token = _plain_string(piece, position, end, first, column)
        elif group == "open":
            token = _python_string(text, position, end, piece, first, column, stop)
        elif group == "template":
            value, holes, end = _template(text, end, stop)
            tag = tokens[-1].text if tokens and tokens[-1].kind == "name" and tokens[-1].end == position else ""
            token = Token("string", text[position:end], position, end, first, column, value, holes, tag)
        elif group == "string":
            raw = piece[0] == "`"
            token = Token("string", piece, position, end, first, column, piece[1:-1] if raw else _cook(piece[1:-1]))
        elif script and piece[0] == "/" and _regex_allowed(tokens):
            found = _REGEX.match(text, position, stop)
            if found:
                end = found.end()
                token = Token("regex", found.group(), position, end, first, column, found.group())
        if token is None:
            if closing:
                if piece in "([{":
                    depth += 1
                elif piece == closing and depth == 0:
                    return tokens, position
                elif piece in ")]}":
                    depth -= 1
            token = Token("op", piece, position, end, first, column, piece)
        elif "\n" in token.text:
            line_start = token.start + token.text.rfind("\n") + 1
        tokens.append(token)
        first = False
        position = max(token.end, position + 1)
    return tokens, stop


def _regex_allowed(tokens: list[Token]) -> bool:
    if not tokens:
        return True
    last = tokens[-1]
    if last.kind == "op":
        return last.text not in (")", "]", "}", "++", "--")
    return last.kind == "name" and last.text in _BEFORE_REGEX


def _cook(raw: str) -> str:
    if "\\" not in raw:
        return raw

    def character(match: re.Match[str]) -> str:
        escape = match.group(1)
        if escape[0] in "xu" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _ESCAPES.get(escape, escape)

    return _ESCAPE.sub(character, raw)


def _plain_string(piece: str, start: int, end: int, first: bool, column: int) -> Token:
    body = piece.lstrip("rRbBuU")
    prefix = piece[: len(piece) - len(body)].lower()
    width = 3 if body.startswith(("'''", '"""')) else 1
    body = body[width:-width]
    return Token("string", piece, start, end, first, column, body if "r" in prefix else _cook(body), (), prefix)


def _python_string(text: str, start: int, at: int, opening: str, first: bool, column: int, stop: int) -> Token:
    quote = opening.lstrip("rRbBfFuUtT")
    prefix = opening[: len(opening) - len(quote)].lower()
    if "f" in prefix or "t" in prefix:
        value, holes, end = _formatted(text, at, quote, stop)
        return Token("string", text[start:end], start, end, first, column, value, holes, prefix)
    found = _RAW_END[quote].match(text, at, stop)
    if found is None:  # unterminated: one odd character
        return Token("op", opening, start, at, first, column, opening)
    body = found.group()[: -len(quote)]
    return Token(
        "string", text[start : found.end()], start, found.end(), first, column,
        body if "r" in prefix else _cook(body), (), prefix,
    )  # fmt: skip


_ORDINARY = re.compile(r"[^\\{}\n'\"]+")


def _formatted(text: str, at: int, quote: str, stop: int) -> tuple[str, tuple[str, ...], int]:
    """A formatted string's (value, holes, end); nested quotes of the same kind (3.12) are understood."""
    parts: list[str] = []
    holes: list[str] = []
    while at < stop:
        if text.startswith(quote, at):
            return "".join(parts), tuple(holes), at + len(quote)
        here = text[at]
        if run := _ORDINARY.match(text, at, stop):
            parts.append(run.group())
            at = run.end()
        elif here == "\\" and at + 1 < stop:
            parts.append(_cook(text[at : at + 2]))
            at += 2
        elif here in "{}" and text.startswith(here * 2, at):
            parts.append(here)
            at += 2
        elif here == "{":
            _, end = _lex(text, _PYTHON, at + 1, stop, "}")
            if end >= stop:
                return "".join(parts), tuple(holes), stop
            holes.append(_without_format(text[at + 1 : end]))
            parts.append(HOLE)
            at = end + 1
        elif here == "\n" and len(quote) == 1:
            return "".join(parts), tuple(holes), at
        else:
            parts.append(here)
            at += 1
    return "".join(parts), tuple(holes), stop


_FORMAT = re.compile(r"(?:![rsa])?(?::(?!=)[^'\"\])}]*(?:\{[^}]*\}[^'\"\])}]*)*)?=?\s*$")


def _without_format(hole: str) -> str:
    """An interpolation without its conversion and format specification."""
    match = _FORMAT.search(hole)
    head = hole[: match.start()] if match else hole
    return head if head.strip() and head.count("[") == head.count("]") and head.count("(") == head.count(")") else hole


def _template(text: str, at: int, stop: int) -> tuple[str, tuple[str, ...], int]:
    """A template literal's (value, holes, end), `at` behind the opening backtick."""
    parts: list[str] = []
    holes: list[str] = []
    while at < stop:
        here = text[at]
        if here == "`":
            return "".join(parts), tuple(holes), at + 1
        if here == "\\" and at + 1 < stop:
            parts.append(_cook(text[at : at + 2]))
            at += 2
        elif here == "$" and text.startswith("${", at):
            _, end = _lex(text, _SCRIPT, at + 2, stop, "}")
            holes.append(text[at + 2 : end])
            parts.append(HOLE)
            at = end + 1
        else:
            parts.append(here)
            at += 1
    return "".join(parts), tuple(holes), stop
