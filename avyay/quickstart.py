"""The first walk: look around, index and ask, route, scan. Every step is the real thing, offline and without a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avyay.doctor import Check, examine
from avyay.errors import AvyayError, UsageError
from avyay.ports import Completion, Message
from avyay.wiring import Services

if TYPE_CHECKING:
    from avyay.marga.explain import Explanation
    from avyay.ports import Progress
    from avyay.rag.answer import Answer
    from avyay.rag.index import SyncReport
    from avyay.raksha.types import Report

__all__ = ["NEXT", "PROMPTS", "QUESTIONS", "Asked", "Step", "walk"]

# Questions that the documents of nearly every repository answer somewhere.
QUESTIONS = ("How do I install and run this?", "How do I run the tests?")

# Three prompts of growing difficulty.
PROMPTS = (
    "Name the HTTP status code for 'not found'.",
    "Compare SQLite and PostgreSQL as the store of a job queue: list the trade-offs in a table, then recommend one "
    "for a team of two.",
    "Prove that a token bucket of capacity b and rate r admits at most b + r*t requests in any interval of length t, "
    "derive the bound for two chained buckets, then implement both in Python, thread-safe, with property-based tests "
    "that would catch an off-by-one error in the refill.",
)

NEXT = (
    ('avyay ask "your question"', "answers from the documents just indexed, with citations"),
    ('avyay route "your prompt"', "an answer from the cheapest model that can do it (needs a key or Ollama)"),
    ("avyay scan . --sarif raksha-results.sarif", "findings for your code host's security tab"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """The index made of the repository, and what it answered."""

    report: SyncReport
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the walk; `problem` and `fix` say why it could not run."""

    name: Literal["doctor", "ask", "route", "scan"]
    state: Literal["done", "failed"]
    seconds: float
    result: tuple[Check, ...] | Asked | tuple[Explanation, ...] | Report | None = None
    problem: str = ""
    fix: str = ""


def walk(services: Services, repository: Path, *, progress: Progress | None = None) -> Iterator[Step]:
    """Take the walk, one step at a time; a step that fails says so and the next one goes on.

    Raises:
        UsageError: there is no such folder.
    """
    if not repository.is_dir():
        raise UsageError(f"There is no folder {repository}.", hint="Name a repository: avyay quickstart PATH")
    yield _step("doctor", lambda: examine(services))
    yield _step("ask", lambda: _ask(services, repository, progress))
    yield _step("route", lambda: _route(services))
    yield _step("scan", lambda: services.scanner.scan([repository], progress=progress))


def _step(name: Literal["doctor", "ask", "route", "scan"], work: Callable[[], Any]) -> Step:
    started = time.monotonic()
    try:
        result = work()
    except AvyayError as error:
        return Step(name, "failed", time.monotonic() - started, problem=error.message, fix=error.hint or "")
    return Step(name, "done", time.monotonic() - started, result)


def _ask(services: Services, repository: Path, progress: Progress | None) -> Asked:
    from avyay.rag.service import AskOptions

    report = services.rag.index(str(repository), progress=progress)
    # Passages only: the walk shows what works without a key, and spends nothing where there is one.
    options = AskOptions(limit=2, sources=(report.source,), extractive=True)
    return Asked(report, tuple(services.rag.ask(question, options) for question in QUESTIONS))


def _route(services: Services) -> tuple[Explanation, ...]:
    from avyay.marga.explain import explain

    return tuple(
        explain(services.router, Completion((Message("user", prompt),), service="quickstart")) for prompt in PROMPTS
    )
