"""`avyay engine run` and `avyay engine doctor`: the loop, and a look at whether it can work."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.engine.checkup import Check
    from avyay.engine.loop import Dispatcher, Plan


@command(app, "run", results=True)
def run_(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left that can be worked on now.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be started.")] = False,
) -> ExitCode | None:
    """Give tasks to agents, verify and merge what they do.

    It goes on until Ctrl-C.

    With --once the exit code is 1 when a task that was worked on did not end well.
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
            for line in dispatcher.spending():
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
        _until_signal(dispatcher, once=once)
        ended = [entry for entry in queue.history(after=first, limit=100_000) if entry.after in _ENDS]
        ends = [{"task": e.task, "state": str(e.after), "detail": e.detail} for e in ended]
        bad = any(row["state"] != "done" for row in ends)
        lines = [f"{row['task']}  {row['state']}  {row['detail']}" for row in ends]
        run.out.result({"ended": ends}, "\n".join(lines) or "No task ended.")
        return ExitCode.FINDINGS if once and bad else None


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
