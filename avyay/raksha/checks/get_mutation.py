# ruff: noqa: E501, SIM102 - long patterns and stepwise conditions read better whole
"""GET requests that change state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.checks.state_words import (
    BENIGN,
    CHANGES,
    GO_VERBS,
    HARMLESS_CALLEE,
    METHOD_TEST,
    MODEL,
    NOT_MODELS,
    QUIET_RECEIVERS,
    SQL_CHANGE,
    STORE,
    STORE_CHANGES,
    VERBS,
)
from avyay.raksha.syntax.functions import Function
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.routes import Handler, find_handlers
from avyay.raksha.syntax.tokens import text_of

RULE = Rule(
    id="get-mutates-state",
    title="GET request changes state",
    severity="medium",
    security_severity=6.5,
    cwe=("CWE-352", "CWE-650"),
    owasp=("A01:2021",),
    precision="medium",
    category="architecture",
    languages=("python", "javascript", "typescript", "go"),
    why=(
        "Browsers, crawlers, link previews and caches send GET requests on their own, and a link or an image on any page"
        " can make a visitor's browser send one with his cookies: whatever the handler changes, they change."
    ),
    bad='@app.get("/users/{user_id}/delete")\ndef delete_user(user_id: int):\n    db.delete(db.get(User, user_id))\n    db.commit()',
    good='@app.delete("/users/{user_id}")\ndef delete_user(user_id: int):\n    db.delete(db.get(User, user_id))\n    db.commit()',
    fix="Register the handler under POST, PUT, PATCH or DELETE (with CSRF protection where cookies log in); let GET only read.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

WORTH_READING = re.compile(
    r"(?i)\.(?:get|route|api_route|head|all|any|handlefunc|handle|add_\w+)\(|\bdef\s+get\(|\brequest\b|\bGET\b|\breq\b|getServerSideProps|@Get|loader"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A place that changes state."""

    start: int
    end: int
    what: str


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not (file.mentions(".get(", ".route(", ".handlefunc(") or WORTH_READING.search(file.text)):
        return
    module = parse(file.text, file.language)
    reported: set[int] = set()
    for handler in find_handlers(module):
        if "GET" not in handler.methods and "HEAD" not in handler.methods:
            continue
        change = _change(module, handler)
        if change is None or change.start in reported:
            continue
        reported.add(change.start)
        name = handler.function.name or handler.path or "this handler"
        yield file.finding(
            RULE, change.start, change.end, message=f"`{name}` answers GET and changes state: {change.what}."
        )


def _change(module: Module, handler: Handler) -> Change | None:
    function = handler.function
    start, end = function.body, min(function.end, len(module.tokens))
    if handler.methods - {"GET", "HEAD"}:  # reached by other methods too: only what a GET gets to counts
        region = _get_region(module, start, end)
        if region is None:
            return None
        start, end = region
    return _first_change(module, function, start, end, 0)


def _get_region(module: Module, start: int, end: int) -> tuple[int, int] | None:
    """The tokens a GET reaches in a handler of several methods; None when the method is tested in a way that is safe."""
    if start >= end:
        return None
    base = module.tokens[start].start
    text = module.text[base : module.tokens[end - 1].end]
    found = METHOD_TEST.search(text)
    if found is None:
        return start, end
    name = (found.group("name") or found.group("go") or found.group("bare") or "").upper()
    operator = found.group("op") or "=="
    stop = next((i for i in range(start, end) if module.tokens[i].start >= base + found.start()), end)
    if name == "GET" and operator in ("==", "==="):
        opening = next((i for i in range(stop, end) if module.tokens[i].text in ("{", ":")), end)
        if opening < end and module.tokens[opening].text == "{" and module.partner[opening] > 0:
            return opening, module.partner[opening]
        after = next(
            (
                i
                for i in range(opening, end)
                if module.tokens[i].first and module.tokens[i].column <= module.tokens[_line_start(module, stop)].column
            ),
            end,
        )
        return opening, after
    return (start, stop) if stop > start else None


def _line_start(module: Module, index: int) -> int:
    while index > 0 and not module.tokens[index].first:
        index -= 1
    return index


