"""`--online`: does a host resolve, does a package exist? Bounded, cached, "not known" when the network is in doubt.

Hosts are asked through the system's resolver, packages through the user's own pip, npm and go, so that private
registries, mirrors and proxies count. An answer "no" is believed only after a question whose answer is known has been
answered rightly: without a network everything seems not to exist.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.errors import AvyayError
from avyay.process import Completed, run
from avyay.raksha.project import Ecosystem, PackageFacts

__all__ = ["Clients", "NetworkResolver", "lookup_host"]

SCHEMA = Schema(
    "raksha_lookups",
    (Migration("0001_answers", "CREATE TABLE answers (question TEXT PRIMARY KEY, answer TEXT, asked REAL) STRICT;"),),
)
KEEP_SECONDS = 7 * 86_400
KNOWN_HOSTS = ("example.com", "iana.org")  # RFC 2606 and its keeper: they resolve wherever names resolve
NO_HOST = "avyay-does-not-exist.invalid"  # RFC 2606: resolves only where the resolver makes answers up
_HOST = re.compile(r"^(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$")
_NAMES: dict[Ecosystem, re.Pattern[str]] = {
    "pypi": re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,100}[A-Za-z0-9])?$"),
    "npm": re.compile(r"^(?:@[a-z0-9~][a-z0-9._~-]{0,100}/)?[a-zA-Z0-9~][a-zA-Z0-9._~-]{0,200}$"),
    "go": re.compile(r"^[a-z0-9][a-z0-9.-]*\.[a-z]{2,}(?:/[A-Za-z0-9._~-]+){0,10}$"),
}
_CANARIES: dict[Ecosystem, str] = {"pypi": "pip", "npm": "npm", "go": "golang.org/x/text"}
_TROUBLE = re.compile(r"(?i)retrying|connection|timed? ?out|temporary failure|could not fetch|proxy|ssl|network|EAI_")


@dataclass(frozen=True, slots=True)
class Clients:
    """The programs that know the user's registries."""

    pip: tuple[str, ...] = (sys.executable, "-m", "pip")
    npm: tuple[str, ...] = ("npm",)
    go: tuple[str, ...] = ("go",)


def lookup_host(host: str) -> bool | None:
    """Whether the system's resolver knows a host; None when it could not say."""
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            return False
        return True if error.errno == getattr(socket, "EAI_NODATA", None) else None
    except (OSError, UnicodeError):
        return None
    return True


