"""The one place that opens PostgreSQL: a URL, named migrations, transactions, errors with a remedy.

For what one machine's SQLite cannot hold: a queue or a ledger that several machines share. A component's tables live in
a schema of their own. Statements are written with `?` marks, as for SQLite.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from avyay.errors import AuthError, ConfigError, CorruptError, DependencyError, UnreachableError
from avyay.resilience.backoff import Backoff

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresDatabase", "PostgresSchema", "is_postgres_url"]

CONNECT_TIMEOUT = 5
STATEMENT_TIMEOUT_MS = 30_000
IDLE_TIMEOUT_MS = 60_000
"""The server ends a session that leaves a transaction open for so long: its process is stopped, or gone unheard."""
_LOCK_SPACE = 0x6176_7961  # "avya": advisory locks of one database share one number space


def is_postgres_url(text: str) -> bool:
    """Whether a place names a PostgreSQL database."""
    return text.startswith(("postgresql://", "postgres://"))


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """Named, ordered migrations of one component; each is SQL of any number of statements, and never changes."""

    name: str
    migrations: tuple[tuple[str, str], ...]


class PostgresDatabase:
    """A connection that is opened when first used, and again after it was lost.

    A transaction that loses its connection fails: whether it was committed is not known, so it is never repeated here.
    Only opening the connection is tried again, with backoff.

    Args:
        url: `postgresql://user:password@host/database`; the password may come from `~/.pgpass` instead.
        schema: What the caller relies on; made and migrated when the connection is opened.

    Raises:
        DependencyError: the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        schema: PostgresSchema,
        *,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._url = url
        self._schema = schema
        self._backoff = backoff or Backoff(base=0.2, cap=2.0, attempts=4)
        self._sleep = sleep
        self._random = random
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._migrated = False
        try:
            import psycopg  # noqa: F401 - asked for here, so that a missing driver is said at once
        except ImportError as error:
            raise DependencyError(
                "The PostgreSQL driver is not installed.", hint="Install it: pip install 'avyay[postgres]'"
            ) from error

    @property
    def where(self) -> str:
        """Host and database, without the credentials."""
        parts = urlsplit(self._url)
        return f"{parts.hostname or 'local socket'}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def execute(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run one statement: in the open transaction, else in one of its own.

        Raises:
            UnreachableError: the server is away, or took too long.
        """
        with self.errors():
            return self._open().execute(_marks(statement).encode(), values or None)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each row of values."""
        with self.errors():
            self._open().cursor().executemany(_marks(statement).encode(), rows)

    @contextmanager
    def transaction(self) -> Iterator[PostgresDatabase]:
        """All or nothing, at READ COMMITTED: what must not change meanwhile is locked by the caller."""
        with self.errors():
            connection = self._open(probe=True)
            with connection.transaction():
                yield self

    def lock(self, number: int, *, shared: bool = False) -> None:
        """Wait for the lock of that number, which the open transaction then holds until its end."""
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        self.execute(f"SELECT {function}(?, ?)", (_LOCK_SPACE, number))

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the driver raises in the block into an `AvyayError`."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            self._fail(error)

    # ---------------------------------------------------------------- the connection

    def _open(self, *, probe: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        if self._connection is not None and not self._connection.closed:
            if not probe or self._alive(self._connection):
                return self._connection
            self._connection.close()
        failures = 0
        while True:
            try:
                self._connection = self._connect()
            except psycopg.OperationalError as error:
                failures += 1
                delay = self._backoff.delay(failures, self._random)
                if delay is None or error.sqlstate is not None or "authentication" in str(error):
                    raise
                self._sleep(delay)
            else:
                return self._connection

    @staticmethod
    def _alive(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        import psycopg

        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return True  # inside a transaction: its own statement will tell
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        try:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT,
                application_name="avyay",
                options=(
                    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c search_path={self._schema.name}"
                    f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
                ),
                keepalives_idle=30,
                tcp_user_timeout=STATEMENT_TIMEOUT_MS,
            )
        except psycopg.ProgrammingError as error:
            raise ConfigError(
                "The PostgreSQL URL cannot be understood.", hint="Write postgresql://user@host:5432/database."
            ) from error
        if not self._migrated:
            try:
                self._migrate(connection)
            except BaseException:
                connection.close()
                raise
            self._migrated = True
        return connection

    def _migrate(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        from psycopg import sql

        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK_SPACE,))
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self._schema.name)))
            connection.execute(
                "CREATE TABLE IF NOT EXISTS avyay_migrations (position INTEGER PRIMARY KEY, name TEXT NOT NULL,"
                " applied_at TIMESTAMPTZ NOT NULL DEFAULT now())"
            )
            applied = [row[0] for row in connection.execute("SELECT name FROM avyay_migrations ORDER BY position")]
            known = [name for name, _ in self._schema.migrations]
            if applied[: len(known)] != known[: len(applied)]:
                raise CorruptError(
                    f"{self.where} records migrations that this avyay does not know.",
                    hint="It belongs to another branch or program: name another database.",
                    code="schema_diverged",
                )
            if len(applied) > len(known):
                raise ConfigError(
                    f"{self.where} was written by a newer avyay.", hint="Upgrade avyay here.", code="schema_newer"
                )
            for position in range(len(applied), len(known)):
                name, script = self._schema.migrations[position]
                connection.execute(script.encode())
                connection.execute("INSERT INTO avyay_migrations (position, name) VALUES (%s, %s)", (position, name))

    def _fail(self, error: psycopg.Error) -> NoReturn:
        import psycopg

        if isinstance(error, psycopg.errors.InvalidPassword | psycopg.errors.InvalidAuthorizationSpecification):
            raise AuthError(
                f"PostgreSQL at {self.where} refuses the login.", hint="Check user and password."
            ) from error
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise AuthError(
                f"PostgreSQL at {self.where} does not allow it: {_first_line(error)}.",
                hint=f"The role needs CREATE on the database, or a schema {self._schema.name} of its own.",
            ) from error
        if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
            raise UnreachableError(
                f"PostgreSQL at {self.where} took longer than {STATEMENT_TIMEOUT_MS // 1000} s.",
                hint="Look for a transaction that was left open: SELECT * FROM pg_stat_activity.",
                code="database_busy",
            ) from error
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            if "authentication failed" in str(error):
                raise self._refused() from None
            raise UnreachableError(
                f"PostgreSQL at {self.where} does not answer.", hint="Is it running, and does the URL name it?"
            ) from None  # the driver's message may hold the URL
        raise CorruptError(
            f"PostgreSQL at {self.where} refused a statement: {_first_line(error)}.", hint="This is a bug in avyay."
        ) from error

    def _refused(self) -> AuthError:
        return AuthError(f"PostgreSQL at {self.where} refuses the login.", hint="Check user and password.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@lru_cache(maxsize=256)
def _marks(statement: str) -> str:
    """`?` marks as the driver writes them. Our statements hold no literal question mark."""
    return statement.replace("%", "%%").replace("?", "%s")
