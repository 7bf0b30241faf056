"""Which taint rules can match a file at all, told by its words: a rule needs a source and a sink in the same file.

Semgrep rules a file out when a word that every match must contain is missing, but looks at no more than words: nearly
every file has `request` and `data` in it somewhere. Here a pattern such as `request.$A` with `$A` one of a list is
asked for as `request.args`, a call as a name before a bracket. A rule that is ruled out costs nothing; one that is not
costs several milliseconds for each kilobyte, whatever it finds.

A file that passes may match; one that does not pass cannot. What is not understood passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Condition", "Words", "conditions"]


class Words:
    """A file's text and the set of its words."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self.text))


@dataclass(frozen=True, slots=True)
class Need:
    """What one pattern needs: all words, and a match of each expression."""

    words: frozenset[str] = frozenset()
    shapes: tuple[re.Pattern[str], ...] = ()

    def met(self, file: Words) -> bool:
        return self.words <= file.words and all(shape.search(file.text) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Condition:
    """Any of these must be met."""

    needs: tuple[Need, ...]

    def met(self, file: Words) -> bool:
        return any(need.met(file) for need in self.needs)


def conditions(rule: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What a file must meet for a taint rule to match in it; empty when nothing can be said."""
    if rule.get("mode") != "taint":
        return ()
    found = (_any(rule.get(name)) for name in ("pattern-sources", "pattern-sinks"))
    return tuple(Condition(needs) for needs in found if needs)


def _any(items: Any) -> tuple[Need, ...]:
    """The needs of alternatives; empty when one of them needs nothing we know of."""
    if not isinstance(items, list) or not items:
        return ()
    needs: list[Need] = []
    for item in items:
        mine = _alternatives(item, {})
        if not mine:
            return ()
        needs.extend(mine)
    return tuple(dict.fromkeys(needs))


def _alternatives(item: Any, variables: Mapping[str, str]) -> tuple[Need, ...]:
    if not isinstance(item, dict):
        return ()
    if isinstance(pattern := item.get("pattern"), str):
        need = _need(pattern, variables)
        return (need,) if need is not None else ()
    if isinstance(either := item.get("pattern-either"), list):
        return _either(either, variables)
    if isinstance(every := item.get("patterns"), list):
        return _every(every, variables)
    return ()


def _either(items: Sequence[Any], variables: Mapping[str, str]) -> tuple[Need, ...]:
    needs: list[Need] = []
    for item in items:
        mine = _alternatives(item, variables)
        if not mine:
            return ()
        needs.extend(mine)
    return tuple(needs)


def _every(items: Sequence[Any], variables: Mapping[str, str]) -> tuple[Need, ...]:
    """All must hold: the one that says most stands for them."""
    known = {**variables, **dict(_variables(items))}
    sets = [mine for item in items if (mine := _alternatives(item, known))]
    return max(sets, key=lambda needs: min(map(_weight, needs)), default=())


def _weight(need: Need) -> int:
    return len(need.words) + 2 * len(need.shapes)


def _variables(items: Iterable[Any]) -> Iterable[tuple[str, str]]:
    """Metavariables that must be one of some words: `^(a|b)$`."""
    for item in items:
        constraint = item.get("metavariable-regex") if isinstance(item, dict) else None
        if isinstance(constraint, dict):
            simple = re.fullmatch(r"\^\(?(?:\?:)?([\w|]+)\)?\$", str(constraint.get("regex", "")))
            if simple:
                yield str(constraint.get("metavariable")), simple[1]


_TOKEN = re.compile(r"\$\.\.\.[A-Z_0-9]+|\$[A-Z_0-9]+|\.\.\.|[A-Za-z_]\w*|\"[^\"\n]*\"|'[^'\n]*'|`[^`]*`|\S")
# Values that programs name the same everywhere: nobody imports them under another name.
_VALUES = frozenset({"request", "req", "self", "websocket", "ctx", "context", "params", "query"})
_KEYWORDS = frozenset(
    {
        "and", "as", "assert", "async", "await", "break", "case", "catch", "class", "const", "continue", "def",
        "default", "defer", "del", "delete", "do", "elif", "else", "except", "export", "extends", "false", "finally",
        "for", "from", "func", "function", "global", "go", "if", "import", "in", "instanceof", "interface", "is",
        "lambda", "let", "map", "match", "new", "nil", "none", "nonlocal", "not", "null", "or", "pass", "raise",
        "range", "return", "select", "static", "string", "struct", "super", "switch", "this", "throw", "true", "try",
        "type", "typeof", "undefined", "var", "void", "while", "with", "yield", "int", "error", "bool", "byte",
    }
)  # fmt: skip


def _need(pattern: str, variables: Mapping[str, str]) -> Need | None:
    tokens = _TOKEN.findall(pattern)
    words = frozenset(t for t in tokens if t[0].isalpha() or t[0] == "_")
    words = frozenset(word for word in words if word.lower() not in _KEYWORDS and word != "_")
    shape = _shape(tokens, variables)
    if shape is None and not words:
        return None
    return Need(words, (re.compile(shape),) if shape is not None else ())


def _shape(tokens: Sequence[str], variables: Mapping[str, str]) -> str | None:
    """How the beginning of the pattern looks in a text, where that says more than its words."""
    if tokens[:1] == ["@"]:
        return _decorator(tokens)
    if tokens[:1] == ["await"]:
        tokens = tokens[1:]
    if tokens[:1] == ["def"] and "request" in tokens:
        return _handler(tokens)
    chain, rest = _chain(tokens)
    if not chain:
        return None
    if len(chain) == 1:
        called = rest[:1] == ["("] and chain[0][0].isalpha() and chain[0] not in _KEYWORDS
        return rf"\b{chain[0]}\s*\(" if called else None
    last = variables.get(chain[-1], chain[-1])
    if chain[0] in _VALUES or (chain[0].startswith("$") and chain[-1] in variables):
        middle = "".join(rf"{part}\s*\??\.\s*" for part in chain[:-1] if not part.startswith("$"))
        if last.startswith("$") or any(part.startswith("$") for part in chain[1:-1]):
            return None
        return rf"(?:\b{middle}|\.\s*)(?:{last})\b" if not middle else rf"\b{middle}(?:{last})\b"
    return None


def _chain(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The dotted names at the beginning, and what follows."""
    chain: list[str] = []
    index = 0
    while index < len(tokens) and re.match(r"\$?[A-Za-z_]", tokens[index]):
        chain.append(tokens[index])
        if index + 1 < len(tokens) and tokens[index + 1] == ".":
            index += 2
            continue
        return chain, list(tokens[index + 1 :])
    return [], list(tokens)


def _decorator(tokens: Sequence[str]) -> str | None:
    chain, rest = _chain(tokens[1:])
    if rest[:1] != ["("] or not chain or chain[-1].startswith("$"):
        return None
    return rf"@\s*[\w.]*\b{chain[-1]}\s*\("


def _handler(tokens: Sequence[str]) -> str | None:
    """`def $F(request, ..., $P, ...)`: a function with `request` and one more parameter."""
    text = " ".join(tokens)
    if re.match(r"def \$\w+ \( request , \.\.\. , \$\w+", text):
        return r"\bdef\s+\w+\s*\(\s*request\b[^,()]*(?:\([^()]*\)[^,()]*)*,"
    if re.match(r"def \$\w+ \( self , request , \.\.\. , \$\w+", text):
        return r"\bdef\s+\w+\s*\(\s*self\s*,\s*request\b[^,()]*(?:\([^()]*\)[^,()]*)*,"
    return None
