"""The dispatcher: look at the queue, generate when it is low, give tasks to idle nodes, collect, reconcile, repeat.

One thread ticks, one keeps leases alive and watches caps, and every attempt has one of its own. Each has its own
connection to the queue. Whatever a dispatcher that died left behind (leases, processes, worktrees, branches, a merge
that was cut between two steps) is put right at the start and at every tick.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.engine import keeper
from avyay.engine.attempt import Attempt, Place, Surroundings
from avyay.engine.contracts import Generator, TaskQueue
from avyay.engine.lease import Breath, LeaseWatch
from avyay.engine.merge import merged_before
from avyay.engine.nodes.base import Node
from avyay.engine.overlap import overlapping
from avyay.engine.presence import Presence
from avyay.engine.queue import LostLeaseError
from avyay.engine.types import ACTIVE, Lease, Task
from avyay.errors import AvyayError, UnreachableError
from avyay.ledger import budget_event
from avyay.log import get_logger
from avyay.money import Picodollars, format_usd, parse_usd
from avyay.ports import BillReader, Event

__all__ = ["Dispatcher", "Pace", "Plan", "Refill", "owner_is_gone", "owner_name"]

log = get_logger("engine")

_DAY = 86_400.0


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


def owner_name(node: str) -> str:
    """The owner of a lease: a node, and the process that dispatches for it."""
    pid = os.getpid()
    return f"{node}@{socket.gethostname()}:{pid}:{keeper.birth(pid)}"


def owner_is_gone(owner: str) -> bool:
    """Whether an owner is known to be dead: its process was on this machine and is no more."""
    _, _, process = owner.rpartition("@")
    host, pid, birth = (*process.split(":", 2), "", "")[:3]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return keeper.birth(int(pid)) != birth


class Dispatcher:
    """Runs the loop.

    Args:
        open_queue: Makes a connection to the queue; called once for each thread.
        around: What attempts share.
        places: All repositories.
        bill: Reads what the router charged; None: only the agents' own counts hold.
        day: Cap of all tasks together a day (UTC).
        refill: None never generates.
        tell: Publishes what was written into the history, where the queue does not do so itself.
        near: Share of the day's cap, 0..1, from which it is told to be near.
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
        day: Picodollars | None = None,
        day_wall: float = 0.0,
        refill: Refill | None = None,
        tell: Callable[[], object] | None = None,
        near: float = 0.8,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.pace = pace or Pace()
        self.nodes = list(nodes)
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self._open_queue = open_queue
        self._own = threading.local()
        self._around = around
        self.places = dict(places)
        self.folders = around.attempts
        self._bill = bill
        self._day = day
        self._day_wall = day_wall
        self._worked: list[tuple[float, float]] = []
        self._refill = refill
        self._refilled = -1e18
        self._tell_history = tell
        self._near = near
        self._told: set[tuple[str, float]] = set()
        events, folder = around.events, around.attempts.root.parent
        self._presence = Presence(folder / "away", events, clock) if events is not None else None
        self._clock = clock
        self._watch = LeaseWatch(self.pace.lease_timeout, suspend_gap=2 * self.pace.lease_timeout)
        self._parked: dict[tuple[str, str], tuple[float, str]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pulse: threading.Thread | None = None
        self._swept = -1e18

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
        for line in self.recover():
            log.warning("recovered", what=line)
        self._pulse = threading.Thread(target=self._beat, name="avyay-engine-pulse", daemon=True)
        self._pulse.start()
        try:
            while not self._stop.is_set():
                self._wake.clear()
                try:
                    started = self.tick()
                except UnreachableError as error:  # the queue or a lock is held: what is under way goes on
                    log.warning("tick_failed", reason=error.message)
                    started = 0
                    if once:
                        raise
                if once and not started and not self.attempts and not self._due_soon():
                    return
                self._wake.wait(self.pace.tick)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask the loop to end; attempts under way are ended and their tasks given back."""
        self._stop.set()
        self._wake.set()

    def close(self) -> None:
        """End what is under way and let go of everything."""
        self._stop.set()
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
        if (reason := self._day_is_spent()) is not None:
            log.warning("day_cap_reached", reason=reason)
            return 0
        for node in self.nodes:
            while self._idle(node) > 0 and (attempt := self._claim(node)) is not None:
                self._start(attempt)
                started += 1
        if self._presence is not None:
            self._presence.look(self.nodes)
        return started

    def plan(self) -> list[Plan]:
        """What the next tick would start, without starting or writing anything."""
        free = {node.name: self._idle(node) for node in self.nodes}
        plans: list[Plan] = []
        busy: list[str] = [glob for task in self._queue.tasks(*sorted(ACTIVE)) for glob in task.files]
        now = self._clock.now()
        for task in sorted(self._queue.tasks("ready"), key=lambda task: -task.priority):
            if task.not_before > now or (busy and overlapping(task.files, busy)):
                continue
            for node in self.nodes:
                agents = self._agents(node)
                if free[node.name] > 0 and agents and task.requires <= self._capabilities(node, agents):
                    free[node.name] -= 1
                    busy += task.files
                    plans.append(Plan(task, node.name, task.agent or agents[0]))
                    break
        return plans

    def _due_soon(self) -> bool:
        """Whether a task waits for a moment before the next tick."""
        now = self._clock.now()
        return any(now < task.not_before <= now + self.pace.tick for task in self._queue.tasks("ready"))

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
        return able | {f"agent:{agent}" for agent in agents}

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
        threading.Thread(target=self._work, args=(attempt,), name=f"avyay-{lease.task.id}-{lease.fence}").start()

    def _work(self, attempt: Attempt) -> None:
        started = self._clock.monotonic()
        try:
            attempt.run(self._open_queue())
        finally:
            attempt.finished.set()
            with self._lock:
                self._worked.append((self._clock.now(), self._clock.monotonic() - started))
            self._wake.set()

    def park(self, node: Node, agent: str, seconds: float, reason: str) -> None:
        """Give a node's agent no tasks for a while: its provider limits the rate, or refuses it."""
        with self._lock:
            self._parked[node.name, agent] = (self._clock.monotonic() + seconds, reason)
        log.warning("agent_parked", node=node.name, agent=agent, seconds=seconds, reason=reason)
        self._publish("engine.agent.parked", node=node.name, agent=agent, seconds=seconds, reason=reason)

    # ---------------------------------------------------------------- caps

    def _midnight(self) -> float:
        now = self._clock.now()
        return now - now % _DAY

    def _day_is_spent(self) -> str | None:
        if self._day_wall > 0:
            with self._lock:
                worked = sum(seconds for at, seconds in self._worked if at >= self._midnight())
            if worked >= self._day_wall:
                return f"agents have worked {worked:.0f} s today"
        if self._bill is None or self._day is None:
            return None
        try:
            spent = self._bill.service("engine", self._midnight()).cost
        except AvyayError as error:
            return f"the bill cannot be read: {error.message}"
        self._tell_budget(spent, self._day)
        return f"{format_usd(spent)} are spent today" if spent >= self._day else None

    def _tell_budget(self, spent: Picodollars, cap: Picodollars) -> None:
        """Once a day that its cap is near, and once that it is reached; the bill is read again after a restart."""
        day = self._midnight()
        for verb, share in (("neared", self._near), ("exhausted", 1.0)):
            if self._around.events is None or not cap or spent < cap * share or (verb, day) in self._told:
                continue
            key = f"engine/day:{datetime.fromtimestamp(day, UTC).date()}"
            try:
                self._around.events.publish_now(budget_event("engine", verb, key, spent, cap, day + _DAY))
                self._told.add((verb, day))
            except AvyayError as error:
                log.warning("budget_not_told", reason=error.message)

    def _look_at_bill(self, attempt: Attempt) -> None:
        cap = parse_usd(attempt.limits.dollars)
        if self._bill is None:
            return
        try:
            bill = self._bill.customer(attempt.lease.task.id, attempt.lease.task.created)
        except AvyayError as error:
            log.warning("bill_unreadable", reason=error.message)
            return
        attempt.spent = bill.cost
        if bill.cost >= cap:
            attempt.control.stop("dollars", f"spent {format_usd(bill.cost)} of {format_usd(cap)}")

    # ---------------------------------------------------------------- leases

    def _beat(self) -> None:
        """Keep our leases alive, notice those we lost, and watch the bill; runs in a thread of its own."""
        queue = self._open_queue()
        beaten = self._clock.monotonic()
        try:
            while not self._stop.wait(self.pace.pulse):
                try:
                    due = self._clock.monotonic() - beaten >= self.pace.heartbeat
                    if due:
                        beaten = self._clock.monotonic()
                    self._keep_alive(queue, due=due)
                except AvyayError as error:
                    log.warning("heartbeat_failed", reason=error.message)
        finally:
            queue.close()

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
        # Branches first: one that is seen now has a lease that is seen a moment later, or is over.
        branches = [(place, branch) for place in self.places.values() for branch in place.workshop.branches()]
        active = list(self._queue.tasks(*sorted(ACTIVE)))
        with self._lock:
            ours = set(self.attempts)
        breaths = {breath.task: breath for breath in self._queue.breaths()}
        mine = {owner_name(node.name) for node in self.nodes}
        lost = {breath.task: "no heartbeat" for breath in self._watch.look(breaths.values(), self._clock.monotonic())}
        for task in active:
            if task.owner in mine and (task.id, task.fence) not in ours:
                lost[task.id] = "its dispatcher knows nothing of it"
            elif task.owner is not None and task.owner not in mine and owner_is_gone(task.owner):
                lost[task.id] = "its dispatcher is gone"
        said = [
            self._take_away(task, breath, lost[task.id])
            for task in active
            if task.id in lost and (breath := breaths.get(task.id)) is not None and breath.fence == task.fence
        ]
        leased = {f"avyay/{task.id}/{task.fence}" for task in active} | {
            f"avyay/{task}/{fence}" for task, fence in ours
        }
        for place, branch in branches:
            if branch not in leased:
                said.append(self._drop(place, branch))
        if self._clock.monotonic() - self._swept >= self.pace.tick:
            self._swept = self._clock.monotonic()
            said += self.folders.recover()
        for line in said:
            log.warning("reconciled", what=line)
        return said

    def _drop(self, place: Place, branch: str) -> str:
        try:
            place.workshop.drop(branch)
        except UnreachableError as error:
            return f"{branch}: a branch without a lease stays for now: {error.message}"
        return f"{branch}: a branch without a lease was dropped"

    def _take_away(self, task: Task, breath: Breath, reason: str) -> str:
        """End a lease; a task that was merged before its owner died is done."""
        if task.state == "merging" and (commit := self._merged(task)) is not None:
            try:
                lease = Lease(task, task.owner or "", task.fence)
                self._queue.finish(lease, f"merged as {commit[:7]}", commit=commit, merged=True)
            except LostLeaseError:
                return f"{task.id}: settled by another dispatcher"
            return f"{task.id}: was merged as {commit[:7]} before its dispatcher died"
        state = self._queue.expire(breath, reason)
        return f"{task.id}: {reason}; now {state or 'settled by another dispatcher'}"

    def _merged(self, task: Task) -> str | None:
        """The commit a task was being merged as, when the branch has it."""
        return merged_before(self._queue, self._around.place(task).workshop, task.id)

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
