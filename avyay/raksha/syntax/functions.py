"""Finds the functions of a token stream: names, parameters, bodies, decorators."""

from __future__ import annotations

from dataclasses import dataclass, field

from avyay.raksha.syntax.lexer import Token

__all__ = ["Function", "find_functions"]

_NOT_METHODS = frozenset(
    [
        "if",
        "for",
        "while",
        "switch",
        "catch",
        "function",
        "return",
        "with",
        "await",
        "typeof",
        "new",
        "do",
        "else",
        "super",
        "import",
    ]
)


@dataclass(eq=False, slots=True)
class Function:
    """A function with a body.

    Attributes:
        name: As declared or assigned to; empty for anonymous ones.
        start: Index of its first token (the first decorator's in Python).
        body: Index of the first token of the body.
        end: Index behind the body.
        parameters: Names in order, without `self` and `cls`.
        types: Declared types by parameter name.
        decorators: For Python: (first, end) token indices of each decorator, behind the `@`.
        owner: Name of the class around it, if it is a method.
        indent: Column of its `def`.
    """

    name: str
    start: int
    body: int
    end: int
    parameters: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    decorators: tuple[tuple[int, int], ...] = ()
    owner: str = ""
    indent: int = 0


def find_functions(tokens: list[Token], partner: list[int], parent: list[int], language: str) -> list[Function]:
    """Every function, by place (outer before inner)."""
    if language == "python":
        found = _python(tokens, partner, parent)
    elif language == "go":
        found = _go(tokens, partner)
    else:
        found = _script(tokens, partner, parent)
    return sorted(found, key=lambda function: (function.start, -function.end))


def _block_end(tokens: list[Token], parent: list[int], colon: int, indent: int) -> int:
    """Where a Python block opened by a colon ends."""
    index = colon + 1
    if index < len(tokens) and not tokens[index].first:  # on the same line
        while index < len(tokens) and not (tokens[index].first and parent[index] == parent[colon]):
            index += 1
        return index
    while index < len(tokens):
        if tokens[index].first and tokens[index].column <= indent and parent[index] == parent[colon]:
            break
        index += 1
    return index


def _colon(tokens: list[Token], parent: list[int], start: int) -> int:
    level = parent[start]
    for index in range(start, min(len(tokens), start + 2000)):
        if tokens[index].text == ":" and parent[index] == level and tokens[index].kind == "op":
            return index
    return -1


def _python(tokens: list[Token], partner: list[int], parent: list[int]) -> list[Function]:
    found: list[Function] = []
    classes: list[tuple[int, int, str]] = []
    for index, token in enumerate(tokens):
        if token.kind != "name" or token.text not in ("def", "class") or index + 2 >= len(tokens):
            continue
        start = index - 1 if token.text == "def" and index and tokens[index - 1].text == "async" else index
        if not tokens[start].first:
            continue
        name = tokens[index + 1].text
        colon = _colon(tokens, parent, index)
        if colon < 0:
            continue
        end = _block_end(tokens, parent, colon, tokens[start].column)
        if token.text == "class":
            classes.append((colon, end, name))
            continue
        opening = index + 2
        while opening < colon and tokens[opening].text != "(":
            opening = partner[opening] + 1 if partner[opening] > opening else opening + 1
        names, types = _parameters(tokens[opening + 1 : max(partner[opening], opening + 1)])
        decorators = _decorators(tokens, parent, start)
        owner = next((title for first, stop, title in reversed(classes) if first < index < stop), "")
        found.append(
            Function(
                name, decorators[0][0] - 1 if decorators else start, colon + 1, end, names, types, decorators, owner,
                tokens[start].column,
            )
        )  # fmt: skip
    return found


