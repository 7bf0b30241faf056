"""JSON Web Tokens: which issuers are believed, with which keys, for whom.

The algorithm is chosen by the configuration, never by the token: an issuer accepts one kind (a shared secret, or public
keys), `none` is in no list, and a key is only used for the algorithm its own type allows. Where keys lie is
configuration too: `jku`, `x5u` and `jwk` in a token's header are not looked at, and `crit` is refused.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.serve import JwtSettings
from avyay.errors import AuthError, AvyayError, ConfigError, UnreachableError
from avyay.log import get_logger

if TYPE_CHECKING:
    from avyay.config import Environment

__all__ = ["Issuer", "Issuers", "TokenError", "Verified", "looks_like_token"]

_LONGEST = 8_192
_STALE = 86_400.0  # seconds keys that cannot be fetched again are used on
_AGAIN = 10.0  # seconds between two fetches for keys nobody knows
_MOST_JWKS = 1_000_000
_SHORTEST_SECRET = 32
_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_SUBJECT = re.compile(r"[\x21-\x7e]{1,120}\Z")

Fetch = Callable[[str], Awaitable[bytes]]


class TokenError(AuthError):
    """A token that is not believed. The message says what is wrong with it, never what it holds."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of an issuer. `stated` is the one algorithm it is for, when the issuer or its curve says so."""

    kind: str
    stated: str | None
    key: Any

    def fits(self, algorithm: str) -> bool:
        """Whether it verifies signatures of this algorithm."""
        return self.kind == _TYPES[algorithm[:2]] and self.stated in (None, algorithm)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a believed token says. `expires_at` is seconds since the epoch."""

    subject: str
    issuer: str
    scopes: frozenset[str]
    customer: str | None
    tier: str | None
    expires_at: float


def looks_like_token(value: str) -> bool:
    """Whether a credential is a token rather than a key."""
    return value.count(".") == 2 and value.startswith("ey")


class Issuer:
    """One issuer and its keys."""

    def __init__(
        self, settings: JwtSettings, *, secret: str | None = None, fetch: Fetch, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if secret is not None and len(secret) < _SHORTEST_SECRET:
            raise ConfigError(
                f"The secret of {settings.issuer} ({settings.secret_env}) has under {_SHORTEST_SECRET} characters.",
                hint='Make one: python3 -c "import secrets; print(secrets.token_hex(32))"',
            )
        self.settings = settings
        self._secret = secret
        self._fetch = fetch
        self._clock = clock
        self._log = get_logger("gateway")
        self._keys: Mapping[str | None, list[PublicKey]] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._lock = asyncio.Lock()

    async def verify(self, token: str, header: Mapping[str, Any]) -> Verified:
        """Check a token whose issuer this claims to be.

        Raises:
            TokenError: it is not to be believed.
            UnreachableError: the issuer's keys could never be fetched.
        """
        settings = self.settings
        algorithm = header.get("alg")
        if algorithm not in settings.algorithms:
            raise TokenError("The token's algorithm is not accepted here.", code="invalid_token")
        key: Any = self._secret if self._secret is not None else await self._key(header.get("kid"), str(algorithm))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(algorithm)],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": True},
            )
        except jwt.ExpiredSignatureError:
            raise TokenError(
                "The token has expired.", hint="Ask its issuer for a new one.", code="token_expired"
            ) from None
        except jwt.PyJWTError as error:
            raise TokenError(f"The token is not valid ({_reason(error)}).", code="invalid_token") from None
        return self._verified(claims)

    def _verified(self, claims: Mapping[str, Any]) -> Verified:
        settings = self.settings
        subject = claims["sub"]
        if not isinstance(subject, str) or _SUBJECT.match(subject) is None:
            raise TokenError("The token's subject is not 1 to 120 visible ASCII characters.", code="invalid_token")
        found = claims.get(settings.scope_claim, ())
        words = found.split() if isinstance(found, str) else found if isinstance(found, list) else ()
        return Verified(
            subject,
            settings.issuer,
            frozenset(word for word in words if isinstance(word, str)) | frozenset(settings.scopes),
            _text(claims, settings.customer_claim),
            _text(claims, settings.tier_claim),
            float(claims["exp"]) + settings.leeway,
        )

    async def _key(self, kid: object, algorithm: str) -> Any:
        await self._refresh(self.settings.jwks_ttl)
        if (found := self._pick(kid, algorithm)) is None:
            await self._refresh(_AGAIN)  # a new key: the issuer has rotated
            found = self._pick(kid, algorithm)
        if found is None:
            raise TokenError("The token is signed with a key its issuer does not publish.", code="invalid_token")
        return found.key

    def _pick(self, kid: object, algorithm: str) -> PublicKey | None:
        if kid is not None:
            fitting = self._keys.get(kid, []) if isinstance(kid, str) else []
        else:
            fitting = [key for keys in self._keys.values() for key in keys]
        fitting = [key for key in fitting if key.fits(algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    async def _refresh(self, older_than: float) -> None:
        now = self._clock.monotonic()
        if self._fetched is not None and now - self._fetched < older_than:
            return
        async with self._lock:
            now = self._clock.monotonic()
            if self._fetched is not None and now - self._fetched < older_than:
                return
            if self._tried is None or now - self._tried >= _AGAIN:
                self._tried = now
                try:
                    self._keys = read_keys(await self._fetch(str(self.settings.jwks)))
                    self._fetched = now
                    return
                except AvyayError as error:
                    self._log.error("jwks_not_fetched", issuer=self.settings.issuer, error=error.message)
            if self._fetched is None or now - self._fetched > _STALE:
                raise UnreachableError(
                    "Tokens cannot be checked: their issuer's keys cannot be fetched.",
                    hint="Try again shortly.",
                    code="jwks_unreachable",
                )


class Issuers:
    """Every issuer of the configuration."""

    def __init__(self, issuers: Sequence[Issuer]) -> None:
        self._issuers = {one.settings.issuer: one for one in issuers}

    def __len__(self) -> int:
        return len(self._issuers)

    async def verify(self, token: str) -> Verified:
        """Check a token.

        Raises:
            TokenError: it is not to be believed.
            UnreachableError: it cannot be checked just now.
        """
        if len(token) > _LONGEST:
            raise TokenError("The token is too long.", code="invalid_token")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, RecursionError, ValueError):
            raise TokenError("The token cannot be read.", code="invalid_token") from None
        if "crit" in header:
            raise TokenError("The token asks for extensions that are not known here.", code="invalid_token")
        name = claimed.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise TokenError("The token is of an issuer that is not known here.", code="invalid_token")
        return await issuer.verify(token, header)


def read_keys(document: bytes) -> Mapping[str | None, list[PublicKey]]:
    """The signing keys of a JWKS document, by their id; keys of a type nobody here knows are left out.

    Raises:
        UnreachableError: it is none.
    """
    found: dict[str | None, list[PublicKey]] = {}
    try:
        if len(document) > _MOST_JWKS:
            raise ValueError
        for entry in orjson.loads(document)["keys"]:
            # A secret or a private key does not belong into a public document: whoever reads it could sign.
            if entry.get("kty") == "oct" or "d" in entry or entry.get("use", "sig") != "sig":
                continue
            try:
                read = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                continue
            stated = entry.get("alg") or (read.algorithm_name if read.key_type != "RSA" else None)
            found.setdefault(read.key_id, []).append(PublicKey(str(read.key_type), stated, read.key))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreachableError("The issuer's keys are no JWKS document.", code="bad_jwks") from None
    return found


def make_issuers(settings: Sequence[JwtSettings], environment: Environment, clock: Clock = SYSTEM_CLOCK) -> Issuers:
    """The configured issuers.

    Raises:
        ConfigError: a secret is missing or too short.
    """
    found = []
    for one in settings:
        secret = None
        if one.secret_env is not None and (secret := environment.value(one.secret_env)) is None:
            raise ConfigError(
                f"gateway.jwt names {one.secret_env}, which is not set.", hint=f"export {one.secret_env}=..."
            )
        found.append(Issuer(one, secret=secret, fetch=fetch_document, clock=clock))
    return Issuers(found)


async def fetch_document(place: str) -> bytes:
    """A JWKS document from a URL or a file.

    Raises:
        UnreachableError: it is not to be had.
    """
    if "://" not in place:
        try:
            return await asyncio.to_thread(Path(place).read_bytes)
        except OSError as error:
            raise UnreachableError(f"{place} cannot be read: {error.strerror}.") from error
    import httpx2

    from avyay.http import async_client, unreachable

    async with async_client(read=5.0, connect=3.0) as http:
        try:
            reply = await http.get(place)
        except httpx2.HTTPError as error:
            raise unreachable("The issuer", place, error) from error
    if reply.status_code != 200:
        raise UnreachableError(f"The issuer's keys answered HTTP {reply.status_code}.")
    return reply.content


def _text(claims: Mapping[str, Any], name: str | None) -> str | None:
    value = claims.get(name) if name is not None else None
    return value if isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable() else None


def _reason(error: jwt.PyJWTError) -> str:
    names = {
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.MissingRequiredClaimError: "exp, iss, aud or sub is missing",
    }
    return names.get(type(error), "it cannot be verified")
