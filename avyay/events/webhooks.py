"""Signed deliveries after the Standard Webhooks specification (standardwebhooks.com, v1): a receiver checks that a
message is ours, whole, and fresh.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from avyay.errors import AuthError, UsageError

__all__ = ["TOLERANCE", "read_secrets", "sign", "verify"]

TOLERANCE = 300.0
"""Seconds that a message's time may differ from the receiver's."""
_PREFIX = "whsec_"
_LEAST, _MOST = 16, 256  # bytes


def read_secrets(value: str) -> tuple[bytes, ...]:
    """Secrets as a variable holds them: `whsec_` and base64; several, with spaces, while one replaces another.

    Raises:
        UsageError: one cannot be used.
    """
    found = []
    for word in value.split():
        try:
            secret = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not word.startswith(_PREFIX) or not _LEAST <= len(secret) <= _MOST:
            raise UsageError(
                "A webhook's secret is whsec_ and the base64 of 16 to 256 bytes.",
                hint="Make one: echo whsec_$(openssl rand -base64 32)",
                code="bad_secret",
            )
        found.append(secret)
    if not found:
        raise UsageError("The webhook's secret is empty.", code="bad_secret")
    return tuple(found)


def sign(secrets: Sequence[bytes], identity: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a message: one signature for each secret."""
    signed = b"%b.%d.%b" % (identity.encode(), at, body)
    signatures = (base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode() for secret in secrets)
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def verify(secrets: Sequence[bytes], headers: Mapping[str, str], body: bytes, now: float) -> None:
    """What a receiver in Python does; `headers` have names in lower case.

    Raises:
        AuthError: a header is missing, the time is too far off, or no signature fits.
    """
    identity, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not identity or not at.isdecimal() or abs(now - int(at)) > TOLERANCE:
        raise AuthError("The message is not signed, or too old.", code="bad_signature")
    wanted = sign(secrets, identity, int(at), body)["webhook-signature"].split()
    given = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(ours.encode(), theirs.encode()) for ours in wanted for theirs in given):
        raise AuthError("No signature fits.", code="bad_signature")
