"""Which rules can match a file at all, told by its words: a taint rule needs a source and a sink in the same file.

Semgrep rules a file out when a word that every match must contain is missing, but looks at no more than words: nearly
every file has `request` and `data` in it somewhere. Here a pattern such as `request.$A` with `$A` one of a list is
asked for as `request.args`, a call as a name before a bracket. A rule that is ruled out costs nothing; one that is not
costs several milliseconds for each kilobyte, whatever it finds.

The engine follows values within one function and from the module's own statements into it, so in Python source and sink
must stand in one function or outside of all.

A file that passes may match; one that does not pass cannot. What is not understood passes.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["Condition", "Words", "can_match", "conditions", "scopes_of"]


class Words:
    """A text and the set of its words; `around` is the text that every part of a file sees."""

    def __init__(self, text: str, around: Words | None = None) -> None:
        self.text = text
        self._around = around
        self._shapes: dict[str, bool] = {}

    @cached_property
    def words(self) -> frozenset[str]:
        own = frozenset(_WORD.findall(self.text))
        return own | self._around.words if self._around is not None else own

    def has(self, shape: re.Pattern[str]) -> bool:
        """Whether the expression matches somewhere; many rules ask for the same."""
        known = self._shapes.get(shape.pattern)
        if known is None:
            known = shape.search(self.text) is not None or (self._around is not None and self._around.has(shape))
            self._shapes[shape.pattern] = known
        return known


_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Need:
    """What one pattern needs: all words, and a match of each expression."""

    words: frozenset[str] = frozenset()
    shapes: tuple[re.Pattern[str], ...] = ()
    texts: frozenset[str] = frozenset()  # a match of the shapes holds them; looked for first

    def met(self, file: Words) -> bool:
        if not self.words <= file.words or not all(text in file.text for text in self.texts):
            return False
        return all(file.has(shape) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Condition:
    """Any of these must be met."""

    needs: tuple[Need, ...]

    def met(self, file: Words) -> bool:
        return any(need.met(file) for need in self.needs)


def can_match(needed: Sequence[Condition], file: Words, scopes_of_file: Callable[[], Sequence[Words]]) -> bool:
    """Whether the conditions are met by a file, and by one of its scopes when they are known."""
    if not all(condition.met(file) for condition in needed):
        return False
    scopes = scopes_of_file()
    return not scopes or any(all(condition.met(scope) for condition in needed) for scope in scopes)


def scopes_of(tree: ast.Module, lines: Sequence[str]) -> tuple[Words, ...]:
    """The functions of a Python file that stand in no other function, each with all that stands in none."""
    inside = [False] * (len(lines) + 1)
    places: list[tuple[int, int]] = []
    for function in _functions(tree):
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        last = function.end_lineno or function.lineno
        places.append((first, last))
        inside[first : last + 1] = [True] * (last + 1 - first)
    around = Words("\n".join(line for number, line in enumerate(lines, start=1) if not inside[number]))
    return (around, *(Words("\n".join(lines[first - 1 : last]), around) for first, last in places))


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _functions(child)


def conditions(rule: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What a file must meet for a rule to match in it; empty when nothing can be said."""
    if not {str(name).lower() for name in rule.get("languages", ())} <= _PLAIN:
        return ()  # languages whose words may be written otherwise than in the pattern: `user` in a Dockerfile
    if rule.get("mode") != "taint":
        needs = _alternatives({name: rule[name] for name in _FORMULAS if name in rule}, {})
        return (Condition(needs),) if needs else ()
    # An expression is looked for in the whole file, not in the function of source and sink.
    found = (_any(_without_expressions(rule.get(name))) for name in ("pattern-sources", "pattern-sinks"))
    return tuple(Condition(needs) for needs in found if needs)


def _without_expressions(item: Any) -> Any:
    if isinstance(item, list):
        return [_without_expressions(each) for each in item]
    if isinstance(item, dict):
        return {name: _without_expressions(value) for name, value in item.items() if name != "pattern-regex"}
    return item


