"""Who calls: an API key or a token becomes an identity, remembered for as long as nothing about it changes.

The usual request costs one SHA-256 and one look-up. A revoked key is forgotten within half a second, in every process
that reads the same file; a token is remembered for a minute at most.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, TypeAlias

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AuthError, AvyayError, PolicyError
from avyay.principal import Principal
from avyay.serve.gateway.keys import KeyBook, parse_key
from avyay.serve.gateway.limits import Claim, Limiter
from avyay.serve.gateway.tokens import Issuers, looks_like_token

__all__ = ["ANYBODY", "Authenticator", "Identity", "address_of", "credential_of"]

_REMEMBERED = 60.0
_MOST = 50_000

Kind: TypeAlias = Literal["key", "token", "open"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `key` is what usage is counted under: a key's id, or issuer and subject of a token."""

    key: str
    scopes: frozenset[str]
    kind: Kind
    tier: str | None = None
    customer: str | None = None
    service: str | None = None
    principal: Principal = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "principal", Principal(self.key, self.service, self.customer, self.tier))


ANYBODY = Identity("local", frozenset({"*", "admin"}), "open")
"""Whoever calls a gateway that has no keys, from this machine."""


class Authenticator:
    """Turns credentials into identities.

    Args:
        failed_attempts: Of one address in a minute, before only who was let in earlier is let in from there.
    """

    def __init__(
        self, keys: KeyBook, issuers: Issuers, limiter: Limiter, *, failed_attempts: int, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._keys = keys
        self._issuers = issuers
        self._limiter = limiter
        self._allowed = failed_attempts
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._once: OrderedDict[bytes, None] = OrderedDict()  # what was good when it was last looked at
        self._any = keys.any
        self.failures: dict[str, int] = {}

    @property
    def open(self) -> bool:
        """Whether nobody has to say who he is: there never was a key, and no issuer is configured."""
        return not self._any and not len(self._issuers)

    def refresh(self) -> None:
        """Look for changes of the keys; called about twice a second."""
        if self._keys.changed():
            for digest in self._known:
                self._was_good(digest)
            self._known.clear()
            self._any = self._any or self._keys.any

    def known(self, token: bytes) -> Identity | None:
        """The identity behind a credential that was checked a moment ago."""
        digest = sha256(token).digest()
        found = self._known.get(digest)
        if found is None:
            return None
        if found[0] <= self._clock.now():
            del self._known[digest]
            self._was_good(digest)
            return None
        return found[1]

    async def identify(self, token: bytes, address: str) -> Identity:
        """The identity behind a credential.

        Raises:
            AuthError: it is not to be believed.
            PolicyError: too many were not, from this address (code "too_many_failures").
            UnreachableError: it cannot be checked just now.
        """
        if (digest := sha256(token).digest()) in self._once:
            # Nobody guesses what was good before: others' wrong keys from the same address are not held against it.
            try:
                return await self._look(token)
            except AuthError:
                self._once.pop(digest, None)
                raise
        # Taken before the look and given back when it was good: a row of guesses cannot race past the limit.
        attempt = Claim(f"failures|{address}", "failures", "requests", self._allowed)
        taken = self._clock.now()
        verdict = await self._limiter.acquire((attempt,), "")
        if verdict.refused is not None:
            self._count("too_many")
            raise PolicyError(
                "Too many wrong keys came from this address.", hint="Wait a minute.", code="too_many_failures"
            )
        try:
            identity = await self._look(token)
        except AuthError:
            raise
        except BaseException:
            await self._limiter.settle(attempt, -1, taken)
            raise
        await self._limiter.settle(attempt, -1, taken)
        return identity

    async def _look(self, token: bytes) -> Identity:
        try:
            expires, identity = await self._check(token)
        except AuthError as error:
            self._count(error.code)
            raise
        self._remember(token, expires, identity)
        return identity

    def _was_good(self, digest: bytes) -> None:
        self._once[digest] = None
        while len(self._once) > _MOST:
            self._once.popitem(last=False)

    async def still_holds(self, token: bytes, scopes: frozenset[str]) -> bool:
        """Whether a credential that was good is so now, and for the same things: for answers that outlive a request."""
        identity = self.known(token)
        if identity is None:
            try:
                expires, identity = await self._check(token)
            except AuthError:
                return False
            except AvyayError:  # the issuer is away: it was good before
                return True
            self._remember(token, expires, identity)
        return identity.scopes == scopes

    def _remember(self, token: bytes, expires: float, identity: Identity) -> None:
        if len(self._known) >= _MOST:
            self._known.popitem(last=False)
        self._known[sha256(token).digest()] = (expires, identity)

    async def _check(self, token: bytes) -> tuple[float, Identity]:
        text = token.decode("latin-1")
        if (prefix := parse_key(text)) is not None:
            return self._check_key(prefix, text)
        if looks_like_token(text) and len(self._issuers):
            found = await self._issuers.verify(text)
            identity = Identity(f"{found.issuer}#{found.subject}", found.scopes, "token", found.tier, found.customer)
            return min(found.expires_at, self._clock.now() + _REMEMBERED), identity
        raise AuthError("The key is not one of this gateway's.", hint="See: avyay keys list", code="invalid_api_key")

    def _check_key(self, prefix: str, text: str) -> tuple[float, Identity]:
        secret = self._keys.secret(prefix)
        if not self._keys.matches(secret, text) or secret is None:
            raise AuthError(
                "The key is not one of this gateway's.", hint="See: avyay keys list", code="invalid_api_key"
            )
        if secret.revoked:
            raise AuthError("The key is revoked.", hint="Make one: avyay keys create NAME", code="key_revoked")
        now = self._clock.now()
        if secret.expires_at is not None and secret.expires_at <= now:
            raise AuthError("The key has expired.", hint="Give it a new one: avyay keys rotate", code="key_expired")
        key = secret.key
        identity = Identity(key.id, frozenset(key.scopes), "key", key.tier, key.customer, key.service)
        return secret.expires_at if secret.expires_at is not None else float("inf"), identity

    def _count(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What a caller presents: `x-api-key`, else `Authorization: Bearer ...`; empty when neither.

    Raises:
        AuthError: several of one kind, or another scheme: which one counts is not to be guessed.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (b"x-api-key", b"authorization"):
            if name in found:
                raise AuthError(f"The header {name.decode()} came twice.", code="ambiguous_credentials")
            found[name] = value
    if (key := found.get(b"x-api-key", b"").strip()) != b"":
        return key
    value = found.get(b"authorization", b"").strip()
    if not value:
        return b""
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        raise AuthError("Send the key as `Authorization: Bearer KEY`.", code="unknown_scheme")
    return token.strip()


def address_of(scope: Any, proxies: tuple[str, ...]) -> str:
    """Where a caller sits: the peer, or what trusted proxies say of it. IPv6 by its /64, which is one customer's."""
    client = scope.get("client")
    peer = str(client[0]) if client else "?"
    if proxies and _within(peer, proxies):
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            peer = hop.strip() or peer
            if not _within(peer, proxies):
                break
    return _bucket(peer)


@lru_cache(maxsize=4_096)
def _within(address: str, networks: tuple[str, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in ipaddress.ip_network(network, strict=False) for network in networks)


@lru_cache(maxsize=4_096)
def _bucket(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "?"
    if ip.version == 6:
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
