"""The dispatcher: look at the queue, generate when it is low, give tasks to idle nodes, collect, reconcile, repeat.

One thread ticks, one keeps leases alive and watches caps, and every attempt has one of its own. Each has its own
connection to the queue. Whatever a dispatcher that died left behind (leases, processes, worktrees, branches, a merge
that was cut between two steps) is put right at the start and at every tick.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.engine.attempt import Attempt, Place, Surroundings
from avyay.engine.contracts import Generator, TaskQueue
from avyay.engine.day import DayCaps
from avyay.engine.guessing import FileGuesses
from avyay.engine.lease import LeaseWatch
from avyay.engine.nodes.base import Node
from avyay.engine.overlap import overlapping
from avyay.engine.presence import Presence
from avyay.engine.queue import LostLeaseError
from avyay.engine.reconcile import Reconciler, owner_is_gone, owner_name
from avyay.engine.types import ACTIVE, Task
from avyay.errors import AvyayError, UnreachableError
from avyay.log import get_logger
from avyay.money import format_usd, parse_usd
from avyay.ports import BillReader, Event

__all__ = ["Dispatcher", "Pace", "Plan", "Refill", "owner_is_gone", "owner_name"]

log = get_logger("engine")

_BREATH = 0.02  # seconds: no more looks at the bill than one in so long


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between two ticks, two heartbeats, two looks at caps; and the silence that loses a lease."""

    tick: float = 30.0
    heartbeat: float = 20.0
    lease_timeout: float = 60.0
    pulse: float = 1.0


