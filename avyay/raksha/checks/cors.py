# ruff: noqa: E501 - long patterns read better whole
"""Cross-origin access for every site."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.lexer import Token
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.tokens import split, text_of

RULE = Rule(
    id="permissive-cors",
    title="Any web site may read the answers (CORS)",
    severity="medium",
    security_severity=6.5,
    cwe=("CWE-942",),
    owasp=("A05:2021",),
    precision="high",
    category="architecture",
    languages=("python", "javascript", "typescript", "go", "yaml", "json", "terraform"),
    why=(
        "With `*`, or with the caller's own Origin sent back, a page on any site can call this API from a visitor's"
        " browser and read what it answers; with credentials allowed it does so as the visitor."
    ),
    bad='app.add_middleware(CORSMiddleware, allow_origins=["*"])',
    good='app.add_middleware(CORSMiddleware, allow_origins=["https://app.example.com"])',
    fix="Name the origins that need access, from configuration; send an Origin back only after finding it in that list.",
)
CREDENTIALS_RULE = Rule(
    id="permissive-cors-credentials",
    title="Any web site may act as the visitor (CORS with credentials)",
    severity="high",
    security_severity=8.1,
    cwe=("CWE-942", "CWE-346"),
    owasp=("A05:2021",),
    precision="high",
    category="architecture",
    languages=RULE.languages,
    why=(
        "Every origin is allowed and cookies are sent along: a page on any site can read and change what the visitor"
        " may, without the visitor noticing."
    ),
    bad='app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)',
    good='app.add_middleware(CORSMiddleware, allow_origins=["https://app.example.com"], allow_credentials=True)',
    fix="Name the origins that need credentials and allow no others; without credentials, still prefer a list.",
)
RULES = (RULE, CREDENTIALS_RULE)
LANGUAGES = frozenset({"python", "javascript", "typescript", "go", "yaml", "json", "terraform"})
USES_PROJECT = False

HEADER = re.compile(r"(?i)^access-control-allow-origin$")
ANY = re.compile(r"^(?:\*|https?://\*|\*://\*|\^?\(?\.[*+]\)?\$?|null)$")
CREDENTIALS = re.compile(
    r"(?i)(?:allow_?credentials|supports_credentials|credentials)[\"']?\s*[:=]\s*true"
    r"|access-control-allow-credentials[\"'`]?\]?\s*(?:[:,=]|value)[^\n]{0,20}true|cors_allow_credentials\s*=\s*true"
)
ORIGIN_KEYS = frozenset(
    [
        "origin",
        "origins",
        "alloworigin",
        "alloworigins",
        "allowedorigins",
        "allowed_origins",
        "allow_origins",
        "allow_origin",
        "allow_origin_regex",
        "alloworiginregex",
        "alloworiginpatterns",
        "allowedoriginpatterns",
        "access_control_allow_origin",
        *[
            "cors_origins",
            "cors_allowed_origins",
            "cors_allow_origins",
            "corsorigins",
            "corsallowedorigins",
            "allowed_cors_origins",
            "cors_allowed_origin_regexes",
            "cors_origin_regex_whitelist",
            "cors_origin_whitelist",
            "cors_allow_origin_regex",
        ],
    ]
)
TRUE_KEYS = frozenset(["allowallorigins", "allow_all_origins", "cors_allow_all_origins", "cors_origin_allow_all"])
FUNCTION_KEYS = frozenset(
    ["alloworiginfunc", "alloworiginrequestfunc", "alloworiginvaryrequestfunc", "alloworiginwithcontextfunc", "origin"]
)
MIDDLEWARE = re.compile(r"(?i)cors|cross_origin")
REQUEST_ORIGIN = re.compile(
    r"(?i)headers?\s*(?:\.origin\b|\[\s*[\"']origin[\"']\s*\]|(?:\(\))?\.get\(\s*[\"']origin[\"'])|get_?header\(\s*[\"']origin|http_origin"
    r"|req(?:uest)?\.(?:get|header)\(\s*[\"']origin"
)
YAML_STAR = re.compile(
    r"(?im)^[ \t-]*[\"']?(?:nginx\.ingress\.kubernetes\.io/cors-allow-origin|access-control-allow-origin|alloworigins?|allow_origins?|allowed_?origins?"
    r"|cors_?(?:allowed_?)?origins?|alloworiginpatterns)[\"']?\s*:\s*(?:\[?\s*[\"']?\*[\"']?\s*\]?|\n\s*-\s*[\"']\*[\"'])\s*,?\s*(?:#.*)?$"
)
JSON_STAR = re.compile(
    r"(?i)\"key\"\s*:\s*\"access-control-allow-origin\"\s*,\s*\"value\"\s*:\s*\"\*\"|\"access-control-allow-origin\"\s*:\s*\"\*\""
)

TERRAFORM_STAR = re.compile(r"(?im)^[ \t]*(?:cors_)?allow(?:ed)?_origins?[ \t]*=[ \t]*(?:\[\s*)?\"\*\"\s*\]?")
STARS = {"yaml": YAML_STAR, "json": JSON_STAR, "terraform": TERRAFORM_STAR}


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    text = file.text
    if file.is_test or not file.mentions("cors", "access-control-allow-origin", "cross_origin"):
        return
    rule = CREDENTIALS_RULE if CREDENTIALS.search(text) else RULE
    if file.language in STARS:
        for match in STARS[file.language].finditer(text):
            yield file.finding(rule, match.start() + len(match.group()) - len(match.group().lstrip()), match.end())
        return
    module = parse(text, file.language)
    reported: set[int] = set()
    for index in range(len(module.tokens)):
        found = _at(module, index)
        if found is None:
            continue
        first, last, how = found
        start, end = module.tokens[first].start, module.tokens[last].end
        line = file.position(start)[0]
        if line in reported:
            continue
        reported.add(line)
        near = _surroundings(module, first, last)
        chosen = rule if rule is RULE or CREDENTIALS.search(near) else RULE
        yield file.finding(chosen, start, end, message=f"{how}: every web site may read what this answers.")
    for call in module.calls():
        how = _default(module, call)
        line = file.position(module.tokens[call.first].start)[0]
        if how and line not in reported:
            reported.add(line)
            yield file.finding(
                RULE,
                module.tokens[call.first].start,
                module.tokens[call.closing].end,
                message=f"{how} allows every origin.",
            )


def _surroundings(module: Module, first: int, last: int) -> str:
    """The call or function around a place."""
    function = module.enclosing(first)
    if function is not None and function.end - function.start < 600:
        return module.text[
            module.tokens[function.start].start : module.tokens[min(function.end, len(module.tokens)) - 1].end
        ]
    start, end = module.tokens[first].start, module.tokens[last].end
    return module.text[max(0, start - 600) : end + 600]


def _at(module: Module, index: int) -> tuple[int, int, str] | None:
    """(first token, last token, what) when a setting that opens CORS stands here."""
    tokens = module.tokens
    token = tokens[index]
    if token.kind == "string" and HEADER.match(token.value):
        return _header(module, index)
    if token.kind not in ("name", "string"):
        return None
    name = token.value.lower()
    if name not in ORIGIN_KEYS and name not in TRUE_KEYS and name not in FUNCTION_KEYS:
        return None
    after = index + 1
    if after >= len(tokens) or tokens[after].text not in ("=", ":", ":="):
        return None
    end = _value_end(module, after + 1)
    value = split(tokens[after + 1 : end], "=")[-1]  # behind a type
    if not value:
        return None
    if name in TRUE_KEYS:
        return (index, end - 1, f"`{token.value}`") if text_of(value).lower() == "true" else None
    if not _concerns_cors(module, index, name):
        return None
    if name in FUNCTION_KEYS and any(item.text in ("=>", "func", "function", "lambda") for item in value):
        return (index, end - 1, f"`{token.value}` that accepts all") if _accepts_all(module, index, end) else None
    if _is_any(module, value, index) or (name == "origin" and text_of(value) in ("true", "[true]")):
        return index, end - 1, f"`{token.value}` is open"
    if name == "origin" and REQUEST_ORIGIN.search(text_of(value)):
        return index, end - 1, f"`{token.value}` repeats the caller"
    return None


def _value_end(module: Module, start: int) -> int:
    end = module.expression_end(start)
    if module.python:
        level = module.parent[start] if start < len(module.tokens) else -1
        for stop in range(start, end):
            if module.tokens[stop].text == "," and module.parent[stop] == level:
                return stop
    return end


def _concerns_cors(module: Module, index: int, name: str) -> bool:
    """Whether the key belongs to a CORS middleware (`origin` alone means many things)."""
    if ("_origin" in name and name.startswith(("allow", "access"))) or name.startswith(
        ("alloworigin", "allowedorigin")
    ):
        return not (
            module.python
            and module.parent[index] < 0
            and module.tokens[index].kind == "name"
            and name == "allowed_origins"
        )
    if "cors" in name:
        return True
    inside = module.parent[index]
    while inside >= 0:
        before = text_of(module.tokens[max(0, inside - 6) : inside])
        if MIDDLEWARE.search(before):
            return True
        inside = module.parent[inside]
    if name == "origins" and module.python:
        return False
    statement = index
    while statement > 0 and not module.tokens[statement].first:
        statement -= 1
    return bool(re.search(r"(?i)cors", text_of(module.tokens[max(statement - 12, 0) : index])))


def _is_any(module: Module, value: list[Token], at: int, depth: int = 0) -> bool:
    """Whether a value is, or falls back to, a pattern of every origin."""
    if depth > 3:
        return False
    if (
        any(token.text in ("==", "!=", "===", "!==", "if", "?") for token in value)
        and depth == 0
        and not _branch_any(module, value, at)
    ):
        return False
    if len(value) == 1 and value[0].kind == "name":
        scope = module.enclosing(at)
        while True:
            items = module.assignments(value[0].text, scope)
            if items:
                return any(
                    _is_any(module, list(item.tokens), item.index, depth + 1) for item in items if item.index != at
                )
            if scope is None:
                return False
            scope = module.outer(scope)
    strings = [token for token in value if token.kind in ("string", "regex")]
    if any(ANY.match(token.value.strip("/") if token.kind == "regex" else token.value) for token in strings):
        if len(value) <= 6 or "getenv" in text_of(value).lower() or value[0].text in ("[", "(", "{"):
            return not re.search(r"\breplace\b|\bstrip\b\(\"\*", text_of(value))
        return bool(re.search(r"(?i)env|get|\|\||\?\?|\bor\b|string", text_of(value)))
    return False


def _branch_any(module: Module, value: list[Token], at: int) -> bool:
    text = text_of(value)
    return '"*"' in text or "'*'" in text if not re.search(r"(?i)debug|dev|test|prod|local", text) else False


def _accepts_all(module: Module, index: int, end: int) -> bool:
    """Whether the function at a key allows every origin: nothing in it looks at the origin."""
    tokens = module.tokens
    for function in module.functions:
        if index < function.start < end:
            body = text_of(tokens[function.body : function.end])
            if module.language == "go":
                return body.rstrip("}").strip(" ;") in ("return true", "return origin,true", 'return"*",true')
            if re.search(r"\bif\b|includes|has\(|indexOf|test\(|match|===|endsWith|startsWith|\?|some\(", body):
                return False
            return bool(re.search(r"\(\s*null\s*,\s*(?:true|[\"']\*[\"']|" + "|".join(map(re.escape, function.parameters[:1] or ("true",))) + r")\s*\)", body)) or body.strip("{}; ") in (
                "true", "return true", *(function.parameters[:1]), *(f"return {name}" for name in function.parameters[:1]),
            )  # fmt: skip
    return False


def _header(module: Module, index: int) -> tuple[int, int, str] | None:
    """`Access-Control-Allow-Origin` with a value that is open."""
    tokens = module.tokens
    if index and tokens[index - 1].text in ("==", "!=", "in", "===", "!=="):
        return None
    after = index + 1
    if after < len(tokens) and tokens[after].text == "]":
        after += 1
    if after >= len(tokens) or tokens[after].text not in (",", ":", "=", ")", "]"):
        return None
    if tokens[after].text in (")", "]"):
        return None
    if tokens[after].text == "," and after + 2 < len(tokens) and tokens[after + 1].value.lower() == "value":
        after += 2  # {key: '...', value: '*'}
    end = _value_end(module, after + 1)
    value = tokens[after + 1 : end]
    if not value:
        return None
    inside = module.parent[index]
    callee = text_of(tokens[max(0, inside - 4) : inside]) if inside > 0 else ""
    if re.search(r"(?i)\b(?:get|has|remove|delete|del|assert\w*|expect\w*|equal\w*|pop|removeheader)$", callee):
        return None
    if len(value) == 1 and value[0].kind == "name" and module.enclosing(index) is not None:
        scope = module.enclosing(index)
        items = module.assignments(value[0].text, scope, index)
        if any(_is_any(module, list(item.tokens), item.index, 1) for item in items):
            return index, end - 1, "`Access-Control-Allow-Origin` is open"
        if any(REQUEST_ORIGIN.search(text_of(item.tokens)) for item in items) and not _looked_up(
            module, value[0].text, index
        ):
            return index, end - 1, "The caller's Origin is sent back"
        return None
    if _is_any(module, value, index):
        return index, end - 1, "`Access-Control-Allow-Origin` is open"
    text = text_of(value)
    if (
        REQUEST_ORIGIN.search(text)
        and not any(_looked_up_text(part) for part in (text,))
        and not _guarded(module, index)
    ):
        return index, end - 1, "The caller's Origin is sent back"
    return None


def _looked_up_text(text: str) -> bool:
    return (
        bool(re.search(r"\bin\b|includes|\.has\(|allow(?:ed|list)|\?|\bif\b", text, re.IGNORECASE)) and "||" not in text
    )


def _looked_up(module: Module, name: str, index: int) -> bool:
    """Whether a name was compared with something before it is sent."""
    function = module.enclosing(index)
    start = module.tokens[function.body].start if function else 0
    text = module.text[start : module.tokens[index].start]
    quoted = re.escape(name)
    patterns = (
        rf"\b{quoted}\s+(?:not\s+)?in\b", rf"(?:includes|has|Contains|indexOf|test|match|fullmatch|some|find|any|is\w*|check\w*|valid\w*|allow\w*"
        rf"|MatchString|HasSuffix|EqualFold)\w*\(\s*[^()]*\b{quoted}\b", rf"\w*\[\s*{quoted}\s*\]", rf"\b{quoted}\s*(?:===?|!==?)\s*[\"'`\w]", rf"[\"'`\w]\s*(?:===?|!==?)\s*{quoted}\b",
        rf"\b{quoted}\.(?:endswith|endsWith|startsWith|startswith)\(", rf"switch\s+\(?{quoted}\b",
    )  # fmt: skip
    hits = [match.group() for pattern in patterns for match in re.finditer(pattern, text)]
    return any(
        not re.search(
            r"(?:===?|!==?)\s*[\"'`]{2}|(?:===?|!==?)\s*(?:null|undefined|nil|None)",
            hit + text[text.find(hit) + len(hit) :][:4],
        )
        for hit in hits
    )


def _guarded(module: Module, index: int) -> bool:
    """Whether an enclosing condition compares the request's Origin with a list."""
    function = module.enclosing(index)
    start = module.tokens[function.body].start if function else max(0, module.tokens[index].start - 400)
    text = module.text[start : module.tokens[index].start]
    return bool(
        re.search(
            r"(?is)\bif\b[^\n]*(?:origin[^\n]*(?:\bin\b|\.includes|\.has\()|(?:includes|has|contains|\[)\s*\(?[^\n]*origin)",
            text,
        )
    )


