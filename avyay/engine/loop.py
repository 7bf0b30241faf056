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
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.engine import keeper
from avyay.engine.attempt import Attempt, Place, Surroundings
from avyay.engine.contracts import Generator, TaskQueue
from avyay.engine.day import DayCaps
from avyay.engine.guessing import FileGuesses
from avyay.engine.lease import Breath, LeaseWatch
from avyay.engine.merge import merged_before
from avyay.engine.nodes.base import Node
from avyay.engine.overlap import overlapping
from avyay.engine.presence import Presence
from avyay.engine.queue import LostLeaseError
from avyay.engine.types import ACTIVE, Lease, Task
from avyay.errors import AvyayError, UnreachableError
from avyay.log import get_logger
from avyay.money import format_usd, parse_usd
from avyay.ports import BillReader, Event

__all__ = ["Dispatcher", "Pace", "Plan", "Refill", "owner_is_gone", "owner_name"]

log = get_logger("engine")

_QUICK = 2.0  # seconds: a write that takes longer had to wait for somebody
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
        day: What all tasks together may use up in a day; None: whatever they like.
        refill: None never generates.
        tell: Publishes what was written into the history.
        spending: Says, for the agents there are, which caps on dollars do not hold.
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
        tell: Callable[[], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        spending: Callable[[Sequence[str]], list[str]] = lambda _: [],
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
        self._day = day or DayCaps(clock)
        self._refill = refill
        self._spending = spending
        self._guesses = FileGuesses(around.context, lambda task: around.place(task).workshop.repository.root)
        self._refilled = -1e18
        self._tell_history = tell
        events, folder = around.events, around.attempts.root.parent
        self._presence = Presence(folder / "away", events, clock) if events is not None else None
        self._clock = clock
        self._watch = LeaseWatch(self.pace.lease_timeout, suspend_gap=2 * self.pace.lease_timeout)
        self._parked: dict[tuple[str, str], tuple[float, str]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._turned = threading.Event()
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
        for line in self.spending():
            log.warning("caps_on_dollars", what=line)
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
        if (reason := self._day.spent(self._queue)) is not None:
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
                if free[node.name] > 0 and agents and task.requires <= self._capabilities(node, agents):
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
        """What was used up today, in words."""
        return self._day.summary(self._queue)

    def spending(self) -> list[str]:
        """Which caps on dollars do not hold, in words."""
        return self._spending(sorted({agent for node in self.nodes for agent in node.agents()}))

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
        # Branches first: one that is seen now has a lease that is seen a moment later, or is over.
        branches = [(place, branch) for place in self.places.values() for branch in place.workshop.branches()]
        active = list(self._queue.tasks(*sorted(ACTIVE)))
        with self._lock:
            ours = set(self.attempts)
        breaths = {breath.task: breath for breath in self._queue.breaths()}
        mine = {owner_name(node.name) for node in self.nodes}
        silent = self._watch.look(breaths.values(), self._clock.monotonic())
        lost = {breath.task: "no heartbeat" for breath in silent if self._writable()}
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
        if said:  # those leases are over, and so are their branches
            active = list(self._queue.tasks(*sorted(ACTIVE)))
        leased = {f"avyay/{task.id}/{task.fence}" for task in active} | {
            f"avyay/{task}/{fence}" for task, fence in ours
        }
        for place, branch in branches:
            if branch not in leased:
                said.append(self._drop(place, branch))
        if self._clock.monotonic() - self._swept >= self.pace.tick:
            self._swept = self._clock.monotonic()
            said += self.folders.recover()
        said += [line for place in self.places.values() if (line := place.merging.settle()) is not None]
        for line in said:
            log.warning("reconciled", what=line)
        return said

    def _writable(self) -> bool:
        """Whether heartbeats could be written just now: who waits for a lock that somebody holds is not dead."""
        began = self._clock.monotonic()
        self._queue.probe()
        if self._clock.monotonic() - began < _QUICK:
            return True
        self._watch.forgive()
        return False

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
