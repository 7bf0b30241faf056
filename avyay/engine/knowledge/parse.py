"""One file's text becomes symbols, imports and counted references. Pure; tolerates code that does not parse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from avyay.engine.knowledge.languages import Grammar, grammar
from avyay.engine.knowledge.types import Import, Kind, Parsed, Symbol

if TYPE_CHECKING:
    from tree_sitter import Node

__all__ = ["parse"]

_SIGNATURE_LENGTH = 140
_SHORTEST_NAME = 3  # i, x, id, os: too common to lead anywhere


def parse(source: bytes, language: str) -> Parsed:
    """What a file defines, imports and refers to.

    Args:
        language: A key of `LANGUAGES`.
    """
    from tree_sitter import QueryCursor

    rules = grammar(language)
    tree = rules.parser.parse(source)
    root = tree.root_node
    names = QueryCursor(rules.references).captures(root).get("name", ())
    counted = Counter(source[node.start_byte : node.end_byte] for node in names)
    references = {
        name.decode("utf-8", "replace"): count for name, count in counted.items() if len(name) >= _SHORTEST_NAME
    }
    return Parsed(
        symbols=tuple(_symbols(rules, root, source)),
        imports=tuple(_imports(rules, root, source)),
        references=references,
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        broken=root.has_error,
    )


def _symbols(rules: Grammar, root: Node, source: bytes) -> Iterable[Symbol]:
    from tree_sitter import QueryCursor

    found: dict[int, tuple[Node, str, Kind]] = {}
    for _, captures in QueryCursor(rules.definitions).matches(root):
        (name_node,) = captures["name"]
        capture = next(key for key in captures if key != "name")
        # A constant that holds a function matches twice: the function is the better word for it.
        if name_node.start_byte not in found or found[name_node.start_byte][2] == "constant":
            found[name_node.start_byte] = (captures[capture][0], _text(name_node, source), cast("Kind", capture))
    within: list[tuple[int, str, Kind]] = []  # (end, name, kind) of the definitions around
    kind: Kind
    for node, name, kind in sorted(found.values(), key=lambda item: (item[0].start_byte, -item[0].end_byte)):
        while within and within[-1][0] <= node.start_byte:
            within.pop()
        scope, around = (within[-1][1], within[-1][2]) if within else ("", None)
        if rules.name == "go" and kind == "method":
            scope = _receiver(node, source)
        elif kind == "function" and around in ("class", "type"):
            kind = "method"
        if around in ("function", "method") and kind in ("function", "constant"):
            continue  # what is local to a function is nobody else's business
        yield Symbol(
            name, kind, node.start_point[0] + 1, max(node.end_point[0] + 1, 1), _signature(node, source), scope
        )
        within.append((node.end_byte, f"{scope}.{name}" if scope else name, kind))


def _receiver(node: Node, source: bytes) -> str:
    receiver = node.child_by_field_name("receiver")
    words = _text(receiver, source).strip("()").split() if receiver else []
    return words[-1].lstrip("*").split("[")[0] if words else ""


def _signature(node: Node, source: bytes) -> str:
    body = node.child_by_field_name("body")
    value = node.child_by_field_name("value")
    if body is None and value is not None:
        body = value.child_by_field_name("body")
    end = body.start_byte if body is not None else node.end_byte
    text = source[node.start_byte : end] if body is not None else source[node.start_byte : end].split(b"\n", 1)[0]
    line = " ".join(text.decode("utf-8", "replace").split()).rstrip(" :{=>")
    return line if len(line) <= _SIGNATURE_LENGTH else f"{line[: _SIGNATURE_LENGTH - 1]}…"


def _imports(rules: Grammar, root: Node, source: bytes) -> Iterable[Import]:
    from tree_sitter import QueryCursor

    for _, captures in QueryCursor(rules.imports).matches(root):
        (node,) = captures["import"]
        line = node.start_point[0] + 1
        if rules.name == "python":
            yield from _python_imports(node, source, line)
        else:
            names = _imported_names(node, source) if rules.name != "go" else ()
            yield Import(_text(captures["source"][0], source).strip('"'), names, line)


def _python_imports(node: Node, source: bytes, line: int) -> Iterable[Import]:
    module = node.child_by_field_name("module_name")
    names = tuple(
        _text(child.child_by_field_name("name") or child, source) for child in node.children_by_field_name("name")
    )
    if module is not None:
        yield Import("".join(_text(module, source).split()), names, line)
    else:
        for name in names:
            yield Import(name, (), line)


def _imported_names(node: Node, source: bytes) -> tuple[str, ...]:
    names = []
    pending = list(node.children)
    while pending:
        child = pending.pop()
        if child.type in ("import_specifier", "export_specifier"):
            name = child.child_by_field_name("name")
            names.append(_text(name or child, source))
        elif child.type in ("import_clause", "named_imports", "export_clause"):
            pending += child.children
    return tuple(sorted(names))


def _text(node: Node, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")
