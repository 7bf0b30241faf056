"""Brackets, functions, calls and assignments of a token stream."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from avyay.raksha.syntax.functions import Function, find_functions
from avyay.raksha.syntax.lexer import Token, lex
from avyay.raksha.syntax.tokens import CLOSERS, split

__all__ = ["Assignment", "Call", "Function", "Module", "parse"]

_CONTINUES_AFTER = frozenset(
    [
        "+",
        "-",
        "*",
        "/",
        "%",
        "&",
        "|",
        "^",
        "=",
        "<",
        ">",
        "!",
        "?",
        ":",
        ",",
        ".",
        "&&",
        "||",
        "??",
        "=>",
        "(",
        "[",
        "{",
        "==",
        "!=",
        "===",
        "!==",
        "<=",
        ">=",
        "+=",
        "-=",
        "?.",
        "and",
        "or",
        "not",
        "in",
        "is",
        "await",
        "return",
        "typeof",
        "new",
        "of",
        ":=",
        "->",
        "<-",
        "**",
        "//",
    ]
)
_CONTINUES_BEFORE = frozenset(
    [
        ".",
        "?.",
        "+",
        "-",
        "*",
        "/",
        "%",
        "&",
        "|",
        "&&",
        "||",
        "??",
        "?",
        ":",
        ")",
        "]",
        "}",
        ",",
        "=",
        "==",
        "===",
        "!=",
        "!==",
        "<",
        ">",
        "<=",
        ">=",
        "=>",
    ]
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """`name operator tokens`; `for` binds elements of the tokens, `unpack` a part of them."""

    name: str
    operator: str
    tokens: tuple[Token, ...]
    index: int
    how: Literal["plain", "for", "unpack"] = "plain"
    position: int = 0  # among the names that are unpacked together


@dataclass(frozen=True, slots=True)
class Call:
    """`callee(arguments)`; the callee as dotted text (`db.session.execute`), `index` of its last name."""

    callee: str
    index: int
    first: int
    opening: int
    closing: int

    @property
    def method(self) -> str:
        return self.callee.rsplit(".", 1)[-1]

    @property
    def receiver(self) -> str:
        return self.callee.rsplit(".", 1)[0] if "." in self.callee else ""


def _opening(call: Call) -> int:
    return call.opening


@dataclass
class Module:
    """A source text read as tokens."""

    text: str
    language: str
    tokens: list[Token] = field(default_factory=list)

    @property
    def python(self) -> bool:
        return self.language == "python"

    @cached_property
    def partner(self) -> list[int]:
        """For each bracket the index of the other one; -1 elsewhere and for lone brackets."""
        return self._brackets[0]

    @cached_property
    def parent(self) -> list[int]:
        """For each token the index of the innermost bracket open around it; -1 at the top."""
        return self._brackets[1]

    @cached_property
    def _brackets(self) -> tuple[list[int], list[int]]:
        partner = [-1] * len(self.tokens)
        parent = [-1] * len(self.tokens)
        stack: list[int] = []
        for index, token in enumerate(self.tokens):
            if token.kind == "op" and token.text in (")", "]", "}"):
                while stack and CLOSERS[self.tokens[stack[-1]].text] != token.text:
                    if len(stack) > 1 and any(CLOSERS[self.tokens[i].text] == token.text for i in stack):
                        stack.pop()
                    else:
                        break
                if stack and CLOSERS[self.tokens[stack[-1]].text] == token.text:
                    opening = stack.pop()
                    partner[opening], partner[index] = index, opening
            parent[index] = stack[-1] if stack else -1
            if token.kind == "op" and token.text in CLOSERS:
                stack.append(index)
        return partner, parent

    @cached_property
    def functions(self) -> list[Function]:
        """Every function with a body, outer before inner."""
        return find_functions(self.tokens, self.partner, self.parent, self.language)

    @cached_property
    def _owners(self) -> list[Function | None]:
        owners: list[Function | None] = [None] * len(self.tokens)
        for function in self.functions:  # outer first: inner ones overwrite
            for index in range(function.start, min(function.end, len(owners))):
                owners[index] = function
        return owners

    def enclosing(self, index: int) -> Function | None:
        """The innermost function around a token."""
        return self._owners[index] if 0 <= index < len(self._owners) else None

    def outer(self, function: Function) -> Function | None:
        """The function around a function."""
        return self.enclosing(function.start - 1) if function.start > 0 else None

    def named(self, name: str) -> list[Function]:
        """The functions of that name."""
        return [function for function in self.functions if function.name == name]

    def calls(self, start: int = 0, end: int | None = None) -> Iterator[Call]:
        """Every call in a range of tokens."""
        calls = self._calls
        first = bisect.bisect_left(calls, max(start, 1), key=_opening)
        for index in range(first, len(calls)):
            call = calls[index]
            if end is not None and call.opening >= end:
                return
            yield call

    @cached_property
    def _calls(self) -> list[Call]:
        tokens = self.tokens
        script = not self.python and self.language != "go"
        found = []
        for index, token in enumerate(tokens):
            if token.text == "(" and token.kind == "op" and index and tokens[index - 1].kind == "name":
                if token.first and script:
                    continue
                call = self._call(index)
                if call is not None:
                    found.append(call)
        return found

    def _call(self, opening: int) -> Call | None:
        tokens = self.tokens
        closing = self.partner[opening]
        if closing < 0 or (opening >= 2 and tokens[opening - 2].text in ("def", "function", "func", "class")):
            return None
        parts = [tokens[opening - 1].text]
        first = opening - 1
        while first >= 2 and tokens[first - 1].text in (".", "?."):
            before = tokens[first - 2]
            if before.kind == "name":
                parts.append(before.text)
                first -= 2
            elif before.text in (")", "]") and self.partner[first - 2] >= 0:
                opened = self.partner[first - 2]
                parts.append("()" if before.text == ")" else "[]")
                first = opened
                if opened and tokens[opened - 1].kind == "name":
                    parts[-1] = tokens[opened - 1].text + parts[-1]
                    first = opened - 1
            elif before.kind in ("string", "regex"):
                parts.append('""')
                first -= 2
                break
            else:
                break
        return Call(".".join(reversed(parts)), opening - 1, first, opening, closing)

    def arguments(self, call: Call) -> list[tuple[str, list[Token]]]:
        """(keyword or empty, tokens) of each argument."""
        found = []
        for part in split(self.tokens[call.opening + 1 : call.closing], ","):
            keyword = ""
            if self.python and len(part) > 2 and part[0].kind == "name" and part[1].text == "=":
                keyword, part = part[0].text, part[2:]
            if part:
                found.append((keyword, part))
        return found

    def expression_end(self, index: int) -> int:
        """Where the expression beginning at a token ends (exclusive): at a `,` `;` closing bracket or line end outside
        brackets."""
        tokens, start = self.tokens, index
        while index < len(tokens):
            token = tokens[index]
            if token.kind == "op":
                if token.text in CLOSERS and self.partner[index] > index:
                    if token.text == "{" and self.language == "go" and index > start and self._go_block(index):
                        return index
                    index = self.partner[index] + 1
                    continue
                if token.text in (")", "]", "}", ";") or (token.text == "," and not self.python):
                    return index
            if token.first and index > start and self._breaks(index):
                return index
            index += 1
        return index

    def _go_block(self, index: int) -> bool:
        before = self.tokens[index - 1]
        return before.text == ")"

    def _breaks(self, index: int) -> bool:
        if self.python:
            return True  # line ends inside brackets are skipped over; others end the statement
        token, before = self.tokens[index], self.tokens[index - 1]
        if self.language == "go":
            return before.text not in _CONTINUES_AFTER or before.kind == "string"
        if before.kind in ("op", "name") and before.text in _CONTINUES_AFTER:
            return False
        return not (token.kind == "op" and token.text in _CONTINUES_BEFORE)

    @cached_property
    def _assigned(self) -> dict[str, list[Assignment]]:
        found: dict[str, list[Assignment]] = {}
        for index, token in enumerate(self.tokens):
            if token.kind == "name":
                assignment = self._assignment(index)
                if assignment is not None:
                    found.setdefault(token.text, []).append(assignment)
        return found

    def assignments(self, name: str, function: Function | None, before: int | None = None) -> list[Assignment]:
        """Assignments to a plain name inside a function (not in functions within it), or at module level."""
        return [
            item
            for item in self._assigned.get(name, ())
            if self.enclosing(item.index) is function and (before is None or item.index < before)
        ]

    def _assignment(self, index: int) -> Assignment | None:
        tokens, size = self.tokens, len(self.tokens)
        name = tokens[index].text
        previous = tokens[index - 1].text if index else ""
        if previous in (".", "?.", "->"):
            return None
        after = index + 1
        if after >= size:
            return None
        operator = tokens[after].text
        inside = self.parent[index]
        bracket = tokens[inside].text if inside >= 0 else ""
        if operator == ":" and after + 1 < size and bracket != "{" and bracket != "[" and not (self.python and bracket):
            stop = after + 1
            while stop < size and stop < after + 14 and tokens[stop].text not in ("=", ";", ")", "}", ":"):
                stop = self.partner[stop] + 1 if self.partner[stop] > stop else stop + 1
            if stop < size and tokens[stop].text == "=" and (self.python is False or not tokens[stop].first):
                operator, after = "=", stop
        if operator in ("=", ":=", "+=", "%=", "||=", "??="):
            if self.python and bracket in ("(", "[") and operator == "=":
                return None  # a keyword argument
            if after + 1 < size and tokens[after + 1].text == "range" and self.language == "go":
                end = next((i for i in range(after + 2, min(size, after + 60)) if tokens[i].text == "{"), after + 2)
                return Assignment(name, "for", tuple(tokens[after + 2 : end]), index, "for")
            end = self.expression_end(after + 1)
            unpacked = previous == "," and not self.language.endswith("script")
            position = self._position(index) if unpacked else 0
            value = tuple(tokens[after + 1 : end])
            return Assignment(name, operator, value, index, "unpack" if unpacked else "plain", position)
        if operator in ("in", "of") and previous in ("for", "const", "let", "var", ",", "("):
            end = self.expression_end(after + 1)
            if self.python:
                for stop in range(after + 1, end):
                    if tokens[stop].text in (":", "if", "for") and self.parent[stop] == self.parent[index]:
                        end = stop
                        break
            return Assignment(name, "for", tuple(tokens[after + 1 : end]), index, "for")
        if operator == "," and bracket in ("", "{", "(") and not self.language.endswith("script"):
            return self._unpacked(index, name)
        if bracket == "{" and not self.python and self.language != "go":
            closing = self.partner[inside]
            if 0 < closing < size - 1 and tokens[closing + 1].text == "=" and operator in (",", "}", "="):
                end = self.expression_end(closing + 2)
                return Assignment(name, "=", tuple(tokens[closing + 2 : end]), index, "unpack")
        return None

    def _unpacked(self, index: int, name: str) -> Assignment | None:
        tokens = self.tokens
        stop = index + 1
        while stop + 1 < len(tokens) and tokens[stop].text == "," and tokens[stop + 1].kind == "name":
            stop += 2
        if stop + 1 >= len(tokens) or tokens[stop].text not in ("=", ":=", "in"):
            return None
        loop = tokens[stop].text == "in" or tokens[stop + 1].text == "range"
        skip = 2 if tokens[stop + 1].text == "range" else 1
        end = self.expression_end(stop + skip)
        if loop:
            ends = (i for i in range(stop + skip, end) if tokens[i].text in ("{", ":") and tokens[i].kind == "op")
            end = next(ends, end)
        if self.parent[index] >= 0 and self.python and not loop:
            return None
        how: Literal["for", "unpack"] = "for" if loop else "unpack"
        return Assignment(name, tokens[stop].text, tuple(tokens[stop + skip : end]), index, how, self._position(index))

    def _position(self, index: int) -> int:
        """How many names stand before this one in `a, b = ...`."""
        count = 0
        while index >= 2 and self.tokens[index - 1].text == "," and self.tokens[index - 2].kind == "name":
            index -= 2
            count += 1
        return count


@lru_cache(maxsize=16)
def parse(text: str, language: str) -> Module:
    """The module of a source text; checks of one file share it."""
    return Module(text, language, lex(text, language))
