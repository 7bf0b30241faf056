# ruff: noqa: E501 - long patterns read better whole
"""Is a text a secret? Formats of providers, entropy, invented phrases; and what only looks like one. Pure functions."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Provider", "is_placeholder", "judge", "kind_of_name", "match_provider", "valid_checksum"]

Kind = Literal["password", "signing", "token"]


@dataclass(frozen=True, slots=True)
class Provider:
    """A credential format somebody publishes; group `body` is the part that is chosen at random."""

    name: str
    pattern: re.Pattern[str]
    checksum: bool = False


def _provider(name: str, pattern: str, *, checksum: bool = False) -> Provider:
    return Provider(name, re.compile(rf"(?<![A-Za-z0-9_-]){pattern}"), checksum)


PROVIDERS = (
    _provider("Anthropic API key", r"sk-ant-(?:api|admin|sid|oat)\d\d-(?P<body>[A-Za-z0-9_-]{16,})"),
    _provider("OpenRouter API key", r"sk-or-(?:v1-)?(?P<body>[A-Za-z0-9]{16,})"),
    _provider("OpenAI API key", r"sk-(?:proj|svcacct|admin|None)-(?P<body>[A-Za-z0-9_-]{12,})"),
    _provider("OpenAI-style API key", r"sk-(?!ant-|or-|proj-|live|test)(?P<body>[A-Za-z0-9]{16,})(?![A-Za-z0-9-])"),
    _provider("Stripe secret key", r"(?:sk|rk)_(?:live|test)_(?P<body>[A-Za-z0-9]{10,})"),
    _provider("Stripe webhook secret", r"whsec_(?P<body>[A-Za-z0-9+/=]{16,})"),
    _provider("GitHub token", r"gh[pousr]_(?P<body>[A-Za-z0-9]{30,255})(?![A-Za-z0-9])", checksum=True),
    _provider("GitHub fine-grained token", r"github_pat_(?P<body>[A-Za-z0-9_]{22,255})"),
    _provider("GitLab token", r"gl(?:pat|dt|rt|oas|cbt|ptt|ft|soat|agent|imt)-(?P<body>[A-Za-z0-9_-]{20,64})"),
    _provider("npm token", r"npm_(?P<body>[A-Za-z0-9]{30,40})(?![A-Za-z0-9])", checksum=True),
    _provider("PyPI token", r"pypi-(?P<body>AgE[A-Za-z0-9_-]{40,})"),
    _provider("AWS access key", r"(?:AKIA|ASIA|ABIA|ACCA)(?P<body>[A-Z0-9]{12,16})(?![A-Za-z0-9])"),
    _provider("Google API key", r"AIza(?P<body>[A-Za-z0-9_-]{30,40})(?![A-Za-z0-9_-])"),
    _provider("Google OAuth secret", r"GOCSPX-(?P<body>[A-Za-z0-9_-]{20,})"),
    _provider("Slack token", r"xox[abposre]-(?P<body>[A-Za-z0-9-]{12,})"),
    _provider("Slack app token", r"xapp-\d-(?P<body>[A-Za-z0-9-]{20,})"),
    _provider("Slack webhook", r"https://hooks\.slack\.com/services/(?P<body>T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{12,})"),
    _provider("Discord webhook", r"https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\d{10,}/(?P<body>[A-Za-z0-9_-]{20,})"),
    _provider("Telegram bot token", r"\d{8,10}:(?P<body>AA[A-Za-z0-9_-]{30,36})(?![A-Za-z0-9_-])"),
    _provider("SendGrid key", r"SG\.(?P<body>[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,})"),
    _provider("Mailgun key", r"key-(?P<body>[0-9a-f]{32})(?![0-9a-z])"),
    _provider("Twilio key", r"SK(?P<body>[0-9a-f]{32})(?![0-9a-z])"),
    _provider("Hugging Face token", r"hf_(?P<body>[A-Za-z0-9]{16,64})(?![A-Za-z0-9_])"),
    _provider("Groq key", r"gsk_(?P<body>[A-Za-z0-9]{20,})"),
    _provider("Replicate token", r"r8_(?P<body>[A-Za-z0-9]{30,40})"),
    _provider("Perplexity key", r"pplx-(?P<body>[A-Za-z0-9]{24,})"),
    _provider("xAI key", r"xai-(?P<body>[A-Za-z0-9]{24,})"),
    _provider("DigitalOcean token", r"do[opr]_v1_(?P<body>[0-9a-f]{32,64})"),
    _provider("Shopify token", r"shp(?:at|ca|pa|ss)_(?P<body>[0-9a-fA-F]{24,40})"),
    _provider("Square token", r"(?:EAAA|sq0(?:atp|csp|idp)-)(?P<body>[A-Za-z0-9_-]{20,64})"),
    _provider("Linear key", r"lin_(?:api|oauth)_(?P<body>[A-Za-z0-9]{30,})"),
    _provider("Notion token", r"(?:secret|ntn)_(?P<body>[A-Za-z0-9]{40,50})(?![A-Za-z0-9])"),
    _provider("Databricks token", r"dapi(?P<body>[0-9a-f]{32})"),
    _provider("Docker Hub token", r"dckr_pat_(?P<body>[A-Za-z0-9_-]{20,})"),
    _provider("HashiCorp Vault token", r"hvs\.(?P<body>[A-Za-z0-9_-]{20,})"),
    _provider("New Relic key", r"NRAK-(?P<body>[A-Z0-9]{20,30})"),
    _provider("Resend key", r"re_(?P<body>[A-Za-z0-9]{6,12}_[A-Za-z0-9]{16,32})(?![A-Za-z0-9])"),
    _provider("Supabase key", r"sb(?:p|_secret)_(?P<body>[A-Za-z0-9_]{20,})"),
    _provider("Facebook token", r"EAAC(?P<body>[A-Za-z0-9]{20,})"),
    _provider("Airtable token", r"pat[A-Za-z0-9]{14}\.(?P<body>[0-9a-f]{40,64})"),
    _provider("Azure storage key", r"AccountKey=(?P<body>[A-Za-z0-9+/]{60,88}={0,2})"),
)  # fmt: skip
# Where one may begin: one pass over the text, instead of one for each provider.
CANDIDATE = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[a-zA-Z\d])(?:sk-[A-Za-z0-9]|[sr]k_(?:live|test)_|whsec_|gh[pousr]_[A-Za-z0-9]|github_pat_|gl[a-z]{2,5}-[A-Za-z0-9_-]{20}"
    r"|npm_[A-Za-z0-9]{30}|pypi-AgE|A(?:KIA|SIA|BIA|CCA)[A-Z0-9]|AIza|GOCSPX-|xox[abposre]-|xapp-\d|https://hooks\.slack|https://(?:\w+\.)?discord"
    r"|\d{8,10}:AA|SG\.[A-Za-z0-9]|key-[0-9a-f]{32}|SK[0-9a-f]{32}|hf_[A-Za-z0-9]{16}|gsk_|r8_[A-Za-z0-9]{30}|pplx-|xai-|do[opr]_v1_|shp[acs][ats]_|EAAA|sq0"
    r"|lin_(?:api|oauth)_|(?:secret|ntn)_[A-Za-z0-9]{40}|dapi[0-9a-f]{32}|dckr_pat_|hvs\.|NRAK-|re_[A-Za-z0-9]{6,12}_|sb(?:p|_secret)_|EAAC|pat[A-Za-z0-9]{14}\.|AccountKey=)"
)
# Published by their providers as samples; they open nothing.
DOCUMENTED = frozenset(
    {
        "4eC39HqLyjWDarjtT1zdp7dc",  # Stripe's test key
        "BQokikJOvBiI2HlWgH4olfQ2",
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",  # Azurite
        "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==",  # Cosmos emulator
        "6LeIxAcTAAAAAJcZVRqyHh71UMIEGNQ_MXjiZKhI", "6LeIxAcTAAAAAGG-vFI1TnRWxMZNFuojJ4WifJWe",  # reCAPTCHA
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "1x00000000000000000000AA", "1x0000000000000000000000000000000AA",
        "minioadmin", "JBSWY3DPEHPK3PXP",
    }
)  # fmt: skip
FORMAT_PLACEHOLDER = re.compile(
    r"(?i)your|x{4,}|example|sample|placeholder|replace|insert|change.?me|dummy|fake|redact|here$|todo|\*{3}|\.\.\.|<|0{8,}|1{8,}"
    r"|not.?real|no.?key|_key_|api.?key|goes|secret.?key|documentation|foobar|notreal|mock"
)
PLACEHOLDER = re.compile(
    r"(?ix) ^(?:your|the|some|insert|enter|put|add|replace|change|set|use|fill|paste|provide|specify|choose|any)(?:[-_\s]|$) | your[-_\s] | ^your | _your_"
    r" | x{3,} | \*{3,} | \.{3} | ^<.*>$ | ^\[.*\]$ | ^\{.*\}$ | ^\$ | \$\{ | \{\{ | ^% | %\(\w+\)s | ^\#\{ | ^@\w+@$ | ^__\w+__$ | ^--"
    r" | example | sample | placeholder | replace[-_]?(?:me|this|with) | change[-_\s]?(?:me|this|it|in) | insert[-_] | todo | fixme | dummy | \bfake | mock | redact | stub"
    r" | not[-_\s]?(?:a[-_\s])?(?:real|secret|set|used|needed|required|configured|provided|available|found) | ^(?:none|null|nil|undefined|n/?a|na|unset|empty|unknown|missing|disabled|invalid|hidden|masked|encrypted|secure)$"
    r" | ^(?:test|testing|tests?[-_ ].*|.*[-_ ]test|.*[-_]testing.*|foo|bar|baz|foobar|foo[-_]?bar|abc|string|str|value|text|default|local|localhost)$ | lorem | [-_\s]here$ | goes[-_\s] | no[-_]?(?:key|token|auth|password|secret)"
    r" | ^(?:ollama|lm-studio|empty|sk-no-key-required|minioadmin|minio123)$ | ^0+$ | ^\d{1,5}$ | ^(?:bearer|basic|token|digest|hmac|oauth2?)\s*$ | \bunit[-_]?test | for[-_]tests? | ^unused | ^ignored | ^ci[-_]"
)
UNSAFE_FALLBACK = re.compile(
    r"(?i)change[-_ ]?(?:me|this|it|in)|^(?:secret|dev|development|default|test|key|jwt|password|admin)$|secret|insecure|default|^dev[-_]|(?:super|my).*"
)
GENERIC = frozenset(
    [
        "api",
        "key",
        "keys",
        "token",
        "tokens",
        "access",
        "refresh",
        "id",
        "auth",
        "oauth",
        "oauth2",
        "secret",
        "secrets",
        "password",
        "passwd",
        "pwd",
        "user",
        "username",
        "login",
        "session",
        "bearer",
        "basic",
        "csrf",
        "xsrf",
        "jwt",
        "client",
        "private",
        "public",
        "authorization",
        "authentication",
        "header",
        "name",
        "type",
        "value",
        "field",
        "cookie",
        "credential",
        "credentials",
        "hash",
        "x",
        "app",
        "code",
        "grant",
        "admin",
        "new",
        "old",
        "current",
        "confirm",
        "confirmation",
        "reset",
        "forgot",
        "change",
        "verify",
        "required",
        "invalid",
        "missing",
        "incorrect",
        "wrong",
        "page",
        "next",
        "previous",
        "cursor",
        "continuation",
        "sort",
        "primary",
        "foreign",
        "encryption",
        "signing",
        "default",
        "provider",
        "model",
        "request",
        "response",
        "email",
        "phone",
        "show",
        "hide",
        "toggle",
        "input",
        "text",
        "hidden",
        "and",
        "or",
        "the",
        "a",
        "of",
        "to",
        "for",
        "in",
        "is",
        "not",
        "with",
        "my",
        "account",
        "version",
        "csrftoken",
        "sessionid",
        "apikey",
        "accesstoken",
        "authtoken",
        "web",
        "site",
        "service",
        "security",
        "vault",
        "manager",
        "aws",
        "gcp",
        "azure",
        "github",
        "google",
        "openai",
        "anthropic",
        "stripe",
        "slack",
        "file",
        "path",
        "env",
        "prod",
        "production",
        "dev",
        "staging",
        "plain",
        "database",
        "db",
        "postgres",
        "mysql",
        "redis",
        "root",
        "string",
        "identifier",
        "ident",
        "keyword",
        "operator",
        "number",
        "punctuation",
        "eof",
        "comment",
        "literal",
        "expired",
        "revoked",
        "device",
        "push",
        "registration",
        "verification",
    ]
)
INVENTED = re.compile(
    r"(?i)super|ultra|secure|secret|my[-_]|^my|prod|signing|private|strong|jwt|hunter2|passw|p@ss|letmein|qwerty|admin|12345|s3cr|t0ken|key[-_]?\d|shh|keyboard|v\d$|\d{4}$|dev|session|cookie|token|key|random"
)
WEAK_PASSWORDS = frozenset(
    [
        "admin",
        "root",
        "toor",
        "letmein",
        "qwerty",
        "hunter2",
        "welcome",
        "secret",
        "pass",
        "passw0rd",
        "12345678",
        "123456789",
        "1234567890",
        "postgres",
        "admin123",
        "root123",
        "test123",
        "password123",
        "password1",
        "guest",
        "monkey",
        "dragon",
        "iloveyou",
        "changeit",
    ]
)
NAME_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
NOT_SECRET_LAST = frozenset(
    [
        "name",
        "names",
        "id",
        "ids",
        "path",
        "paths",
        "file",
        "files",
        "filename",
        "url",
        "uri",
        "endpoint",
        "endpoints",
        "header",
        "headers",
        "field",
        "fields",
        "param",
        "params",
        "parameter",
        "type",
        "types",
        "prefix",
        "suffix",
        "env",
        "var",
        "variable",
        "regex",
        "pattern",
        "re",
        "length",
        "len",
        "size",
        "count",
        "ttl",
        "expiry",
        "expires",
        "expiration",
        "expire",
        "timeout",
        "lifetime",
        "duration",
        "algorithm",
        "algorithms",
        "alg",
        "label",
        "labels",
        "placeholder",
        "title",
        "message",
        "messages",
        "msg",
        "error",
        "errors",
        "hint",
        "help",
        "text",
        "desc",
        "description",
        "format",
        "class",
        "column",
        "attr",
        "attribute",
        "property",
        "kind",
        "policy",
        "rule",
        "rules",
        "store",
        "storage",
        "provider",
        "manager",
        "scheme",
        "location",
        "version",
        "arn",
        "ref",
        "selector",
        "input",
        "role",
        "scope",
        "scopes",
        "template",
        "option",
        "options",
        "display",
        "icon",
        "mode",
        "status",
        "state",
        "index",
        "usage",
        "hash",
        "hashes",
        "digest",
        "hasher",
        "validator",
        "validators",
        "validation",
        "form",
        "view",
        "page",
        "screen",
        "link",
        "reset",
        "prompt",
        "command",
        "cmd",
        "cookie",
        "enabled",
        "required",
        "visible",
        "changed",
        "strength",
        "rotation",
        "length",
        "min",
        "max",
        "days",
        "minutes",
        "seconds",
        "hours",
        "limit",
        "issuer",
        "audience",
        "domain",
        "host",
        "port",
        "user",
        "username",
        "email",
        "context",
        "namespace",
        "dir",
        "directory",
        "folder",
        "module",
        "import",
        "func",
        "function",
        "method",
        "handler",
        "service",
        "client",
        "response",
        "request",
        "schema",
        "serializer",
        "source",
        "kid",
        "jwk",
        "separator",
        "delimiter",
        "sep",
        "char",
        "chars",
        "character",
        "characters",
        "symbol",
        "word",
        "words",
        "pos",
        "position",
        "start",
        "end",
        "begin",
        "line",
        "parser",
        "lexer",
        "stream",
        "node",
        "kinds",
        "names",
        "helper",
        "fixture",
        "action",
        "event",
        "topic",
        "queue",
        "channel",
        "table",
        "query",
        "info",
        "data",
        "model",
        "note",
        "comment",
        "docs",
        "example",
        "examples",
        "pathname",
        "route",
        "router",
        "breadcrumb",
        "tooltip",
        "aria",
        "usages",
        "revoked",
        "set",
        "list",
        "map",
        "keys",
        "values",
        "string",
        "bucket",
        "region",
        "profile",
        "extension",
    ]
)
NOT_SECRET_ANY = frozenset(
    [
        "csrf",
        "xsrf",
        "page",
        "pagination",
        "next",
        "cursor",
        "continuation",
        "sort",
        "cache",
        "primary",
        "foreign",
        "partition",
        "public",
        "publishable",
        "pub",
        "anon",
        "anonymous",
        "site",
        "forgot",
        "invalid",
        "missing",
        "wrong",
        "incorrect",
        "placeholder",
        "label",
        "regex",
        "mock",
        "fake",
        "dummy",
        "example",
        "sample",
        "i18n",
        "translation",
        "translations",
        "measurement",
        "shortcut",
        "hotkey",
        "keyboard",
        "max",
        "min",
        "num",
        "total",
        "tokenizer",
        "stop",
        "eos",
        "bos",
        "unk",
        "mask",
        "special",
        "pad",
        "cls",
        "delimiter",
        "enum",
        "node",
        "lexer",
        "syntax",
        "ast",
        "sub",
        "reset",
        "idempotency",
        "dedup",
        "etag",
        "checksum",
        "fingerprint",
        "sha",
        "md5",
        "webhookid",
        "client_id",
        "clientid",
        "redirect",
        "legend",
        "tooltip",
        "error",
        "errors",
        "bad",
        "test",
    ]
)


def kind_of_name(name: str) -> Kind | None:
    """What a variable, key or header of this name holds; None when no secret."""
    parts = [part.lower() for part in NAME_PARTS.findall(name)]
    if not parts or len(name) > 60:
        return None
    joined = "_".join(parts)
    if parts[-1] in NOT_SECRET_LAST or any(part in NOT_SECRET_ANY for part in parts):
        return None
    if re.search(
        r"(?:^|_)(?:password|passwd|pwd|passphrase|passcode|pass|dbpass|dbpassword|userpassword|adminpassword|rootpassword|mysql_pwd)\d?$",
        joined,
    ):
        return "password"
    if re.search(
        r"(?:^|_)(?:jwt|session|cookie|signing|signature|hmac|encryption|encrypt|crypto|aes|master|app|flask|django|hash|sign|nextauth|auth|token|webhook|shared|internal|rails|nuxt)_(?:secret|secret_key|signing_key|secrets)$"
        r"|(?:^|_)(?:jwt|signing|signature|hmac|encryption|encrypt|crypto|aes|master|secret)_key$"
        r"|(?:^|_)secret_?key(?:_base)?$|^secret$|(?:^|_)secretkey$|(?:^|_)(?:jwtsecret|jwtkey|sessionsecret)$|(?:^|_)secrets?\d?$",
        joined,
    ):
        return (
            "token"
            if re.search(r"client_secret|aws_secret|api_secret|consumer_secret|secret_access", joined)
            else "signing"
        )
    if re.search(
        r"(?:^|_)(?:api_?key|apikey|access_?key|auth_?key|private_?key|secret_access_key|license_?key|service_?key|server_?key|client_?key|account_?key|admin_?key|api_?token|access_?token|auth_?token|refresh_?token|bearer(?:_token)?|token|secret_?token"
        r"|credentials?|client_?secret|api_?secret|consumer_?secret|pat|dsn_key|openai_key|anthropic_key|stripe_key|sendgrid_key|subscription_key|write_key|deploy_key|bot_token|webhook_token|authorization|x_auth|encryption|master_?key)\d?$",
        joined,
    ):
        return "token"
    return None


def match_provider(text: str) -> list[tuple[Provider, re.Match[str]]]:
    """Credentials of known formats in a text, placeholders and documented samples left out."""
    found = []
    for candidate in CANDIDATE.finditer(text):
        for provider in PROVIDERS:
            match = provider.pattern.match(text, candidate.start())
            if match is not None and _is_credible(provider, match.group("body")):
                found.append((provider, match))
                break
    return found


def _is_credible(provider: Provider, body: str) -> bool:
    """Whether the random part could be one: no placeholder, no documented sample, no plain words."""
    if FORMAT_PLACEHOLDER.search(body) or body in DOCUMENTED or len(set(body)) < 6:
        return False
    if provider.name == "OpenAI-style API key":
        return bool(re.search(r"\d", body) and re.search(r"[A-Za-z]", body))
    if provider.name in ("Hugging Face token", "Resend key", "Notion token"):
        return bool(re.search(r"\d", body) and re.search(r"[A-Z]", body))
    return provider.name != "AWS access key" or bool(re.search(r"\d", body))


_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def valid_checksum(body: str) -> bool:
    """Whether the last six characters are the base-62 CRC-32 of the rest (GitHub's and npm's scheme)."""
    if len(body) != 36:
        return False
    number = zlib.crc32(body[:30].encode())
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits.rjust(6, "0") == body[30:]


def entropy(text: str) -> float:
    """Shannon bits per character."""
    total = len(text)
    return -sum(n / total * math.log2(n / total) for n in Counter(text).values()) if total else 0.0


def is_placeholder(value: str) -> bool:
    """Whether a value says itself that it is to be replaced."""
    return value in DOCUMENTED or bool(PLACEHOLDER.search(value))


def judge(value: str, name: str, kind: Kind, *, fallback: bool = False) -> str | None:
    """Why a value given to a name of this kind is a secret (`random`, `invented`, `weak`); None when it is none.

    Args:
        fallback: The value is what the program uses when the environment says nothing.
    """
    value = re.sub(r"^(?:Bearer|Basic|Token|token|ApiKey)\s+", "", value).strip()
    if not value or len(value) > 600 or "\n" in value.strip() or "\x00" in value:
        return None
    if (
        fallback
        and kind == "signing"
        and len(value) >= 3
        and UNSAFE_FALLBACK.search(value)
        and not re.search(r"(?i)your|<|\$\{|xxx|^https?:", value)
    ):
        return "weak"
    # It works as it stands, whatever its last words ask for.
    invention = kind == "signing" and re.match(
        r"(?i)some[-_]|(?!your|change|replace|please|insert|put|set|enter|todo)[a-z0-9]+(?:[-_][a-z0-9]+)*[-_]change[-_]?(?:me|this|it|in)",
        value,
    )
    if (is_placeholder(value) and not invention) or _is_reference(value, name):
        return None
    words = [word for word in re.split(r"[-_.\s:/]+|(?<=[a-z])(?=[A-Z])", value) if word]
    generic = all(word.lower() in GENERIC for word in words)
    if kind == "password":
        if generic and value.lower() not in WEAK_PASSWORDS:
            return None
        if " " in value and len(words) > 4:
            return None
        if re.fullmatch(r"[A-Z][a-z]+(?: [a-z]+)*[.:!?]?", value) and not re.search(r"\d", value) and " " in value:
            return None
        strong = re.search(r"\d", value) or re.search(r"[^\w\s.:,'()/-]", value)
        return (
            "weak"
            if value.lower() in WEAK_PASSWORDS
            or (strong and len(value) >= 5)
            or (INVENTED.search(value) and len(value) >= 8)
            else None
        )
    if " " in value:
        return (
            "weak"
            if kind == "signing"
            and 2 <= len(words) <= 5
            and not generic
            and not re.search(r"[.:!?]$", value)
            and value[0].islower()
            else None
        )
    if kind == "signing":
        if (
            generic
            and not (len(words) >= 4 and re.search(r"(?i)secret|key", value))
            and not (
                value.lower()
                in (
                    "secret",
                    "mysecret",
                    "my-secret",
                    "my_secret",
                    "secretkey",
                    "secret-key",
                    "secret_key",
                    "jwt_secret",
                    "jwt-secret",
                    "supersecret",
                )
                and value != name
            )
        ):
            return None
        if len(value) >= 6 and (INVENTED.search(value) or re.search(r"\d", value)):
            return "random" if _is_random(value) else "invented"
        return (
            "weak"
            if value.lower() in ("secret", "shhhh", "shhhhh", "dev") and value.lower() != name.lower()
            else ("invented" if len(value) >= 16 and not generic else None)
        )
    if generic or len(value) < 8:
        return None
    if _is_random(value):
        return "random"
    if (
        len(value) >= 10
        and re.search(r"\d", value)
        and re.search(r"[A-Za-z]", value)
        and not re.fullmatch(r"[a-z]+(?:[-_.][a-z]+)*[-_.]?v?\d{1,2}", value)
    ):
        return "invented"
    if (
        len(value) >= 12
        and len(words) >= 2
        and re.search(r"(?i)super|ultra|secret|secure|^my|private|prod", value)
        and re.search(r"(?i)secret|key|token", value)
    ):
        return "invented"
    return None


def _is_random(value: str) -> bool:
    core = value.rstrip("=")
    if len(core) < 16:
        return False
    if re.fullmatch(r"[0-9a-fA-F-]+", core):
        return entropy(core) >= 2.8
    return (
        bool(re.search(r"\d", core) and re.search(r"[A-Za-z]", core))
        and entropy(core) >= 3.5
        and not re.search(r"[\s{}()<>]", core)
    )


def _is_reference(value: str, name: str) -> bool:
    """Names of variables, headers, files, keys of a store: where a secret is, not the secret."""
    normal = re.sub(r"[^a-z0-9]", "", value.lower())
    if normal == re.sub(r"[^a-z0-9]", "", name.lower()) and not re.search(r"\d{3}", value):
        return True
    return bool(
        re.match(
            r"(?:https?|wss?|ftp|file|arn|vault|op|sm|ssm|secret|gs|s3|projects|env|kms|keyring|data|urn|mailto|aws|azure|gcp|ref\+\w+):?/?/",
            value,
        )
        or re.match(r"(?:arn:|vault:|op:|projects/|data:|urn:|env:|secretsmanager:|ssm:)", value)
        or re.fullmatch(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", value)
        or (re.match(r"[./~]\S*/", value) and not re.search(r"[+=]", value))
        or re.search(
            r"\.(?:pem|key|crt|cer|json|ya?ml|toml|env|txt|ini|html?|py|js|ts|go|md|p12|pfx|jks|svg|png)$", value
        )
        or re.fullmatch(r"X-[A-Za-z-]+|[A-Z][a-z]+(?:-[A-Z][a-z]+)+", value)
        or re.fullmatch(r"[a-z_]+(?:\.[a-z_A-Z]+)+", value)
        or re.match(
            r"\$2[aby]\$|pbkdf2|argon2|scrypt|bcrypt|sha\d+[-:$]|\{SSHA|ssh-(?:rsa|ed25519|dss) |ecdsa-|-----BEGIN (?:PUBLIC|CERT)|pk_(?:live|test)_|pk\.eyJ|phc_|G-[A-Z0-9]+$|UA-\d|GTM-",
            value,
        )
        or (
            re.fullmatch(r"[a-z]+(?:-[a-z]+){1,3}", value)
            and not re.search(r"secret|secure|super|ultra|prod|strong", value)
        )
        or re.match(r"(?:select|insert|update|delete)\s", value, re.IGNORECASE)
        or "()" in value
        or re.search(r"</?\w+>", value)
    )
