"""The budget governor: nothing that can cost is called before its worst case is reserved, and caps bind what is billed.

A campaign's worst case is what is ordered times the platform's overspend factor. It is held in the scopes of its
hypothesis, its platform, the total, and every day and month (of the platform's time zone) in which it can be billed.
It stays held until the platform has removed the campaign and the last bill can be in; then what was billed is settled.
Whoever dies in between leaves rows behind from which `sweep` goes on, in any process, at any time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Synchronous
from avyay.errors import AvyayError, PolicyError, UsageError
from avyay.ledger import BudgetAlerts, Ledger, Reservation, ReservationState, Scope, daily, monthly
from avyay.log import get_logger
from avyay.money import ROUND_CEILING, ROUND_FLOOR, ZERO, Picodollars, format_usd, scale
from avyay.siddhi.ads.base import AdPlatform, Campaign, Order, UnknownOutcomeError
from avyay.siddhi.campaigns import CampaignRow, Campaigns, Phase

__all__ = ["Bill", "Caps", "Governor", "HaltedError", "Swept"]

LONGEST = 31 * 86_400.0
"""Seconds: no campaign is ordered for longer."""
_PAID = "paid:"
_BEFORE_START = (Phase.PLANNED, Phase.RESERVED, Phase.CREATED)
_AFTER_START = (Phase.STARTING, Phase.RUNNING, Phase.STOPPED)


@dataclass(frozen=True, slots=True)
class Caps:
    """Hard limits on what may be billed; a source is an ad platform or a paid API, by name."""

    hypothesis: Picodollars
    day: Picodollars
    month: Picodollars
    total: Picodollars
    sources: Mapping[str, Picodollars] = field(default_factory=dict)


class HaltedError(PolicyError):
    """Everything was stopped; nothing starts until somebody resumes."""

    default_code = "halted"


@dataclass(slots=True)
class Swept:
    """What a sweep did, as sentences; `held` is how many reservations still hold money."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    held: int = 0


class Bill:
    """A paid call under way: say what it really cost."""

    def __init__(self, settle: Callable[[Picodollars], object], release: Callable[[], object]) -> None:
        self._settle = settle
        self._release = release
        self.done = False

    def cost(self, actual: Picodollars) -> None:
        """It cost this much."""
        self._settle(actual)
        self.done = True

    def nothing(self) -> None:
        """It was never made, or refused without a bill."""
        self._release()
        self.done = True


