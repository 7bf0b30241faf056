"""Rows of tokens: their text, their parts, their brackets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from avyay.raksha.syntax.lexer import HOLE, Token

__all__ = ["CLOSERS", "matching_bracket", "mentions", "split", "text_of", "unwrap"]

CLOSERS = {"(": ")", "[": "]", "{": "}"}
BRACKETS = frozenset({*CLOSERS, *CLOSERS.values()})


def split(tokens: list[Token] | tuple[Token, ...], *separators: str) -> list[list[Token]]:
    """The parts between separators that stand outside brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "op":
            if token.text in CLOSERS:
                depth += 1
            elif token.text in (")", "]", "}"):
                depth -= 1
        if depth == 0 and token.text in separators and token.kind != "string":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def text_of(tokens: list[Token] | tuple[Token, ...]) -> str:
    """The tokens as text, single-spaced between names."""
    out = ""
    for token in tokens:
        if out and (out[-1].isalnum() or out[-1] in "_$") and (token.text[0].isalnum() or token.text[0] in "_$"):
            out += " "
        out += token.text
    return out


def mentions(tokens: list[Token], names: set[str]) -> bool:
    """Whether one of the names stands in an expression, also in the holes of its strings."""
    return any(
        (token.kind == "name" and token.text in names)
        or (
            HOLE in token.value
            and any(re.search(rf"\b{re.escape(n)}\b", h) for h in token.holes for n in names if n.isidentifier())
        )
        for token in tokens
    )


def unwrap(tokens: list[Token]) -> list[Token]:
    """Without brackets around all of it, `await` and TypeScript assertions."""
    while tokens:
        if tokens[0].text in ("await", "new") and len(tokens) > 1:
            tokens = tokens[1:]
        elif tokens[0].text == "(" and tokens[0].kind == "op" and matching_bracket(tokens, 0) == len(tokens) - 1:
            if len(split(tokens[1:-1], ",")) > 1 or len(split(tokens[1:-1], "for")) > 1:
                return tokens
            tokens = tokens[1:-1]
        elif tokens[-1].text in ("!", ",") and tokens[-1].kind == "op":
            tokens = tokens[:-1]
        elif len(tokens) > 2 and any(token.text == "as" and token.kind == "name" for token in tokens[1:]):
            parts = split(tokens, "as")
            if len(parts) < 2:
                return tokens
            tokens = parts[0]
        else:
            return tokens
    return tokens


def matching_bracket(tokens: Sequence[Token], at: int) -> int:
    """Where the bracket at `at` has its other half: after an opening one, before a closing one.

    Returns:
        The index; without another half, the number of tokens or 0.
    """
    opens = tokens[at].text in CLOSERS
    depth = 0
    for index in range(at, len(tokens)) if opens else range(at, -1, -1):
        token = tokens[index]
        if token.kind == "op" and token.text in BRACKETS:
            depth += 1 if (token.text in CLOSERS) == opens else -1
            if depth == 0:
                return index
    return len(tokens) if opens else 0
