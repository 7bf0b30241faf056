# ruff: noqa: E501 - long patterns read better whole
"""SQL text put together from values that somebody else chooses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.flow import Flow
from avyay.raksha.syntax.flow_words import SOURCES
from avyay.raksha.syntax.lexer import Token
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.tokens import text_of

RULE = Rule(
    id="sql-injection",
    title="SQL built from strings",
    severity="high",
    security_severity=8.8,
    cwe=("CWE-89",),
    owasp=("A03:2021",),
    precision="high",
    languages=("python", "javascript", "typescript", "go"),
    aliases=("bandit:B608", "bandit:B610", "bandit:B611"),
    why=(
        "A value that is pasted into the text of a query is read as SQL. Whoever chooses the value can read or change"
        " every row the connection may touch."
    ),
    bad="cursor.execute(f\"SELECT * FROM users WHERE name = '{name}'\")",
    good='cursor.execute("SELECT * FROM users WHERE name = ?", (name,))',
    fix=(
        "Keep the query a constant and pass values as parameters; take table and column names from a fixed mapping or"
        " quote them with the driver's identifier type."
    ),
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

WORTH_READING = re.compile(
    r"(?i)\b(?:select\s|insert\s+(?:or\s+\w+\s+)?into|update\s|delete\s+from|drop\s+(?:table|database|index|view|schema)"
    r"|truncate\s|alter\s+table|create\s+(?:table|index|view|database|user|role)|merge\s+into|replace\s+into|order\s+by"
    r"|where\s|grant\s|pragma\s|exec\w*\s+\w)|\.(?:raw|extra|RawSQL|literal|whereRaw|orderByRaw|query|execute|Order|Where)\("
)
STATEMENT = re.compile(
    r"(?is)(?:^|[\s(;'\"`])(?:select\b.{0,2000}?\bfrom\b|insert\s+(?:or\s+\w+\s+|ignore\s+)?into\b|update\s+\S+\s+set\b|delete\s+from\b"
    r"|drop\s+(?:table|database|index|view|schema|user|role)\b|truncate\s+(?:table\s+)?\S|alter\s+(?:table|user|role)\b"
    r"|create\s+(?:table|database|index|view|user|role|schema)\b|merge\s+into\b|replace\s+into\b|grant\s+\w+.*\bto\b"
    r"|select\s|with\s+\w+\s+as\s*\(|pragma\s+\w|call\s+\w+\s*\(|exec(?:ute)?\s+\w+|union\s+(?:all\s+)?select\b|show\s+\w|use\s+\x00"
    r"|set\s+\w+\s*=|explain\s|copy\s+\S+\s+(?:from|to)\b|begin\b|attach\s)"
)
SKELETON = re.compile(
    r"(?is)^\s*(?:with\s.{0,800}?\)\s*)?(?:select\s.{1,2000}?\sfrom\s|insert\s+(?:or\s+\w+\s+|ignore\s+)?into\s+\S+"
    r"\s*(?:\(.*\)\s*)?(?:values|select)\b|update\s+\S+\s+set\s+\S+\s*=|delete\s+from\s+\S+(?:\s+where\b|\s*;?\s*$)"
    r"|drop\s+(?:table|database)\s+\S)"
)
EXECUTES = {
    "python": re.compile(
        r"(?:^|\.)(?:execute|executemany|executescript|execute_query|execute_sql|fetch|fetchrow|fetchval|fetch_all"
        r"|fetch_one|fetch_val|iterate|read_sql|read_sql_query|query|sql|run_query|run_sql|exec_driver_sql|callproc"
        r"|exec|prepare|run)$"
    ),
    "script": re.compile(
        r"(?:^|\.)(?:query|execute|run|all|get|each|exec|prepare|one|none|any|many|manyOrNone|oneOrNone|oneOrFail"
        r"|result|multi|queryOne|execSql|executeSql|batch|stream|createQuery|rawQuery)$"
    ),
    "go": re.compile(
        r"\.(?:Query|QueryRow|QueryContext|QueryRowContext|Exec|ExecContext|Prepare|PrepareContext|Queryx|QueryRowx"
        r"|Get|GetContext|Select|SelectContext|MustExec|NamedExec|NamedQuery|Preparex|QueryxContext|SendBatch|Queue)$"
    ),
}
# Names that run much besides SQL: only on what speaks to a database.
RUNS_ANYTHING = re.compile(r"^run$")
DATABASE = re.compile(
    r"(?i)(?:^|[._])(?:\w*(?:db|database|sql|conn|connection|cursor|session|pool|engine|duck)|tx|txn|cur|con)$"
)
RAW = {  # what they are given is SQL whatever it looks like
    "python": re.compile(r"(?:^|\.)(?:raw|RawSQL|text|literal_column|extra|from_statement|TextClause)$"),
    "script": re.compile(
        r"(?:^|\.)(?:\$queryRawUnsafe|\$executeRawUnsafe|unsafe|whereRaw|orWhereRaw|orderByRaw|havingRaw|selectRaw"
        r"|joinRaw|groupByRaw|fromRaw|raw|literal|orderBy|where|andWhere|orWhere|addOrderBy|having)$"
    ),
    "go": re.compile(r"\.(?:Raw|Where|Order|Having|Joins|Group|Table|Or|Not|Select)$"),
}
SPEAKS = re.compile(
    r"(?i)(?:^|\.)(?:log\w*|logger|logging|print\w*|console|debug|info|warn\w*|error|exception|critical|fatal\w*|trace"
    r"|\w*Error|\w*Exception|Errorf|Printf|Println|Fatalf|fail|skip|assert\w*|describe|it|test|help|echo|flash|write_?line"
    r"|stdout|stderr|message|send|reply|render\w*|_|gettext|t|ngettext|HttpResponse|json|jsonify|panic|Wrapf?|messages"
    r"|prompt|invoke|complete|generate|chat|span|set_attribute|comment|help_text|Field|add_argument|Option|input)(?:\.|$)"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not (file.mentions(".execute(", ".query(") or WORTH_READING.search(file.text)):
        return
    module = parse(file.text, file.language)
    flow = Flow(module)
    seen: set[int] = set()
    for call in module.calls():
        place = _executed(module, flow, call)
        if place is not None:
            unsafe, used = place
            seen.update(used)
            start, end = module.tokens[call.first].start, module.tokens[call.closing].end
            yield file.finding(RULE, start, end, message=_message(unsafe))
    yield from _assembled(file, module, flow, seen)


def _message(unsafe: str) -> str:
    return f"The SQL text is built from `{' '.join(unsafe.split())[:60]}`; pass it as a parameter."


def _executed(module: Module, flow: Flow, call: Call) -> tuple[str, list[int]] | None:
    """(untrusted part, offsets of the strings read) when a call runs SQL that was built from untrusted parts."""
    family = module.language if module.language in ("python", "go") else "script"
    raw = bool(RAW[family].search(call.callee))
    if not raw and not EXECUTES[family].search(call.callee):
        return None
    if family == "python" and RUNS_ANYTHING.match(call.method) and not DATABASE.search(call.receiver):
        return None
    for tokens in _statements(module, call):
        texts: list[Token] = []
        _strings(module, tokens, call.index, texts, 0)
        built = "".join(token.value if i == 0 else " " + token.value for i, token in enumerate(texts))
        if not raw and not STATEMENT.search(built):
            source = text_of(tokens)
            if (
                (
                    not texts
                    and len(tokens) > 1
                    and SOURCES.search(source)
                    and call.method.lower().startswith(("exec", "query"))
                )
                and "." in call.callee
                and re.search(r"(?i)(?:cur|conn|db|sess|pool|client|engine|tx|database)\w*\.\w+$", call.callee)
            ):
                return source, []
            continue
        if raw and not (texts and _is_built(tokens, texts)):
            continue
        if raw and call.method in ("where", "andWhere", "orWhere", "having", "orderBy", "addOrderBy", "get", "text", "select",
                                   "Select", "Table", "Not", "Or", "literal", "raw") and not _looks_sql(built, call.method):  # fmt: skip
            continue
        unsafe = flow.unsafe(tokens, call.index)
        if unsafe:
            return unsafe, [token.start for token in texts]
    return None


CONTEXT = re.compile(r"(?:ctx|context|c|nil|\w*[cC]tx|\w+\.Context\(\)|context\.\w+\(\)|&\w.*|conn|con|tx)$")
KEYWORDS = frozenset({"sql", "query", "statement", "where", "select", "text", "operation", "stmt"})


def _statements(module: Module, call: Call) -> Iterator[list[Token]]:
    """The arguments that may hold the statement: the first, past contexts and destinations, and telling keywords."""
    waiting = True
    for keyword, tokens in module.arguments(call):
        if keyword in KEYWORDS:
            yield tokens
        elif not keyword and waiting:
            waiting = len(tokens) < 8 and bool(CONTEXT.match(text_of(tokens)))
            if not waiting and not any(token.text in ("=>", "function", "func") for token in tokens):
                yield tokens


def _looks_sql(built: str, method: str) -> bool:
    """A fragment with a hole in it, not a mere value."""
    if STATEMENT.search(built) or (
        method in ("literal", "raw") and re.search(r"(?i)[=<>]|\b(?:in|like|and|or|count|sum|asc|desc)\b", built)
    ):
        return True
    return bool(
        re.search(r"(?i)(?:=|<|>|\blike\b|\bin\b|\bis\b)\s*\(?\s*['\"%\x00]|\b(?:asc|desc)\b|\border by\b", built)
    )


def _is_built(tokens: list[Token], texts: list[Token]) -> bool:
    return (
        any(token.holes for token in texts)
        or any(token.text in ("+", "%", ".") for token in tokens)
        or len(tokens) == 1
    )


def _strings(module: Module, tokens: list[Token] | tuple[Token, ...], at: int, found: list[Token], depth: int) -> None:
    """The string literals an expression is made of, through plain names."""
    for number, token in enumerate(tokens):
        if token.kind == "string":
            found.append(token)
        elif token.kind == "name" and depth < 4 and (number == 0 or tokens[number - 1].text not in (".", "?.")):
            following = tokens[number + 1].text if number + 1 < len(tokens) else ""
            if following in ("(", "."):
                if following == "(" and depth < 2:
                    for function in module.named(token.text)[:1]:
                        for index in range(function.body, function.end):
                            if module.tokens[index].text == "return":
                                end = module.expression_end(index + 1)
                                _strings(module, module.tokens[index + 1 : end], index, found, depth + 2)
                if following == "(" or not (
                    number + 2 < len(tokens)
                    and tokens[number + 2].text in ("format", "join", "replace", "strip", "trim", "String")
                ):
                    continue
            scope = module.enclosing(at)
            while True:
                items = module.assignments(token.text, scope, at if scope is module.enclosing(at) else None)
                given = scope is not None and token.text in scope.parameters
                for item in items[-6:]:
                    if item.how == "plain" and item.index != at:
                        _strings(module, item.tokens, item.index, found, depth + 1)
                if scope is not None:
                    _added(module, token.text, scope.body, min(at, scope.end), found, depth)
                if items or given or scope is None:
                    break
                scope = module.outer(scope)


def _added(module: Module, name: str, start: int, end: int, found: list[Token], depth: int) -> None:
    tokens = module.tokens
    for index in range(start, min(end, len(tokens) - 3)):
        if (
            tokens[index].text == name
            and tokens[index + 2].text in ("append", "push", "WriteString", "write")
            and tokens[index + 3].text == "("
        ):
            _strings(module, tokens[index + 4 : max(module.partner[index + 3], index + 4)], index, found, depth + 1)


def _assembled(file: SourceFile, module: Module, flow: Flow, seen: set[int]) -> Iterator[Finding]:
    """Statements assembled here and run elsewhere."""
    for index, token in enumerate(module.tokens):
        if token.kind != "string" or token.start in seen or not SKELETON.match(token.value.replace("\x00", "x")):
            continue
        if token.prefix and token.prefix not in ("f", "fr", "rf", "r", "b", "u", "rb", "br"):
            continue
        first, end = _expression(module, index)
        if module.tokens[first].first and module.python:
            continue  # a docstring or a bare statement
        tokens = module.tokens[first:end]
        if len(tokens) == 1 and not token.holes:
            continue
        if _spoken(module, index) or any(item.start in seen for item in tokens if item.kind == "string"):
            continue
        if (
            not token.holes
            and not any(item.text in ("+", "%", ".") for item in tokens[1:3])
            and tokens[0].text != "fmt"
        ) and not any(item.holes for item in tokens if item.kind == "string"):
            continue
        if not VALUE.search("".join(_marked(item) for item in tokens)):
            continue  # a statement around a statement: what query builders do
        unsafe = flow.unsafe(tokens, index)
        if unsafe:
            seen.update(item.start for item in tokens)
            yield file.finding(RULE, tokens[0].start, tokens[-1].end, message=_message(unsafe))


# A part put in where a value stands.
VALUE = re.compile(
    r"(?is)(?:=|<|>|\blike\b|\bin\b|\bvalues\b|\blimit\b|\boffset\b|\bset\b|\bby\b|\binto\b|\btable\b|\bdatabase\b|\bupdate\b|\bfrom\b(?!\s*\())[^\x00]{0,60}?\x00"
)


def _marked(token: Token) -> str:
    """A token of a built text; what is not literal is a hole."""
    if token.kind == "string":
        return re.sub(r"%[sdr]|%\(\w+\)s|\{\w*\}", "\x00", token.value)
    return "\x00" if token.kind == "name" else ""


def _expression(module: Module, index: int) -> tuple[int, int]:
    """The whole expression around a string: from behind `=`, `return`, `(` or `,` to its end."""
    tokens = module.tokens
    first = index
    while first > 0:
        before = tokens[first - 1]
        if (
            before.text in ("=", ":=", "return", "(", ",", "[", "{", ":", "=>", ";", "+=", "}", ")")
            and before.kind != "string"
        ):
            if before.text == "(" and first >= 2 and tokens[first - 2].text in ("Sprintf", "format", "dedent"):
                first -= 2
                continue
            break
        if tokens[first].first and module.parent[first] == -1:
            break
        first -= 1
    end = module.expression_end(index)
    if module.python:
        level = module.parent[index]
        for stop in range(index, end):
            if tokens[stop].text == "," and module.parent[stop] == level:
                return first, stop
    if tokens[first].text in ("fmt", "Sprintf", "dedent"):
        opening = next((i for i in range(first, index) if tokens[i].text == "("), first)
        end = max(module.partner[opening] + 1, end)
    return first, end


def _spoken(module: Module, index: int) -> bool:
    """Whether the text is said to people, not to a database."""
    inside = module.parent[index]
    while inside > 0:
        before = module.tokens[inside - 1]
        if module.tokens[inside].text == "(" and before.kind == "name":
            callee = before.text
            if inside >= 3 and module.tokens[inside - 2].text == ".":
                callee = f"{module.tokens[inside - 3].text}.{callee}"
            if SPEAKS.search(callee):
                return True
        inside = module.parent[inside]
    start = index
    while start > 0 and not module.tokens[start].first:
        start -= 1
        if module.tokens[start].text in ("raise", "throw", "assert"):
            return True
    return module.tokens[start].text in ("raise", "throw", "assert")
