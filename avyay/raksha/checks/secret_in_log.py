"""Passwords and tokens written to logs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.checks.secret_names import kind_of_name
from avyay.raksha.syntax.lexer import Token, lex
from avyay.raksha.syntax.module import Call, Module, parse
from avyay.raksha.syntax.tokens import split, text_of

RULE = Rule(
    id="secret-in-log",
    title="Secret written to a log",
    severity="medium",
    security_severity=5.9,
    cwe=("CWE-532",),
    owasp=("A09:2021",),
    precision="medium",
    category="architecture",
    languages=("python", "javascript", "typescript", "go"),
    why="Logs are copied to places with more readers than the secret has owners, and are kept for years.",
    bad='logger.info("login of %s with %s", user, password)',
    good='logger.info("login of %s", user)',
    fix="Log who and what happened; of a secret at most whether it is set.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

LOGS = re.compile(
    r"(?i)(?:^|\.)(?:log|logger|logging|_logger|_log|slog|zap|logrus|sugar|console|winston|pino)\.(?:debug|info|warn|warning|error"
    r"|exception|critical|fatal|log|trace|print|printf|println|infof|debugf|warnf|errorf|fatalf|infow|debugw|errorw)$"
    r"|^(?:print|pprint)$|^fmt\.Print(?:f|ln)?$|^log\.(?:Print|Fatal)(?:f|ln)?$"
)
WORTH_READING = re.compile(r"(?i)(?:log\w*|console|print\w*)\W.*(?:passw|secret|token|api_?key|credential|pwd)")
PLAIN = re.compile(r"^(?:token|secret|key|pat|bearer|encryption|credentials?|authorization)$", re.IGNORECASE)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or not file.mentions("passw", "secret", "token", "api_key", "apikey", "credential", "pwd"):
        return
    if not WORTH_READING.search(file.text):
        return
    module = parse(file.text, file.language)
    for call in module.calls():
        if LOGS.search(call.callee):
            name = _logged(module, call)
            if name:
                start, end = module.tokens[call.first].start, module.tokens[call.closing].end
                yield file.finding(RULE, start, end, message=f"`{name}` is written to a log.")


def _logged(module: Module, call: Call) -> str:
    for _, tokens in module.arguments(call):
        for part in split(tokens, "+", "%", ","):
            for piece in _values(part, module.language):
                name = _secret_name(piece)
                if name:
                    return name
    return ""


def _values(tokens: list[Token], language: str) -> Iterator[list[Token]]:
    """The expressions that end up in the text."""
    if len(tokens) > 2 and tokens[1].text == "=" and tokens[0].kind == "name":
        tokens = tokens[2:]  # a keyword field of structured logging
    if tokens and tokens[0].text in ("(", "{") and tokens[-1].text in (")", "}"):
        for part in split(tokens[1:-1], ","):
            yield from _values(split(part, ":")[-1], language)
        return
    for token in tokens:
        for hole in token.holes:
            yield lex(hole, language)
    if tokens and all(token.kind == "name" or token.text in (".", "?.") for token in tokens):
        yield tokens


def _secret_name(tokens: list[Token]) -> str:
    """The dotted name, if it names a secret and is the whole expression."""
    if not tokens or any(token.kind != "name" and token.text not in (".", "?.") for token in tokens):
        return ""
    last = tokens[-1].text
    if PLAIN.match(last) or (last.isupper() and "_" not in last) or kind_of_name(last) is None:
        return ""
    return text_of(tokens)