def _first_change(module: Module, function: Function, start: int, end: int, depth: int) -> Change | None:
    """The first thing in a range that changes state, other than traces of reading."""
    tokens = module.tokens
    body = module.text[tokens[start].start : tokens[end - 1].end] if start < end else ""
    for index in range(start, end):
        token = tokens[index]
        if token.kind == "string":
            found = SQL_CHANGE.match(token.value)
            if (
                found
                and not BENIGN.search(found.group("table") + token.value[found.end() : found.end() + 120])
                and _runs(module, index)
            ):
                return Change(token.start, token.end, f"runs {token.value.split()[0].upper()}")
    commits: Call | None = None
    traces = False
    for call in module.calls(start, end):
        text = text_of(tokens[call.first : min(call.closing + 1, call.first + 60)])
        kind = _kind(module, function, call, body)
        if kind is None:
            continue
        deletes = re.match(r"(?i)delete|remove|destroy|drop|truncate|clear|purge|unlink|rm", call.method)
        if not deletes and (BENIGN.search(_without_strings(text)) or BENIGN.search(call.callee)):
            traces = True
            continue
        if kind == "commit":
            commits = commits or call
            continue
        if kind == "local":
            target = module.named(call.method)[0]
            if depth < 2 and target is not function:
                inner = _first_change(module, target, target.body, min(target.end, len(tokens)), depth + 1)
                if inner is not None:
                    return Change(tokens[call.first].start, tokens[call.closing].end, f"`{call.callee}()` {inner.what}")
            continue
        return Change(tokens[call.first].start, tokens[call.closing].end, f"calls `{call.callee}()`")
    if commits is not None and _assigns_attribute(module, start, end) == "change":
        return Change(tokens[commits.first].start, tokens[commits.closing].end, f"calls `{commits.callee}()`")
    if commits is not None and not traces and _assigns_attribute(module, start, end) == "":
        return Change(tokens[commits.first].start, tokens[commits.closing].end, f"calls `{commits.callee}()`")
    return _shared_state(module, function, start, end)


def _without_strings(text: str) -> str:
    return re.sub(r"\"\"", "", text)


def _runs(module: Module, index: int) -> bool:
    """Whether a statement is handed to something that runs it (or kept in a variable for that)."""
    inside = module.parent[index]
    if inside <= 0:
        return True
    before = module.tokens[inside - 1].text
    return not re.search(
        r"(?i)^(?:log|info|debug|print\w*|warn\w*|error|json|send|f|render\w*|jsonify|Response)$", before
    )


def _kind(module: Module, function: Function, call: Call, body: str) -> str | None:
    """`change`, `commit`, `local` (a function of this file) or None."""
    method, receiver = call.method, call.receiver
    if HARMLESS_CALLEE.search(call.callee):
        return None
    if not receiver or (receiver in ("self", "this", "h", "s") and module.named(method)):
        targets = module.named(method)
        if targets:
            return "local"
        if not receiver:
            words = GO_VERBS if module.language == "go" else VERBS
            return (
                "change"
                if words.match(method)
                and not _is_local(module, function, method)
                and method
                not in ("set", "add", "create", "update", "save", "write", "mark", "like", "pay", "drop", "vote")
                else (
                    "change"
                    if method
                    in (
                        "unlink",
                        "rmtree",
                        "unlinkSync",
                        "writeFile",
                        "deleteDoc",
                        "setDoc",
                        "updateDoc",
                        "addDoc",
                        "rmSync",
                    )
                    else None
                )
            )
    if re.search(r"(?:req|request|ctx|c)\.session$", receiver):
        return None  # a login's own state
    last = receiver.split(".")[-1]
    if method in ("commit", "Commit", "flush") and re.search(r"(?i)db|sess|conn|tx|trans|uow", receiver):
        return "commit"
    if method in CHANGES:
        return None if QUIET_RECEIVERS.search(receiver) and not STORE.search(receiver) else "change"
    if re.match(
        r"os\.(?:remove|unlink|rmdir|rename|replace|removedirs|Remove|RemoveAll|Rename|WriteFile)$|shutil\.(?:rmtree|move)$|fs\.(?:promises\.)?(?:rm|rename|unlink|mkdir)\w*$",
        call.callee,
    ):
        return "change"
    if QUIET_RECEIVERS.search(receiver) and not re.search(r"(?i)^db|\.db\b|session$", receiver):
        if not _from_store(module, function, receiver, body):
            return None
    if method in STORE_CHANGES:
        return _store_change(module, function, call, last, body)
    words = GO_VERBS if module.language == "go" else VERBS
    if (words.match(method) and not (method.isalpha() and method.islower())) or (
        words.match(method)
        and method
        in (
            "cancel",
            "deactivate",
            "activate",
            "archive",
            "publish",
            "approve",
            "reject",
            "refund",
            "charge",
            "transfer",
            "revoke",
            "promote",
            "disable",
            "enable",
            "ban",
            "suspend",
            "restart",
            "terminate",
            "destroy",
            "purge",
        )
    ):
        if module.language == "go" and receiver in ("context", "strings", "json", "time", "ctx", "cancel", "http"):
            return None
        if (
            re.match(r"(?i)set|add|create|send|write|register|apply|store", method)
            and not STORE.search(receiver)
            and not re.search(r"(?i)service|svc|repo|api|client|manager|controller|use_?case|crud", receiver)
        ):
            return None
        return "change"
    return None