def _decorators(tokens: list[Token], parent: list[int], start: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    end = start
    column = tokens[start].column
    while end > 0:
        first = end - 1
        while first >= 0 and not (tokens[first].first and parent[first] == parent[start]):
            first -= 1
        if first < 0 or tokens[first].text != "@" or tokens[first].column != column:
            break
        found.append((first + 1, end))
        end = first
    return tuple(reversed(found))


def _parameters(tokens: list[Token]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names and annotations of Python and TypeScript parameters, destructured ones included."""
    names: list[str] = []
    types: dict[str, str] = {}
    depth = 0
    state = "name"  # name -> type -> default
    last = ""
    pattern = 0  # depth of destructuring braces
    for index, token in enumerate(tokens):
        text = token.text
        if token.kind == "op" and text in "([{":
            if text in "{[" and state == "name" and depth == pattern:
                pattern += 1
            depth += 1
            continue
        if token.kind == "op" and text in ")]}":
            depth -= 1
            pattern = min(pattern, depth)
            continue
        if depth > pattern:
            if state == "type" and last:
                types[last] = types.get(last, "") + text
            continue
        if text == ",":
            state = "name"
        elif text == ":" and depth == 0:
            state = "type"
        elif text == ":":
            state = "name"
            if names:
                names.pop()  # `{ a: b }` binds b
        elif text == "=":
            state = "default"
        elif token.kind == "name" and state == "name" and text not in ("public", "private", "readonly", "protected"):
            if (
                index == 0
                or tokens[index - 1].kind == "op"
                or tokens[index - 1].text in ("private", "public", "readonly")
            ):
                names.append(text)
                last = text
        elif state == "type" and last:
            types[last] = types.get(last, "") + text
    return tuple(name for name in names if name not in ("self", "cls", "this")), types


def _script(tokens: list[Token], partner: list[int], parent: list[int]) -> list[Function]:
    found: list[Function] = []
    size = len(tokens)
    for index, token in enumerate(tokens):
        if token.text == "=>" and token.kind == "op" and index:
            found.extend(_arrow(tokens, partner, index))
        elif token.text == "(" and token.kind == "op" and partner[index] > 0 and index:
            closing = partner[index]
            body = _script_body(tokens, partner, closing)
            if body < 0:
                continue
            before = tokens[index - 1]
            star = 2 if before.text == "*" else 1
            name, start = "", index
            if before.text == "function" or (before.text == "*" and tokens[index - 2].text == "function"):
                start = index - star
                name = _assigned_name(tokens, start - (1 if start and tokens[start - 1].text == "async" else 0))
            elif before.kind == "name" and index >= 2 and tokens[index - 2].text in ("function", "*"):
                name, start = before.text, index - 2
            elif before.kind == "name" and before.text not in _NOT_METHODS:
                name, start = before.text, index - 1
                if index >= 2 and tokens[index - 2].text in (".", "new"):
                    continue
            else:
                continue
            if start and tokens[start - 1].text == "async":
                start -= 1
            names, types = _parameters(tokens[index + 1 : closing])
            end = partner[body] + 1 if partner[body] > 0 else size
            found.append(Function(name, start, body + 1, end, names, types))
    return found


def _script_body(tokens: list[Token], partner: list[int], closing: int) -> int:
    """The brace that opens a function's body behind its parameters; -1 without."""
    index = closing + 1
    if index < len(tokens) and tokens[index].text == ":":  # TypeScript result type
        index += 1
        while index < len(tokens) and index < closing + 40:
            text = tokens[index].text
            if text == "{" and tokens[index - 1].text not in (":", "|", "&", "<", ","):
                break
            if text in (";", ",", ")", "=>", "="):
                return -1
            index = partner[index] + 1 if partner[index] > index else index + 1
    return index if index < len(tokens) and tokens[index].text == "{" else -1


def _arrow(tokens: list[Token], partner: list[int], index: int) -> list[Function]:
    first = index - 1
    if tokens[first].text != ")" and first > 1:  # a result type between parameters and arrow, or a lone name
        probe = first
        while probe > 0 and index - probe < 24 and tokens[probe].text not in (")", ",", ";", "{", "=", "("):
            probe -= 1
        if tokens[probe].text == ")" and tokens[probe + 1].text == ":":
            first = probe
    if tokens[first].text == ")" and partner[first] >= 0:
        start = partner[first]
        names, types = _parameters(tokens[start + 1 : first])
    elif tokens[first].kind == "name":
        start, names, types = first, (tokens[first].text,), {}
    else:
        return []
    if start and tokens[start - 1].text == "async":
        start -= 1
    name = _assigned_name(tokens, start)
    body = index + 1
    if body < len(tokens) and tokens[body].text == "{" and partner[body] > 0:
        return [Function(name, start, body + 1, partner[body] + 1, names, types)]
    end = body
    while end < len(tokens):
        text = tokens[end].text
        if tokens[end].kind == "op" and text in ("(", "[", "{") and partner[end] > end:
            end = partner[end] + 1
            continue
        if tokens[end].kind == "op" and text in (")", "]", "}", ",", ";"):
            break
        if tokens[end].first and end > body and tokens[end].kind == "name" and tokens[end - 1].kind != "op":
            break
        end += 1
    return [Function(name, start, body, end, names, types)]


def _assigned_name(tokens: list[Token], start: int) -> str:
    """The name a function expression beginning at a token is assigned to."""
    before = start - 1
    while before > 0 and tokens[before].text == "(":  # const f = wrap(async () => ...)
        before -= 1
        if tokens[before].kind == "name" and before > 0 and tokens[before - 1].text == "=":
            before -= 1
        else:
            return ""
    if before > 0 and tokens[before].text == "=":
        for probe in range(before - 1, max(before - 12, -1), -1):  # const f: Handler = ...
            if tokens[probe].text in ("const", "let", "var"):
                return tokens[probe + 1].text
            if tokens[probe].text in (";", "{", "}", ")"):
                break
    if before > 0 and tokens[before].text in ("=", ":") and tokens[before - 1].kind == "name":
        return tokens[before - 1].text
    return ""


def _go(tokens: list[Token], partner: list[int]) -> list[Function]:
    found: list[Function] = []
    for index, token in enumerate(tokens):
        if token.text != "func" or token.kind != "name":
            continue
        at = index + 1
        name = ""
        receiver: list[Token] = []
        if at < len(tokens) and tokens[at].text == "(" and token.first and partner[at] > 0:
            after = partner[at] + 1
            if after < len(tokens) and tokens[after].kind == "name" and tokens[after + 1].text in ("(", "["):
                receiver = tokens[at + 1 : partner[at]]
                at = after
        if at < len(tokens) and tokens[at].kind == "name":
            name = tokens[at].text
            at += 1
            if at < len(tokens) and tokens[at].text == "[" and partner[at] > 0:
                at = partner[at] + 1
        if at >= len(tokens) or tokens[at].text != "(" or partner[at] < 0:
            continue
        closing = partner[at]
        body = closing + 1
        while body < len(tokens) and not (
            tokens[body].text == "{" and tokens[body - 1].text not in ("interface", "struct")
        ):
            if tokens[body].first or tokens[body].text in (",", ";", ")", "=", ":="):
                body = len(tokens)
                break
            body = partner[body] + 1 if partner[body] > body else body + 1
        if body >= len(tokens) or partner[body] < 0:
            continue
        names, types = _go_parameters(tokens[at + 1 : closing])
        if not name:
            name = _go_name(tokens, index)
        owner = receiver[-1].text if receiver else ""
        found.append(Function(name, index, body + 1, partner[body] + 1, names, types, (), owner))
    return found


def _go_name(tokens: list[Token], index: int) -> str:
    if index >= 2 and tokens[index - 1].text in (":=", "=") and tokens[index - 2].kind == "name":
        return tokens[index - 2].text
    return ""


def _go_parameters(tokens: list[Token]) -> tuple[tuple[str, ...], dict[str, str]]:
    names: list[str] = []
    types: dict[str, str] = {}
    pending: list[str] = []
    part: list[Token] = []
    depth = 0
    for token in [*tokens, Token("op", ",", 0, 0, False, 0, ",")]:
        if token.kind == "op" and token.text in "([{":
            depth += 1
        elif token.kind == "op" and token.text in ")]}":
            depth -= 1
        if token.text == "," and depth == 0:
            if part and part[0].kind == "name":
                pending.append(part[0].text)
                if len(part) > 1:
                    declared = "".join(piece.text for piece in part[1:])
                    names.extend(pending)
                    types.update(dict.fromkeys(pending, declared))
                    pending = []
            part = []
        else:
            part.append(token)
    return tuple(names), types
