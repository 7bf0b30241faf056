"""Silence is told from sleep: who says nothing is named, who could not have been heard is not."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import ConfigError
from avyay.serve.watchdog import Watchdog, awake_or_asleep
from avyay.serve.workers import workers_of

PATIENCE = 30.0


class Yard:
    """A watchdog on a clock that moves when told to."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.now = 1_000.0
        self.dog: Watchdog[str] = Watchdog(patience, clock=lambda: self.now)

    def pass_(self, seconds: float, *alive: str) -> list[str]:
        """So many seconds with their looks; the living say so at every one."""
        named = []
        for _ in range(round(seconds / self.dog.interval)):
            self.now += self.dog.interval
            for who in alive:
                self.dog.heard(who)
            named += self.dog.look()
        return named


def test_who_falls_silent_is_named_once_in_a_period_and_the_others_are_not() -> None:
    yard = Yard()
    for who in ("one", "two"):
        yard.dog.begin(who)
        yard.dog.heard(who)
    assert yard.pass_(PATIENCE, "two") == []
    assert yard.pass_(2, "two") == ["one"]
    assert yard.pass_(PATIENCE - 2, "two") == []
    assert yard.pass_(4, "two") == ["one"]  # it cannot be killed, or not yet
    yard.dog.end("one")
    assert yard.pass_(3 * PATIENCE, "two") == []


def test_a_start_may_take_ten_times_as_long() -> None:
    yard = Yard()
    yard.dog.begin("one")
    assert yard.pass_(5 * PATIENCE) == []
    yard.dog.heard("one", serving=False)  # its loop turns, and it does not serve yet
    assert yard.pass_(9 * PATIENCE) == []
    assert yard.pass_(2 * PATIENCE) == ["one"]


@given(slept=st.floats(min_value=PATIENCE / 2, max_value=1e6))
def test_a_machine_that_slept_gives_everybody_one_more_period(slept: float) -> None:
    yard = Yard()
    yard.dog.begin("one")
    yard.dog.begin("two")
    yard.pass_(1, "one", "two")
    yard.now += slept
    assert yard.dog.look() == []
    assert yard.pass_(PATIENCE, "two") == []
    assert yard.pass_(2, "two") == ["one"]


@given(st.lists(st.floats(min_value=0.01, max_value=PATIENCE - 2), max_size=30))
def test_who_speaks_in_time_is_never_named(pauses: list[float]) -> None:
    yard = Yard()
    yard.dog.begin("one")
    for pause in pauses:
        yard.dog.heard("one")
        assert yard.pass_(pause) == []


def test_without_patience_nobody_is_named() -> None:
    async def run() -> None:
        dog: Watchdog[str] = Watchdog(0.0)
        dog.begin("one")
        await dog.run(lambda who: pytest.fail(who))  # returns at once

    asyncio.run(run())


def test_its_clock_goes_on() -> None:
    assert awake_or_asleep() <= awake_or_asleep()


def test_a_time_between_two_beats_is_refused() -> None:
    from avyay.config import load_settings
    from avyay.config.environment import Environment

    never = load_settings(environment=Environment({"AVYAY_SERVE_WORKER_TIMEOUT": "0"}))
    assert never.settings.serve.worker_timeout == 0
    with pytest.raises(ConfigError, match="2s or more"):
        load_settings(environment=Environment({"AVYAY_SERVE_WORKER_TIMEOUT": "1s"}))


def test_this_process_has_no_workers() -> None:
    assert workers_of(os.getpid()) == []