class Governor:
    """Guards the money of one installation. Thread-safe; processes share the file.

    Args:
        path: Ledger and campaigns, in one SQLite file.
        platforms: By name.
        lifetime: Seconds a step may take before others think its process dead.
        near: Share of a cap, 0..1, from which it is told to be near; what is held counts.
    """

    def __init__(
        self,
        path: Path,
        caps: Caps,
        platforms: Mapping[str, AdPlatform],
        *,
        clock: Clock = SYSTEM_CLOCK,
        lifetime: float = 120.0,
        near: float = 0.8,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 10.0,
    ) -> None:
        self.caps = caps
        self.platforms = platforms
        self.clock = clock
        self.lifetime = lifetime
        self.ledger = Ledger(path, clock=clock, synchronous=synchronous, busy_timeout=busy_timeout)
        self.campaigns = Campaigns(path, clock, synchronous=synchronous, busy_timeout=busy_timeout)
        self._alerts = BudgetAlerts(path, "siddhi", near=near, reserved=True, clock=clock)

    def close(self) -> None:
        """Close the files and the platforms' connections; whatever runs goes on."""
        for platform in self.platforms.values():
            platform.close()
        self._alerts.close()
        self.campaigns.close()
        self.ledger.close()

    # ------------------------------------------------------------ campaigns

    def worst_case(self, platform: str, amount: Picodollars) -> Picodollars:
        """The most that an order can be billed."""
        return scale(amount, self._platform(platform).overspend, rounding=ROUND_CEILING)

    def largest_order(self, platform: str, hypothesis: str, days: float, *, leave: Picodollars = ZERO) -> Picodollars:
        """The largest order whose worst case fits into every scope now and leaves `leave` there."""
        now = self.clock.now()
        room = self.caps.total
        for scope in self._scopes(platform, hypothesis, now, now + days * 86_400):
            balance = self.ledger.balance(scope.key)
            if scope.cap is not None:
                room = min(room, Picodollars(max(0, scope.cap - balance.spent - balance.reserved - leave)))
        return scale(room, 1 / Decimal(self._platform(platform).overspend), rounding=ROUND_FLOOR)

    def order(
        self, platform: str, hypothesis: str, amount: Picodollars, ends_at: float, make: Callable[[str], Order]
    ) -> CampaignRow:
        """Reserve, then have the platform make a paused campaign.

        Args:
            make: Fills in the order, given the campaign's name.

        Raises:
            BudgetExceededError: The worst case does not fit; the platform was not called.
            HaltedError: Everything is stopped.
            UsageError: No end date, or one too far away.
            UnknownOutcomeError: Nobody knows whether it was made: the money stays reserved until `sweep` knows.
        """
        self._refuse_if_halted()
        now = self.clock.now()
        if amount <= 0 or not now < ends_at <= now + LONGEST:
            raise UsageError(
                "An order needs an amount and an end date within 31 days.", hint="The platform itself must stop then."
            )
        there = self._platform(platform)
        scopes = self._scopes(platform, hypothesis, now, ends_at)
        worst = self.worst_case(platform, amount)
        name = self.campaigns.plan(hypothesis, platform, amount, worst, ends_at)
        try:
            self.ledger.reserve(scopes, worst, name)
        except AvyayError:
            self.campaigns.move(name, Phase.CLOSED, Phase.PLANNED)
            raise
        if not self.campaigns.move(name, Phase.RESERVED, Phase.PLANNED):
            raise _overtaken(name)
        self._tell()
        wanted = make(name)
        if (wanted.name, wanted.amount, wanted.ends_at) != (name, amount, ends_at):
            self._give_up(name)
            raise UsageError("The order differs from what was reserved for.")
        try:
            remote = there.create(wanted)
        except UnknownOutcomeError:
            raise
        except AvyayError:
            # Refused for certain; a platform that works in several steps may still have made a part.
            self._give_up(name)
            raise
        if not self.campaigns.move(name, Phase.CREATED, Phase.RESERVED, remote=remote):
            there.remove(remote)
            raise _overtaken(name)
        return self.campaigns.get(name)

    def start(self, name: str) -> None:
        """Let a campaign spend, if its reservation holds and nothing is halted.

        Raises:
            PolicyError: It does not hold, or the campaign is past its end or already closed.
        """
        row = self.campaigns.get(name)
        self._refuse_if_halted()
        if self.clock.now() >= row.ends_at or row.remote is None or not self._is_held(name):
            raise PolicyError(
                f"{name} may not start: it has no reservation, was not made, or has ended.",
                hint="Order a new campaign.",
                code="not_reserved",
            )
        if not self.campaigns.move(name, Phase.STARTING, Phase.CREATED, Phase.STOPPED, halted_ok=False):
            self._refuse_if_halted()
            raise PolicyError(f"{name} is {row.phase} and cannot start.", hint="See: avyay siddhi ads", code="phase")
        there = self._platform(row.platform)
        there.start(row.remote)
        if not self.campaigns.move(name, Phase.RUNNING, Phase.STARTING):
            there.pause(row.remote)  # somebody stopped it meanwhile

    def stop(self, name: str) -> None:
        """Pause a campaign. Its money stays reserved until `finish` and the last bill."""
        row = self.campaigns.get(name)
        self.campaigns.move(name, Phase.STOPPED, Phase.CREATED, Phase.STARTING, Phase.RUNNING)
        if row.remote is not None and row.phase not in (Phase.CLOSING, Phase.CLOSED):
            self._platform(row.platform).pause(row.remote)

    def finish(self, name: str) -> None:
        """Remove a campaign at the platform; `sweep` settles it when the last bill can be in."""
        row = self.campaigns.get(name)
        if self.campaigns.move(name, Phase.CLOSING, *_BEFORE_START, *_AFTER_START) and row.remote is not None:
            self._platform(row.platform).remove(row.remote)
            self.campaigns.removed(name)

    def stop_all(self, reason: str) -> list[str]:
        """Halt: nothing starts any more, and everything enabled is paused, all platforms at once.

        Returns:
            What could not be paused, as sentences; empty when all is quiet.
        """
        self.campaigns.halt(reason)
        failures: list[str] = []

        def pause(there: AdPlatform, remote: str) -> None:
            try:
                there.pause(remote)
            except AvyayError as error:
                failures.append(f"{there.name} {remote}: {error}")

        def quieten(there: AdPlatform) -> None:
            # What we know of first, at once; then what the platform knows of besides.
            known = {
                row.remote
                for row in self.campaigns.all(unfinished=True)
                if row.platform == there.name and row.remote and row.phase in (Phase.STARTING, Phase.RUNNING)
            }
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda remote: pause(there, remote), sorted(known)))
                try:
                    left = there.enabled(self.campaigns.prefix)
                except AvyayError as error:
                    failures.append(f"{there.name}: {error}")
                    return
                list(pool.map(lambda remote: pause(there, remote), left))

        with ThreadPoolExecutor(max(1, len(self.platforms))) as pool:
            list(pool.map(quieten, self.platforms.values()))
        for row in self.campaigns.all(unfinished=True):
            self.campaigns.move(row.name, Phase.STOPPED, Phase.STARTING, Phase.RUNNING)
        return failures

    def resume(self) -> None:
        """Lift the halt; what was paused stays paused until it is started again."""
        self.campaigns.resume()

    # ------------------------------------------------------------ paid calls

    @contextmanager
    def paid(self, source: str, worst: Picodollars, *, hypothesis: str | None = None) -> Iterator[Bill]:
        """A call that costs: a page of a paid API, a model's answer. Reserve, call, then say what it cost.

        When the block ends without saying, or raises, the worst case counts as spent.

        Raises:
            BudgetExceededError: The worst case does not fit; the block does not run.
        """
        now = self.clock.now()
        scopes = self._scopes(source, hypothesis, now, now)
        key = f"{_PAID}{source}:{uuid.uuid4().hex}"
        reservation = self.ledger.reserve(scopes, worst, key, lifetime=self.lifetime)
        bill = Bill(
            lambda actual: self.ledger.settle(reservation, actual),
            lambda: self.ledger.release(reservation),
        )
        try:
            yield bill
        finally:
            if not bill.done:
                self.ledger.reconcile(reservation, worst, note="outcome unknown: counted in full")
            self._tell()

    # ------------------------------------------------------------ putting right

    def sweep(self) -> Swept:
        """Bring platforms, campaigns and ledger into agreement. Safe at any time, in any number of processes."""
        swept = Swept()
        for there in self.platforms.values():
            listed_at = self.clock.now()
            try:
                listed = there.campaigns(self.campaigns.prefix)
            except AvyayError as error:
                swept.failed.append(f"{there.name}: {error}")
                continue
            remotes: dict[str, list[Campaign]] = {}
            for one in listed:
                remotes.setdefault(one.name, []).append(one)
            # The rows are read after the platform: what is listed had its row before.
            rows = {row.name: row for row in self.campaigns.all() if row.platform == there.name}
            for name, copies in remotes.items():
                for one in copies:
                    self._guard(there, one, rows.get(name), swept)
            for row in rows.values():
                if row.phase is not Phase.CLOSED:
                    self._advance(there, row, remotes.get(row.name, []), listed_at, swept)
        self.ledger.expire()
        for reservation in self.ledger.pending():
            if reservation.key.startswith(_PAID) and reservation.state is ReservationState.UNKNOWN:
                self.ledger.reconcile(reservation, reservation.held, note="its process died: counted in full")
                swept.done.append(f"{reservation.key}: counted in full, its process died")
        swept.held = len(self.ledger.pending())
        self._tell()  # also what a process that died did not come to tell
        return swept

    def _guard(self, there: AdPlatform, one: Campaign, row: CampaignRow | None, swept: Swept) -> None:
        """Nothing spends without a reservation, and nothing of ours lies about unknown."""
        try:
            known = row is not None and row.phase in (Phase.STARTING, Phase.RUNNING)
            may_spend = known and row is not None and self.clock.now() < row.ends_at and self._is_held(row.name)
            if one.status == "enabled" and not may_spend:
                there.pause(one.id)
                swept.done.append(f"{one.name}: paused, it had no right to spend")
            stray = row is None or row.phase is Phase.CLOSED or (row.remote is not None and row.remote != one.id)
            if one.status != "removed" and stray:
                there.remove(one.id)
                swept.done.append(f"{one.name}: removed, it belongs to nothing")
            if row is not None and one.billed > row.worst:
                words = f"billed {format_usd(one.billed)}, more than its worst case {format_usd(row.worst)}"
                self.campaigns.alarm(row.name, words)
                swept.failed.append(f"{row.name}: {words}")
        except AvyayError as error:
            swept.failed.append(f"{one.name}: {error}")

    def _advance(
        self, there: AdPlatform, row: CampaignRow, copies: list[Campaign], listed_at: float, swept: Swept
    ) -> None:
        billed = Picodollars(sum(one.billed for one in copies))
        clicks = sum(one.clicks for one in copies)
        try:
            if copies:
                self.campaigns.read(row.name, billed, clicks)
            stale = self.clock.now() - row.changed_at > self.lifetime
            over = self.clock.now() >= row.ends_at
            if row.phase is Phase.RUNNING and copies and all(one.status != "enabled" for one in copies):
                self.campaigns.move(row.name, Phase.STOPPED, Phase.RUNNING)
                swept.done.append(f"{row.name}: the platform has stopped it")
            elif row.phase is Phase.STARTING and stale:
                # Its process died between writing and telling, or before it heard the answer.
                enabled = any(one.status == "enabled" for one in copies)
                self.campaigns.move(row.name, Phase.RUNNING if enabled else Phase.STOPPED, Phase.STARTING)
            elif (row.phase in (Phase.PLANNED, Phase.RESERVED) and stale) or (row.phase is not Phase.CLOSING and over):
                if self.campaigns.move(row.name, Phase.CLOSING, row.phase):
                    swept.done.append(f"{row.name}: {'has ended' if over else 'its process died'}, closing")
            elif row.phase is Phase.CLOSING:
                self._settle(there, row, copies, listed_at, swept)
        except AvyayError as error:
            swept.failed.append(f"{row.name}: {error}")

    def _settle(
        self, there: AdPlatform, row: CampaignRow, copies: list[Campaign], listed_at: float, swept: Swept
    ) -> None:
        if row.remote is not None and not copies:
            swept.failed.append(f"{row.name}: {there.name} does not list it, so its bill is not known")
            return
        for one in copies:
            if one.status != "removed":
                there.remove(one.id)
        if row.removed_at is None or any(one.status != "removed" for one in copies):
            self.campaigns.removed(row.name)
            return
        if listed_at < row.removed_at + there.settle_after:
            return  # what was listed may still lack the last bill
        billed = Picodollars(sum(one.billed for one in copies))
        reservation = self.ledger.find(row.name)
        if reservation is not None and reservation.state in (ReservationState.OPEN, ReservationState.UNKNOWN):
            self.ledger.reconcile(reservation, billed, note=f"{there.name}'s books")
        if self.campaigns.move(row.name, Phase.CLOSED, Phase.CLOSING):
            swept.done.append(f"{row.name}: settled at {format_usd(billed)}")

    # ------------------------------------------------------------ inside

    def _tell(self) -> None:
        """Tell of budgets near their caps; what cannot be told now is told by the next look."""
        try:
            self._alerts.look()
        except AvyayError as error:
            get_logger("siddhi").warning("budgets_not_told", reason=error.message)

    def _give_up(self, name: str) -> None:
        self.campaigns.move(name, Phase.CLOSING, Phase.RESERVED)

    def _is_held(self, name: str) -> bool:
        reservation: Reservation | None = self.ledger.find(name)
        return reservation is not None and reservation.state in (ReservationState.OPEN, ReservationState.UNKNOWN)

    def _refuse_if_halted(self) -> None:
        if (reason := self.campaigns.halted()) is not None:
            raise HaltedError(f"Everything was stopped: {reason}", hint="When all is well again: avyay siddhi resume")

    def _platform(self, name: str) -> AdPlatform:
        if name not in self.platforms:
            known = ", ".join(sorted(self.platforms)) or "none is configured"
            raise UsageError(f"There is no ad platform {name!r}.", hint=f"Configured: {known}.")
        return self.platforms[name]

    def _scopes(self, source: str, hypothesis: str | None, begin: float, end: float) -> list[Scope]:
        zone: tzinfo = self.platforms[source].zone() if source in self.platforms else UTC
        scopes = [Scope("total", self.caps.total)]
        if hypothesis is not None:
            scopes.append(Scope(f"hypothesis:{hypothesis}", self.caps.hypothesis))
        scopes.append(Scope(f"source:{source}", self.caps.sources.get(source)))
        days = {daily("siddhi", self.caps.day, moment, zone).key: moment for moment in _moments(begin, end, zone)}
        months = {monthly("siddhi", self.caps.month, moment, zone).key: moment for moment in days.values()}
        scopes += [daily("siddhi", self.caps.day, moment, zone) for moment in days.values()]
        scopes += [monthly("siddhi", self.caps.month, moment, zone) for moment in months.values()]
        return scopes


def _moments(begin: float, end: float, zone: tzinfo) -> Iterator[float]:
    """One moment in each day from `begin` to `end`, both included."""
    day = datetime.fromtimestamp(begin, zone).replace(hour=12, minute=0, second=0, microsecond=0)
    last = datetime.fromtimestamp(end, zone).date()
    while day.date() <= last:
        yield day.timestamp()
        day += timedelta(days=1)


def _overtaken(name: str) -> PolicyError:
    return PolicyError(f"{name} was closed while it was being made.", hint="Order it again.", code="overtaken")
