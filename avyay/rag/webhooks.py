"""Pushes announced by GitHub, GitLab and Gitea (Forgejo): is it really them, and which repository changed?

Formats as documented in November 2026: GitHub signs the body in X-Hub-Signature-256; Gitea and Forgejo do too, and in
headers of their own; GitLab sends the secret itself in X-Gitlab-Token or, newer, signs as Standard Webhooks do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from avyay.errors import AuthError, UsageError

if TYPE_CHECKING:
    from avyay.rag.sources.base import SourceSpec

__all__ = ["Push", "read_push", "repository_key", "sources_of"]

TOLERANCE = 300.0  # seconds a signed timestamp may differ from our clock
_SCP = re.compile(r"^(?:[^@/]+@)?([^:/]+):(?!/)(.+)$")


@dataclass(frozen=True, slots=True)
class Push:
    """A branch that moved. `urls` are the repository's addresses, `ref` is like refs/heads/main."""

    urls: tuple[str, ...]
    ref: str


def read_push(headers: Mapping[str, str], body: bytes, *, secret: str, now: float) -> Push | None:
    """Check a delivery and read it.

    Args:
        headers: With lower-case names.
        now: Unix seconds.

    Returns:
        The push, or None for a genuine delivery of something else (a ping, an issue).

    Raises:
        AuthError: it is not signed with the secret.
        UsageError: it is signed and cannot be understood.
    """
    if not _genuine(headers, body, secret.encode(), now):
        raise AuthError(
            "The delivery is not signed with the secret of this daemon.",
            hint="Set the webhook's secret to the value that rag.webhook_secret_env names.",
        )
    events = [
        headers.get(name, "") for name in ("x-github-event", "x-gitlab-event", "x-gitea-event", "x-forgejo-event")
    ]
    if not any(event in ("push", "Push Hook", "Tag Push Hook", "System Hook") for event in events):
        return None
    try:
        data = json.loads(body)
        repository = data.get("repository") or {}
        project = data.get("project") or {}
        ref = data.get("ref") or ""
        names = ("clone_url", "ssh_url", "git_url", "html_url", "url", "git_http_url", "git_ssh_url", "web_url")
        urls = [found for part in (repository, project) for name in names if isinstance(found := part.get(name), str)]
    except (ValueError, AttributeError) as error:
        raise UsageError("The delivery is not a push in JSON.", hint="Choose application/json.") from error
    if not ref:
        return None
    if not urls:
        raise UsageError("The push names no repository.", code="no_repository")
    return Push(tuple(dict.fromkeys(urls)), ref)


def sources_of(push: Push, specs: Sequence[SourceSpec]) -> list[str]:
    """The names of the sources that a push concerns. A source without a branch follows HEAD, which may be any."""
    keys = {repository_key(url) for url in push.urls}
    short = push.ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    return [
        spec.name
        for spec in specs
        if spec.remote and repository_key(spec.location) in keys and spec.branch in (None, short, push.ref)
    ]


def repository_key(url: str) -> str:
    """host/path of a repository, the same for https, ssh and git@host:path."""
    if "://" in url:
        parts = urlsplit(url)
        host, path = parts.hostname or "", parts.path
    elif match := _SCP.match(url):
        host, path = match[1], match[2]
    else:
        host, path = "", url
    return f"{host.lower()}/{path.strip('/').removesuffix('.git').lower()}"


def _genuine(headers: Mapping[str, str], body: bytes, secret: bytes, now: float) -> bool:
    if not secret:
        return False
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    given = headers.get("x-hub-signature-256") or headers.get("x-gitea-signature") or headers.get("x-forgejo-signature")
    if given is not None:
        return _same(given.removeprefix("sha256="), digest)
    if (signatures := headers.get("webhook-signature")) is not None:
        return _standard(headers, body, secret, signatures, now)
    if (token := headers.get("x-gitlab-token")) is not None:
        return _same(token, secret.decode())
    return False


def _standard(headers: Mapping[str, str], body: bytes, secret: bytes, signatures: str, now: float) -> bool:
    """Standard Webhooks: v1,<base64 HMAC of id.timestamp.body>, several separated by spaces."""
    stamp = headers.get("webhook-timestamp", "")
    if not stamp.isascii() or not stamp.isdigit() or abs(now - int(stamp)) > TOLERANCE:
        return False
    keys = [secret]
    if secret.startswith(b"whsec_"):
        try:
            keys.append(base64.b64decode(secret.removeprefix(b"whsec_"), validate=True))
        except binascii.Error:
            pass
    signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
    expected = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    given = [one.removeprefix("v1,") for one in signatures.split() if one.startswith("v1,")]
    return any(_same(one, right) for one in given for right in expected)


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())
