"""One attempt from the claimed lease to its end: prompt, agent, outcome, verification, merge. Runs in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avyay.engine.agents.base import Access
from avyay.engine.agents.outcome import Outcome, classify
from avyay.engine.attempts import Attempts
from avyay.engine.contracts import ContextSource, TaskQueue
from avyay.engine.day import DayCaps
from avyay.engine.follow import IN_THE_WAY
from avyay.engine.merge import Merged, MergeQueue, Result, merged_before
from avyay.engine.nodes.base import Caps, Control, Node, Order, Report
from avyay.engine.prompt import HOUSE_RULES, build_prompt, last_failure
from avyay.engine.queue import LostLeaseError
from avyay.engine.types import Lease, Task
from avyay.engine.verify import Verdict, Verifier
from avyay.engine.worktree import Workshop
from avyay.errors import AvyayError, DependencyError, UnreachableError
from avyay.git import GitRepository
from avyay.log import get_logger
from avyay.money import Picodollars, parse_usd, usd_string
from avyay.ports import Events, Passage, Retriever

__all__ = ["Attempt", "Limits", "Place", "Surroundings"]

log = get_logger("engine")

_AGENT_LEVEL = ("401", "402", "403", "404")  # a refusal of these is about key, account or model, not about the task
_PARK_LIMITED = 60.0
_PARK_BROKEN = 900.0
_PARK_RED = 300.0
_PARK_WAY = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use up, its own caps counted in."""

    caps: Caps
    dollars: str

    @classmethod
    def of(cls, task: Task, default: Limits) -> Limits:
        """The caps of a task: its own where it names some, but never more time or turns than ten times the default."""
        own: Mapping[str, float | str] = task.caps
        caps = replace(
            default.caps,
            wall=float(own.get("wall", default.caps.wall)),
            stall=float(own.get("stall", default.caps.stall)),
            turns=int(float(own.get("turns", default.caps.turns))),
        )
        return cls(caps, str(own.get("dollars", default.dollars)))