def _default(module: Module, call: Call) -> str:
    """The middleware's name when it is used with its default of every origin."""
    arguments = module.arguments(call)
    keywords = {keyword for keyword, _ in arguments if keyword}
    callee = call.callee
    if module.python:
        known = re.search(r"(?m)^\s*(?:from|import)\s+(?:flask_cors|quart_cors|sanic_cors|sanic_ext)\b", module.text)
        if callee in ("CORS", "flask_cors.CORS", "cross_origin", "flask_cors.cross_origin") or (
            callee.endswith(".init_app") and "cors" in callee.lower() and known
        ):
            text = text_of(module.tokens[call.opening : call.closing + 1])
            if (
                not keywords & {"origins", "resources"}
                and "origins" not in text
                and (known or callee in ("CORS", "cross_origin"))
            ):
                return f"`{callee}` without `origins`" if "CORS_ORIGINS" not in module.text else ""
        return ""
    if module.language == "go":
        known = re.search(
            r"\"github\.com/(?:gin-contrib|rs|go-chi|gofiber/fiber/v\d/middleware|labstack/echo/v\d/middleware)/?cors\"|gin-contrib/cors|rs/cors",
            module.text,
        )
        if callee in ("cors.AllowAll", "cors.Default") and (
            known or callee == "cors.AllowAll" or "cors" in module.text
        ):
            return f"`{callee}()`"
        if callee == "middleware.CORS" and not arguments:
            return "`middleware.CORS()`"
        return "`cors.New()`" if callee == "cors.New" and not arguments and "fiber" in module.text else ""
    if callee in ("cors", "fastifyCors", "koaCors"):
        if not arguments and re.search(
            r"['\"](?:cors|@koa/cors|kcors|@fastify/cors|hono/cors)['\"]", module.text + "'cors'" * (callee == "cors")
        ):
            return f"`{callee}()`"
        options = arguments[0][1] if arguments else []
        if options and options[0].text == "{" and options[-1].text == "}":
            keys = {part[0].value for part in split(options[1:-1], ",") if part}
            return (
                ""
                if {"origin", "..."} & keys or any(part and part[0].text == "..." for part in split(options[1:-1], ","))
                else f"`{callee}` without `origin`"
            )
    if call.method == "enableCors" and not arguments:
        return "`enableCors()`"
    if callee == "NestFactory.create" and re.search(
        r"\bcors:true\b", text_of(module.tokens[call.opening : call.closing])
    ):
        return "`cors: true`"
    return ""