def _store_change(module: Module, function: Function, call: Call, last: str, body: str) -> str | None:
    method, receiver = call.method, call.receiver
    arguments = module.arguments(call)
    if method == "Exec" or (method == "set" and not STORE.search(receiver)):
        return None  # the SQL text decides
    root = receiver.split(".")[0].split("(")[0].split("[")[0]
    if root in NOT_MODELS or receiver.startswith('""'):
        return None
    if receiver in ("session", "request.session", "req.session", "self.request.session"):
        orm = re.search(
            r"(?i)session\.(?:commit|query|execute|scalars?|flush|get\(\s*[A-Z])|AsyncSession|session\s*:\s*\w*Session",
            body,
        ) or re.search(r"(?i)session\s*:\s*\w*Session|SessionLocal|sessionmaker|sqlmodel|sqlalchemy", module.text)
        return "change" if orm and method in ("add", "delete", "merge", "add_all", "commit") else None
    if (
        method
        in (
            "pop",
            "append",
            "push",
            "add",
            "set",
            "discard",
            "clear",
            "put",
            "update",
            "remove",
            "insert",
            "Add",
            "Set",
            "flush",
            "increment",
            "del",
            "expire",
        )
        and not STORE.search(receiver)
        and not MODEL.match(receiver)
    ):
        return (
            "change"
            if _from_store(module, function, receiver, body) and method in ("update", "remove", "increment")
            else None
        )
    if method == "create" and re.search(
        r"(?i)(?:completions|messages|embeddings|responses|images|checkout\.sessions|chat|tokens|moderations)$",
        receiver,
    ):
        return None
    if method == "save" and arguments and not any(keyword for keyword, _ in arguments):
        if not STORE.search(receiver) and not MODEL.match(receiver):
            return None
    if STORE.search(receiver) or (MODEL.match(receiver) and root not in NOT_MODELS):
        if method in ("set", "add", "put", "push") and not STORE.search(receiver):
            return None
        return "change"
    if method in ("delete", "save", "destroy", "remove", "Delete", "Save", "update", "deleteOne", "drop"):
        return "change" if _from_store(module, function, receiver, body) else None
    return None


def _from_store(module: Module, function: Function, receiver: str, body: str) -> bool:
    """Whether the receiver was read from a database in this function."""
    root = re.split(r"[.(\[]", receiver)[0]
    scope: Function | None = function
    while scope is not None:
        for item in module.assignments(root, scope):
            text = text_of(item.tokens)
            if item.how == "for":
                text += " "
            if re.search(
                r"get_object_or_404|get_or_404|\bobjects\.|\.query\b|\.findOne|\.findById|\.find\w*\(|\.first\w*\(|\.one\w*\(|db\.\w*get\(|session\.get\(|\.scalar\w*\(|self\.get_object\(|findUnique|load_\w+\(|get_\w+\(|\.objects\(|\.get_by|\.get_by_id"
                r"|\.fetch_\w+\(|\.getRepository|\.findBy|\.select\(",
                text,
            ) and not re.search(r"requests\.|httpx\.|cache\.", text):
                return True
        scope = module.outer(scope)
    return False


