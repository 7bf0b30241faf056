# ruff: noqa: E501 - long patterns read better whole
"""Strings that a program gives to a name: by assignment, as a default, in a comparison, as the key of a cipher."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from avyay.raksha.checks.secret_names import Kind
from avyay.raksha.syntax.lexer import Token
from avyay.raksha.syntax.module import Call, Module
from avyay.raksha.syntax.tokens import split, text_of

__all__ = ["Given", "given_strings"]

_CRYPTO = {  # callee -> position of the secret
    re.compile(r"(?:^|\.)(?:jwt|jsonwebtoken|jose|JWT|pyjwt)\.(?:encode|decode|sign|verify)$|^(?:jwtSign|jwtVerify|sign|verify)$"): (1, "signing"),
    re.compile(r"(?:^|\.)(?:URLSafeTimedSerializer|URLSafeSerializer|TimedSerializer|Signer|TimestampSigner|Fernet|cookieParser|cookie_parser|NewCookieStore|NewFilesystemStore|SignedString|NewWithClaims|SecretStr)$"): (0, "signing"),
    re.compile(r"(?:^|\.)(?:createHmac|createCipheriv)$"): (1, "signing"),
    re.compile(r"(?:^|\.)hmac\.(?:new|digest)$"): (0, "signing"),
    re.compile(r"^hmac\.New$"): (1, "signing"),
    re.compile(r"(?:^|\.)(?:HTTPBasicAuth|SetBasicAuth|BasicAuth|login|PlainAuth|HTTPDigestAuth)$"): (1, "password"),
    re.compile(r"(?:^|\.)(?:SessionMiddleware)$"): (9, "signing"),
}  # fmt: skip
_CRYPTO_CALL = re.compile(
    r"(?:encode|decode|sign|verify|jwtSign|jwtVerify|\w*Serializer|\w*Signer|Fernet|cookie_?[pP]arser|New\w*|SignedString|SecretStr|create\w+|new|digest|HTTP\w+|SetBasicAuth|BasicAuth|login|PlainAuth|SessionMiddleware)$"
)
_WRAPPERS = frozenset({
    "byte", "from", "SecretStr", "Secret", "bytes", "str", "String", "encode", "b64decode", "TextEncoder",
    "TrimSpace", "cast", "Field", "fromString",
})  # fmt: skip
_ENVIRONMENT = re.compile(
    r"(?i)(?:^|\.)(?:getenv|get_?env\w*|env|environ\.get|lookup_?env\w*|config|config\.get|env\.get|env\.str|settings\.get|getOrDefault|get_or_default|SetDefault|envOr\w*|env_or_default|Deno\.env\.get|decouple\.config|get|String|getConfig)$"
)
_LOGIN_CALL = re.compile(
    r"(?i)(?:connect|create_?connection|create_?pool|connection|client|pool|redis|login|engine|sequelize|mysql|mongo\w*|auth\w*)$"
)
_EMPTY_TEST = r"\bif\b[^\n]{{0,20}}(?:!\s*{name}\b|\bnot\s+{name}\b|\b{name}\s*(?:==|===|is)\s*(?:\"\"|''|nil|null|undefined|None)|len\({name}\)\s*==\s*0)"


@dataclass(frozen=True, slots=True)
class Given:
    """A string given to a name."""

    name: str
    token: Token
    fallback: bool = False
    kind: Kind | None = None
    used: bool = False  # to log in, or to compare with what somebody typed


def given_strings(module: Module) -> Iterator[Given]:
    """Every string that is given to a name: assignments, keys, keywords, defaults, comparisons, calls of crypto."""
    tokens = module.tokens
    for index, token in enumerate(tokens):
        if token.kind != "string" or token.holes or not token.value or index == 0:
            continue
        if (
            index + 1 < len(tokens)
            and tokens[index + 1].text in (":", ".", "]", "[")
            and tokens[index + 1].kind == "op"
            and not tokens[index - 1].text.startswith(("==", "!="))
            and not (tokens[index + 1].text == "." and _encoded(tokens, index))
        ):
            continue  # a key, or the start of a longer expression
        before = index - 1
        while before > 1 and tokens[before].text == "(" and tokens[before - 1].text in _WRAPPERS:
            before -= 2
            while before > 0 and tokens[before].text in ("]", "[", ".", "Buffer", "new", "TextEncoder", ")", "("):
                before -= 1
            if tokens[before].text not in ("=", ":=", ":", ",", "||", "??", "or", "return"):
                break
        if module.python and tokens[index - 1].text == "(" and index >= 2 and tokens[index - 2].text == "=":
            before = index - 2
        given = _name_before(module, before)
        if given is not None:
            name, fallback = given
            compared = tokens[before].text in ("==", "===") and name.lower() in ("password", "passwd", "pwd")
            yield Given(name, token, fallback, used=compared or _logs_in(module, index))
    for call in module.calls():
        yield from _in_call(module, call)


def _logs_in(module: Module, index: int) -> bool:
    """Whether the place is an argument of a call that connects or logs in."""
    inside = module.parent[index]
    for _ in range(2):
        if inside <= 0:
            return False
        if module.tokens[inside].text == "(":
            return (
                module.tokens[inside - 1].kind == "name"
                and _LOGIN_CALL.search(module.tokens[inside - 1].text) is not None
            )
        inside = module.parent[inside]
    return False


def _encoded(tokens: list[Token], index: int) -> bool:
    return index + 2 < len(tokens) and tokens[index + 2].text in ("encode", "trim", "strip", "split")


def _name_before(module: Module, index: int) -> tuple[str, bool] | None:
    """(name, whether the string is a fallback) when the token at `index` gives the following string to a name."""
    tokens = module.tokens
    operator = tokens[index].text
    if tokens[index].kind == "string" or index == 0:
        return None
    previous = tokens[index - 1]
    if operator in ("=", ":=", "==", "===", "!=", "!=="):
        if previous.text == "]" and module.partner[index - 1] > 0:
            inner = tokens[module.partner[index - 1] + 1 : index - 1]
            if len(inner) == 1 and inner[0].kind == "string":
                return inner[0].value, False
            opening = module.partner[index - 1]
            return (tokens[opening - 1].text, False) if not inner and opening else None
        if previous.kind == "name":
            name = previous.text
            if index >= 3 and tokens[index - 2].text == ":" and tokens[index - 3].kind == "name":
                name = tokens[index - 3].text
            elif index >= 2 and name in ("string", "str", "bytes", "String") and tokens[index - 2].kind == "name":
                name = tokens[index - 2].text
            elif index >= 2 and tokens[index - 2].text == "|":
                return None
            return name, operator == "=" and _when_empty(module, index, name)
        return None
    if operator == ":":
        if previous.kind in ("name", "string") and not (module.python and previous.kind == "name"):
            return previous.value, False
        return None
    if operator in ("||", "??", "or"):
        if previous.kind == "name":
            return previous.text, True
        if previous.text in (")", "]") and module.partner[index - 1] > 0:
            inner = tokens[module.partner[index - 1] + 1 : index - 1]
            if inner and inner[0].kind == "string":
                return inner[0].value, True
    return None


def _when_empty(module: Module, index: int, name: str) -> bool:
    """Whether the assignment runs only when the name holds nothing: `if secret == "" { secret = "..." }`."""
    start = module.tokens[index].start
    before = module.text[max(0, start - 120) : start]
    if "if" not in before or name not in before:
        return False
    return re.search(_EMPTY_TEST.format(name=re.escape(name)), before) is not None


def _in_call(module: Module, call: Call) -> Iterator[Given]:
    arguments = module.arguments(call)
    if len(arguments) >= 2 and _ENVIRONMENT.search(call.callee):
        name, default = arguments[0][1], arguments[1][1]
        if len(name) == 1 and name[0].kind == "string" and len(default) == 1 and default[0].kind == "string":
            yield Given(name[0].value, default[0], True)
    elif len(arguments) == 2 and call.method in (
        "Set",
        "set",
        "setHeader",
        "header",
        "Add",
        "setdefault",
        "setRequestHeader",
        "append",
    ):
        name, value = arguments[0][1], arguments[1][1]
        if len(name) == 1 and name[0].kind == "string" and len(value) == 1 and value[0].kind == "string":
            yield Given(name[0].value, value[0], False)
    for pattern, (position, kind) in _CRYPTO.items() if _CRYPTO_CALL.match(call.method) else ():
        if not pattern.search(call.callee):
            continue
        if (
            call.method in ("sign", "verify", "login")
            and "." not in call.callee
            and not re.search(r"jsonwebtoken|jose", module.text)
        ):
            continue
        if position < len(arguments) and not arguments[position][0]:
            string = _only_string(arguments[position][1])
            if string is not None:
                yield Given(
                    "password" if kind == "password" else f"the key of {call.method}()",
                    string,
                    False,
                    "password" if kind == "password" else "signing",
                )
    for keyword, value in arguments:
        if keyword == "auth" and value and value[0].text == "(":
            parts = split(value[1:-1], ",")
            if len(parts) == 2 and (string := _only_string(parts[1])) is not None:
                yield Given("password", string, False, "password")


def _only_string(tokens: list[Token]) -> Token | None:
    """The string of `"x"`, `b"x"`, `[]byte("x")`, `Buffer.from("x")`, `"x".encode()`."""
    strings = [token for token in tokens if token.kind == "string" and not token.holes]
    if len(strings) != 1 or len(tokens) > 9:
        return None
    rest = text_of([token for token in tokens if token.kind != "string"])
    return (
        strings[0]
        if rest
        in ("", "[]byte()", "Buffer.from()", ".encode()", "new TextEncoder().encode()", "bytes(,)", "secret=", "{}")
        else None
    )
