"""Credential formats that providers publish: what one looks like, and which only look like it. Pure functions."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

__all__ = ["DOCUMENTED", "Provider", "match_provider", "valid_checksum"]


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