@dataclass(frozen=True, slots=True)
class Place:
    """A repository with all that works on it."""

    name: str
    workshop: Workshop
    merging: MergeQueue


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What attempts share.

    Args:
        access: How an agent of a node reaches models, for a task and a fence.
        runbooks: Finds passages for a prompt; None without an index.
        approval: A person approves every merge.
        park: Gives a node's agent no tasks for so many seconds.
        bill: What the router has charged for a task; None when it cannot be told.
        day: Told what agents spend that no router bills.
    """

    attempts: Attempts
    verifier: Verifier
    place: Callable[[Task], Place]
    access: Callable[[Task, int, str, Node], Access]
    limits: Limits
    context: ContextSource | None = None
    context_tokens: int = 0
    runbooks: Retriever | None = None
    passages: int = 0
    events: Events | None = None
    approval: bool = False
    park: Callable[[Node, str, float, str], None] = field(default=lambda _node, _agent, _seconds, _reason: None)
    bill: Callable[[Task], Picodollars | None] = field(default=lambda _task: None)
    day: DayCaps | None = None


class Attempt:
    """An attempt under way.

    Attributes:
        control: Stops it.
        spent: The bill so far, as the dispatcher last saw it.
    """

    def __init__(self, lease: Lease, node: Node, agent: str, around: Surroundings) -> None:
        self.lease = lease
        self.node = node
        self.agent = agent
        self.control = Control()
        self.spent: int | None = None
        self.limits = Limits.of(lease.task, around.limits)
        self.finished = threading.Event()
        self._around = around
        self._counted = time.monotonic()

    def worked(self) -> float:
        """Seconds since this was last asked, or since the beginning."""
        before, self._counted = self._counted, time.monotonic()
        return self._counted - before

    def run(self, queue: TaskQueue) -> None:
        """Work until the attempt is over; never raises. The queue is this thread's own."""
        task = self.lease.task
        words = log.bind(task=task.id, fence=self.lease.fence, node=self.node.name, agent=self.agent)
        try:
            self._run(queue)
        except LostLeaseError as error:
            words.info("lease_lost", reason=error.message)
        except UnreachableError as error:
            words.warning("node_or_model_unreachable", reason=error.message)
            self._park(queue, _PARK_LIMITED, error.message)
        except AvyayError as error:
            words.warning("attempt_failed", reason=error.message)
            self._fail(queue, error.message, hint=error.hint or "")
        except Exception as error:  # noqa: BLE001 - a bug must not leave a task leased for ever, nor end the daemon
            words.exception("attempt_crashed")
            self._fail(queue, f"the engine failed: {type(error).__name__}: {error}")
        finally:
            self._around.attempts.close(self._around.attempts.folder(task.id, self.lease.fence))
            queue.close()
            self.finished.set()

    # ---------------------------------------------------------------- the steps

    def _run(self, queue: TaskQueue) -> None:
        task, fence = self.lease.task, self.lease.fence
        accept = self._around.verifier.command(task)
        if not accept:
            hint = "Give it one with --accept, or all of them with engine.verify.accept."
            self._end(queue, Outcome("refused", "it has no acceptance command"), final=True, hint=hint)
            return
        place = self._around.place(task)
        folder = self._around.attempts.open(task.id, fence)
        if (commit := merged_before(queue, place.workshop, task.id)) is not None:
            queue.advance(self.lease, "running", "an attempt whose dispatcher died has merged it")
            queue.advance(self.lease, "verifying")
            queue.finish(self.lease, f"was merged as {commit[:7]}", commit=commit, merged=True)
            return
        if (verified := self._approved(queue, place)) is not None:
            self._merge_approved(queue, place, verified, folder)
            return
        access = self._around.access(task, fence, self.agent, self.node)
        if access.budget is not None:
            left = parse_usd(self.limits.dollars) - _own_count(queue, task)
            if left <= 0:
                reason = f"its attempts spent ${self.limits.dollars} by their own count"
                self._end(queue, Outcome("capped", reason), final=True)
                return
            access = replace(access, budget=usd_string(Picodollars(left)))
        base = place.workshop.fetch()
        queue.advance(self.lease, "running", f"{self.agent} on {self.node.name}", agent=self.agent, base=base)
        order = Order(
            task=task.id,
            fence=fence,
            attempt=self.lease.attempt,
            title=task.title,
            agent=self.agent,
            repository=place.workshop.repository.root,
            base=base,
            prompt=self._prompt(queue, place, base, accept),
            access=access,
            caps=self.limits.caps,
            folder=folder,
        )
        try:
            report = self.node.run(order, self.control)
            self._charge(access, report)
            outcome = classify(report.ending, report.transcript, report.git)
            if outcome.kind == "done":
                outcome = self._judge(queue, place, order, report)
            if outcome is not None:
                self._settle(queue, outcome, report)
        finally:
            place.workshop.remove(folder / "tree")
            place.workshop.drop(order.branch)

    def _charge(self, access: Access, report: Report) -> None:
        """Write down what the agent spent: the router's bill where it went through it, else its own count."""
        if access.routed:
            self.spent = self._around.bill(self.lease.task) or self.spent
        elif self._around.day is not None and report.transcript.cost:
            self._around.day.charged(parse_usd(report.transcript.cost, rounding="ROUND_CEILING"))

    def _prompt(self, queue: TaskQueue, place: Place, base: str, accept: str) -> str:
        task = self.lease.task
        context = ""
        if self._around.context is not None and self._around.context_tokens > 0:
            root = place.workshop.repository.root
            context = self._around.context.context(root, task, tokens=self._around.context_tokens)
        return build_prompt(
            task,
            accept=accept,
            turns=self.limits.caps.turns,
            wall=self.limits.caps.wall,
            dollars=self.limits.dollars,
            rules=_house_rules(place.workshop.copy, base),
            context=context,
            runbooks=self._passages(),
            failure=last_failure(queue.history(task.id)),
        )

    def _passages(self) -> Sequence[Passage]:
        if self._around.runbooks is None or self._around.passages == 0:
            return ()
        task = self.lease.task
        try:
            return self._around.runbooks.search(f"{task.title}\n{task.description[:500]}", limit=self._around.passages)
        except AvyayError as error:  # a prompt without runbooks is still a prompt
            log.warning("runbooks_unavailable", reason=error.message)
            return ()

    def _judge(self, queue: TaskQueue, place: Place, order: Order, report: Report) -> Any:
        """Verify and merge; returns the outcome, or None when the task is done."""
        queue.advance(self.lease, "verifying", report.git.summary, **_facts(self, report))
        task, workshop = self.lease.task, place.workshop
        head = workshop.fetch()
        tree = order.folder / "candidate"
        message = _message(task, self.agent, self.lease.fence)
        try:
            commit, conflict = workshop.candidate(tree, head, order.branch, message)
            if commit is None:
                verdict = Verdict(
                    False, "conflict", f"conflicts with {workshop.branch} at {head[:7]}", conflict[-6000:]
                )
            elif commit == head:
                return Outcome("no change", "what it changed is in the branch already")
            else:
                verdict = self._around.verifier.check(
                    task, order.fence, GitRepository(tree), head, commit, order.folder, self.control
                )
        finally:
            workshop.remove(tree)
        if self.control.stopped:
            return classify(replace(report.ending, ended_by=self.control.reason[0]), report.transcript, report.git)  # type: ignore[arg-type]
        if verdict.by in ("setup", "accept") and not verdict.passed and not task.accept.strip():
            red = self._around.verifier.red_before(task, order.fence, workshop, head, order.folder, self.control)
            if red is not None:
                self._park(queue, _PARK_RED, f"{workshop.branch} itself is red at {head[:7]}: {red}")
                return None
        if verdict.passed and self._around.approval:
            assert commit is not None
            workshop.copy.output("update-ref", _verified_ref(task), commit)
            queue.hold(self.lease, commit=commit, base=head, message=message, **_facts(self, report))
            return None
        if verdict.passed:
            assert commit is not None
            result = Result(order.branch, head, commit, message)
            merged = self._merge(queue, place, result, order.folder, **_facts(self, report))
            if merged is None or merged.verdict is None:
                return None
            verdict = merged.verdict
        self._verdict(queue, verdict, **_facts(self, report))
        return None

    def _approved(self, queue: TaskQueue, place: Place) -> Result | None:
        """The result of an earlier attempt that was verified, and approved since, or could not be merged then."""
        ref = _verified_ref(self.lease.task)
        for entry in reversed(queue.history(self.lease.task.id)):
            if entry.kind in ("failed", "retried"):
                return None
            if entry.kind == "waiting" or (entry.kind == "parked" and "commit" in entry.data):
                commit = str(entry.data["commit"])
                if place.workshop.copy.git("cat-file", "-e", f"{commit}^{{commit}}").code != 0:
                    return None
                return Result(ref, str(entry.data["base"]), commit, str(entry.data["message"]))
        return None

    def _merge_approved(self, queue: TaskQueue, place: Place, result: Result, folder: Path) -> None:
        queue.advance(self.lease, "running", "its result was verified before")
        queue.advance(self.lease, "verifying", "on top of the branch as it is now")
        merged = self._merge(queue, place, result, folder)
        if merged is None:
            return
        place.workshop.copy.git("update-ref", "-d", result.branch)
        if merged.verdict is not None:
            self._verdict(queue, merged.verdict)

    def _merge(self, queue: TaskQueue, place: Place, result: Result, folder: Path, **facts: Any) -> Merged | None:
        """Merge a result; None when the user's own work is in the way: it is kept, and merged when that is gone."""
        try:
            merged = place.merging.merge(queue, self.lease, result, folder, self.control)
        except DependencyError as error:
            if error.code != IN_THE_WAY:
                raise
            place.workshop.copy.output("update-ref", _verified_ref(self.lease.task), result.commit)
            kept = {"commit": result.commit, "base": result.base, "message": result.message}
            self._park(queue, _PARK_WAY, f"{error.message} {error.hint or ''}".rstrip(), **kept, **facts)
            return None
        if merged.verdict is None:
            log.info("task_done", task=self.lease.task.id, how=merged.how, commit=merged.commit)
        return merged

    def _verdict(self, queue: TaskQueue, verdict: Verdict, **facts: Any) -> None:
        """A result that was turned down: the log is the next attempt's reading."""
        self._end(queue, Outcome("refused", verdict.reason), log=verdict.log, by=verdict.by, **facts)

    def _settle(self, queue: TaskQueue, outcome: Outcome, report: Report) -> None:
        """Write down an outcome that is not "done"."""
        facts = _facts(self, report)
        if outcome.kind == "cancelled":
            log.info("attempt_cancelled", task=self.lease.task.id, reason=outcome.reason)
        elif outcome.limited:
            self._around.park(self.node, self.agent, _PARK_LIMITED, outcome.reason)
            self._park(queue, _PARK_LIMITED, outcome.reason)
        elif outcome.kind == "provider-permanent" and any(status in outcome.reason for status in _AGENT_LEVEL):
            self._around.park(self.node, self.agent, _PARK_BROKEN, outcome.reason)
            self._park(queue, _PARK_BROKEN, outcome.reason)
        else:
            spent_up = outcome.kind == "capped" and report.ending.ended_by == "dollars"
            self._end(queue, outcome, final=spent_up or outcome.kind == "provider-permanent", **facts)

    def _park(self, queue: TaskQueue, seconds: float, reason: str, /, **data: Any) -> None:
        try:
            queue.park(self.lease, seconds, reason, **data)
        except LostLeaseError:
            log.info("lease_lost", task=self.lease.task.id)

    def _fail(self, queue: TaskQueue, reason: str, **data: Any) -> None:
        try:
            self._end(queue, Outcome("crashed", reason), **data)
        except LostLeaseError:
            log.info("lease_lost", task=self.lease.task.id)

    def _end(self, queue: TaskQueue, outcome: Outcome, *, final: bool = False, **data: Any) -> None:
        reason = f"{outcome.kind}: {outcome.reason}"
        state = queue.fail(self.lease, reason, final=final, outcome=outcome.kind, reason_text=outcome.reason, **data)
        log.info("attempt_ended", task=self.lease.task.id, outcome=outcome.kind, reason=outcome.reason, state=state)


