"""Who a request is for, as the gateway tells the components: a signed header that lives a minute.

    x-avyay-principal: BASE64URL(JSON) "." BASE64URL(HMAC-SHA256)

A component believes it only when the signature is made with the secret they share and it was made for that component:
what a caller writes into the header himself is refused. The secret is a file of mode 0600 in the home, made on first
use, or the value of an environment variable where gateway and components run on different machines.
"""

from __future__ import annotations

import hmac
import os
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AuthError, ConfigError, DependencyError
from avyay.paths import Paths, ensure_directory

__all__ = [
    "PRINCIPAL_HEADER",
    "Principal",
    "PrincipalSigner",
    "PrincipalVerifier",
    "given_secret",
    "open_secret",
    "secret_source",
]

PRINCIPAL_HEADER = "x-avyay-principal"
LIFETIME = 60.0  # seconds a header is believed
_RENEW = 15.0  # seconds after which a new one is made for the same caller
_SKEW = 30.0  # seconds two machines' clocks may differ
_CONTEXT = b"avyay principal 1\n"  # what else is signed with this secret can never pass for a principal
_SHORTEST = 32
_MOST_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller the gateway has authenticated: `key` is the stable id of an API key or of a token's subject."""

    key: str
    service: str | None = None
    customer: str | None = None
    tier: str | None = None


class PrincipalSigner:
    """Makes headers. One header serves a caller's requests for some seconds."""

    def __init__(self, secret: bytes, clock: Clock = SYSTEM_CLOCK) -> None:
        self._secret = secret
        self._clock = clock
        self._made: dict[tuple[Principal, str], tuple[float, str]] = {}

    def sign(self, principal: Principal, audience: str) -> str:
        """The header's value for a component."""
        now = self._clock.now()
        known = self._made.get((principal, audience))
        if known is not None and 0 <= now - known[0] < _RENEW:
            return known[1]
        payload = orjson.dumps(
            {
                "key": principal.key,
                "service": principal.service,
                "customer": principal.customer,
                "tier": principal.tier,
                "aud": audience,
                "iat": int(now),
                "exp": int(now + LIFETIME),
            }
        )
        value = f"{_encode(payload)}.{_encode(_signature(self._secret, payload))}"
        if len(self._made) >= _MOST_KEPT:
            self._made.clear()
        self._made[principal, audience] = (now, value)
        return value


class PrincipalVerifier:
    """Believes what was signed with the secret for this component, and not too long ago.

    Args:
        secret: Asked for when the first header comes, and again when a signature is not the known secret's.
        audience: The component.
    """

    def __init__(self, secret: Callable[[], bytes | None], audience: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._source = secret
        self._audience = audience
        self._clock = clock
        self._secret: bytes | None = None
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def verify(self, value: bytes) -> Principal:
        """The caller named by a header.

        Raises:
            AuthError: it is not signed with our secret, is for somebody else, or is too old.
        """
        now = self._clock.now()
        known = self._known.get(value)
        if known is None:
            known = self._read(value)
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[value] = known
        expires, principal = known
        if not now - _SKEW <= expires <= now + LIFETIME + _SKEW:
            raise _refused()
        return principal

    def _read(self, value: bytes) -> tuple[float, Principal]:
        try:
            left, _, right = value.partition(b".")
            payload, signature = _decode(left), _decode(right)
        except ValueError:
            raise _refused() from None
        if not self._signed(payload, signature):
            raise _refused()
        data = orjson.loads(payload)
        if data["aud"] != self._audience:
            raise _refused()
        return float(data["exp"]), Principal(data["key"], data["service"], data["customer"], data["tier"])

    def _signed(self, payload: bytes, signature: bytes) -> bool:
        if self._secret is not None and hmac.compare_digest(_signature(self._secret, payload), signature):
            return True
        self._secret = self._source()  # it may have been made, or replaced, since
        return self._secret is not None and hmac.compare_digest(_signature(self._secret, payload), signature)


def open_secret(paths: Paths) -> bytes:
    """The secret in this home, made when there is none.

    Raises:
        ConfigError: the file is open to others, or holds no secret.
        DependencyError: it cannot be written.
    """
    file = _file(paths)
    if not file.exists():
        ensure_directory(file.parent)
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
                out.write(secrets.token_hex(32) + "\n")
            try:
                file.hardlink_to(draft)  # whole or not at all, and the first of two makers wins
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        except OSError as error:
            raise DependencyError(
                f"Cannot make {file}: {error.strerror}.", hint="Set AVYAY_HOME to a folder you can write to."
            ) from error
    found = _load(file)
    assert found is not None
    return found


def secret_source(paths: Paths, given: str | None) -> Callable[[], bytes | None]:
    """What a verifier asks: the value given by the environment, else the file of this home if it is there.

    Raises:
        ConfigError: the given value is too short to be a secret.
    """
    if given is not None:
        value = given_secret(given)
        return lambda: value
    return lambda: _load(_file(paths))


def given_secret(value: str) -> bytes:
    """A secret from the environment.

    Raises:
        ConfigError: it is too short.
    """
    if len(value) < _SHORTEST:
        raise ConfigError(
            f"The secret shared by gateway and components has fewer than {_SHORTEST} characters.",
            hint='Make one: python3 -c "import secrets; print(secrets.token_hex(32))"',
        )
    return value.encode()


def _file(paths: Paths) -> Path:
    return paths.state / "principal.key"


def _load(file: Path) -> bytes | None:
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others.", hint=f"chmod 600 {file}", code="secret_exposed")
        text = file.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"Cannot read {file}: {error.strerror}.", hint=f"chmod 600 {file}") from error
    if len(text) < _SHORTEST:
        raise ConfigError(f"{file} holds no secret.", hint=f"Remove it (rm {file}) and start the gateway again.")
    return text.encode()


def _signature(secret: bytes, payload: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + payload, "sha256")


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(data: bytes) -> bytes:
    return urlsafe_b64decode(data + b"=" * (-len(data) % 4))


def _refused() -> AuthError:
    return AuthError(
        f"The header {PRINCIPAL_HEADER} is not from this installation's gateway.",
        hint="Leave it out: only the gateway signs it.",
        code="invalid_principal",
    )
