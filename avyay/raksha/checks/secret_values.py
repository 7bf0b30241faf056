# ruff: noqa: E501 - long patterns read better whole
"""Is a text given to a secret's name a secret? Entropy, invented phrases, weak words; and what only looks like one."""

from __future__ import annotations

import math
import re
from collections import Counter

from avyay.raksha.checks.secret_formats import DOCUMENTED
from avyay.raksha.checks.secret_names import Kind

__all__ = ["is_placeholder", "judge"]

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
        or re.fullmatch(r"id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?", value)
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
