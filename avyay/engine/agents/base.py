"""What a driver of a coding agent does: makes a command line, and reads what the agent says. Pure: starts nothing."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

__all__ = ["PASSED_ON", "Access", "Agent", "Invocation", "Terminal", "Transcript", "WorkPlace", "status_of"]

Dialect = Literal["anthropic", "responses", "chat", "gemini"]

PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SHELL", "USER", "LOGNAME", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""The environment variables every agent and every acceptance command gets; whatever else is wanted must be named."""


@dataclass(frozen=True, slots=True)
class Access:
    """How an agent reaches models.

    Args:
        url: Base URL without /v1; None leaves the agent to its own provider.
        key: Sent as the key of that provider.
        headers: Sent with every request, so that the router can put a name to the bill.
        model: The model to ask for; None leaves the choice to the router, or to the agent.
        routed: The URL is the router's: it takes "auto" for a model.
        budget: US dollars, for agents that count themselves where the router does not.
    """

    url: str | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    routed: bool = False
    budget: str | None = None

    @property
    def model_or_auto(self) -> str:
        return self.model or "auto"


@dataclass(frozen=True, slots=True)
class WorkPlace:
    """Where an attempt happens, as paths of the machine it happens on."""

    work: PurePosixPath
    home: PurePosixPath
    prompt: PurePosixPath


@dataclass(frozen=True, slots=True)
class Invocation:
    """A program to start.

    Args:
        argv: The program and its arguments.
        environment: Besides `PASSED_ON` and HOME.
        files: Path below the attempt's HOME to content, written before the start.
        prompt_on_stdin: Standard input is the prompt; else it is empty.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    prompt_on_stdin: bool = True


@dataclass(frozen=True, slots=True)
class Terminal:
    """How the agent itself says it ended.

    kind: success; error, with the provider's HTTP status where one is known; capped, by a limit of the agent's own;
    unreachable, for a provider that broke the connection.
    """

    kind: Literal["success", "error", "capped", "unreachable"]
    message: str = ""
    status: int | None = None


# Tries that a provider may turn away before the attempt is ended: the queue waits better than an agent does.
_PATIENCE_LIMITED = 3
_PATIENCE = 8


class Transcript:
    """Reads an agent's standard output line by line as it comes. Subclasses know one agent's events.

    Attributes:
        turns: Answers of the model so far.
        wants_more: Whether the last answer asked for a tool, so that another will follow.
        terminal: What the agent said at its end; None while it runs, and when it was cut short.
        hopeless: Why going on is pointless, before the agent itself gives up.
        said: The last words of the agent.
        denied: Tools the agent was not allowed to use.
        cost: US dollars by the agent's own count, where it counts.
        repeats: How often in a row the last tool call was asked for in exactly the same words.
        interrupted: It took note of a signal and gave up, whatever its exit code says.
    """

    has_terminal: ClassVar[bool] = True
    """Whether this agent always says how it ended; else its exit code has to do."""

    def __init__(self) -> None:
        self.turns = 0
        self.wants_more = False
        self.terminal: Terminal | None = None
        self.hopeless: Terminal | None = None
        self.said = ""
        self.denied: list[str] = []
        self.cost: float | None = None
        self.tokens = {"input": 0, "output": 0}
        self.repeats = 0
        self.interrupted = False
        self._turned_away = 0
        self._last_call = ""

    def feed(self, line: str) -> None:
        """Take in a line; what is no event is ignored."""
        line = line.strip()
        if not line.startswith("{"):
            self.text(line)
            return
        try:
            event = json.loads(line)
        except ValueError:
            self.text(line)
            return
        if isinstance(event, dict):
            try:
                self.event(event)
            except (AttributeError, TypeError, KeyError, ValueError):
                return  # an event of a shape nobody has seen yet is no reason to end an attempt

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in a JSON event."""

    def text(self, line: str) -> None:
        """Take in a line that is not JSON."""

    def complaint(self, line: str) -> None:
        """Take in a line of standard error: some agents say only there that their provider turns them away."""

    def turned_away(self, terminal: Terminal) -> None:
        """The provider refused a try and the agent will try again: for some refusals that is pointless."""
        self._turned_away += 1
        permanent = terminal.status is not None and 400 <= terminal.status < 500 and terminal.status not in (408, 429)
        patience = 2 if permanent else _PATIENCE_LIMITED if terminal.status in (429, 529) else _PATIENCE
        if self._turned_away >= patience:
            self.hopeless = terminal

    def calls(self, what: object) -> None:
        """A tool call was asked for; `what` is all of it."""
        words = json.dumps(what, sort_keys=True, default=str)
        self.repeats = self.repeats + 1 if words == self._last_call else 1
        self._last_call = words
        self.wants_more = True

    def went_on(self) -> None:
        """The provider answered: what it refused before is forgotten."""
        self._turned_away = 0


