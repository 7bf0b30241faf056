"""Can an outsider decide what an expression says? Reads backwards from a use to the constants and inputs behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from avyay.raksha.syntax.bindings import handles_requests, is_bound, is_checked, is_used, part_for, surely_runs
from avyay.raksha.syntax.flow_words import (
    CONSTANT,
    HARMLESS,
    HARMLESS_LAST,
    HARMLESS_ROOTS,
    NAMES_OF_THE_LANGUAGE,
    OWN_NAMES,
    PASSING,
    QUOTED,
    SOURCES,
)
from avyay.raksha.syntax.lexer import Token, lex
from avyay.raksha.syntax.module import Assignment, Module
from avyay.raksha.syntax.tokens import matching_bracket, mentions, split, text_of, unwrap

if TYPE_CHECKING:
    from avyay.raksha.syntax.functions import Function

__all__ = ["Flow"]


class Flow:
    """Answers for one module; `unsafe` gives the operand that an outsider may choose, or None."""

    def __init__(self, module: Module, *, parameters: bool = True) -> None:
        self.module = module
        self.parameters = parameters
        self._busy: set[tuple[str, int]] = set()
        self._bound_anywhere: dict[str, bool] = {}

    def unsafe(self, tokens: Sequence[Token], at: int, depth: int = 0) -> str | None:
        """The text of a part of the expression that is not known to be harmless; None when all of it is.

        Args:
            tokens: The expression.
            at: Index of a token of the module, for the scope and what was assigned before.
        """
        if depth > 12 or not tokens:
            return None
        tokens = unwrap(list(tokens))
        if not tokens:
            return None
        for part in self._operands(tokens):
            found = self._operand(part, at, depth + 1)
            if found:
                return found
        return None

    def _operands(self, tokens: list[Token]) -> list[list[Token]]:
        """The values an expression is put together of; conditions are none."""
        if self.module.python:
            choices = split(tokens, "if", "else")
            if len(choices) == 3:
                return [*self._operands(choices[0]), *self._operands(choices[2])]
        else:
            question = split(tokens, "?")
            if len(question) == 2 and self.module.language != "go":
                return [piece for part in split(question[1], ":") for piece in self._operands(part)]
        if len(split(tokens, "==", "===", "!=", "!==", "<", ">", "<=", ">=", "in", "not", "&&", "and")) > 1:
            return []  # a truth value
        parts = split(tokens, "+", "%", "||", "??", "or", "|", "*", "/", "-", "//")
        if len(parts) == 1:
            return [tokens]
        return [unwrap(part) for part in parts if part]

    def _operand(self, tokens: list[Token], at: int, depth: int) -> str | None:
        tokens = unwrap(tokens)
        if not tokens:
            return None
        if len(tokens) > 1 and len(self._operands(tokens)) != 1:
            return self.unsafe(tokens, at, depth)
        head = tokens[0]
        if all(token.kind == "string" for token in tokens):
            return next((found for token in tokens if (found := self._string(token, at, depth))), None)
        if head.kind in ("number", "regex"):
            return None
        if head.text in ("[", "{", "("):
            return self._collection(tokens, at, depth)
        if head.kind == "string" and len(tokens) > 2 and tokens[1].text == ".":
            inner = self._string(head, at, depth)
            return inner or self._arguments(tokens, at, depth)
        if head.kind != "name" or head.text in (
            "None",
            "True",
            "False",
            "null",
            "undefined",
            "true",
            "false",
            "nil",
            "lambda",
        ):
            return None
        if len(tokens) == 1:
            return self._name(head.text, at, depth)
        if tokens[1].text == "in" or head.text in ("for", "function", "func"):
            return None
        if tokens[-1].kind == "string" and tokens[-1].prefix:  # a tagged template: its tag quotes what is put in
            return self._string(tokens[-1], at, depth) if tokens[-1].prefix.lower() in ("raw", "dedent") else None
        return self._chain(tokens, at, depth)

    def _string(self, token: Token, at: int, depth: int) -> str | None:
        for hole in token.holes:
            found = self.unsafe(lex(hole, self.module.language), at, depth)
            if found:
                return found
        return None

    def _collection(self, tokens: list[Token], at: int, depth: int) -> str | None:
        inner = tokens[1:]
        if tokens[-1].text in ("]", "}", ")"):
            inner = tokens[1:-1]
        elif "." in [token.text for token in tokens]:  # [a, b].join(" ")
            close = matching_bracket(tokens, 0)
            rest = tokens[close:]
            inner = tokens[1:close]
            if any(token.text == "map" for token in rest) and not self._mapped(rest, at, depth):
                return None
        if self.module.python:
            parts = split(inner, "for")
            if len(parts) > 1:  # a comprehension: its element, then what it runs over if the element uses it
                variables = {token.text for token in split(parts[1], "in")[0]}
                element = parts[0]
                if not mentions(element, variables):
                    return self.unsafe(element, at, depth)
                bound = is_used(self.module, element, variables)
                if not bound:
                    return None
                return self.unsafe(
                    split(split(parts[1], "in")[1] if "in" in {t.text for t in parts[1]} else [], "if")[0], at, depth
                )
            parts = split(inner, ",")
            if len(parts) > 1 or tokens[0].text == "{":
                found = [
                    self.unsafe(split(part, ":")[-1] if tokens[0].text == "{" else part, at, depth) for part in parts
                ]
                return next((item for item in found if item), None)
        for part in split(inner, ","):
            found_part = self.unsafe(part[1:] if part and part[0].text == "..." else part, at, depth)
            if found_part:
                return found_part
        return None

    def _mapped(self, rest: list[Token], at: int, depth: int) -> bool:
        """Whether the function given to `.map` may pass its element on."""
        arrow = next((i for i, token in enumerate(rest) if token.text == "=>"), -1)
        if arrow < 0:
            return not HARMLESS.search(text_of(rest).partition("(")[2].partition(")")[0] or "x")
        stop = arrow + 1
        level = 0
        while stop < len(rest):
            if rest[stop].text in "([{" and rest[stop].kind == "op":
                level += 1
            elif rest[stop].text in ")]}" and rest[stop].kind == "op":
                level -= 1
                if level < 0:
                    break
            stop += 1
        body = rest[arrow + 1 : stop]
        parameters = [
            token.text for token in rest[:arrow] if token.kind == "name" and token.text not in ("map", "async")
        ]
        names = set(parameters[:1])  # the second is the position
        return is_used(self.module, body, names)

    def _chain(self, tokens: list[Token], at: int, depth: int) -> str | None:
        """Attributes, subscripts and calls: `a.b[c].d(e)`."""
        text = text_of(tokens)
        names = [token.text for token in tokens if token.kind == "name"]
        root = names[0]
        if root in ("await", "new", "yield", "typeof"):
            return self.unsafe(tokens[1:], at, depth)
        if tokens[-1].text == "}" and self.module.language == "go":  # a composite literal
            brace = next((i for i, token in enumerate(tokens) if token.text == "{"), 0)
            return self._collection(tokens[brace:], at, depth)
        last_call = tokens[-1].text == ")"
        if last_call:
            opening = matching_bracket(tokens, len(tokens) - 1)
            callee = text_of(tokens[:opening])
            return self._called(callee, tokens, opening, at, depth)
        if tokens[-1].text == "]":
            opening = matching_bracket(tokens, len(tokens) - 1)
            base = tokens[:opening]
            if SOURCES.search(text_of(base) + "."):
                return text
            if base and (CONSTANT.match(base[-1].text) or self._constant_mapping(base, at)):
                return None
            return self.unsafe(base, at, depth)
        last = names[-1]
        if CONSTANT.match(last) or HARMLESS_LAST.match(last) or root in HARMLESS_ROOTS:
            return None
        if root in ("self", "this", "cls") and len(names) == 2:
            if OWN_NAMES.match(last):
                return None
            return self._attribute(root, last, text, at, depth)
        if SOURCES.search(text):
            return text
        if len(tokens) > 2 and all(token.kind == "name" or token.text in (".", "?.", "!") for token in tokens):
            return self._name(root, at, depth) and text
        return self.unsafe(tokens[: max(1, len(tokens) - 2)], at, depth)

    def _attribute(self, root: str, name: str, text: str, at: int, depth: int) -> str | None:
        """`self.name`: what the class assigns to it."""
        tokens = self.module.tokens
        for index in range(2, len(tokens) - 2):
            if tokens[index].text != name or tokens[index - 2].text != root or tokens[index + 1].text != "=":
                continue
            key = (text, index)
            if key in self._busy:
                continue
            self._busy.add(key)
            try:
                end = self.module.expression_end(index + 2)
                unsafe = self.unsafe(tokens[index + 2 : end], index, depth)
            finally:
                self._busy.discard(key)
            if unsafe:
                return text
        return None

    def _called(self, callee: str, tokens: list[Token], opening: int, at: int, depth: int) -> str | None:
        plain = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", callee)
        method = plain.rsplit(".", 1)[-1].removesuffix("?")
        if HARMLESS.search(plain) or QUOTED.search(plain):
            return None
        arguments = tokens[opening + 1 : -1]
        receiver = tokens[: max(opening - 2, 0)] if "." in callee else []
        if method in ("get", "Get", "pop", "setdefault") and receiver:
            if SOURCES.search(text_of(receiver) + "."):
                return text_of(tokens)
            if CONSTANT.match(receiver[-1].text) or self._constant_mapping(receiver, at):
                parts = split(arguments, ",")
                return self.unsafe(parts[1], at, depth) if len(parts) > 1 else None
            return self.unsafe(receiver, at, depth)
        if method in ("getenv", "Getenv", "LookupEnv"):
            return None
        if re.search(r"(?:^|\.)(?:input|raw_input|readline|prompt|question|Scan|ReadString)$", plain) or (
            SOURCES.search(plain + ".") and method not in ("join",)
        ):
            return text_of(tokens)
        if method == "Sprintf" or (method == "sprintf" and arguments):
            return self._formatted(arguments, at, depth)
        if method in ("Repeat", "repeat", "fill"):
            return (
                self.unsafe(receiver or split(arguments, ",")[0], at, depth)
                if method != "fill"
                else (self.unsafe(arguments, at, depth))
            )
        if method == "join" and self.module.python:
            return self.unsafe(arguments, at, depth)
        if method == "map" and not self.module.python:
            return self.unsafe(receiver, at, depth) if self._mapped(tokens[opening - 1 :], at, depth) else None
        if method in PASSING:
            found = self.unsafe(receiver, at, depth) if (receiver and receiver[0].kind != "op") or receiver else None
            if found:
                return found
            if receiver and receiver[0].text == "[" and "map" in [token.text for token in receiver]:
                return None
            cuts = method in ("slice", "split", "substring", "substr") and plain != "shlex.split"
            return None if cuts else self._list(arguments, at, depth)
        local = self.module.named(method) if plain in (method, f"self.{method}", f"this.{method}") else []
        if local:
            return self._returned(local[0], arguments, at, depth)
        found = self._list(arguments, at, depth)
        if found:
            return found
        return (
            self.unsafe(receiver, at, depth) if receiver and receiver[0].kind == "name" and len(receiver) > 1 else None
        )

    def _arguments(self, tokens: list[Token], at: int, depth: int) -> str | None:
        """`"...".format(a)` or `", ".join(x)`: the arguments of the calls after a string."""
        for index, token in enumerate(tokens):
            if token.text == "(" and token.kind == "op":
                close = matching_bracket(tokens, index)
                return self._list(tokens[index + 1 : close], at, depth)
        return None

    def _list(self, arguments: list[Token], at: int, depth: int) -> str | None:
        for part in split(arguments, ","):
            if self.module.python and len(split(part, "for")) > 1:
                found = self._collection([_BRACKET, *part, _CLOSE], at, depth)
            else:
                if len(part) > 2 and part[1].text == "=":
                    part = part[2:]
                while part and part[0].text in ("*", "**", "..."):
                    part = part[1:]
                if any(token.text == "=>" for token in part) or (
                    part and part[0].text in ("lambda", "function", "func")
                ):
                    continue
                found = self.unsafe(part, at, depth)
            if found:
                return found
        return None

    def _formatted(self, arguments: list[Token], at: int, depth: int) -> str | None:
        """`fmt.Sprintf`: numbers need no quoting."""
        parts = split(arguments, ",")
        if not parts or not parts[0]:
            return None
        verbs = re.findall(r"%[-+# 0-9.]*([a-zA-Z])", parts[0][0].value) if parts[0][0].kind == "string" else []
        for number, part in enumerate(parts[1:]):
            verb = verbs[number] if number < len(verbs) else "v"
            if verb in "dxXbcoeEfFgGtpT":
                continue
            found = self.unsafe(part[:-1] if part and part[-1].text == "..." else part, at, depth)
            if found:
                return found
        return None

    def _returned(self, function: Function, arguments: list[Token], at: int, depth: int) -> str | None:
        """What a function of this file returns, its parameters being what the call hands in."""
        key = (function.name, function.start)
        if key in self._busy or depth > 8:
            return None
        self._busy.add(key)
        try:
            tokens = self.module.tokens
            given = self._list(arguments, at, depth)
            for index in range(function.body, function.end):
                if tokens[index].text == "return" and self.module.enclosing(index) is function:
                    end = self.module.expression_end(index + 1)
                    found = self.unsafe(tokens[index + 1 : end], index, depth)
                    if found and (given or found.split(".")[0].split("[")[0] not in function.parameters):
                        return given or found
            return None
        finally:
            self._busy.discard(key)

    def _constant_mapping(self, tokens: list[Token], at: int) -> bool:
        """Whether a name holds a literal mapping or list of constants."""
        if len(tokens) != 1 or tokens[0].kind != "name":
            return False
        scope = self.module.enclosing(at)
        while True:
            found = self.module.assignments(tokens[0].text, scope)
            if found:
                return all(
                    item.tokens
                    and (item.tokens[0].text in ("{", "[", "(", "map", "frozenset", "set", "dict", "new", "Object"))
                    and len(item.tokens) > 2
                    and self.unsafe(item.tokens, item.index, 8) is None
                    for item in found
                )
            if scope is None:
                return False
            scope = self.module.outer(scope)

    def _name(self, name: str, at: int, depth: int) -> str | None:
        if CONSTANT.match(name) and len(name) > 1:
            return None
        if name in ("request", "req", "argv"):
            return name
        scope = self.module.enclosing(at)
        before: int | None = at
        while True:
            if scope is not None and is_checked(self.module, name, scope, at):
                return None
            assigned = self.module.assignments(name, scope, before)
            if scope is None or name not in scope.parameters:
                added = self._added(name, scope, at, depth)
                if added:
                    return added
            if assigned:
                return self._assigned(name, assigned, scope, depth)
            if scope is None:
                return name if self.parameters and self._from_nowhere(name) else None
            if name in scope.parameters:
                kind = scope.types.get(name, "")
                if self.module.language == "go" and re.match(r"(?:u?int\d*|float\d+|bool|time\.\w+|uuid\.UUID)$", kind):
                    return None
                if re.match(
                    r"(?:Literal\b|\w*(?:Enum|Order|Direction|Column|Field)$|UUID$|uuid\.UUID$|datetime|bool$)", kind
                ):
                    return None
                if kind and any("Literal" in text_of(item.tokens) for item in self.module.assignments(kind, None)):
                    return None
                if not (self.parameters or handles_requests(self.module, scope)):
                    return None
                return self._callers_pass(scope, name, depth) if self.module.python else name
            scope, before = self.module.outer(scope), None

    def _from_nowhere(self, name: str) -> bool:
        """Whether nothing in the file gives the name a value: part of a program, and the rest may have read it in."""
        if self.module.language == "go" or not name.islower() or name in NAMES_OF_THE_LANGUAGE:
            return False  # in Go, other files of the package share their names
        if self.module.python and "import *" in self.module.text:
            return False
        if name not in self._bound_anywhere:
            self._bound_anywhere[name] = is_bound(self.module, name)
        return not self._bound_anywhere[name]

    def _assigned(self, name: str, assigned: list[Assignment], scope: Function | None, depth: int) -> str | None:
        """The assignments that still count: from the last plain one that surely ran (same indent as the body)."""
        for item in reversed(assigned):
            key = (name, item.index)
            if key in self._busy:
                continue
            self._busy.add(key)
            try:
                found = next(
                    (f for tokens in part_for(self.module, item) if (f := self.unsafe(tokens, item.index, depth))), None
                )
            finally:
                self._busy.discard(key)
            if found:
                return found
            if item.operator in ("=", ":=") and item.how == "plain" and surely_runs(self.module, item, scope):
                return None
        if assigned[0].operator in ("+=", "||=") and scope is not None and name in scope.parameters:
            return name
        return None

    def _callers_pass(self, function: Function, name: str, depth: int) -> str | None:
        """What the calls of a private function of this file hand in for a parameter; the name itself when unknown."""
        if not function.name.startswith("_") or function.name.startswith("__") or depth > 8:
            return name
        key = (f"{function.name}({name}", function.start)
        position = function.parameters.index(name)
        calls = [call for call in self.module.calls() if call.method == function.name]
        if not calls or key in self._busy:
            return name
        self._busy.add(key)
        try:
            for call in calls:
                arguments = self.module.arguments(call)
                given = next((tokens for keyword, tokens in arguments if keyword == name), None)
                if given is None:
                    positional = [tokens for keyword, tokens in arguments if not keyword]
                    if any(tokens[0].text in ("*", "**") for tokens in positional[: position + 1]):
                        return name
                    if position >= len(positional):
                        continue  # its default
                    given = positional[position]
                if self.unsafe(given, call.index, depth + 1):
                    return name
        finally:
            self._busy.discard(key)
        return None

    def _added(self, name: str, scope: Function | None, at: int, depth: int) -> str | None:
        """What is appended to a list or builder before the use."""
        if scope is None:
            return None
        tokens = self.module.tokens
        for index in range(scope.body, min(at, scope.end, len(tokens) - 3)):
            if (
                tokens[index].text == name
                and tokens[index + 1].text == "."
                and tokens[index + 2].text
                in ("append", "push", "extend", "insert", "unshift", "WriteString", "write", "add")
                and tokens[index + 3].text == "("
                and self.module.partner[index + 3] > 0
                and (key := (name, index)) not in self._busy
            ):
                self._busy.add(key)
                try:
                    found = self._list(tokens[index + 4 : self.module.partner[index + 3]], index, depth)
                finally:
                    self._busy.discard(key)
                if found:
                    return found
        return None


_BRACKET = Token("op", "[", 0, 0, False, 0, "[")
_CLOSE = Token("op", "]", 0, 0, False, 0, "]")
