# ruff: noqa: E501 - long patterns read better whole
"""Which functions answer HTTP requests, and by which methods: FastAPI, Flask, Django, Express, Next.js, net/http, gin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from avyay.raksha.syntax.functions import Function
from avyay.raksha.syntax.lexer import Token
from avyay.raksha.syntax.module import Call, Module
from avyay.raksha.syntax.tokens import text_of

__all__ = ["Handler", "find_handlers"]

ANY = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
METHODS = re.compile(r"(?i)^(?:get|post|put|patch|delete|head|options)$")
ROUTERS = re.compile(
    r"(?i)^(?:app|router|route|api|bp|blueprint|server|r|rt|mux|e|g|group|v\d+|fastify|hono|koa|web|routes|admin|auth|users?|public|private|protected|\w*(?:app|router|routes|api|bp|blueprint|server|mux|group|engine)|api_?v\d+)$"
)


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that answers requests.

    Attributes:
        methods: The HTTP methods that reach it, upper case.
        path: The route as written, or empty.
    """

    function: Function
    methods: frozenset[str]
    path: str = ""


def find_handlers(module: Module) -> list[Handler]:
    """Every handler, each function once per registration."""
    if module.python:
        return list(_python(module))
    if module.language == "go":
        return list(_go(module))
    return list(_script(module))


def _python(module: Module) -> Iterator[Handler]:
    text = module.text
    django = any(word in text for word in ("render(request", "objects.", "HttpResponse")) or (
        ("django" in text or "rest_framework" in text)
        and re.search(r"(?m)^\s*(?:from|import)\s+(?:django|rest_framework)\b", text) is not None
    )
    yield from _registered(module)
    for function in module.functions:
        routed = False
        restricted: frozenset[str] | None = None
        for first, end in function.decorators:
            tokens = module.tokens[first:end]
            text = text_of(tokens)
            head = text.split("(")[0]
            method = head.rsplit(".", 1)[-1]
            path = next((token.value for token in tokens if token.kind == "string"), "")
            if (
                "." in head
                and METHODS.match(method)
                and "(" in text
                and not re.search(r"(?i)mock|client|cache|requests|httpx|respx", head)
            ):
                routed = True
                yield Handler(function, frozenset({method.upper()}), path)
            elif method in ("route", "api_route", "add_url_rule") and "." in head:
                routed = True
                yield Handler(function, _listed(tokens) or frozenset({"GET"}), path)
            elif head in ("require_GET", "require_safe"):
                restricted = frozenset({"GET"})
            elif head == "require_POST":
                restricted = frozenset({"POST"})
            elif head in ("require_http_methods", "api_view") or method == "action":
                listed = _listed(tokens)
                restricted = listed or frozenset({"GET"})
                django = True
        if routed:
            continue
        if restricted is not None:
            yield Handler(function, restricted)
        elif function.owner and function.name in ("get", "head", "list", "retrieve"):
            if _view_class(module, function):
                yield Handler(function, frozenset({"GET"}))
        elif django and not function.owner and function.parameters[:1] == ("request",) and not function.indent:
            yield Handler(function, ANY)


def _registered(module: Module) -> Iterator[Handler]:
    """`app.add_url_rule("/x", view_func=f)`, `app.add_api_route("/x", f)`, `Route("/x", f)`, `router.add_get("/x", f)`."""
    for call in module.calls():
        method = call.method
        if method not in ("add_url_rule", "add_api_route", "add_route", "add_get", "Route") or "mock" in call.callee:
            continue
        arguments = module.arguments(call)
        path = next((tokens[0].value for _, tokens in arguments[:1] if tokens[0].kind == "string"), "")
        listed = next((_listed(tokens) for keyword, tokens in arguments if keyword == "methods"), frozenset())
        for _, tokens in arguments[1:]:
            if all(token.kind == "name" or token.text == "." for token in tokens):
                for function in module.named(tokens[-1].text)[:1]:
                    yield Handler(function, listed or frozenset({"GET"}), path)


def _view_class(module: Module, function: Function) -> bool:
    """Whether the class around a method is a view (by its name or its bases)."""
    found = re.search(rf"(?m)^\s*class\s+{re.escape(function.owner)}\s*(?:\(([^)]*)\))?", module.text)
    bases = found.group(1) or "" if found else ""
    return bool(
        re.search(
            r"View|Resource|Handler|Endpoint|APIView|MethodView|ViewSet|HTTPEndpoint|Controller",
            bases + " " + function.owner,
        )
    )


def _listed(tokens: list[Token]) -> frozenset[str]:
    """The methods named by strings in a decorator or call."""
    return frozenset(token.value.upper() for token in tokens if token.kind == "string" and METHODS.match(token.value))


