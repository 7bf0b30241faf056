"""What only a shared database can do wrong: claims side by side, a server that goes away, a login that is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from postgres_server import PostgresServer

from avyay.engine.database import PostgresQueue
from avyay.engine.queue import LostLeaseError, Queue
from avyay.engine.schema import POSTGRES_SCHEMA
from avyay.engine.types import Lease, NewTask
from avyay.errors import AuthError, ConfigError, CorruptError, UnreachableError
from avyay.postgres import PostgresDatabase, PostgresSchema
from avyay.resilience.backoff import Backoff

pytestmark = pytest.mark.needs("postgres", "initdb")


def together(count: int, work: Callable[[int], object]) -> list[object]:
    barrier = threading.Barrier(count)

    def one(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class TestSideBySide:
    def test_overlapping_tasks_are_never_claimed_together(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        first = Queue(url)
        first.add([NewTask(f"task {i}", files=(f"src/{i % 2}/*",)) for i in range(12)])
        queues = [Queue(url) for _ in range(6)]
        for _ in range(6):
            leases = [lease for lease in together(6, lambda i: queues[i].claim(f"w{i}")) if isinstance(lease, Lease)]
            assert 1 <= len(leases) <= 2
            assert len({lease.task.files for lease in leases}) == len(leases)
            for lease in leases:
                first.fail(lease, "next round", final=True)
        for queue in (first, *queues):
            queue.close()

    def test_every_task_is_claimed_once_with_a_fence_of_its_own(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        first = Queue(url)
        first.add([NewTask(f"task {i}") for i in range(200)])

        def drain(number: int) -> list[tuple[str, int]]:
            queue = Queue(url)
            got = []
            while (lease := queue.claim(f"w{number}")) is not None:
                got.append((lease.task.id, lease.fence))
            queue.close()
            return got

        claimed = [pair for part in together(4, drain) for pair in part]  # type: ignore[attr-defined]
        # A claimer may find the last ready tasks all held by others and stop: whatever is left is still there.
        left = first.counts().get("ready", 0)
        assert len(claimed) + left == 200
        assert len({task for task, _ in claimed}) == len({fence for _, fence in claimed}) == len(claimed)
        first.close()

    def test_a_task_that_was_tried_since_it_was_looked_at_is_not_claimed_as_it_was(
        self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = postgres.new_url()
        queue, other = Queue(url, random=lambda: 0.0), Queue(url)  # no delay between attempts
        queue.add([NewTask("x", id="x", attempts=3)])
        hold = other._hold

        def late(*arguments: Any) -> bool:
            lease = queue.claim("quicker")
            assert lease is not None
            assert queue.fail(lease, "it failed") == "ready"
            return hold(*arguments)

        monkeypatch.setattr(other, "_hold", late)
        assert other.claim("slower") is None
        monkeypatch.undo()
        lease = other.claim("slower")
        assert lease is not None
        assert lease.attempt == 2
        queue.close()
        other.close()

    def test_two_needs_that_end_together_free_what_waits_for_both(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        queue = Queue(url)
        queues = [Queue(url) for _ in range(4)]
        queue.add([NewTask(f"n{i}", id=f"n{i}") for i in range(4)])
        queue.add([NewTask("last", id="last", needs=tuple(f"n{i}" for i in range(4)))])
        leases = [queues[i].claim(f"w{i}") for i in range(4)]

        def finish(number: int) -> None:
            lease = leases[number]
            assert lease is not None
            for state in ("running", "verifying", "merging"):
                queues[number].advance(lease, state)  # type: ignore[arg-type]
            queues[number].finish(lease)

        together(4, finish)
        assert queue.get("last").state == "ready"
        for made in (queue, *queues):
            made.close()

    def test_a_cancel_and_a_finish_at_once_agree(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        queue, other = Queue(url), Queue(url)
        for number in range(10):
            queue.add([NewTask("x", id=f"x{number}")])
            lease = queue.claim("w")
            assert lease is not None
            queue.advance(lease, "running")
            queue.advance(lease, "verifying")

            def end(who: int, lease: Lease = lease) -> str:
                try:
                    if who:
                        other.cancel(lease.task.id)
                    else:
                        queue.finish(lease)
                except (LostLeaseError, Exception) as error:  # noqa: BLE001 - the loser is told, whoever it is
                    return type(error).__name__
                return "ok"

            outcomes = together(2, end)
            assert sorted(o == "ok" for o in outcomes) == [False, True]
            assert queue.get(lease.task.id).state == ("done" if outcomes[0] == "ok" else "cancelled")
        queue.close()
        other.close()

    def test_a_reader_that_follows_the_history_misses_nothing(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        queue = Queue(url)
        queue.add([NewTask(f"task {i}") for i in range(30)])
        writers = [Queue(url) for _ in range(3)]
        stop = threading.Event()
        seen: list[int] = []

        def follow() -> None:
            while True:
                ended = stop.is_set()
                seen.extend(e.number for e in queue.history(after=seen[-1] if seen else 0))
                if ended:
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        together(3, lambda i: [writers[i].claim(f"w{i}") for _ in range(10)])
        stop.set()
        follower.join(30)
        every = [entry.number for entry in queue.history()]
        assert seen == every
        for made in (queue, *writers):
            made.close()


class TestAway:
    def test_a_server_that_restarts_is_found_again(self) -> None:
        server = PostgresServer()
        try:
            queue = Queue(server.new_url())
            queue.add([NewTask("kept", id="kept")])
            server.stop()
            with pytest.raises(UnreachableError, match="does not answer"):
                queue.claim("w")
            server.start()
            assert queue.get("kept").state == "ready"
            assert queue.claim("w") is not None
            queue.close()
        finally:
            server.close()

    def test_opening_is_tried_a_bounded_number_of_times(self) -> None:
        waits: list[float] = []
        database = PostgresDatabase(
            "postgresql://u:hunter2@127.0.0.1:1/x",
            POSTGRES_SCHEMA,
            backoff=Backoff(base=0.1, cap=1, attempts=3),
            sleep=waits.append,
            random=lambda: 0.5,
        )
        with pytest.raises(UnreachableError, match="127.0.0.1:1/x does not answer") as caught:
            database.execute("SELECT 1")
        assert waits == [0.05, 0.1]
        assert "hunter2" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"

    def test_an_unknown_role_is_a_login_error(self, postgres: PostgresServer) -> None:
        url = postgres.new_url().replace("tester@", "stranger:hunter2@")
        with pytest.raises((AuthError, UnreachableError)) as caught:
            PostgresQueue(url).execute("SELECT 1")
        assert "hunter2" not in str(caught.value)

    def test_a_url_that_is_none(self) -> None:
        with pytest.raises(ConfigError, match="cannot be understood"):
            PostgresDatabase("postgresql://[", POSTGRES_SCHEMA).execute("SELECT 1")


class TestMigrations:
    def test_a_newer_or_foreign_schema_is_refused(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()
        both = (("1", "CREATE TABLE a (i INT)"), ("2", ""))
        for migrations, error in (
            (both, None),
            (both[:1], (ConfigError, "newer")),
            ((("other", ""), both[1]), (CorruptError, "does not know")),
        ):
            database = PostgresDatabase(url, PostgresSchema("x", migrations))
            if error is None:
                database.execute("SELECT 1")
            else:
                with pytest.raises(error[0], match=error[1]):
                    database.execute("SELECT 1")
            database.close()

    def test_two_that_open_at_once_migrate_once(self, postgres: PostgresServer) -> None:
        url = postgres.new_url()

        def open_and_close(_: int) -> None:
            queue = Queue(url)
            queue.counts()
            queue.close()

        together(4, open_and_close)
        database = PostgresDatabase(url, POSTGRES_SCHEMA)
        assert database.execute("SELECT count(*) FROM avyay_migrations").fetchone() == (
            len(POSTGRES_SCHEMA.migrations),
        )
        database.close()