_PLAIN = frozenset({"python", "javascript", "typescript", "go", "py", "js", "ts", "golang", "regex", "generic"})
_FORMULAS = ("pattern", "pattern-either", "patterns", "pattern-regex")


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
    pattern = item.get("pattern", item.get("pattern-inside"))
    if isinstance(pattern, str):
        # What stands around may need words of a class's other methods.
        need = _need(pattern, variables) if not pattern.lstrip("@ ").startswith("class ") else None
        return (need,) if need is not None else ()
    if isinstance(either := item.get("pattern-either"), list):
        return _either(either, variables)
    if isinstance(every := item.get("patterns"), list):
        return _every(every, variables)
    if isinstance(regex := item.get("pattern-regex"), str):
        return _expression(regex)
    return ()


def _expression(regex: str) -> tuple[Need, ...]:
    """An expression to be found in the text; nothing when ours is another dialect."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return (Need(frozenset(), (re.compile(_WIDE.sub(r"\\u\1", regex), re.MULTILINE),), _literals(regex)),)
    except (re.error, Warning, OverflowError):
        return ()


def _literals(regex: str) -> frozenset[str]:
    """Texts that stand in every match, which is a quicker question than the expression itself."""
    if "(?i" in regex or "(?x" in regex:
        return frozenset()
    outside, depth, index = "", 0, 0  # what stands outside of brackets, a blank for all that is no plain word
    while index < len(regex):
        here = regex[index]
        if here == "\\":
            outside += " "
            index += 4 if regex[index + 1 : index + 2] == "x" else 2
            continue
        if here == "[":
            index = regex.find("]", index + 2)
            if index < 0:
                return frozenset()
        if here == "|" and depth == 0:
            return frozenset()
        depth += (here == "(") - (here == ")")
        if here in "?*{":
            outside = outside[:-1] + " "
            if here == "{":
                index = max(index, regex.find("}", index))
        outside += here if depth == 0 and (here.isalnum() or here == "_") else " "
        index += 1
    return frozenset(word for word in outside.split() if len(word) > 2)


_WIDE = re.compile(r"\\x\{([0-9A-Fa-f]{4})\}")


def _either(items: Sequence[Any], variables: Mapping[str, str]) -> tuple[Need, ...]:
    needs: list[Need] = []
    for item in items:
        mine = _alternatives(item, variables)
        if not mine:
            return ()
        needs.extend(mine)
    return tuple(needs)


def _every(items: Sequence[Any], variables: Mapping[str, str]) -> tuple[Need, ...]:
    """All must hold: their combinations, or of very many those of the one that says most."""
    known = {**variables, **dict(_variables(items))}
    sets = [mine for item in items if (mine := _alternatives(item, known))]
    if math.prod(map(len, sets)) > COMBINATIONS:
        return max(sets, key=lambda needs: min(map(_weight, needs)))
    return tuple(dict.fromkeys(_together(needs) for needs in itertools.product(*sets) if needs))


def _together(needs: Sequence[Need]) -> Need:
    words = frozenset(word for need in needs for word in need.words)
    texts = frozenset(text for need in needs for text in need.texts)
    return Need(words, tuple(dict.fromkeys(shape for need in needs for shape in need.shapes)), texts)


def _weight(need: Need) -> int:
    return len(need.words) + 2 * len(need.shapes)


def _variables(items: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Metavariables whose text must match: an expression to look for in the file."""
    for item in items:
        constraint = item.get("metavariable-regex") if isinstance(item, dict) else None
        if isinstance(constraint, dict):
            shape = _searchable(str(constraint.get("regex", "")))
            if shape:
                yield str(constraint.get("metavariable")), shape