def _script(module: Module) -> Iterator[Handler]:
    for call in module.calls():
        if not METHODS.match(call.method) and call.method not in ("all", "route"):
            continue
        if "." not in call.callee:
            continue
        arguments = [tokens for _, tokens in module.arguments(call)]
        chained = re.search(r"\.route\(\)(?:\.\w+\(\))*\.\w+$", call.callee) is not None
        if not chained and (len(arguments) < 2 or not arguments[0] or arguments[0][0].kind not in ("string", "regex")):
            continue
        root = call.receiver.split(".")[-1]
        if (
            not chained
            and not ROUTERS.match(root)
            and not (arguments[0][0].value.startswith("/") and _takes_request(module, call))
        ):
            continue
        methods = ANY if call.method == "all" else frozenset({call.method.upper()})
        path = "" if chained else arguments[0][0].value
        for function in _given(module, call, arguments if chained else arguments[1:]):
            yield Handler(function, methods, path)
    yield from _next(module)
    yield from _decorated(module)


def _takes_request(module: Module, call: Call) -> bool:
    return any(
        function.parameters[:1] in (("req",), ("request",), ("ctx",), ("c",), ("_req",), ("_",))
        for function in module.functions
        if call.opening < function.start < call.closing
    )


def _given(module: Module, call: Call, arguments: list[list[Token]]) -> Iterator[Function]:
    """The functions handed to a call: written there, or by the name of one of this file."""
    for function in module.functions:
        if call.opening < function.start < call.closing and module.enclosing(function.start - 1) is module.enclosing(
            call.index
        ):
            yield function
    for tokens in arguments[-1:] if arguments else []:
        names = [token.text for token in tokens if token.kind == "name"]
        if not names or any(token.text in ("=>", "function", "func") for token in tokens):
            continue
        yield from module.named(names[-1])[:1]


def _next(module: Module) -> Iterator[Handler]:
    """Next.js: `export async function GET`, `export default function handler(req, res)`, `getServerSideProps`."""
    tokens = module.tokens
    default_export = {
        match.group(1) for match in re.finditer(r"export\s+default\s+(?:\w+\()?(\w+)\)?\s*;?\s*$", module.text, re.M)
    }
    for function in module.functions:
        before = text_of(tokens[max(0, function.start - 4) : function.start])
        if (
            (function.name in ("GET", "HEAD") and re.search(r"\bexport\b", before))
            or function.name in ("getServerSideProps", "getStaticProps", "getInitialProps")
            or (function.name == "loader" and "export" in before and "remix" in module.text.lower())
        ):
            yield Handler(function, frozenset({"GET"}))
        elif function.parameters[:2] in (("req", "res"), ("request", "response"), ("_req", "res")) and (
            "export default" in before or (function.name in default_export)
        ):
            yield Handler(function, ANY)


def _decorated(module: Module) -> Iterator[Handler]:
    """NestJS: `@Get(':id')` above a method."""
    tokens = module.tokens
    for function in module.functions:
        index = function.start
        for _ in range(4):
            index -= 1
            while index > 0 and tokens[index].kind == "name" and tokens[index].text in ("async", "public", "private"):
                index -= 1
            if index < 1 or tokens[index].text != ")" or module.partner[index] < 1:
                break
            opening = module.partner[index]
            name = tokens[opening - 1].text
            if name == "@Get":
                path = tokens[opening + 1].value if opening + 1 < index else ""
                yield Handler(function, frozenset({"GET"}), path)
                break
            if not name.startswith("@"):
                break
            index = opening - 1


def _go(module: Module) -> Iterator[Handler]:
    for call in module.calls():
        arguments = [tokens for _, tokens in module.arguments(call)]
        if len(arguments) < 2 or not arguments[0] or call.receiver == "":
            continue
        method = call.method
        if method in ("HandleFunc", "Handle", "Any", "All"):
            path = arguments[0][0].value if arguments[0][0].kind == "string" else ""
            verb = path.split(" ", 1)[0] if " " in path else ""
            methods = frozenset({verb}) if verb else ANY
            spelled = path or text_of(arguments[0]).removeprefix("http.Method")
            if method == "Handle" and METHODS.match(spelled):
                methods, path = frozenset({spelled.upper()}), arguments[1][0].value
            chained = text_of(module.tokens[call.closing + 1 : call.closing + 12])
            found = re.match(r"\.Methods\(([^)]*)\)", chained)
            if found:
                methods = (
                    frozenset(re.findall(r"(?:\"|Method)(\w+)", found.group(1).replace("http.Method", "Method")))
                    or methods
                )
                methods = frozenset(name.upper() for name in methods)
        elif method in ("GET", "Get", "HEAD", "Head") and (arguments[0][0].kind == "string" or len(arguments) >= 2):
            if arguments[0][0].kind != "string":
                continue
            methods, path = frozenset({"GET"}), arguments[0][0].value
        else:
            continue
        for function in _given(module, call, arguments[1:]):
            yield Handler(function, methods, path)
