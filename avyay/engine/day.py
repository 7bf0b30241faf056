"""What all tasks together may use up in a day (UTC), counted in the queue's database, so that no restart forgets it.

Durations come from the monotonic clock; the wall clock only says on which day they fell.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from avyay.clock import Clock
from avyay.engine.contracts import TaskQueue
from avyay.errors import AvyayError, UnreachableError
from avyay.ledger import budget_event
from avyay.log import get_logger
from avyay.money import Picodollars, format_usd
from avyay.ports import BillReader, Events

__all__ = ["DayCaps", "day_of", "split_at_midnight"]

log = get_logger("engine")

DAY = 86_400.0


def day_of(at: float) -> str:
    """The UTC day of a moment, as 2026-11-21."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def split_at_midnight(now: float, seconds: float) -> dict[str, float]:
    """On which days (UTC) the seconds that end now fell."""
    found: dict[str, float] = {}
    while seconds > 0:
        today = min(seconds, now % DAY or DAY)
        day = day_of(now - today / 2)
        found[day] = found.get(day, 0.0) + today
        now, seconds = now - today, seconds - today
    return found


class DayCaps:
    """Counts agent time and dollars, and says when a day's are used up. Thread-safe.

    What was not yet written when a dispatcher is killed is lost: `flush` is called with every heartbeat.

    Args:
        seconds: Cap on agent time a day; 0: none.
        dollars: Cap on dollars a day; None: none.
        bill: What the router charged; None without a router.
        events: Told once a day that the dollars are nearly used up, and once that they are.
        near: The share of them, 0..1, that is near.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seconds: float = 0.0,
        dollars: Picodollars | None = None,
        bill: BillReader | None = None,
        events: Events | None = None,
        near: float = 0.8,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._dollars = dollars
        self._bill = bill
        self._events = events
        self._near = near
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._pending: dict[str, tuple[float, int]] = {}

    def worked(self, seconds: float) -> None:
        """An agent has worked so long until now."""
        with self._lock:
            for day, part in split_at_midnight(self._clock.now(), seconds).items():
                before, spent = self._pending.get(day, (0.0, 0))
                self._pending[day] = (before + part, spent)

    def charged(self, spent: Picodollars) -> None:
        """An agent that no router bills says that it spent so much."""
        with self._lock:
            day = day_of(self._clock.now())
            before, already = self._pending.get(day, (0.0, 0))
            self._pending[day] = (before, already + spent)

    def flush(self, queue: TaskQueue) -> None:
        """Write down what was counted since.

        Raises:
            UnreachableError: the queue is away; what was counted is kept for the next time.
        """
        with self._lock:
            pending, self._pending = self._pending, {}
        for day, (seconds, spent) in list(pending.items()):
            try:
                queue.book(day, seconds, Picodollars(spent))
            except AvyayError:
                with self._lock:
                    for left, (more, owed) in pending.items():
                        before, already = self._pending.get(left, (0.0, 0))
                        self._pending[left] = (before + more, already + owed)
                raise
            del pending[day]

    def spent(self, queue: TaskQueue) -> str | None:
        """Why no more tasks may be begun today; None: they may.

        Raises:
            UnreachableError: the queue is away, or the bill cannot be read.
        """
        now = self._clock.now()
        used = queue.used(day_of(now))
        with self._lock:
            seconds, own = self._pending.get(day_of(now), (0.0, 0))
        if self._seconds > 0 and used.seconds + seconds >= self._seconds:
            return f"agents have worked {used.seconds + seconds:.0f} s today, of {self._seconds:.0f}"
        if self._dollars is None:
            return None
        spent = used.spent + own
        spent += self._billed(now)
        self._tell(now, spent, self._dollars)
        if spent < self._dollars:
            return None
        return f"{format_usd(Picodollars(spent))} are spent today, of {format_usd(self._dollars)}"

    def summary(self, queue: TaskQueue) -> str:
        """What was used up today, in words.

        Raises:
            UnreachableError: the queue is away, or the bill cannot be read.
        """
        now = self._clock.now()
        used = queue.used(day_of(now))
        said = f"agents have worked {used.seconds:.0f} s today{f' of {self._seconds:.0f}' if self._seconds else ''}"
        spent = Picodollars(used.spent + self._billed(now))
        cap = f" of {format_usd(self._dollars)}" if self._dollars is not None else ""
        return f"{said}, and spent {format_usd(spent)}{cap}"

    def _billed(self, now: float) -> int:
        """What the router has charged today."""
        try:
            return self._bill.service("engine", now - now % DAY).cost if self._bill is not None else 0
        except AvyayError as error:
            hint = "Without the bill no task is started. Start the router (avyay serve marga), or mend engine.models."
            raise UnreachableError(f"The bill cannot be read: {error.message}", hint=hint) from error

    def _tell(self, now: float, spent: int, cap: Picodollars) -> None:
        """Once a day that its cap is near, and once that it is reached; the bill is read again after a restart."""
        day = day_of(now)
        for verb, share in (("neared", self._near), ("exhausted", 1.0)):
            if self._events is None or not cap or spent < cap * share or (verb, day) in self._told:
                continue
            resets = now - now % DAY + DAY
            try:
                self._events.publish_now(budget_event("engine", verb, f"engine/day:{day}", spent, cap, resets))
                self._told.add((verb, day))
            except AvyayError as error:
                log.warning("budget_not_told", reason=error.message)
