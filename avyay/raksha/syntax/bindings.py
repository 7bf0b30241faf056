# ruff: noqa: E501 - long patterns read better whole
"""What a module says of a name without following its value: bound, checked, certainly assigned, used, filled by requests."""

from __future__ import annotations

import re

from avyay.raksha.syntax.flow_words import BINDERS, HARMLESS, QUOTED
from avyay.raksha.syntax.functions import Function
from avyay.raksha.syntax.lexer import Token, lex
from avyay.raksha.syntax.module import Assignment, Module
from avyay.raksha.syntax.tokens import matching_bracket, split, text_of

__all__ = ["handles_requests", "is_bound", "is_checked", "is_used", "part_for", "surely_runs"]


def is_checked(module: Module, name: str, scope: Function, at: int) -> bool:
    """Whether the name was compared with an allow-list or a pattern before this use."""
    tokens = module.tokens
    end = min(at, scope.end)
    for index in range(scope.body, end):
        if tokens[index].text != name or tokens[index].kind != "name" or tokens[index - 1].text in (".", "?."):
            continue
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        following = tokens[index + 2].text if index + 2 < len(tokens) else ""
        before = tokens[index - 1].text
        if before == "for":
            continue
        if (after == "not" and following == "in") or (
            after == "in" and before in ("if", "assert", "and", "or", "elif", "not")
        ):
            return not re.search(r"(?i)block|deny|bad|forbid", text_of(tokens[index + 2 : index + 5]))
        if after == "." and following in (
            "isalnum",
            "isdigit",
            "isidentifier",
            "isnumeric",
            "isalpha",
            "isdecimal",
        ):
            return True
        if before in ("(", ",") and module.parent[index] > 0:
            opening = module.parent[index]
            callee = text_of(tokens[max(0, opening - 5) : opening])
            if re.search(
                r"(?i)(?:fullmatch|re\.match|\.match|\.test|includes|\.has|Contains|MatchString|hasOwn\w*|is_?(?:valid|safe|allowed"
                r"|uuid|int|ip\w*)\w*|validate\w*|check\w*|assert\w*|verify\w*|ip_address|ip_network|ensure\w*|ParseIP|IPv?4?Address"
                r"|isIP\w*|isInteger|isFinite|ipaddress\.\w+)$",
                callee,
            ):
                return True
        if before == "[" and module.language != "python":
            statement = text_of(tokens[max(scope.body, index - 8) : index])
            if re.search(
                r"(?i)(?:if|ok\s*:?=|!)\s*[\w, :=!(]*(?:allow|valid|permit|safe|known|whitelist)\w*\[$", statement
            ):
                return True
        if before == "switch" or (before == "(" and tokens[index - 2].text == "switch") or before == "match":
            return True
    return False


def handles_requests(module: Module, function: Function) -> bool:
    """Whether a Python function's parameters come from outside: a route of a web framework, or a tool of a model."""
    tokens = module.tokens
    return any(
        re.search(
            r"\.(?:get|post|put|patch|delete|route|websocket|api_route|tool|command)\(", text_of(tokens[first:end])
        )
        for first, end in function.decorators
    )


def surely_runs(module: Module, item: Assignment, scope: Function | None) -> bool:
    """Whether an assignment is made whenever its function runs: it stands under no condition and in no loop."""
    tokens = module.tokens
    if scope is None:
        return True
    if module.python:
        first = item.index
        while first > 0 and not tokens[first].first:
            first -= 1
        return tokens[first].column == tokens[scope.body].column
    return module.parent[item.index] == module.parent[scope.body]


def is_bound(module: Module, name: str) -> bool:
    """Whether the name is imported, defined, or bound by a loop, a pattern or a parameter anywhere."""
    tokens = module.tokens
    for index, token in enumerate(tokens):
        if token.text != name or token.kind != "name":
            continue
        before = tokens[index - 1].text if index else ""
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if before in BINDERS or after in ("=", ":=", "=>", "+=", "in", "of"):
            return True
        inside = module.parent[index]
        first = inside if inside >= 0 else index
        if before == "," or before in ("(", "{", "["):
            line = module.text[module.text.rfind("\n", 0, tokens[first].start) + 1 : tokens[first].start]
            if re.search(r"\b(?:import|from|def|function|lambda|for|const|let|var|class|catch|export)\b", line):
                return True
    return any(name in function.parameters for function in module.functions)


def part_for(module: Module, item: Assignment) -> list[list[Token]]:
    """The part of `a, b = x, y` (or of `(x, y) if c else (z, w)`) that one name gets."""
    tokens = list(item.tokens)
    if item.how != "unpack":
        return [tokens]
    choices = split(tokens, "if", "else") if module.python else [tokens]
    found = []
    for branch in [choices[0], choices[2]] if len(choices) == 3 else [tokens]:
        if branch and branch[0].text == "(" and matching_bracket(branch, 0) == len(branch) - 1:
            branch = branch[1:-1]
        parts = split(branch, ",")
        found.append(parts[item.position] if len(parts) > max(1, item.position) else branch)
    return found


def is_used(module: Module, tokens: list[Token], variables: set[str]) -> bool:
    """Whether one of the variables reaches the value of an expression unconverted."""
    for token in tokens:
        for hole in token.holes:
            if is_used(module, lex(hole, module.language), variables):
                return True
    text = text_of(tokens)
    if tokens and tokens[0].kind == "name" and (HARMLESS.search(tokens[0].text) or QUOTED.search(text.split("(")[0])):
        return False
    return any(token.kind == "name" and token.text in variables for token in tokens)