@dataclass(frozen=True, slots=True)
class Refill:
    """When and from where new tasks come."""

    generator: Generator
    repositories: Sequence[Path]
    low_water: int
    limit: int
    every: float = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tick would do: tasks with the node and the agent they would go to."""

    task: Task
    node: str
    agent: str


class Dispatcher:
    """Runs the loop. `held` says why nothing more was started at the last tick, if something holds all tasks.

    Args:
        open_queue: Makes a connection to the queue; called once for each thread.
        around: What attempts share.
        places: All repositories.
        bill: Reads what the router charged; None: only the agents' own counts hold.
        day: What all tasks together may use up in a day; None: whatever they like.
        refill: None never generates.
        offers: What every node offers besides its own capabilities: the repositories.
        tell: Publishes what was written into the history.
        spending: Says, for the agents there are, which caps on dollars do not hold.
        lacking: Says which of them reach no model.
    """

    def __init__(
        self,
        open_queue: Callable[[], TaskQueue],
        nodes: Sequence[Node],
        around: Surroundings,
        places: Mapping[str, Place],
        *,
        pace: Pace | None = None,
        bill: BillReader | None = None,
        day: DayCaps | None = None,
        refill: Refill | None = None,
        offers: frozenset[str] = frozenset(),
        tell: Callable[[], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        spending: Callable[[Sequence[str]], list[str]] = lambda _: [],
        lacking: Callable[[Sequence[str]], list[str]] = lambda _: [],
    ) -> None:
        self.pace = pace or Pace()
        self.nodes = list(nodes)
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.held: str | None = None
        self._open_queue = open_queue
        self._own = threading.local()
        self._around = around
        self.places = dict(places)
        self.folders = around.attempts
        self._bill = bill
        self._day = day or DayCaps(clock)
        self._refill = refill
        self._offers = offers
        self._spending = spending
        self._lacking = lacking
        self._guesses = FileGuesses(around.context, lambda task: around.place(task).workshop.repository.root)
        self._refilled = -1e18
        self._tell_history = tell
        events, folder = around.events, around.attempts.root.parent
        self._presence = Presence(folder / "away", events, clock) if events is not None else None
        self._clock = clock
        self._watch = LeaseWatch(self.pace.lease_timeout, suspend_gap=2 * self.pace.lease_timeout)
        self._reconciler = Reconciler(
            self.nodes, self.places, self.folders, around.place, self._watch, clock,
            offers=offers, sweep_every=self.pace.tick,
        )  # fmt: skip
        self._parked: dict[tuple[str, str], tuple[float, str]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._turned = threading.Event()
        self._lock = threading.Lock()
        self._pulse: threading.Thread | None = None

    @property
    def _queue(self) -> TaskQueue:
        """This thread's connection to the queue."""
        queue: TaskQueue | None = getattr(self._own, "queue", None)
        if queue is None:
            queue = self._own.queue = self._open_queue()
        return queue

    # ---------------------------------------------------------------- running

    def run(self, *, once: bool = False) -> None:
        """Tick until `stop`; with `once`, until nothing is left that can be worked on before another tick."""
        for line in self.spending():
            log.warning("caps_on_dollars", what=line)
        for line in self.lacking():
            log.warning("no_models", what=line)
        for line in self.recover():
            log.warning("recovered", what=line)
        self._pulse = threading.Thread(target=self._beat, name="avyay-engine-pulse", daemon=True)
        self._pulse.start()
        try:
            while not self._stop.is_set():
                self._wake.clear()
                looked = self._clock.now()
                try:
                    started = self.tick()
                except UnreachableError as error:  # the queue or a lock is held: what is under way goes on
                    log.warning("tick_failed", reason=error.message, hint=error.hint)
                    self._watch.forgive()
                    started = 0
                    if once:
                        raise
                if once and not started and not self.attempts and not self._due_soon(looked):
                    return
                self._wake.wait(self.pace.tick)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask the loop to end; attempts under way are ended and their tasks given back."""
        self._stop.set()
        self._wake.set()
        self._turned.set()

    def close(self) -> None:
        """End what is under way and let go of everything."""
        self.stop()
        with self._lock:
            under_way = list(self.attempts.values())
        for attempt in under_way:
            attempt.control.stop("lease", "the dispatcher ends")
        for attempt in under_way:
            attempt.finished.wait(60)
            self._give_back(attempt)
        self._tell()
        if self._pulse is not None:
            self._pulse.join(30)
        for node in self.nodes:
            node.close()
        try:
            self._book(self._queue)
        except AvyayError as error:
            log.warning("day_not_booked", reason=error.message)
        self._queue.close()
        del self._own.queue

    def _give_back(self, attempt: Attempt) -> None:
        try:
            self._queue.park(attempt.lease, 0.0, "the dispatcher ended")
        except LostLeaseError:
            log.debug("already_settled", task=attempt.lease.task.id)

    # ---------------------------------------------------------------- a tick

    def tick(self) -> int:
        """One round; returns how many attempts it started."""
        self._collect()
        self.reconcile()
        self._generate()
        self._tell()
        started = 0
        if (reason := self._spent()) is not None:
            log.warning("day_cap_reached", reason=reason)
            return 0
        if any(self._idle(node) > 0 for node in self.nodes):
            self._guesses.note(self._queue)
        for node in self.nodes:
            while self._idle(node) > 0 and (attempt := self._claim(node)) is not None:
                self._start(attempt)
                started += 1
        if self._presence is not None:
            self._presence.look(self.nodes)
        return started

    def _spent(self) -> str | None:
        """Why nothing may be begun: what all tasks may use up in a day is used up."""
        try:
            self.held = self._day.spent(self._queue)
        except UnreachableError as error:
            if not self._at_work():
                raise
            return error.message  # what is under way goes on to its end
        return self.held

    def plan(self) -> list[Plan]:
        """What the next tick would start, without starting or writing anything."""
        free = {node.name: self._idle(node) for node in self.nodes}
        plans: list[Plan] = []
        busy: list[str] = [glob for task in self._queue.tasks(*sorted(ACTIVE)) for glob in task.files]
        now = self._clock.now()
        ready = sorted(self._queue.tasks("ready"), key=lambda task: -task.priority)
        for task in self._guesses.apply(task for task in ready if task.not_before <= now):
            if busy and overlapping(task.files, busy):
                continue
            for node in self.nodes:
                agents = self._agents(node)
                if free[node.name] > 0 and agents and task.wants <= self._capabilities(node, agents):
                    free[node.name] -= 1
                    busy += task.files
                    plans.append(Plan(task, node.name, task.agent or agents[0]))
                    break
        return plans

    def _due_soon(self, looked: float) -> bool:
        """Whether a task waits for a moment between the last tick and the next."""
        until = self._clock.now() + self.pace.tick
        return any(looked < task.not_before <= until for task in self._queue.tasks("ready"))

    def _collect(self) -> None:
        with self._lock:
            for key, attempt in list(self.attempts.items()):
                if attempt.finished.is_set():
                    del self.attempts[key]

    def _idle(self, node: Node) -> int:
        with self._lock:
            working = sum(attempt.node is node for attempt in self.attempts.values())
        return node.slots - working if not node.drained() and node.ready() else 0

    def _agents(self, node: Node) -> tuple[str, ...]:
        """The agents of a node that are not parked."""
        now = self._clock.monotonic()
        with self._lock:
            parked = {agent for (name, agent), (until, _) in self._parked.items() if name == node.name and until > now}
        return tuple(agent for agent in node.agents() if agent not in parked)

    def _capabilities(self, node: Node, agents: Sequence[str]) -> frozenset[str]:
        able = frozenset(item for item in node.capabilities() if not item.startswith("agent:"))
        return able | self._offers | {f"agent:{agent}" for agent in agents}

    def _claim(self, node: Node) -> Attempt | None:
        agents = self._agents(node)
        if not agents:
            return None
        try:
            lease = self._queue.claim(owner_name(node.name), self._capabilities(node, agents))
        except UnreachableError as error:
            log.warning("queue_or_node_unreachable", node=node.name, reason=error.message)
            return None
        if lease is None:
            return None
        return Attempt(lease, node, lease.task.agent or agents[0], self._around)

    def _start(self, attempt: Attempt) -> None:
        lease = attempt.lease
        with self._lock:
            self.attempts[lease.task.id, lease.fence] = attempt
        if self._bill is not None:
            attempt.control.on_turn(self._turned.set)
        threading.Thread(target=self._work, args=(attempt,), name=f"avyay-{lease.task.id}-{lease.fence}").start()

    def _work(self, attempt: Attempt) -> None:
        try:
            attempt.run(self._open_queue())
        finally:
            self._day.worked(attempt.worked())
            attempt.finished.set()
            self._wake.set()

    def park(self, node: Node, agent: str, seconds: float, reason: str) -> None:
        """Give a node's agent no tasks for a while: its provider limits the rate, or refuses it."""
        with self._lock:
            self._parked[node.name, agent] = (self._clock.monotonic() + seconds, reason)
        log.warning("agent_parked", node=node.name, agent=agent, seconds=seconds, reason=reason)
        self._publish("engine.agent.parked", node=node.name, agent=agent, seconds=seconds, reason=reason)

    # ---------------------------------------------------------------- caps

    def today(self) -> str:
        """What was used up today, in words.

        Raises:
            UnreachableError: the queue or the router's bill cannot be read.
        """
        return self._day.summary(self._queue)

    def spending(self) -> list[str]:
        """Which caps on dollars do not hold, in words."""
        return self._spending(self._all_agents())

    def lacking(self) -> list[str]:
        """Which agents reach no model, in words."""
        return self._lacking(self._all_agents())

    def _all_agents(self) -> list[str]:
        return sorted({agent for node in self.nodes for agent in node.agents()})

    def _look_at_bill(self, attempt: Attempt) -> None:
        cap = parse_usd(attempt.limits.dollars)
        if self._bill is None:
            return
        if (cost := self._around.bill(attempt.lease.task)) is None:
            return
        attempt.spent = cost
        if cost >= cap:
            attempt.control.stop("dollars", f"spent {format_usd(cost)} of {format_usd(cap)}")

    # ---------------------------------------------------------------- leases

    def _beat(self) -> None:
        """Keep our leases alive, notice those we lost, and watch the caps; runs in a thread of its own."""
        queue = self._open_queue()
        beaten = self._clock.monotonic()
        try:
            while not self._stop.wait(_BREATH):
                self._turned.wait(self.pace.pulse)  # a model that has answered has charged: look before its next answer
                self._turned.clear()
                try:
                    due = self._clock.monotonic() - beaten >= self.pace.heartbeat
                    self._keep_alive(queue, due=due)
                    if due:
                        beaten = self._clock.monotonic()
                        self._book(queue)
                except AvyayError as error:  # tried again at the next pulse
                    log.warning("heartbeat_failed", reason=error.message)
                    self._watch.forgive()
        finally:
            queue.close()

    def _book(self, queue: TaskQueue) -> None:
        """Write down how long agents have worked."""
        with self._lock:
            under_way = [attempt for attempt in self.attempts.values() if not attempt.finished.is_set()]
        for attempt in under_way:
            self._day.worked(attempt.worked())
        self._day.flush(queue)

    def _keep_alive(self, queue: TaskQueue, *, due: bool) -> None:
        with self._lock:
            under_way = [attempt for attempt in self.attempts.values() if not attempt.finished.is_set()]
        if not under_way:
            return
        held = {(breath.task, breath.fence) for breath in queue.breaths()}
        for attempt in under_way:
            lease = attempt.lease
            if (lease.task.id, lease.fence) not in held:
                if not attempt.finished.is_set():
                    state = queue.get(lease.task.id)
                    by = "cancel" if state.state == "cancelled" else "lease"
                    attempt.control.stop(by, state.reason or "the lease was lost")
                continue
            if due:
                try:
                    queue.beat(lease)
                except LostLeaseError as error:
                    attempt.control.stop("lease", error.message)
            self._look_at_bill(attempt)

    # ---------------------------------------------------------------- reconciling

    def recover(self) -> list[str]:
        """Put right what dispatchers that are gone left on the nodes and in the queue; says what it did."""
        said = [line for node in self.nodes for line in node.recover()]
        return said + self.reconcile()

    def reconcile(self) -> list[str]:
        """Put right what does not belong together: leases and dispatchers, branches, worktrees, processes."""
        return self._reconciler.reconcile(self._queue, self._at_work)

    def _at_work(self) -> set[tuple[str, int]]:
        with self._lock:
            return set(self.attempts)

    # ---------------------------------------------------------------- generating

    def _generate(self) -> None:
        refill = self._refill
        if refill is None or refill.low_water <= 0 or self._clock.monotonic() - self._refilled < refill.every:
            return
        counts = self._queue.counts()
        waiting = sum(counts.get(state, 0) for state in ("ready", "blocked", *ACTIVE))
        if waiting >= refill.low_water:
            return
        self._refilled = self._clock.monotonic()
        for repository in refill.repositories:
            try:
                added = self._queue.add(refill.generator.generate(repository, limit=refill.limit))
            except AvyayError as error:
                log.warning("generation_failed", repository=str(repository), reason=error.message)
                continue
            log.info("generated", repository=str(repository), tasks=len(added))
            self._publish("engine.tasks.generated", repository=str(repository), tasks=added)

    def _tell(self) -> None:
        if self._tell_history is not None:
            try:
                self._tell_history()
            except AvyayError as error:  # nothing is lost: the next look begins where this one stopped
                log.warning("history_not_told", reason=error.message)

    def _publish(self, name: str, **data: Any) -> None:
        if self._around.events is not None:
            self._around.events.publish(Event(name, data))
