"""The generator: asks every source, makes tasks of what is new, closes those whose evidence is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Migration, Schema, open_database
from avyay.engine.generate.registry import RANK, check_names, load_source
from avyay.engine.generate.types import Found, Generated, Need, Run, Site
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.queue import Queue
from avyay.engine.types import NewTask
from avyay.errors import AvyayError, UsageError
from avyay.git import find_repository
from avyay.ports import Alarms, Progress, Scanner
from avyay.process import run as run_program

__all__ = ["TaskGenerator"]

_SCHEMA = Schema(
    "generate",
    (
        Migration(
            "0001_seen",
            """
            CREATE TABLE seen (   -- every need ever found
                fingerprint TEXT PRIMARY KEY,
                round INTEGER NOT NULL,   -- how often it came, went and came again
                gone INTEGER NOT NULL
            ) STRICT, WITHOUT ROWID;
            """,
        ),
    ),
)


class TaskGenerator:
    """Looks for work in repositories. Implements `avyay.engine.contracts.Generator`.

    Args:
        path: The database that remembers what was found before.
        sources: Names of sources; empty means all.
        approval: A person approves every generated task.
        tests: The command that runs the tests; None leaves failing tests alone.
        verify: The acceptance command of needs that bring none.
    """

    def __init__(
        self,
        path: Path,
        knowledge: Knowledge,
        *,
        sources: Sequence[str] = (),
        approval: bool = True,
        tests: str = "",
        verify: str = "",
        online: bool = False,
        scanner: Callable[[], Scanner] | None = None,
        alarms: Callable[[], Alarms] | None = None,
        queue: Callable[[], Queue] | None = None,
        run: Run = run_program,
        search_path: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._path = path
        self._knowledge = knowledge
        self._sources = check_names(sources)
        self._approval = approval
        self._tests = tests
        self._verify = verify
        self._online = online
        self._scanner = scanner
        self._alarms = alarms
        self._queue = queue
        self._run = run
        self._search_path = search_path
        self._clock = clock

    def generate(self, repository: Path, *, limit: int) -> Sequence[NewTask]:
        """New tasks for the loop, which adds them itself; open ones whose evidence is gone are closed."""
        queue = self._queue() if self._queue is not None else None
        return self.round(repository, queue, limit=limit, add=False).tasks

    def round(
        self,
        repository: Path,
        queue: Queue | None,
        *,
        limit: int = 10,
        dry_run: bool = False,
        add: bool = True,
        name: str = "",
        progress: Progress | None = None,
    ) -> Generated:
        """Look once.

        Args:
            queue: Knows the tasks there are; None when there is no queue yet.
            dry_run: Write nothing.
            add: Add the new tasks to the queue.
            name: The repository's name in the settings, for the tasks.

        Raises:
            UsageError: `repository` is no git repository.
        """
        found_repository = find_repository(repository)
        if found_repository is None:
            raise UsageError(f"{repository} is in no git repository.", hint="Name a repository.")
        site = Site(
            root=found_repository.root, git=found_repository, knowledge=self._knowledge, clock=self._clock,
            run=self._run, tests=self._tests, online=self._online, scanner=self._scanner, alarms=self._alarms,
            path=self._search_path,
        )  # fmt: skip
        self._knowledge.update(site.root)
        if queue is not None:
            self._knowledge.learn(site.root, queue.tasks(), queue.history)
        results: dict[str, Found] = {}
        for place, source in enumerate(self._sources):
            if progress is not None:
                progress(place, len(self._sources), f"looking for {source}")
            try:
                results[source] = load_source(source).find(site)
            except AvyayError as error:
                results[source] = Found.not_checked(error.message)
        return self._decide(site, results, queue, limit=limit, write=not dry_run, add=add and not dry_run, name=name)

    def _decide(
        self,
        site: Site,
        results: Mapping[str, Found],
        queue: Queue | None,
        *,
        limit: int,
        write: bool,
        add: bool,
        name: str,
    ) -> Generated:
        prints = {
            source: {_base(site.root, source, need): need for need in found.needs} for source, found in results.items()
        }
        rounds = self._remember(site.root, results, prints, write=write)
        present = {
            base: f"{base}#{rounds[base]}" if rounds[base] > 1 else base for group in prints.values() for base in group
        }
        tasks = {task.fingerprint: task for task in queue.tasks()} if queue is not None else {}
        fresh = [
            (source, self._task(need, present[base], source, name))
            for source, group in prints.items()
            for base, need in group.items()
            if present[base] not in tasks
        ]
        fresh.sort(key=lambda item: -item[1].priority)
        known = sum(fingerprint in tasks for fingerprint in present.values())
        closed = []
        if queue is not None:
            for fingerprint, task in tasks.items():
                source = _source_of(site.root, fingerprint)
                whole = source is not None and source in results and results[source].whole
                if whole and task.state in ("ready", "blocked") and fingerprint not in present.values():
                    closed.append(task.id)
                    if write:
                        queue.resolve(task.id, "the evidence is gone")
        chosen = [task for _, task in fresh[:limit]]
        added = tuple(queue.add(chosen)) if add and queue is not None else ()
        return Generated(
            tasks=tuple(chosen),
            added=added,
            closed=tuple(closed),
            known=known,
            left=max(0, len(fresh) - limit),
            checked={source: len(found.needs) for source, found in results.items() if found.whole or found.needs},
            skipped={source: found.skipped for source, found in results.items() if found.skipped},
        )

    def _task(self, need: Need, fingerprint: str, source: str, name: str) -> NewTask:
        return NewTask(
            title=need.title,
            description=need.description,
            accept=need.accept or self._verify,
            files=need.files[:40],
            evidence=need.evidence,
            fingerprint=fingerprint,
            approval=self._approval or need.stranger,
            priority=RANK[source] + round(9 * need.weight),
            allow=need.allow,
            size=need.size,
            repository=name,
        )

    def _remember(
        self, root: Path, results: Mapping[str, Found], prints: Mapping[str, Mapping[str, Need]], *, write: bool
    ) -> dict[str, int]:
        """How often each need has come; one that was gone and is back counts once more, so that it is a new task."""
        database = open_database(self._path, _SCHEMA)
        try:
            with database.transaction() as db:
                seen = {
                    str(f): (int(r), bool(g)) for f, r, g in db.execute("SELECT fingerprint, round, gone FROM seen")
                }
                rounds = {}
                for group in prints.values():
                    for base in group:
                        number, gone = seen.get(base, (1, False))
                        rounds[base] = number + gone
                if write:
                    db.executemany(
                        "INSERT INTO seen VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET round = excluded.round, gone = 0",
                        list(rounds.items()),
                    )
                    missing = [
                        (base,)
                        for base in seen
                        if base not in rounds
                        and (source := _source_of(root, base)) in results
                        and results[source or ""].whole
                    ]
                    db.executemany("UPDATE seen SET gone = 1 WHERE fingerprint = ?", missing)
            return rounds
        finally:
            database.close()


def _place(root: Path) -> str:
    return sha256(str(root.resolve()).encode()).hexdigest()[:8]


def _base(root: Path, source: str, need: Need) -> str:
    return f"{source}:{_place(root)}:{sha256(need.key.encode()).hexdigest()[:20]}"


def _source_of(root: Path, fingerprint: str | None) -> str | None:
    """The source that found a task in this repository; None for tasks that were not generated here."""
    parts = (fingerprint or "").split(":")
    return parts[0] if len(parts) == 3 and parts[0] in RANK and parts[1] == _place(root) else None
