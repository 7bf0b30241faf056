# ruff: noqa: E501, SIM102, PERF401 - long patterns and stepwise conditions read better whole
"""Session tokens in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.lexer import HOLE, Token
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.tokens import split, text_of

RULE = Rule(
    id="token-in-url",
    title="Session token in a URL",
    severity="medium",
    security_severity=6.8,
    cwe=("CWE-598",),
    owasp=("A04:2021", "A07:2021"),
    precision="medium",
    category="architecture",
    languages=("python", "javascript", "typescript", "go"),
    why=(
        "URLs end up in access logs, proxies, browser history, bookmarks and the Referer header. A session token in one is"
        " a password in all of these."
    ),
    bad='return redirect(f"/dashboard?token={session_token}")',
    good='response.set_cookie("session", session_token, httponly=True, secure=True, samesite="Lax")',
    fix=(
        "Send the token in the Authorization header or in an HttpOnly cookie; where a URL must carry a proof (a download, a"
        " WebSocket), make it single-use and short-lived."
    ),
)
KEY_RULE = Rule(
    id="api-key-in-url",
    title="API key or password in a URL",
    severity="low",
    security_severity=3.9,
    cwe=("CWE-598",),
    owasp=("A04:2021",),
    precision="medium",
    category="architecture",
    languages=RULE.languages,
    why="Logs, proxies and history keep URLs, and with them the key. Some services accept a key nowhere else.",
    bad='requests.get(f"https://api.example.com/v1/items?api_key={key}", timeout=5)',
    good='requests.get("https://api.example.com/v1/items", headers={"X-API-Key": key}, timeout=5)',
    fix="Send the key in a header where the service takes it there; else keep the URL out of logs and error messages.",
)
RULES = (RULE, KEY_RULE)
NOT_A_SESSION = re.compile(
    r"(?i)^(?:(?:x[-_]?)?api[-_]?key|apikey|access[-_]?key|secret.*|client[-_]?secret|password|passwd|pwd|credential|api[-_]?token)$"
)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

_NAMES = (
    r"(?:(?:access|auth|session|user|bearer|login|id|sso|api|jwt|client|app|admin|security|refresh|my|x[-_]auth|x[-_]access)?[-_]?tokens?"
    r"|session(?:[-_]?(?:id|key))?|sess(?:[-_]?id)?|sid|jsessionid|phpsessid|connect\.sid|jwt(?:[-_]?token)?|(?:x[-_]?)?api[-_]?key|apikey"
    r"|auth(?:[-_]?key)?|authorization|bearer|access[-_]?key|secret|secret[-_]?key|client[-_]?secret|password|passwd|pwd|credential)"
)
KEY = re.compile(rf"(?i)^{_NAMES}$")
IN_URL = re.compile(rf"(?i)[?&;]({_NAMES})=({HOLE}|%[sv]|\{{\w*\}}|$)")
LITERAL = re.compile(
    r"(?i)[?&](?:access[-_]?token|auth[-_]?token|session[-_]?(?:id|token|key)?|jsessionid|phpsessid|token|jwt|sid|api[-_]?key)=([A-Za-z0-9._~+/-]{10,})"
)
WORTH_READING = re.compile(rf"(?i)\b{_NAMES}\b")
WORDS = ("token", "sess", "sid", "jwt", "api", "auth", "bearer", "key", "secret", "passw", "pwd", "credential")
QUERY_WORDS = (
    "params", "query", "urlencode", "url_for", "redirect", "request.args", "request.get", "stringify", "url.values",
)  # fmt: skip
QUERY = re.compile(rf"(?i)[?&;]{_NAMES}=|\.qs\b")
# Proofs for one use, and tokens that open nothing.
ONE_TIME = re.compile(
    r"(?i)reset|verif|confirm|activat|invit|unsubscri|subscri|magic|one[-_ ]?time|otp\b|opt[-_ ]?(?:in|out)|double|register|signup|sign[-_]up|email[-_]?(?:link|change)"
    r"|password[-_]?less|recover|forgot|accept|csrf|xsrf|captcha|signed|signature|presign|share|download[-_]?token|ticket|nonce|hub\.|verify_token|device[-_]?code"
    r"|webhook|mail|newsletter|preview"
)
SESSION_WORD = re.compile(r"(?i)sess|sid\b|jwt|access|auth|bearer|login|user|api")
HARD_SESSION = re.compile(
    r"(?i)^(?:session.*|sess.*|sid|jsessionid|phpsessid|jwt.*|(?:access|auth|bearer|login|user|session|refresh)[-_]?token|connect\.sid)$"
)
HTTP_CALL = re.compile(
    r"(?i)(?:^|\.)(?:get|post|put|patch|delete|head|options|request|fetch|stream|send|open|ws_connect|connect|axios|ky|got|navigate|push|replace)$"
)
URL_BUILDERS = re.compile(
    r"(?:^|\.)(?:url_for|urlFor|reverse_lazy|redirect|buildUrl|build_url|add_query_params?|url_concat|replace_query_params|include_query_params|update_query|extend_query|withQuery|addQueryParam|appendQuery|with_query)$"
)
ENCODERS = re.compile(r"(?:^|\.)(?:urlencode|URLSearchParams|stringify|urllib\.parse\.urlencode)$")
SPEAKS = re.compile(
    r"(?i)(?:^|\.)(?:log\w*|debug|info|warn\w*|error|print\w*|sub|subn|replace|replaceAll|replace_all|ReplaceAllString|compile|MustCompile|RegExp|match|search|test|split|includes|find|indexOf|startswith|assert\w*|skip|describe|it)$"
)
READERS = re.compile(
    r"(?:(?:^|\.)(?:request|req|r|self\.request|websocket|ws)\.(?:args|query_params|GET|values|rel_url\.query|query_arguments|query)\.get|(?:^|\.)get_query_argument|(?:^|\.)(?:c|ctx|gc)\.(?:Query|DefaultQuery|GetQuery|QueryParam|query)"
    r"|\.Query\(\)\.Get|(?:^|\.)searchParams\.get|(?:^|(?<!self)\.)(?:query|params|qs|q)\.get|(?:^|\.)(?:query|params|q|values)\.Get)$"
)
WRITERS = re.compile(
    r"(?:^|\.)(?:searchParams|(?:query|search|url)?_?[pP]arams|query|qs|q|params|values|v|urlParams|queryParams|url\.Query\(\))\.(?:set|append|Set|Add|add)$"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not file.mentions(*WORDS):
        return
    if not (file.mentions(*QUERY_WORDS) or QUERY.search(file.text)) or not WORTH_READING.search(file.text):
        return
    module = parse(file.text, file.language)
    reported: set[int] = set()
    for start, end, name in sorted(_places(module)):
        line = file.position(start)[0]
        if line in reported:
            continue
        reported.add(line)
        rule = KEY_RULE if NOT_A_SESSION.match(name) else RULE
        yield file.finding(
            rule, start, end, message=f"`{name}` travels in a URL, where logs, history and Referer keep it."
        )


def _places(module: Module) -> Iterator[tuple[int, int, str]]:
    for index, token in enumerate(module.tokens):
        if token.kind == "string":
            yield from _in_string(module, index, token)
        elif token.kind == "name" and token.text in ("query", "query_params", "args", "GET", "params", "searchParams"):
            yield from _read_by_key(module, index)
    for call in module.calls():
        yield from _in_call(module, call)
    yield from _declared(module)


def _line_of(module: Module, offset: int) -> str:
    start = module.text.rfind("\n", 0, offset) + 1
    end = module.text.find("\n", offset)
    return module.text[start : end if end >= 0 else len(module.text)]


# These verify a session, and say nothing of a proof for one use.
CHECKED = re.compile(r"(?i)\bj(?:wt|ose)\w*\.verify\w*|\bjwt_?verify|\bverify_?(?:jwt|session|access|auth)\w*")


def _one_time(module: Module, index: int, extra: str = "") -> bool:
    """Whether line, URL or function speak of a proof for one use."""
    function = module.enclosing(index)
    name = function.name if function else ""
    path = ""
    if function is not None and module.python:
        path = " ".join(text_of(module.tokens[first:end]) for first, end in function.decorators)
    elif function is not None:
        path = text_of(module.tokens[max(0, function.start - 6) : function.start])
    line = CHECKED.sub("", _line_of(module, module.tokens[index].start))
    return bool(ONE_TIME.search(f"{line} {name} {path} {extra}"))


def _in_string(module: Module, index: int, token: Token) -> Iterator[tuple[int, int, str]]:
    """`...?token=` with something put in, and tokens written into a URL."""
    value = token.value
    if "=" not in value or not ("?" in value or "&" in value):
        return
    tokens = module.tokens
    for match in LITERAL.finditer(value):
        secret = match.group(1)
        if (
            "http" in value
            and re.search(r"\d", secret)
            and re.search(r"[A-Za-z]", secret)
            and not re.search(r"(?i)your|xxx|example|placeholder|\*\*", secret)
        ):
            yield token.start, token.end, match.group(0)[1:].split("=")[0]
            return
    for match in IN_URL.finditer(value):
        name, what = match.group(1), match.group(2)
        if what == "":
            following = tokens[index + 1].text if index + 1 < len(tokens) else ""
            if following not in ("+", ".") or following == ".":
                if not (module.python and following == "%"):
                    continue
            if following == "+" and index + 2 < len(tokens) and tokens[index + 2].kind == "string":
                continue
        elif what.startswith("%"):
            following = tokens[index + 1].text if index + 1 < len(tokens) else ""
            if following not in ("%", ","):
                continue
        elif what.startswith("{"):
            if not (index + 2 < len(tokens) and tokens[index + 1].text == "." and tokens[index + 2].text == "format"):
                continue
        inside = module.parent[index]
        if inside > 0 and SPEAKS.search(text_of(tokens[max(0, inside - 3) : inside]).rsplit("(")[-1]):
            continue
        if not HARD_SESSION.match(name) and _one_time(module, index, value):
            continue
        if HARD_SESSION.match(name) and re.search(r"(?i)reset|verif|confirm|invit|unsubscri|activat|magic", value):
            continue
        hole = _hole_before(value, match.start(2), token)
        if name.lower() in ("session", "auth", "secret") and not re.search(
            r"(?i)sess|token|jwt|id|key|auth|secret|sid", hole or "token"
        ):
            continue
        if re.search(
            r"(?i)page|cursor|next|continu|csrf|public|publishable|maps?_?key|site_?key|reset|invite|verif", hole
        ):
            continue
        yield token.start, token.end, name
        return


def _hole_before(value: str, at: int, token: Token) -> str:
    """The source of the interpolation at a place of the value."""
    number = value.count(HOLE, 0, at)
    return token.holes[number] if number < len(token.holes) else ""


def _in_call(module: Module, call: Call) -> Iterator[tuple[int, int, str]]:
    tokens = module.tokens
    start, end = tokens[call.first].start, tokens[call.closing].end
    arguments = module.arguments(call)
    callee = call.callee
    if READERS.search(callee) and arguments and arguments[0][1][0].kind == "string":
        name = arguments[0][1][0].value
        if KEY.match(name) and not _one_time(module, call.index) and _is_session(module, call.index, name):
            yield start, end, name
    elif WRITERS.search(callee) and len(arguments) == 2 and arguments[0][1][0].kind == "string":
        name = arguments[0][1][0].value
        if (
            (
                KEY.match(name)
                and not _one_time(module, call.index)
                and not _is_body(module, call.receiver.split(".")[0], call.index)
            )
            and "headers" not in callee.lower()
            and "form" not in callee.lower()
            and not all(token.kind == "string" and not token.holes for token in arguments[1][1])
            and _leads_to_url(module, call)
        ):
            yield start, end, name
    elif URL_BUILDERS.search(callee):
        for keyword, value in arguments:
            if (
                keyword
                and KEY.match(keyword)
                and not _one_time(module, call.index)
                and len(value) >= 1
                and value[0].kind != "string"
            ):
                yield start, end, keyword
    elif ENCODERS.search(callee) and arguments:
        for name, place in _keys(module, arguments[0][1], call.index):
            if not _one_time(module, call.index) and _reaches_url(module, call):
                yield tokens[place].start if place >= 0 else start, end, name
                return
    elif HTTP_CALL.search(callee):
        yield from _request_options(module, call, arguments)


def _request_options(
    module: Module, call: Call, arguments: list[tuple[str, list[Token]]]
) -> Iterator[tuple[int, int, str]]:
    """`params=` of HTTP clients, `{ params: ... }` of axios, `{ query: ... }` of routers."""
    start, end = module.tokens[call.first].start, module.tokens[call.closing].end
    for keyword, value in arguments:
        groups: list[list[Token]] = []
        if keyword in ("params", "query_params", "query"):
            groups.append(value)
        elif not keyword and value and value[0].text == "{" and not module.python:
            for part in split(value[1:-1], ","):
                if part and part[0].value in ("params", "query", "searchParams", "qs"):
                    groups.append(part[2:] if len(part) > 2 else part)
        for group in groups:
            for name, _ in _keys(module, group, call.index):
                if not _one_time(module, call.index):
                    yield start, end, name
                    return


def _keys(module: Module, tokens: list[Token], at: int, depth: int = 0) -> list[tuple[str, int]]:
    """Token-like keys of a mapping literal (through a plain name, with later additions)."""
    found: list[tuple[str, int]] = []
    if not tokens or depth > 2:
        return found
    if tokens[0].text == "{" and tokens[-1].text == "}":
        for part in split(tokens[1:-1], ","):
            if part and part[0].text == "...":
                continue
            if (
                part
                and KEY.match(part[0].value)
                and not (len(part) == 3 and part[2].kind == "string" and len(part[2].value) < 8 and not part[2].holes)
            ):
                found.append((part[0].value, -1))
    elif tokens[0].text == "dict" and tokens[-1].text == ")":
        for part in split(tokens[2:-1], ","):
            if len(part) > 2 and part[1].text == "=" and KEY.match(part[0].text):
                found.append((part[0].text, -1))
    elif len(tokens) == 1 and tokens[0].kind == "name":
        name = tokens[0].text
        scope = module.enclosing(at)
        for item in module.assignments(name, scope, at):
            found.extend(_keys(module, list(item.tokens), item.index, depth + 1))
        begin = scope.body if scope else 0
        for index in range(begin, min(at, len(module.tokens) - 4)):
            if module.tokens[index].text == name and module.tokens[index + 1].text in ("[", "."):
                key = module.tokens[index + 2]
                following = module.tokens[index + 4 if module.tokens[index + 1].text == "[" else index + 3].text
                if following == "=" and KEY.match(key.value):
                    found.append((key.value, -1))
    return found


def _is_body(module: Module, name: str, at: int) -> bool:
    """Whether parameters of that name are sent as a form in the body."""
    text = re.escape(name)
    return bool(
        re.search(
            rf"(?:\bbody\s*[:=]\s*(?:{text}\b|{text}\.toString)|\bdata\s*=\s*{text}\b|(?:PostForm|NewReader|NewBufferString|NewRequest\w*)\([^\n]*\b{text}\b|\.(?:post|put)\([^\n,]*,\s*{text}\b)",
            module.text,
        )
    )


def _leads_to_url(module: Module, call: Call) -> bool:
    """Whether a `.set(name, value)` writes into a URL and not into a store or a form."""
    receiver = call.receiver.split(".")[-1]
    if "searchParams" in call.callee or "Query" in call.receiver:
        return True
    root = call.receiver.split(".")[0]
    text = re.escape(root)
    return bool(
        re.search(
            rf"\b{text}\b\s*:?=\s*(?:await\s+)?(?:new\s+URLSearchParams|[\w.()]*\.Query\(\)|url\.Values|[\w.]*searchParams\b|make\(url\.Values)",
            module.text,
        )
        and (receiver or root)
        and not re.search(rf"PostForm\([^\n]*{text}|{text}\.Encode\(\)\)\s*\)\s*$", module.text)
    )


def _reaches_url(module: Module, call: Call) -> bool:
    """Whether an encoded query is put into a URL (and not sent as a body)."""
    tokens = module.tokens
    first = call.first - 1 if call.first and tokens[call.first - 1].text == "new" else call.first
    before = text_of(tokens[max(0, first - 3) : first])
    if re.search(r"(?:body|data|content)[:=](?:new)?$", before.replace(" ", "")):
        return False
    if re.search(r"[?&]['\"`]?\+?$|search=$", before.replace(" ", "")) or "?" in before:
        return True
    line_before = module.text[max(0, tokens[first].start - 6) : tokens[first].start]
    if re.search(r"[?&]\$?\{$", line_before):
        return True
    assigned = next(
        (
            tokens[i].text
            for i in range(first - 1, max(first - 9, -1), -1)
            if tokens[i].kind == "name" and i + 1 < len(tokens) and tokens[i + 1].text in ("=", ":=")
        ),
        "",
    )
    if not assigned:
        return bool(re.search(r"[?]", before))
    name = re.escape(assigned)
    return bool(
        re.search(
            rf"\?\$?\{{\s*(?:str\()?{name}\b|\?['\"`]\s*\+\s*{name}\b|\.search\s*=\s*{name}\b|\?%s['\"]\s*%\s*\(?[^\n]*{name}\b|[&?]\$\{{{name}",
            module.text,
        )
    ) and not _is_body(module, assigned, first)


def _read_by_key(module: Module, index: int) -> Iterator[tuple[int, int, str]]:
    """`req.query.token`, `request.args["token"]`, `const { token } = req.query`."""
    tokens = module.tokens
    if (
        index < 2
        or tokens[index - 1].text not in (".", "?.")
        or tokens[index - 2].text not in ("req", "request", "ctx", "c", "r", "self", "event", "context")
    ):
        return
    root, holder = tokens[index - 2].text, tokens[index].text
    if holder in ("params",) or (root in ("c", "r", "self") and holder != "query_params"):
        return
    following = tokens[index + 1].text if index + 1 < len(tokens) else ""
    name = ""
    if following in (".", "?.") and index + 2 < len(tokens):
        name = tokens[index + 2].text
        if index + 3 < len(tokens) and tokens[index + 3].text == "(":
            return
    elif following == "[" and index + 2 < len(tokens) and tokens[index + 2].kind == "string":
        name = tokens[index + 2].value
    elif not module.python and index >= 4 and tokens[index - 3].text == "=" and tokens[index - 4].text == "}":
        opening = module.partner[index - 4]
        for part in split(tokens[opening + 1 : index - 4], ","):
            if (
                part
                and KEY.match(part[0].text)
                and not _one_time(module, index)
                and _is_session(module, index, part[0].text)
            ):
                yield tokens[index - 2].start, tokens[index].end, part[0].text
        return
    before = tokens[index - 3].text if index >= 3 else ""
    if before in ("delete", "del"):
        return
    if name and KEY.match(name) and not _one_time(module, index) and _is_session(module, index, name):
        yield tokens[index - 2].start, tokens[min(index + 2, len(tokens) - 1)].end, name


def _is_session(module: Module, index: int, name: str) -> bool:
    """Whether what is read under that name logs somebody in: the name says so, or what is done with it."""
    if HARD_SESSION.match(name):
        return True
    function = module.enclosing(index)
    if function is None:
        return False
    body = module.text[module.tokens[function.body].start : module.tokens[function.end - 1].end]
    if re.search(
        r"(?i)max_age|serializer\.loads|TimestampSigner|signing\.loads|single.?use|used_at|abort\(400|reject|not allowed|expired_?link",
        body,
    ):
        return False
    return bool(
        re.search(r"(?i)sess|auth|jwt|login|user|verify|decode|secret|lookup|require|401|unauthori[sz]ed|403", body)
    )


def _declared(module: Module) -> Iterator[tuple[int, int, str]]:
    """FastAPI: a query parameter that holds a session."""
    if not module.python or "Query(" not in module.text:
        return
    for function in module.functions:
        if not function.decorators:
            continue
        path = " ".join(text_of(module.tokens[first:end]) for first, end in function.decorators)
        for call in module.calls(function.start, function.body):
            if call.callee not in ("Query", "fastapi.Query"):
                continue
            at = call.first - 1
            level = module.parent[call.first]
            while at > level and not (module.tokens[at].text == "," and module.parent[at] == level):
                at -= 1
            name = module.tokens[at + 1].text
            alias = next(
                (value[0].value for keyword, value in module.arguments(call) if keyword == "alias" and value), name
            )
            if (
                (KEY.match(name) or KEY.match(alias))
                and not ONE_TIME.search(f"{path} {function.name} {name}")
                and _is_session(module, function.body, name)
            ):
                yield module.tokens[at + 1].start, module.tokens[call.closing].end, alias
