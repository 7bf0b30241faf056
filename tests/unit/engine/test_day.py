"""What a task and a day may use up, where a restart does not forget it; and what agents count where no router does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_site import Site
from hypothesis import given
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.config.engine import EngineAgentSettings, EngineSettings
from avyay.engine.agents.registry import make_agent
from avyay.engine.build import spending
from avyay.engine.day import DAY, DayCaps, day_of, split_at_midnight
from avyay.engine.nodes.listen import Listener
from avyay.engine.queue import Queue
from avyay.errors import UnreachableError
from avyay.money import DOLLAR, Picodollars

NOON = 20_000 * DAY + DAY / 2


@pytest.fixture
def queues(place: Path | str) -> Iterator[Callable[[], Queue]]:
    made: list[Queue] = []

    def new() -> Queue:
        made.append(Queue(place))
        return made[-1]

    yield new
    for queue in made:
        queue.close()


class TestDays:
    @given(now=st.floats(DAY, 4e9), seconds=st.floats(0, 10 * DAY))
    def test_no_second_is_lost_at_midnight(self, now: float, seconds: float) -> None:
        parts = split_at_midnight(now, seconds)
        assert sum(parts.values()) == pytest.approx(seconds)
        assert all(part <= DAY * 1.001 for part in parts.values())

    def test_each_day_gets_its_part(self) -> None:
        midnight = 20_000 * DAY
        assert split_at_midnight(midnight + 10, 30) == {day_of(midnight + 5): 10.0, day_of(midnight - 5): 20.0}
        assert split_at_midnight(midnight, 5) == {day_of(midnight - 5): 5.0}

    def test_a_restart_and_a_second_dispatcher_go_on_counting(self, queues: Callable[[], Queue]) -> None:
        clock = FakeClock(NOON)
        first, second = (DayCaps(clock, seconds=100) for _ in range(2))
        one, two = queues(), queues()
        first.worked(60)
        assert first.spent(one) is None
        first.flush(one)
        second.worked(30)
        assert second.spent(two) is None
        second.worked(10)
        assert second.spent(two) == "agents have worked 100 s today, of 100"
        second.flush(two)
        assert DayCaps(clock, seconds=100).spent(queues()) == "agents have worked 100 s today, of 100"

    def test_midnight_begins_a_new_day_and_a_clock_set_back_an_old_one(self, queues: Callable[[], Queue]) -> None:
        clock = FakeClock(NOON)
        caps, queue = DayCaps(clock, seconds=100), queues()
        caps.worked(100)
        caps.flush(queue)
        assert caps.spent(queue) is not None
        clock.jump(DAY / 2)
        assert caps.spent(queue) is None
        clock.jump(-3600)
        assert caps.spent(queue) is not None

    def test_what_cannot_be_written_is_kept(self, queues: Callable[[], Queue]) -> None:
        class Away(Queue):
            def book(self, day: str, seconds: float, spent: Picodollars = Picodollars(0)) -> None:  # noqa: B008
                raise UnreachableError("locked")

        caps, queue = DayCaps(FakeClock(NOON), seconds=100), queues()
        caps.worked(70)
        with pytest.raises(UnreachableError):
            caps.flush(Away.__new__(Away))
        caps.worked(30)
        assert caps.spent(queue) is not None
        caps.flush(queue)
        caps.flush(queue)
        assert queue.used(day_of(NOON)).seconds == 100

    def test_dollars_that_agents_count_themselves_are_the_days_too(self, queues: Callable[[], Queue]) -> None:
        clock = FakeClock(NOON)
        caps, queue = DayCaps(clock, dollars=Picodollars(2 * DOLLAR)), queues()
        caps.charged(Picodollars(DOLLAR))
        caps.flush(queue)
        assert caps.spent(queue) is None
        assert caps.summary(queue) == "agents have worked 0 s today, and spent $1.00 of $2.00"
        caps.charged(Picodollars(DOLLAR))
        assert caps.spent(queue) == "$2.00 are spent today, of $2.00"

    def test_a_dispatcher_that_starts_again_starts_nothing_on_a_day_that_is_used_up(self, tmp_path: Path) -> None:
        site = Site(tmp_path, caps={"day_wall": 0.5})
        site.add("one", "sleep 0.6; echo 1 > out.txt")
        site.add("two", "echo 2 > out.txt", needs=("one",))
        site.run()
        assert site.task("one").state == "done"
        site.run()
        assert (site.task("two").state, site.task("two").attempt) == ("ready", 0)


# A Claude Code that spends two dollars, says so, and has done nothing; it notes what it may spend.
CLAUDE = """#!/bin/sh
while [ "$1" != --max-budget-usd ]; do shift; done
echo "$2" >> {notes}
echo '{{"type": "result", "subtype": "success", "is_error": false, "result": "hm", "total_cost_usd": 2.0}}'
"""


class TestWithoutRouter:
    def test_the_attempts_of_a_task_share_its_dollars(self, tmp_path: Path) -> None:
        program, notes = tmp_path / "claude", tmp_path / "notes"
        program.write_text(CLAUDE.format(notes=notes))
        program.chmod(0o755)
        site = Site(tmp_path, agents=[{"name": "claude", "program": str(program)}], nodes=[{"name": "local"}])
        site.add("one", attempts=10, caps={"dollars": "5"})
        site.run()
        assert [float(line) for line in notes.read_text().split()] == [5.0, 3.0, 1.0]
        assert site.task("one").state == "failed"
        assert site.task("one").reason == "capped: its attempts spent $5 by their own count"
        queue = site.open_queue()
        assert queue.used(day_of(queue.get("one").updated)).spent == 6 * DOLLAR
        queue.retry("one")
        queue.close()
        site.run()
        assert len(notes.read_text().split()) == 6  # a retry by hand gives it its dollars again

    def test_an_agent_that_says_what_it_spends_ends_at_its_cap(self) -> None:
        transcript = make_agent(EngineAgentSettings(name="opencode")).transcript()
        listener = Listener(transcript, 100, budget=1.0)
        step = json.dumps({"type": "step_finish", "part": {"reason": "tool-calls", "cost": 0.4, "tokens": {}}})
        assert [listener.line(step) for _ in range(3)] == [
            None,
            None,
            ("dollars", "spent $1.20 of $1.00 by its own count"),
        ]

    def test_aider_tells_the_cost_of_its_session(self) -> None:
        transcript = make_agent(EngineAgentSettings(name="aider")).transcript()
        transcript.feed("Tokens: 2.3k sent, 134 received. Cost: $0.0083 message, $0.02 session.")
        assert transcript.cost == 0.02
        assert transcript.tokens == {"input": 2300, "output": 134}

    def test_which_caps_do_not_hold_is_said(self) -> None:
        settings = EngineSettings()
        assert spending(settings, "http://127.0.0.1:8081", ["claude", "codex"]) == []
        (alone,) = spending(settings, "http://127.0.0.1:8081", ["codex", "gemini"])
        assert alone.startswith("Nothing counts what gemini spends")
        nobody, own, hint = spending(settings, None, ["aider", "claude", "codex", "gemini", "opencode"])
        assert nobody.startswith("Nothing counts what codex and gemini spend:")
        assert own.startswith("aider, claude and opencode count their own dollars")
        assert "engine.models" in hint

    def test_an_endpoint_of_its_own_is_no_router(self) -> None:
        agents = [{"name": "codex", "endpoint": "http://127.0.0.1:1"}]
        settings = EngineSettings.model_validate({"agents": agents})
        assert spending(settings, "http://127.0.0.1:8081", ["codex"])[0].startswith("Nothing counts what codex spends")