def _searchable(regex: str) -> str:
    """`^(?:next|url\\w*)$` as an expression for a whole word, `.*(llm|chat).*` for a part; empty when it is neither."""
    flag = "(?i)" if regex.startswith("(?i)") else ""
    inner = regex.removeprefix(flag)
    whole = inner.startswith("^") and inner.endswith("$")
    inner = inner.removeprefix("^").removesuffix("$") if whole else inner.removeprefix(".*").removesuffix(".*")
    if not re.fullmatch(r"\(?(?:\?:)?(?:\w|\||\\w\*|\w\?)+\)?", inner) or "||" in inner:
        return ""
    return rf"{flag}\b(?:{inner})\b" if whole else f"{flag}(?:{inner})"


COMBINATIONS = 64
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
    names = [token for token in tokens if token[0].isalpha() or token[0] == "_"]
    words = {word for word in names if word.lower() not in _KEYWORDS and word != "_"}
    words.update(word for token in tokens for word in _quoted(token))
    shapes = [shape for shape in (_shape(tokens, variables),) if shape is not None]
    shapes += [variables[token] for token in dict.fromkeys(tokens) if token in variables]
    if not shapes and not words:
        return None
    return Need(frozenset(words), tuple(re.compile(shape) for shape in shapes))


def _quoted(token: str) -> list[str]:
    """The words of a text that stands in the program as it stands in the pattern."""
    plain = len(token) > 2 and token[0] in "\"'" and "..." not in token and "$" not in token and "\\" not in token
    return _WORD.findall(token) if plain and not token[1:].startswith("=~") else []


def _shape(tokens: Sequence[str], variables: Mapping[str, str]) -> str | None:
    """How the beginning of the pattern looks in a text, where that says more than its words."""
    if tokens[:1] == ["@"]:
        return _decorator(tokens)
    if tokens[:1] == ["await"]:
        tokens = tokens[1:]
    if tokens[:1] == ["def"] and "request" in tokens:
        return _handler(tokens)
    chain, rest = _chain(tokens)
    if len(chain) == 1:
        called = rest[:1] == ["("] and chain[0][0].isalpha() and chain[0] not in _KEYWORDS
        return rf"\b{chain[0]}\s*\(" if called else None
    if not chain or any(part.startswith("$") for part in chain[1:-1]):
        return None
    first, last = chain[0], chain[-1]
    if first.startswith("$") and not last.startswith("$") and rest[:1] in (["("], ["="]):
        owner = variables.get(first, "").removesuffix(r"\b") if variables.get(first, "").endswith(r"\b") else ""
        after = r"\s*[(<?!]" if rest[0] == "(" else r"\s*(?::[^=\n]*)?="
        return rf"{owner}\s*\??\.\s*{last}{after}"
    if last.startswith("$"):
        # Only a list of names says something: `request.(args|form)`.
        last = variables.get(last, "").removeprefix(r"\b").removesuffix(r"\b")
        if not last or last.startswith("(?i)"):
            return None
    elif first not in _VALUES:
        return None  # it may have been imported by its last name
    middle = "".join(rf"{part}\s*\??\.\s*" for part in chain[:-1] if not part.startswith("$"))
    return rf"\b{middle}(?:{last})\b" if first in _VALUES else rf"\.\s*(?:{last})\b"


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
    if rest[:1] != ["("] or not chain:
        return None
    name = r"\w+" if chain[-1].startswith("$") else chain[-1]
    before = r"\." if len(chain) > 1 else r"\b"
    return rf"@\s*[\w.]*{before}{name}\s*\("


def _handler(tokens: Sequence[str]) -> str | None:
    """`def $F(request, ..., $P, ...)`: a function with `request` and one more parameter."""
    text = " ".join(tokens)
    if re.match(r"def \$\w+ \( request , \.\.\. , \$\w+", text):
        return r"\bdef\s+\w+\s*\(\s*request\b[^,()]*(?:\([^()]*\)[^,()]*)*,"
    if re.match(r"def \$\w+ \( self , request , \.\.\. , \$\w+", text):
        return r"\bdef\s+\w+\s*\(\s*self\s*,\s*request\b[^,()]*(?:\([^()]*\)[^,()]*)*,"
    return None