def _facts(attempt: Attempt, report: Report) -> dict[str, Any]:
    """What the history keeps of an attempt."""
    transcript = report.transcript
    return {
        "agent": attempt.agent,
        "node": attempt.node.name,
        "seconds": round(report.seconds, 1),
        "turns": transcript.turns,
        "tokens": transcript.tokens,
        "files": list(report.git.files[:50]),
        "commits": report.git.commits,
        "killed": report.killed,
        "picodollars": attempt.spent,
        "own_dollars": transcript.cost,
        "transcript": str(report.log),
    }


def _own_count(queue: TaskQueue, task: Task) -> int:
    """Picodollars that the attempts of a task have spent by their own count, since it was last retried by hand."""
    spent: dict[int, float] = {}
    for entry in queue.history(task.id):
        if entry.kind == "retried":
            spent.clear()
        elif entry.fence is not None and entry.data.get("own_dollars"):
            spent[entry.fence] = float(entry.data["own_dollars"])
    return sum(parse_usd(dollars, rounding="ROUND_CEILING") for dollars in spent.values())


def _verified_ref(task: Task) -> str:
    """Where a verified result waits for its approval, in the workshop's copy."""
    return f"refs/avyay/verified/{task.id}"


def _message(task: Task, agent: str, fence: int) -> str:
    """The message of the commit that is merged; the trailers say whose it is."""
    body = task.description.strip()
    body = body[:1500] + ("…" if len(body) > 1500 else "")
    title = " ".join(task.title.split())[:100]
    trailers = f"Avyay-Task: {task.id}\nAvyay-Fence: {fence}\nAvyay-Agent: {agent}"
    return "\n\n".join(part for part in (title, body, trailers) if part) + "\n"


def _house_rules(copy: GitRepository, base: str) -> tuple[str, str]:
    for name in HOUSE_RULES:
        done = copy.git("show", f"{base}:{name}")
        if done.code == 0:
            return name, done.text[:6000]
    return "", ""
