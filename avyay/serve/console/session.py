"""Who looks at the console: a cookie that names the key somebody signed in with, and holds as long as that key does.

    avyay_console = PREFIX "." EXPIRES "." BASE64URL(HMAC-SHA256)

Nothing in it can be used for anything but the console, and nothing has to be stored: each page looks at the key anew,
so revoking the key ends its sessions.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode

from avyay.clock import Clock
from avyay.serve.gateway.keys import KeyBook, Secret

__all__ = ["COOKIE", "LIFETIME", "Sessions"]

COOKIE = "avyay_console"
LIFETIME = 12 * 3_600.0  # seconds somebody stays signed in
_CONTEXT = b"avyay console 1\n"  # the same secret signs other things; none of them can pass for this
SCOPES = frozenset({"*", "admin"})
"""The console shows everybody's calls: one of these is asked for."""


class Sessions:
    """Makes and reads cookies."""

    def __init__(self, secret: bytes, keys: KeyBook, clock: Clock) -> None:
        self._secret = secret
        self._keys = keys
        self._clock = clock

    def begin(self, prefix: str) -> str:
        """The cookie's value for a key that was just checked."""
        body = f"{prefix}.{int(self._clock.now() + LIFETIME)}"
        return f"{body}.{self._sign(body)}"

    def reader(self, cookie: str) -> Secret | None:
        """The key behind a cookie, if it still opens the console."""
        body, _, signature = cookie.rpartition(".")
        prefix, _, expires = body.partition(".")
        if not hmac.compare_digest(self._sign(body).encode(), signature.encode()):
            return None
        now = self._clock.now()
        if not expires.isdecimal() or int(expires) <= now:
            return None
        secret = self._keys.secret(prefix)
        if secret is None or secret.revoked or (secret.expires_at is not None and secret.expires_at <= now):
            return None
        return secret if SCOPES.intersection(secret.key.scopes) else None

    def _sign(self, body: str) -> str:
        made = hmac.digest(self._secret, _CONTEXT + body.encode(), "sha256")
        return urlsafe_b64encode(made).rstrip(b"=").decode()