class NetworkResolver:
    """Asks the network; safe to use from several threads.

    Args:
        cache: A SQLite file that remembers answers for a week; None: only for this run.
        seconds: For one question.
        questions: How many are asked at most in one run; the rest is not known.
    """

    def __init__(
        self,
        cache: Path | None = None,
        *,
        clients: Clients | None = None,
        lookup: Callable[[str], bool | None] = lookup_host,
        seconds: float = 10.0,
        questions: int = 300,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clients = clients or Clients()
        self._lookup = lookup
        self._seconds = seconds
        self._left = questions
        self._clock = clock
        self._lock = threading.RLock()
        self._known: dict[str, str] = {}
        self._trusted: dict[str, bool] = {}
        self._database = _open(cache)

    def close(self) -> None:
        """Close the cache."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def host_exists(self, host: str) -> bool | None:
        """Whether a host name resolves; None: not known."""
        host = host.lower().rstrip(".")
        if not _HOST.match(host):
            return None
        answer = self._answer(f"host:{host}", lambda: self._ask_host(host))
        return None if answer is None else bool(json.loads(answer))

    def package(self, ecosystem: Ecosystem, name: str) -> PackageFacts | None:
        """What the user's registry says of a package; None: not known."""
        if not _NAMES[ecosystem].match(name):
            return None
        answer = self._answer(f"{ecosystem}:{name}", lambda: self._ask_package(ecosystem, name))
        if answer is None:
            return None
        exists, first, releases = json.loads(answer)
        return PackageFacts(exists, date.fromisoformat(first) if first else None, releases)

    def _answer(self, question: str, ask: Callable[[], str | None]) -> str | None:
        with self._lock:
            if question in self._known:
                return self._known[question]
            remembered = self._recall(question)
            if remembered is not None:
                return remembered
            if self._left <= 0:
                return None
            self._left -= 1
            answer = ask()
            if answer is not None:
                self._known[question] = answer
                self._remember(question, answer)
            return answer

    def _ask_host(self, host: str) -> str | None:
        found = self._timed(host)
        if found is None or (found is False and not self._names_resolve()) or (found and self._answers_made_up()):
            return None
        return json.dumps(found)

    def _timed(self, host: str) -> bool | None:
        """The resolver has no time limit of its own: a thread that it holds up is left behind."""
        answers: list[bool | None] = []
        thread = threading.Thread(target=lambda: answers.append(self._lookup(host)), daemon=True)
        thread.start()
        thread.join(self._seconds)
        return answers[0] if answers else None

    def _names_resolve(self) -> bool:
        return self._once("names", lambda: any(self._timed(host) for host in KNOWN_HOSTS))

    def _answers_made_up(self) -> bool:
        return self._once("made up", lambda: self._timed(NO_HOST) is not False)

    def _once(self, what: str, ask: Callable[[], bool]) -> bool:
        if what not in self._trusted:
            self._trusted[what] = ask()
        return self._trusted[what]

    def _ask_package(self, ecosystem: Ecosystem, name: str) -> str | None:
        facts = _ASK[ecosystem](self, name)
        if facts is None:
            return None
        if not facts.exists:
            canary = _CANARIES[ecosystem]

            def registry_answers() -> bool:
                known = _ASK[ecosystem](self, canary)
                return known is not None and known.exists

            if not self._once(ecosystem, registry_answers):
                return None
        first = facts.first_released.isoformat() if facts.first_released else None
        return json.dumps([facts.exists, first, facts.releases])

    def _run(self, command: Sequence[str]) -> Completed | None:
        try:
            done = run(command, timeout=self._seconds * 3)
        except AvyayError:
            return None  # the client is not installed
        return None if done.timed_out else done

    def _pypi(self, name: str) -> PackageFacts | None:
        quiet = ("--disable-pip-version-check", "--no-input", "--retries", "1")
        done = self._run([*self._clients.pip, "index", "versions", *quiet, "--", name])
        if done is None:
            return None
        if done.code == 0:
            listed = re.search(r"^Available versions: (.*)$", done.text, re.MULTILINE)
            return PackageFacts(True, releases=len(listed[1].split(",")) if listed else 1)
        if "No matching distribution" in done.error_text and not _TROUBLE.search(done.error_text):
            return PackageFacts(False)
        return None

    def _npm(self, name: str) -> PackageFacts | None:
        done = self._run([*self._clients.npm, "view", "--json", "--fetch-retries=1", "--", name, "time"])
        if done is None:
            return None
        if done.code != 0:
            return PackageFacts(False) if "E404" in done.text + done.error_text else None
        try:
            times = {key: date.fromisoformat(str(at)[:10]) for key, at in json.loads(done.stdout).items()}
        except (ValueError, TypeError, AttributeError):
            return PackageFacts(True) if done.stdout.strip() else None
        releases = len(times.keys() - {"created", "modified"})
        return PackageFacts(True, min(times.values()), releases) if times else None

    def _go(self, name: str) -> PackageFacts | None:
        done = self._run([*self._clients.go, "list", "-m", "-versions", "-mod=mod", "--", f"{name}@latest"])
        if done is None:
            return None
        if done.code == 0:
            return PackageFacts(True, releases=max(1, len(done.text.split()) - 1))
        return PackageFacts(False) if re.search(r"404 Not Found|not found: module", done.error_text) else None

    def _recall(self, question: str) -> str | None:
        if self._database is None:
            return None
        try:
            with self._database.errors():
                query = "SELECT answer, asked FROM answers WHERE question = ?"
                row = self._database.execute(query, (question,)).fetchone()
        except AvyayError:
            return None
        return str(row[0]) if row is not None and self._clock.now() - row[1] < KEEP_SECONDS else None

    def _remember(self, question: str, answer: str) -> None:
        if self._database is None:
            return
        try:
            with self._database.transaction():
                row = (question, answer, self._clock.now())
                self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except AvyayError:
            return  # an answer that is not remembered is asked for again


_ASK: dict[Ecosystem, Callable[[NetworkResolver, str], PackageFacts | None]] = {
    "pypi": NetworkResolver._pypi,
    "npm": NetworkResolver._npm,
    "go": NetworkResolver._go,
}


def _open(path: Path | None) -> Database | None:
    if path is None:
        return None
    try:
        return open_database(path, SCHEMA, busy_timeout=1.0, check_same_thread=False)
    except AvyayError:
        return None