class Agent(ABC):
    """A kind of coding agent."""

    kind: ClassVar[str]
    program: ClassVar[str]
    dialect: ClassVar[Dialect | None]
    routable: ClassVar[bool] = True
    """Whether its models can come through the router."""
    complains: ClassVar[bool] = False
    """Whether it says on standard error what its provider answered; on other machines that is read with its output."""
    leaves: ClassVar[tuple[str, ...]] = ()
    """Globs of files it writes into the working folder for itself: they are no part of its result."""
    counts_dollars: ClassVar[bool] = False
    """Whether it says what it spends, for models whose prices it knows."""

    @abstractmethod
    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        """The command line for one attempt.

        Args:
            program: Path of the program on the machine where it shall run.
            turns: The cap on answers of the model, for agents that can count themselves.
            arguments: More arguments, from the settings.
        """

    @abstractmethod
    def transcript(self) -> Transcript:
        """A fresh reader of its output."""


# The router answers 502 when a provider refuses the router's own key: clients shall not think that it was theirs.
_KEY_REFUSED = re.compile(r"provider_key_refused|refused the router's key", re.IGNORECASE)
_STATUS = re.compile(r"(?:status|error|code|http)\W{0,3}(?:code\W{0,2})?([45]\d\d)\b", re.IGNORECASE)
_WORDS = (
    (re.compile(r"rate.?limit|too many requests|resource.?exhausted|quota", re.IGNORECASE), 429),
    (re.compile(r"overloaded", re.IGNORECASE), 529),
    (re.compile(r"authenticat|unauthori[sz]ed|invalid.{0,5}api.?key|not logged in", re.IGNORECASE), 401),
    (re.compile(r"permission_error|forbidden", re.IGNORECASE), 403),
    (re.compile(r"billing|credit balance|insufficient_quota", re.IGNORECASE), 402),
    (re.compile(r"invalid_request|bad request|context.{0,10}(?:length|window)|prompt is too long", re.IGNORECASE), 400),
    (re.compile(r"not_found|model.{0,20}not found", re.IGNORECASE), 404),
    (re.compile(r"server_error|internal server|api_error|unavailable|bad gateway", re.IGNORECASE), 500),
)
_CONNECTION = re.compile(
    r"stream disconnected|connection (?:error|reset|refused)|network error|econn|socket hang ?up|fetch failed"
    r"|timed? ?out",
    re.IGNORECASE,
)


def status_of(message: str) -> int | None:
    """The HTTP status that an error message speaks of, or the one its words stand for; None when it names none."""
    if _KEY_REFUSED.search(message):
        return 401
    if match := _STATUS.search(message):
        return int(match[1])
    return next((status for words, status in _WORDS if words.search(message)), None)


def failed(message: str, status: int | None = None) -> Terminal:
    """A `Terminal` for an agent that ended with an error of its provider."""
    status = 401 if _KEY_REFUSED.search(message) else status or status_of(message)
    if status is None and _CONNECTION.search(message):
        return Terminal("unreachable", message)
    return Terminal("error", message, status)
