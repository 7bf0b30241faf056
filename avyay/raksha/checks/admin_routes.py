"""Administrative routes that nobody guards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.module import Module, parse
from avyay.raksha.syntax.routes import Handler, find_handlers
from avyay.raksha.syntax.tokens import text_of

RULE = Rule(
    id="unguarded-admin-route",
    title="Administrative route without a check of who calls",
    severity="medium",
    security_severity=6.9,
    cwe=("CWE-306",),
    owasp=("A01:2021",),
    precision="low",
    category="architecture",
    languages=("python", "javascript", "typescript", "go"),
    why="A path that only the maker knows is found by scanners within days. What it does, everybody can then do.",
    bad='@app.post("/admin/users/{user_id}/promote")\ndef promote(user_id: int):\n    set_role(user_id, "admin")',
    good=(
        '@app.post("/admin/users/{user_id}/promote", dependencies=[Depends(require_admin)])\n'
        'def promote(user_id: int):\n    set_role(user_id, "admin")'
    ),
    fix="Require an authenticated administrator on the route, or on the router all such routes belong to.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

PATH = re.compile(
    r"(?:^|/)(?:admin|administrator|internal|superuser|root|debug|manage|management)(?:/|$|_|-)", re.IGNORECASE
)
WORTH_READING = re.compile(r"(?i)[\"'`/](?:admin|internal|superuser|debug|manage)\w*[\"'`/]")
GUARD = re.compile(
    r"(?i)auth|login|permission|is_?admin|is_?staff|is_?superuser|require|protect|guard|current_?user|get_?user|role|jwt|token|session|security"
    r"|principal|acl|rbac|api_?key|verify|ensure|middleware|csrf|signature|hmac|restrict|private|policy|abort\(40[13]|403|401|Forbidden|Unauthorized"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not file.mentions("admin", "internal", "superuser", "debug", "manage"):
        return
    if not WORTH_READING.search(file.text):
        return
    module = parse(file.text, file.language)
    reported: set[int] = set()
    for handler in find_handlers(module):
        if not PATH.search(handler.path) or handler.function.start in reported:
            continue
        if re.search(r"(?i)login|logout|health|static|assets", handler.path) or _guarded(module, handler):
            continue
        reported.add(handler.function.start)
        tokens = module.tokens
        first = handler.function.start
        last = min(handler.function.body, len(tokens) - 1)
        yield file.finding(
            RULE, tokens[first].start, tokens[last].start, message=f"`{handler.path}` checks nobody's rights."
        )


def _guarded(module: Module, handler: Handler) -> bool:
    """Whether the route, its function, its router or the whole application checks who calls."""
    function, tokens = handler.function, module.tokens
    start = function.start
    opening = module.parent[start] if start < len(module.parent) else -1
    first = max(0, opening - 6) if opening >= 0 else start
    own = text_of([token for token in tokens[first : function.end] if token.value != handler.path])
    named = text_of(
        [
            t
            for i, t in enumerate(tokens)
            if t.text == function.name and function.name
            for t in tokens[max(0, i - 12) : i + 2]
        ]
    )
    everywhere = re.findall(
        r"(?m)before_request|dependencies\s*=\s*\[|add_middleware\([^)]*[Aa]uth|\.use\([^\n]*|\.Use\([^\n]*|@UseGuards|LoginRequiredMixin|permission_classes"
        r"|MIDDLEWARE|middleware\.(?:Auth|JWT|BasicAuth)\w*|onRequest|preHandler",
        module.text,
    )
    return bool(
        GUARD.search(own)
        or GUARD.search(named.replace(function.name, ""))
        or any(
            re.search(r"before_request|dependencies|Guards|Mixin|permission|MIDDLEWARE", item) or GUARD.search(item)
            for item in everywhere
        )
    )
