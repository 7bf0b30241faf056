"""What visitors did, knowing as little of them as will do: a daily salted hash, no cookies, addresses encrypted."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.errors import DependencyError, UsageError, why_unreadable

__all__ = ["Funnel", "SignUp", "Visitors", "load_key", "valid_email"]

SCHEMA = Schema(
    "siddhi_visitors",
    (
        Migration(
            "0001_visitors",
            """
            CREATE TABLE salts (day TEXT PRIMARY KEY, salt BLOB NOT NULL) WITHOUT ROWID;
            CREATE TABLE visits (
                hypothesis TEXT NOT NULL, variant TEXT NOT NULL, round INTEGER NOT NULL, day TEXT NOT NULL,
                visitor TEXT NOT NULL, PRIMARY KEY (hypothesis, variant, round, day, visitor)
            ) WITHOUT ROWID;
            CREATE TABLE counts (
                hypothesis TEXT NOT NULL, variant TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
                count INTEGER NOT NULL, PRIMARY KEY (hypothesis, variant, round, kind)
            ) WITHOUT ROWID;
            CREATE TABLE signups (
                number INTEGER PRIMARY KEY AUTOINCREMENT, hypothesis TEXT NOT NULL, variant TEXT NOT NULL,
                round INTEGER NOT NULL, address BLOB NOT NULL, fingerprint TEXT NOT NULL, code TEXT NOT NULL UNIQUE,
                at REAL NOT NULL, confirmed_at REAL, UNIQUE (hypothesis, fingerprint)
            );
            CREATE TABLE mails (fingerprint TEXT NOT NULL, at REAL NOT NULL);
            CREATE INDEX mails_by_time ON mails (at);
            """,
        ),
    ),
)
MAILS_PER_HOUR = 200
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
)


@dataclass(frozen=True, slots=True)
class Funnel:
    """What was counted for one variant. `anonymous` visits come from people who asked not to be followed."""

    hypothesis: str
    variant: str
    round: int
    visits: int
    anonymous: int
    bots: int
    signups: int
    confirmed: int

    @property
    def seen(self) -> int:
        """All visits by people."""
        return self.visits + self.anonymous


@dataclass(frozen=True, slots=True)
class SignUp:
    """An address somebody left."""

    hypothesis: str
    variant: str
    address: str
    at: float
    confirmed: bool


def load_key(path: Path, given: str | None = None) -> bytes:
    """The key that addresses are encrypted with: from the environment, else from a file of mode 0600, made if missing.

    Raises:
        DependencyError: The file can be read by others, or cannot be made.
        UsageError: What is given is no key.
    """
    from cryptography.fernet import Fernet

    if given is None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
                with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                    file.write(Fernet.generate_key())
                try:
                    path.hardlink_to(draft)  # whole or not at all, and the first of two makers wins
                except FileExistsError:
                    pass
                finally:
                    draft.unlink()
            if path.stat().st_mode & 0o077:
                raise DependencyError(f"{path} can be read by others.", hint=f"chmod 600 {path}", code="key_exposed")
            given = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DependencyError(
                f"Cannot read the key {path}: {why_unreadable(error)}.", hint="Check its permissions."
            ) from error
    try:
        Fernet(given)
    except ValueError as error:
        raise UsageError("This is no key for addresses.", hint="32 bytes in URL-safe base64.") from error
    return given.encode()


def valid_email(address: str) -> bool:
    """Whether it looks like an address that mail can be sent to."""
    return len(address) <= 254 and _EMAIL.fullmatch(address) is not None and ".." not in address


class Visitors:
    """The collector's SQLite file. Thread-safe."""

    def __init__(self, path: Path, key: bytes, *, clock: Clock = SYSTEM_CLOCK) -> None:
        from cryptography.fernet import Fernet

        self._clock = clock
        self._fernet = Fernet(key)
        self._key = key
        self._lock = threading.Lock()
        self._database = open_database(path, SCHEMA, check_same_thread=False)

    @property
    def page_secret(self) -> bytes:
        """What page tokens are signed with."""
        return hmac.new(self._key, b"siddhi page tokens", hashlib.sha256).digest()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _write(self) -> Iterator[Database]:
        with self._lock, self._database.transaction() as database:
            yield database

    def visit(self, page: tuple[str, str, int], address: str, agent: str) -> bool:
        """Count a visit once a day; returns whether it was new. Neither address nor agent is kept."""
        today = datetime.fromtimestamp(self._clock.now(), UTC).date().isoformat()
        with self._write() as database:
            salt = self._salt(database, today)
            visitor = hmac.new(salt, f"{address}\n{agent}".encode(), hashlib.sha256).hexdigest()[:24]
            done = database.execute("INSERT OR IGNORE INTO visits VALUES (?, ?, ?, ?, ?)", (*page, today, visitor))
            return done.rowcount == 1

    def count(self, page: tuple[str, str, int], kind: str) -> None:
        """Count something without telling visitors apart: `anonymous` or `bot`."""
        with self._write() as database:
            database.execute(
                "INSERT INTO counts VALUES (?, ?, ?, ?, 1)"
                " ON CONFLICT (hypothesis, variant, round, kind) DO UPDATE SET count = count + 1",
                (*page, kind),
            )

    def sign_up(self, page: tuple[str, str, int], address: str) -> str | None:
        """Keep an address, encrypted; returns the code for its confirmation, None when one was sent lately.

        Raises:
            UsageError: It is no address.
        """
        address = address.strip()
        if not valid_email(address):
            raise UsageError("That is no e-mail address.", hint="Write it like name@example.org.")
        mark = self._fingerprint(address)
        now = self._clock.now()
        code = secrets.token_urlsafe(24)
        with self._write() as database:
            database.execute(
                "INSERT INTO signups (hypothesis, variant, round, address, fingerprint, code, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hypothesis, fingerprint) DO NOTHING",
                (*page, self._fernet.encrypt(address.encode()), mark, code, now),
            )
            row = database.execute(
                "SELECT code, confirmed_at FROM signups WHERE hypothesis = ? AND fingerprint = ?", (page[0], mark)
            ).fetchone()
            database.execute("DELETE FROM mails WHERE at < ?", (now - 86_400,))
            lately = database.execute("SELECT 1 FROM mails WHERE fingerprint = ?", (mark,)).fetchone()
            (sent,) = database.execute("SELECT count(*) FROM mails WHERE at > ?", (now - 3600,)).fetchone()
            # Nobody may use the form to fill somebody's mailbox.
            if row[1] is not None or lately or sent >= MAILS_PER_HOUR:
                return None
            database.execute("INSERT INTO mails VALUES (?, ?)", (mark, now))
            return str(row[0])

    def confirm(self, code: str) -> bool:
        """The owner of an address says yes. Returns whether the code is known."""
        with self._write() as database:
            done = database.execute(
                "UPDATE signups SET confirmed_at = coalesce(confirmed_at, ?) WHERE code = ?", (self._clock.now(), code)
            )
            return done.rowcount == 1

    def delete(self, *, code: str | None = None, address: str | None = None) -> int:
        """Forget sign-ups, by their code or by address; returns how many."""
        with self._write() as database:
            if code is not None:
                return database.execute("DELETE FROM signups WHERE code = ?", (code,)).rowcount
            mark = self._fingerprint((address or "").strip())
            return database.execute("DELETE FROM signups WHERE fingerprint = ?", (mark,)).rowcount

    def export(self, hypothesis: str | None = None) -> list[SignUp]:
        """All addresses, decrypted, oldest first."""
        rows = self._rows(
            "SELECT hypothesis, variant, address, at, confirmed_at IS NOT NULL FROM signups"
            " WHERE ?1 IS NULL OR hypothesis = ?1 ORDER BY number",
            hypothesis,
        )
        return [SignUp(row[0], row[1], self._fernet.decrypt(row[2]).decode(), row[3], bool(row[4])) for row in rows]

    def funnel(self, hypothesis: str | None = None) -> list[Funnel]:
        """Counts for every variant and round."""
        keys = self._rows(
            "SELECT hypothesis, variant, round FROM visits UNION SELECT hypothesis, variant, round FROM counts"
            " UNION SELECT hypothesis, variant, round FROM signups ORDER BY 1, 3, 2"
        )
        return [self._funnel(key) for key in keys if hypothesis is None or key[0] == hypothesis]

    def _funnel(self, key: tuple[Any, ...]) -> Funnel:
        where = "WHERE hypothesis = ? AND variant = ? AND round = ?"
        visits = self._rows(f"SELECT count(*) FROM visits {where}", *key)[0][0]  # noqa: S608
        counts = dict(self._rows(f"SELECT kind, count FROM counts {where}", *key))  # noqa: S608
        signups = self._rows(
            f"SELECT count(*), count(confirmed_at) FROM signups {where}",  # noqa: S608
            *key,
        )[0]
        hypothesis, variant, round_ = key
        anonymous, bots = counts.get("anonymous", 0), counts.get("bot", 0)
        return Funnel(hypothesis, variant, round_, visits, anonymous, bots, signups[0], signups[1])

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._database.errors():
            return self._database.execute(query, values).fetchall()

    def _salt(self, database: Database, today: str) -> bytes:
        row = database.execute("SELECT salt FROM salts WHERE day = ?", (today,)).fetchone()
        if row is None:
            # Yesterday's salt is gone with it: nobody, we neither, can link two days.
            database.execute("DELETE FROM salts")
            row = (secrets.token_bytes(32),)
            database.execute("INSERT INTO salts VALUES (?, ?)", (today, row[0]))
        return bytes(row[0])

    def _fingerprint(self, address: str) -> str:
        return hmac.new(self._key, f"address:{address.casefold()}".encode(), hashlib.sha256).hexdigest()
