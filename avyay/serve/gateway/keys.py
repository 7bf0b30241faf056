"""API keys: made, listed, revoked and rotated by a command; looked up by the gateway.

A key reads `avy_PREFIX_SECRET`. Only the prefix and the SHA-256 of the whole are stored: the secret holds 256 bits of
chance, so a fast hash cannot be searched, and what is stored cannot be used. A key is an identity with one or more
secrets: rotating adds a secret and lets the old one run out, and usage and limits go on under the same id.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Migration, Schema, open_database
from avyay.errors import UsageError
from avyay.serve.gateway.routes import AREAS, valid_scope

__all__ = ["KEY_MARK", "KeyBook", "KeyInfo", "MadeKey", "Secret", "hash_of", "parse_key"]

KEY_MARK = "avy_"
DEFAULT_SCOPES = ("marga", "rag", "raksha")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PREFIX, _SECRET = 8, 43  # 62^43 > 2^256
_NOBODY = sha256(b"nobody's key").digest()

KEYS_SCHEMA = Schema(
    "keys",
    (
        Migration(
            "0001_keys",
            """
            CREATE TABLE keys (
                id TEXT PRIMARY KEY,
                name TEXT NOT NULL,
                scopes TEXT NOT NULL,  -- JSON list
                tier TEXT,
                owner TEXT,
                customer TEXT,
                service TEXT,
                created_at REAL NOT NULL,
                expires_at REAL,
                revoked_at REAL
            ) STRICT;
            CREATE TABLE secrets (
                prefix TEXT PRIMARY KEY,
                key TEXT NOT NULL REFERENCES keys (id),
                hash BLOB NOT NULL,  -- SHA-256 of the whole key
                created_at REAL NOT NULL,
                expires_at REAL,
                revoked_at REAL
            ) STRICT;
            CREATE INDEX secrets_key ON secrets (key);
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key without its secrets. Times are seconds since the epoch."""

    id: str
    name: str
    scopes: tuple[str, ...]
    tier: str | None
    owner: str | None
    customer: str | None
    service: str | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    prefixes: tuple[str, ...] = ()

    def state(self, now: float) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new key: the only time its secret is known."""

    info: KeyInfo
    secret: str


@dataclass(frozen=True, slots=True)
class Secret:
    """What a presented key is checked against. `expires_at` is the earlier of the key's and the secret's."""

    key: KeyInfo
    hash: bytes
    expires_at: float | None
    revoked: bool


def parse_key(token: str) -> str | None:
    """The prefix of what has the shape of a key; None of anything else."""
    if not token.startswith(KEY_MARK) or len(token) != len(KEY_MARK) + _PREFIX + 1 + _SECRET or not token.isascii():
        return None
    prefix, _, secret = token[len(KEY_MARK) :].partition("_")
    return prefix if len(prefix) == _PREFIX and len(secret) == _SECRET and secret.isalnum() else None


def hash_of(token: str) -> bytes:
    """What is stored of a key."""
    return sha256(token.encode()).digest()


