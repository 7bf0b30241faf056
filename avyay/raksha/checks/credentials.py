# ruff: noqa: E501 - long patterns read better whole
"""Credentials in the source: real ones, and those a code generator makes up."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.checks.given_strings import given_strings
from avyay.raksha.checks.secret_formats import match_provider, valid_checksum
from avyay.raksha.checks.secret_names import kind_of_name
from avyay.raksha.checks.secret_values import is_placeholder, judge
from avyay.raksha.languages import UNSUPPORTED
from avyay.raksha.syntax.module import parse

_SHARED_FIX = "Read the secret from the environment or a secret store and fail to start without it; revoke the value if it was ever real."
FORMAT = Rule(
    id="hardcoded-credential",
    title="Credential in the source",
    severity="high",
    security_severity=8.5,
    cwe=("CWE-798",),
    owasp=("A07:2021",),
    precision="high",
    category="hallucination",
    aliases=("bandit:B105", "bandit:B106", "bandit:B107"),
    why=(
        "Everyone who can read the code can use the key. A key that a code generator made up works nowhere, hides that the"
        " real one is missing, and teaches the next editor to paste a real one in its place."
    ),
    bad='client = OpenAI(api_key="sk-" + "proj-Zt8kQ2mX7vBn4LwR9cYd")  # in one piece',
    good='client = OpenAI(api_key=os.environ["OPENAI_API_KEY"])',
    fix=_SHARED_FIX,
)
INVENTED = Rule(
    id="invented-secret",
    title="Secret written into the source",
    severity="high",
    security_severity=7.5,
    cwe=("CWE-798", "CWE-1391"),
    owasp=("A07:2021", "A02:2021"),
    precision="medium",
    category="hallucination",
    why=(
        "A password, signing key or token that stands in the code is known to everyone who reads it; one that reads like a"
        " phrase is guessed as well. With a signing key anybody can issue valid sessions."
    ),
    bad='JWT_SECRET = "my-ultra-secure-jwt-signing-secret-v2"',
    good='JWT_SECRET = os.environ["JWT_SECRET"]',
    fix=_SHARED_FIX,
)
KEY = Rule(
    id="private-key-in-source",
    title="Private key in the source",
    severity="critical",
    security_severity=9.3,
    cwe=("CWE-321", "CWE-798"),
    owasp=("A02:2021",),
    precision="very-high",
    category="hallucination",
    why="Whoever reads the file can sign, decrypt and log in as the owner of the key.",
    bad='KEY = """-----BEGIN RSA PRIVATE KEY-----\\nMIIEpAIBAAKCAQEA..."""',
    good='KEY = Path(os.environ["SIGNING_KEY_FILE"]).read_text()',
    fix="Move the key to a secret store, replace it everywhere it is trusted, and remove it from the history.",
)
IN_URL = Rule(
    id="credential-in-connection-url",
    title="Password in a connection URL",
    severity="high",
    security_severity=7.5,
    cwe=("CWE-798",),
    owasp=("A07:2021",),
    precision="high",
    category="hallucination",
    why="The password is known to everyone who reads the code, and appears in every log line that prints the URL.",
    bad='DATABASE_URL = "postgresql://app:Tr0ub4dor3\x40db.prod.acme.net/app"',
    good='DATABASE_URL = os.environ["DATABASE_URL"]',
    fix="Read the whole URL from the environment or a secret store.",
)
RULES = (FORMAT, INVENTED, KEY, IN_URL)
LANGUAGES: frozenset[str] = frozenset()
USES_PROJECT = False

PROGRAMS = frozenset({"python", "javascript", "typescript", "go"})
WORDS = (
    "secret", "passw", "pwd", "passphrase", "token", "auth", "credential", "bearer", "jwt", "hmac", "cookieparser",
    "cookiestore", "serializer", "fernet", "login",
)  # fmt: skip
NAMES = re.compile(r"(?i)\bpass\b|_pass\b|api[-_]?key|access[-_]?key|_key\b|\w[a-z]Key\b")
PRIVATE = re.compile(
    r"-----BEGIN (?:(?:RSA|EC|DSA|OPENSSH|ENCRYPTED|PGP) )?PRIVATE KEY(?: BLOCK)?-----(?:\s|\\n|\\r|[\"'`+])*([A-Za-z0-9+/=]{40,})"
)
CONNECTION = re.compile(
    r"\b(?:postgres(?:ql)?(?:\+\w+)?|mysql(?:\+\w+)?|mariadb(?:\+\w+)?|mongodb(?:\+srv)?|rediss?|amqps?|mssql(?:\+\w+)?|oracle(?:\+\w+)?|cockroachdb|clickhouse|https?|ftps?|sftp|smtps?|ldaps?|kafka|nats)"
    r"://(?P<user>[^\s:/@\"'`<>{}$]{0,64}):(?P<password>[^\s/@\"'`<>{}$%]{3,128})@(?P<host>[A-Za-z0-9.-]+)"
)
SAMPLE_PASSWORDS = frozenset({
    "password", "pass", "passwd", "pwd", "secret", "user", "username", "postgres", "mysql", "root", "admin",
    "guest", "example", "test", "changeme", "redis", "mongo", "app", "dev", "token", "key", "rabbitmq",
    "minioadmin", "docker", "local", "xxx", "xxxx", "xxxxx",
})  # fmt: skip
NOT_USED = frozenset(
    {"example", "test", "changeme", "user", "username", "xxx", "xxxx", "xxxxx", "local", "dev", "app", "key", "token"}
)
LOCAL = re.compile(
    r"^(?:localhost|127\.\d|0\.0\.0\.0|host|hostname|db|database|postgres|mysql|mongo|mongodb|redis|rabbitmq|server|broker|.*\.(?:example|test|invalid|localhost)|(?:.*\.)?example\.(?:com|org|net))$|^127\."
)
SAMPLES = frozenset({
    "docs", "doc", "docs_src", "examples", "example", "samples", "sample", "demo", "demos", "tutorial", "tutorials",
    "locale", "locales", "i18n", "translations", "lang",
})  # fmt: skip
# Files to be copied and filled in.
TEMPLATE = re.compile(r"(?i)\.(?:sample|example|dist)$|[._-](?:sample|example)\.[a-z]+$|^(?:sample|example)[._-]")
PROSE = re.compile(
    r"(?i)\.(?:md|mdx|rst|txt|po|pot|adoc|svg|lock|ipynb|csv|tsv|map|html?|xml|css|scss)$|(?:^|/)(?:package-lock\.json|pnpm-lock\.yaml|yarn\.lock|go\.sum|composer\.lock|poetry\.lock|uv\.lock|.*\.min\.js)$"
)
LINE = re.compile(
    r"^\s*(?:export\s+|ENV\s+|ARG\s+|-\s+|set\s+)?[\"']?(?P<name>[A-Za-z_][\w.-]*)[\"']?\s*(?P<op>[:=]|\s)\s*(?P<quote>[\"']?)(?P<value>[^\s\"'#,]{3,200})(?P=quote)\s*,?\s*(?:#.*)?$"
)
# The same in languages that only their text is read of: a type before the name, a semicolon at the end.
CODE_LINE = re.compile(
    r"^\s*(?:[\w.<>\[\]?&*]+\s+){0,6}[$@]?(?P<name>[A-Za-z_][\w.>-]*?)\s*(?::\s*[\w?<>]+\s*)?(?P<op>:=|=>|=|:)\s*(?P<quote>[\"'])(?P<value>[^\s\"']{3,200})(?P=quote)\s*[;,]?\s*(?:(?://|#).*)?$"
)
# Where a value stands without quotes. Anywhere else a word without quotes is a variable, not its value.
BARE = frozenset({"yaml", "bash", "dockerfile", "json"})
BARE_NAMES = re.compile(
    r"(?i)(?:^|/)(?:[^/.]*|[^/]*\.env(?:\.[^/]*)?|[^/]*\.(?:ini|cfg|conf|cnf|config|properties|env|service|toml|netrc|pgpass))$"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    text = file.text
    if file.is_test:
        yield from _issued(file)
        return
    taken: list[tuple[int, int]] = []
    if "PRIVATE KEY" in text:
        for match in PRIVATE.finditer(text):
            if not re.search(r"(?i)example|your|xxxx|\.\.\.", match.group(1)):
                taken.append(match.span())
                yield file.finding(
                    KEY,
                    match.start(),
                    match.end(),
                    secrets=(match.group(1),),
                    message="A private key stands in the source.",
                )
    sample = any(part.lower() in SAMPLES for part in file.name.split("/")[:-1])
    yield from _formats(file, taken, sample)
    if "://" in text and not sample and not PROSE.search(file.name):
        yield from _connections(file, taken)
    if sample or PROSE.search(file.name) or not (file.mentions(*WORDS) or NAMES.search(text)):
        return
    if file.language in PROGRAMS:
        yield from _named(file, taken)
    elif len(text) < 200_000 and file.name.rsplit("/", 1)[-1] not in ("package.json", "composer.json", "tsconfig.json"):
        yield from _settings(file, taken)


def _free(taken: list[tuple[int, int]], start: int, end: int) -> bool:
    if any(start < stop and begin < end for begin, stop in taken):
        return False
    taken.append((start, end))
    return True


def _formats(file: SourceFile, taken: list[tuple[int, int]], sample: bool) -> Iterator[Finding]:
    text = file.text
    for provider, match in match_provider(text):
        start, end = match.span()
        line = text[text.rfind("\n", 0, start) + 1 : text.find("\n", end) if text.find("\n", end) >= 0 else len(text)]
        if provider.name == "Google API key" and _is_public_google_key(text, start, line):
            continue
        if provider.name in (
            "Hugging Face token",
            "Resend key",
            "Twilio key",
            "Square token",
            "Mailgun key",
            "Databricks token",
        ) and not re.search(r"[\"'`=:]\s*\S*$", text[max(0, start - 40) : start]):
            continue
        if sample and provider.name == "OpenAI-style API key":
            continue
        if (
            re.search(r"(?i)regex|pattern|re\.compile|startswith|startsWith|HasPrefix|sha(?:256|512)-|integrity", line)
            and not provider.checksum
        ):
            continue
        if not _free(taken, start, end):
            continue
        message = f"This has the format of a {provider.name}."
        if provider.checksum and not valid_checksum(match.group("body")):
            message = f"This has the format of a {provider.name} but not its checksum: it is invented."
        yield file.finding(FORMAT, start, end, message=message, secrets=(match.group(),))


def _issued(file: SourceFile) -> Iterator[Finding]:
    """In test code only what nobody makes up: a token whose checksum is right was issued by its provider."""
    for provider, match in match_provider(file.text):
        if provider.checksum and valid_checksum(match.group("body")):
            yield file.finding(
                FORMAT,
                *match.span(),
                message=f"This is a {provider.name}: its checksum is right, so it was issued.",
                secrets=(match.group(),),
            )


def _is_public_google_key(text: str, start: int, line: str) -> bool:
    """Keys of a web page (Firebase, Maps in the browser) are public by design."""
    near = text[max(0, start - 600) : start + 600]
    return bool(
        re.search(r"(?i)authDomain|messagingSenderId|measurementId|firebase_?config", near)
        or re.search(r"(?i)NEXT_PUBLIC|VITE_|REACT_APP|maps\.googleapis\.com/maps/api/js|googleMapsApiKey|public", line)
    )


def _connections(file: SourceFile, taken: list[tuple[int, int]]) -> Iterator[Finding]:
    for match in CONNECTION.finditer(file.text):
        password, host = match.group("password"), match.group("host").lower()
        if password.lower() in SAMPLE_PASSWORDS or LOCAL.match(host) or is_placeholder(password) or password.isdigit():
            continue
        if password.lower() == match.group("user").lower() or (
            re.match(r"(?i)^(?:user|pass|pw|your|my|test)", password) and not re.search(r"\d", password)
        ):
            continue
        start = match.start("password")
        line = file.line(file.position(start)[0]).lstrip()
        if line.startswith(("#", "//", "*", ">>>")) and re.search(r"(?i)e\.g\.|example|format|like|scheme://", line):
            continue
        if _free(taken, match.start(), match.end()):
            yield file.finding(
                IN_URL,
                match.start(),
                match.end(),
                message=f"The password for {match.group('host')} stands in the URL.",
                secrets=(password,),
            )


def _named(file: SourceFile, taken: list[tuple[int, int]]) -> Iterator[Finding]:
    module = parse(file.text, file.language)
    for given in given_strings(module):
        kind = given.kind or kind_of_name(given.name)
        if kind is None:
            continue
        value = given.token.value
        if value.startswith("AIza") or _is_public_jwt(value):
            continue  # the former are judged by their format
        reason = judge(value, given.name, kind, fallback=given.fallback)
        if reason is None and given.used and kind == "password" and value.lower() in SAMPLE_PASSWORDS - NOT_USED:
            reason = "weak"
        if reason is None or not _free(taken, given.token.start, given.token.end):
            continue
        yield file.finding(
            INVENTED,
            given.token.start,
            given.token.end,
            message=_message(given.name, reason, given.fallback),
            secrets=(value,),
        )


def _message(name: str, reason: str, fallback: bool) -> str:
    what = {"random": "a value of its own", "invented": "an invented value", "weak": "a guessable value"}[reason]
    if fallback:
        return f"Without configuration `{name}` falls back to {what} from the source."
    return f"`{name}` is given {what} in the source."


def _is_public_jwt(value: str) -> bool:
    """Tokens meant for browsers (Supabase's anonymous role, Mapbox) and the sample of jwt.io."""
    parts = value.removeprefix("Bearer ").split(".")
    if len(parts) != 3 or not parts[1].startswith("eyJ"):
        return False
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return False
    return isinstance(claims, dict) and (
        claims.get("role") == "anon" or claims.get("name") == "John Doe" or claims.get("sub") == "1234567890"
    )


def _settings(file: SourceFile, taken: list[tuple[int, int]]) -> Iterator[Finding]:
    """`name: value` and `NAME=value` lines of configuration files."""
    offset = 0
    template = TEMPLATE.search(file.name.rsplit("/", 1)[-1]) is not None
    bare = file.language in BARE or (file.language == "text" and BARE_NAMES.search(file.name) is not None)
    for line in file.text.split("\n"):
        start = offset
        offset += len(line) + 1
        if len(line) > 400 or line.lstrip().startswith(("#", "//", ";", "*")):
            continue
        match = (CODE_LINE if file.language in UNSUPPORTED else LINE).match(line)
        if match is None or (match.group("op").isspace() and not re.match(r"\s*(?:ENV|ARG)\s", line)):
            continue
        kind = kind_of_name(match.group("name"))
        if kind is None or not (bare or match.group("quote")):
            continue
        value = match.group("value")
        if (file.language == "yaml" and re.match(r"[*&!|>\[{]", value)) or "${{" in line or _is_public_jwt(value):
            continue
        if (file.language == "json" and match.group("op") == "=") or value in (
            "true",
            "false",
            "write",
            "read",
            "none",
        ):
            continue
        reason = judge(value, match.group("name"), kind)
        if template and reason != "random":
            continue  # to be filled in by whoever copies the file
        if reason is None or (file.language in ("terraform", "hcl") and not match.group("quote")):
            continue
        begin = start + match.start("value")
        if _free(taken, begin, begin + len(value)):
            yield file.finding(
                INVENTED,
                begin,
                begin + len(value),
                message=_message(match.group("name"), reason, False),
                secrets=(value,),
            )
