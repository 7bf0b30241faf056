"""`avyay engine run` and `avyay engine doctor`: the loop, and a look at whether it can work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import AvyayError, ExitCode, UnreachableError, UsageError

if TYPE_CHECKING:
    from avyay.engine.checkup import Check
    from avyay.engine.loop import Dispatcher, Plan
    from avyay.wiring import Services


@command(app, "run", results=True)
def run_(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left that can be worked on now.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be started.")] = False,
) -> ExitCode | None:
    """Give tasks to agents, verify and merge what they do.

    It goes on until Ctrl-C.

    What happens is told on stderr as it happens. With --once the exit code is 1 when a task that was worked on did not
    end well, or had to be given back.
    """
    if once and dry_run:
        raise UsageError("--once and --dry-run exclude each other.", hint="Choose one.")
    with run.services as services:
        dispatcher = services.make_dispatcher()
        if dry_run:
            plans = dispatcher.plan()
            common = services.settings.engine.verify.accept.strip()
            rows = [
                {
                    "task": p.task.id,
                    "title": p.task.title,
                    "node": p.node,
                    "agent": p.agent,
                    "files": p.task.files,
                    "guessed": p.task.guessed,
                    "accept": p.task.accept or common,
                }
                for p in plans
            ]
            text = "\n".join(_line(plan, common) for plan in plans)
            run.out.result({"would_start": rows}, text or _nothing(dispatcher, services.engine.counts()))
            for line in (*dispatcher.lacking(), *dispatcher.spending(), *_unbilled(dispatcher)):
                run.out.note(line)
            dispatcher.close()
            return None
        if not any(node.agents() for node in dispatcher.nodes):
            dispatcher.close()
            raise UsageError(
                "No node has an agent.", hint="Install claude, codex, opencode, gemini or aider, or set engine.agents."
            )
        queue = services.engine
        first = queue.last_entry()
        if not once:
            counts = ", ".join(f"{number} {state}" for state, number in sorted(queue.counts().items())) or "empty"
            run.out.note(f"The queue: {counts}. It is looked at every {dispatcher.pace.tick:g} s; Ctrl-C ends this.")
        with _telling(run, services, first):
            _until_signal(dispatcher, once=once)
        history = queue.history(after=first, limit=100_000)
        ended = [entry for entry in history if entry.after in _ENDS]
        ends = [{"task": e.task, "state": str(e.after), "detail": e.detail} for e in ended]
        over = {row["task"] for row in ends}
        back = [
            {"task": e.task, "state": str(e.after), "detail": e.detail}
            for e in {e.task: e for e in history if e.kind == "parked" and e.task not in over}.values()
        ]
        lines = [f"{row['task']}  {row['state']}  {row['detail']}" for row in ends]
        lines += [f"{row['task']}  given back  {row['detail']}" for row in back]
        run.out.result({"ended": ends, "given_back": back}, "\n".join(lines) or "No task ended.")
        if dispatcher.held is not None:
            run.out.note(f"No more is begun today: {dispatcher.held}.")
        if not once:
            return None
        if back or any(row["state"] != "done" for row in ends):
            return ExitCode.FINDINGS
        return ExitCode.POLICY if dispatcher.held is not None and not ends else None


@contextmanager
def _telling(run: Run, services: Services, after: int) -> Iterator[None]:
    """Tells what happens to tasks while it happens."""
    over = threading.Event()

    def tell() -> None:
        number = after
        with closing(services.open_queue()) as queue:
            while True:
                last = over.wait(_LOOK)  # what was written before the end is told as well
                try:
                    news = queue.history(after=number)
                except AvyayError:  # the loop says so itself; tried again
                    news = []
                for entry in news:
                    number = entry.number
                    if entry.kind not in _UNTOLD:
                        when = datetime.fromtimestamp(entry.at, UTC).strftime("%H:%M:%SZ")
                        run.out.note(f"{when}  {entry.task} {sentence(entry)}")
                if last:
                    return

    from avyay.engine.narrate import sentence

    teller = threading.Thread(target=tell, name="avyay-engine-teller", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join(10)


def _unbilled(dispatcher: Dispatcher) -> list[str]:
    """Why nothing would be started after all: the bill cannot be read."""
    try:
        dispatcher.today()
    except UnreachableError as error:
        return [f"{error.message} {error.hint or ''}".rstrip()]
    return []


def _line(plan: Plan, common: str) -> str:
    text = f"{plan.task.id}  {plan.task.title}  -> {plan.agent} on {plan.node}"
    if plan.task.guessed:
        text += f"; it is taken to touch {', '.join(plan.task.guessed)}"
    if not (plan.task.accept.strip() or common):
        text += "; it will fail: it has no acceptance command (--accept, or engine.verify.accept for all)"
    return text


def _nothing(dispatcher: Dispatcher, counts: Mapping[str, int]) -> str:
    """Why nothing would be started."""
    if not any(counts.get(state) for state in ("ready", "blocked", "leased", "running", "verifying", "merging")):
        return "There is nothing to do: avyay engine add TITLE, or avyay engine generate."
    if not any(node.agents() for node in dispatcher.nodes):
        return "No node has an agent: avyay engine doctor."
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()) if state != "done")
    return f"Nothing can be started now ({told}): avyay engine why TASK tells what a task waits for."


_LOOK = 0.5  # seconds between two looks at the history
_UNTOLD = ("added", "guessed", "claimed", "merging")
_ENDS = ("done", "failed", "dead", "cancelled")


def _until_signal(dispatcher: Dispatcher, *, once: bool) -> None:
    """Run the loop; the first SIGINT or SIGTERM ends it in order, giving tasks back."""

    def end(number: int, _frame: object) -> None:
        dispatcher.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        dispatcher.run(once=once)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mark(row: Check) -> str:
    return "!!" if not row.ok else "--" if row.note else "ok"


@command(app, results=True)
def doctor(
    run: Run,
    fix: Annotated[bool, typer.Option("--fix", help="End and remove what dispatchers that are gone left.")] = False,
) -> ExitCode | None:
    """Check what the engine needs, and what it left.

    Agents, nodes, repositories, caps; leases against processes, worktrees and branches.
    """
    from avyay.engine.checkup import inspect

    with run.services as services:
        dispatcher = services.make_dispatcher()
        try:
            done = dispatcher.recover() if fix else []
            rows = inspect(dispatcher, services.engine)
        finally:
            dispatcher.close()
    data = {
        "checks": [{"what": row.what, "ok": row.ok, "detail": row.detail, "note": row.note} for row in rows],
        "fixed": done,
    }

    def text() -> None:
        run.out.table(("", "What", "Detail"), [(_mark(row), row.what, row.detail) for row in rows])
        for line in done:
            run.out.line(f"fixed: {line}")

    run.out.result(data, text)
    return None if all(row.ok for row in rows) else ExitCode.FINDINGS