class KeyBook:
    """The keys of this home, in a file of their own: a change by anyone is seen by `changed`."""

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._database = open_database(path, KEYS_SCHEMA, synchronous="FULL", check_same_thread=False)
        self._version = self._data_version()

    def close(self) -> None:
        self._database.close()

    # ------------------------------------------------------------ for the command

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] = DEFAULT_SCOPES,
        tier: str | None = None,
        owner: str | None = None,
        customer: str | None = None,
        service: str | None = None,
        lifetime: float | None = None,
    ) -> MadeKey:
        """Make a key.

        Args:
            lifetime: Seconds until it expires.

        Raises:
            UsageError: a scope names nothing, or a label cannot stand in a log or header.
        """
        for label, value in (("name", name), ("tier", tier), ("owner", owner), ("customer", customer)):
            _check_label(label, value)
        _check_label("service", service)
        for scope in scopes:
            if not valid_scope(scope):
                known = [f"{component}:{area}" for component, areas in AREAS.items() for area in sorted(areas)]
                raise UsageError(
                    f"There is no scope {scope!r}.", hint=f"Known: *, admin, {', '.join(AREAS)}, {', '.join(known)}."
                )
        if not scopes:
            raise UsageError("A key without a scope can do nothing.", hint="For example: --scope marga --scope rag:ask")
        now = self._clock.now()
        info = KeyInfo(
            f"key_{_random(12).lower()}",
            *(name, tuple(dict.fromkeys(scopes)), tier, owner, customer, service, now),
            None if lifetime is None else now + lifetime,
            None,
        )
        with self._database.transaction() as database:
            database.execute(
                "INSERT INTO keys (id, name, scopes, tier, owner, customer, service, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    info.id,
                    name,
                    orjson.dumps(info.scopes).decode(),
                    tier,
                    owner,
                    customer,
                    service,
                    now,
                    info.expires_at,
                ),
            )
            secret = self._add_secret(info.id, now)
        return MadeKey(self.find(info.id), secret)

    def rotate(self, which: str, *, grace: float) -> MadeKey:
        """Give a key a new secret; the old ones hold for `grace` seconds more.

        Raises:
            UsageError: there is no such key, or it is revoked.
        """
        info = self.find(which)
        if info.revoked_at is not None:
            raise UsageError(f"The key {info.id} is revoked.", hint="Make a new one: avyay keys create NAME")
        now = self._clock.now()
        with self._database.transaction() as database:
            database.execute(
                "UPDATE secrets SET expires_at = min(coalesce(expires_at, ?1), ?1) WHERE key = ?2",
                (now + grace, info.id),
            )
            secret = self._add_secret(info.id, now)
        return MadeKey(self.find(info.id), secret)

    def revoke(self, which: str) -> KeyInfo:
        """End a key and all its secrets at once; a revoked one stays so.

        Raises:
            UsageError: there is no such key.
        """
        info = self.find(which)
        with self._database.transaction() as database:
            database.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (self._clock.now(), info.id)
            )
        return self.find(info.id)

    def find(self, which: str) -> KeyInfo:
        """A key by its id, its name, or the prefix of one of its secrets.

        Raises:
            UsageError: there is none, or several have that name.
        """
        prefix = which.removeprefix(KEY_MARK).partition("_")[0]
        found = [
            key
            for key in self.all()
            if which in (key.id, key.name) or (which.startswith(KEY_MARK) and prefix in key.prefixes)
        ]
        if len(found) != 1:
            what = "No key" if not found else "More than one key"
            raise UsageError(f"{what} goes by that name or id.", hint="See: avyay keys list", code="no_key")
        return found[0]

    def all(self) -> list[KeyInfo]:
        """Every key, oldest first."""
        with self._database.errors():
            prefixes: dict[str, list[str]] = {}
            for key, prefix in self._database.execute("SELECT key, prefix FROM secrets ORDER BY created_at, prefix"):
                prefixes.setdefault(key, []).append(prefix)
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM keys k ORDER BY created_at, id").fetchall()  # noqa: S608
        return [_info(row, tuple(prefixes.get(row[0], ()))) for row in rows]

    # ------------------------------------------------------------ for the gateway

    def secret(self, prefix: str) -> Secret | None:
        """What a key with this prefix is checked against."""
        with self._database.errors():
            row = self._database.execute(
                f"SELECT {_COLUMNS}, s.hash, s.expires_at, s.revoked_at FROM secrets s JOIN keys k ON k.id = s.key"  # noqa: S608
                " WHERE s.prefix = ?",
                (prefix,),
            ).fetchone()
        if row is None:
            return None
        info = _info(row[:-3], (prefix,))
        ends = [at for at in (info.expires_at, row[-2]) if at is not None]
        return Secret(info, row[-3], min(ends, default=None), info.revoked_at is not None or row[-1] is not None)

    def matches(self, secret: Secret | None, token: str) -> bool:
        """Whether a presented key is the one; takes as long when there is none to compare with."""
        return hmac.compare_digest(hash_of(token), _NOBODY if secret is None else secret.hash) and secret is not None

    def changed(self) -> bool:
        """Whether another connection, of this or another process, has written since this was last asked."""
        version = self._data_version()
        changed, self._version = version != self._version, version
        return changed

    @property
    def any(self) -> bool:
        """Whether a key was ever made, revoked ones included: from then on nobody enters without."""
        with self._database.errors():
            return self._database.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None

    def _data_version(self) -> int:
        with self._database.errors():
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _add_secret(self, key: str, now: float) -> str:
        prefix, rest = _random(_PREFIX).lower(), _random(_SECRET)
        token = f"{KEY_MARK}{prefix}_{rest}"
        self._database.execute(
            "INSERT INTO secrets (prefix, key, hash, created_at) VALUES (?, ?, ?, ?)",
            (prefix, key, hash_of(token), now),
        )
        return token


_COLUMNS = "k.id, k.name, k.scopes, k.tier, k.owner, k.customer, k.service, k.created_at, k.expires_at, k.revoked_at"


def _info(row: tuple[object, ...], prefixes: tuple[str, ...]) -> KeyInfo:
    identity, name, scopes, *rest = row
    return KeyInfo(identity, name, tuple(orjson.loads(scopes)), *rest, prefixes)  # type: ignore[arg-type, call-arg]


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _check_label(label: str, value: str | None) -> None:
    if value is not None and (not 0 < len(value) <= 100 or not value.isprintable() or value != value.strip()):
        raise UsageError(f"The {label} {value!r} cannot be used.", hint="1 to 100 printable characters.")