def _is_local(module: Module, function: Function, name: str) -> bool:
    return name in function.parameters or bool(module.assignments(name, function))


def _assigns_attribute(module: Module, start: int, end: int) -> str:
    """`change` when an attribute of something is assigned, `trace` when only traces of reading are, else empty."""
    tokens = module.tokens
    found = ""
    for index in range(start + 2, end - 1):
        if (
            tokens[index + 1].text in ("=", "+=", "-=")
            and tokens[index - 1].text == "."
            and tokens[index].kind == "name"
            and module.parent[index] == module.parent[start]
        ):
            if tokens[index - 2].text in ("self", "this", "response", "res", "request", "resp", "session"):
                continue
            if BENIGN.search(tokens[index].text):
                found = found or "trace"
            else:
                return "change"
    return found


def _shared_state(module: Module, function: Function, start: int, end: int) -> Change | None:
    """Changes of a collection that lives in the module: an in-memory store."""
    tokens = module.tokens
    for index in range(start, end - 1):
        token = tokens[index]
        if token.kind != "name" or tokens[index - 1].text in (".", "?."):
            continue
        name = token.text
        if BENIGN.search(name) or not module.assignments(name, None) or _shadowed(module, function, name, index):
            continue
        if re.search(r"(?i)pool|client|conn|engine|template|logger|app$|router|config|queue$|limiter", name):
            continue
        following = tokens[index + 1].text
        before = tokens[index - 1].text
        change = False
        if (before in ("del", "delete") and following in ("[", ".")) or (
            before == "(" and tokens[index - 2].text == "delete" and module.language == "go"
        ):
            change = True
        elif following == "." and index + 3 < end and tokens[index + 3].text == "(":
            method = tokens[index + 2].text
            change = method in (
                "pop",
                "append",
                "remove",
                "clear",
                "push",
                "splice",
                "shift",
                "unshift",
                "insert",
                "popitem",
                "extend",
                "discard",
            ) or (method in ("delete", "set", "add", "update") and _is_collection(module, name))
        elif following == "[" and module.partner[index + 1] > 0:
            after = module.partner[index + 1] + 1
            while (
                after < end
                and tokens[after].text in ("[", ".")
                and (module.partner[after] > 0 or tokens[after].text == ".")
            ):
                after = module.partner[after] + 1 if tokens[after].text == "[" else after + 2
            change = after < end and tokens[after].text in ("=", "+=", "-=", "++", "--")
            if change and BENIGN.search(text_of(tokens[index:after])):
                change = False
        elif following in ("=", "+=", "-=", "++", "--") and (
            not module.python or re.search(rf"\bglobal\b[^\n]*\b{re.escape(name)}\b", module.text)
        ):
            change = module.parent[index] == -1 or tokens[module.parent[index]].text == "{"
        if change and not _memoised(module, function, name):
            return Change(token.start, tokens[min(index + 2, end - 1)].end, f"changes `{name}`")
    return None


def _shadowed(module: Module, function: Function, name: str, index: int) -> bool:
    if name in function.parameters:
        return True
    if re.search(rf"\bglobal\b[^\n]*\b{re.escape(name)}\b", module.text) and module.python:
        return False
    for item in module.assignments(name, function):
        before = module.tokens[item.index - 1].text
        if module.python or item.operator == ":=" or before in ("const", "let", "var", ","):
            return True
    return False


def _is_collection(module: Module, name: str) -> bool:
    return any(
        re.match(r"new\s*(?:Map|Set)\b|\{|dict\(|set\(|defaultdict|\[|make\(map|map\[", text_of(item.tokens))
        for item in module.assignments(name, None)
    )


def _memoised(module: Module, function: Function, name: str) -> bool:
    """`if key not in table: table[key] = compute()` is a cache."""
    body = module.text[module.tokens[function.body].start : module.tokens[function.end - 1].end]
    quoted = re.escape(name)
    return bool(
        re.search(
            rf"if\s+\w+\s+not\s+in\s+{quoted}\s*:|if\s*\(?\s*!\s*{quoted}(?:\.has\(|\[)|if\s+{quoted}\s+is\s+None|if\s*\(?!\s*{quoted}\s*\)",
            body,
        )
    )
