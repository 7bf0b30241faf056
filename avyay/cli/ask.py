"""`avyay ask`: an answer from the runbooks, with its sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.ports import Passage, Tier
    from avyay.rag.answer import Answer

app = command_group("Ask your runbooks; answers cite file, lines and commit.")

DAYS_A_YEAR = 365.25
TIERS = ("local", "medium", "premium")


@command(app, results=True)
def ask(
    run: Run,
    question: Annotated[str, typer.Argument(help="The question, in quotes.", show_default=False)],
    passages: Annotated[int | None, typer.Option("--passages", "-n", min=1, max=50, help="How many to use.")] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Only this source (repeatable).")] = None,
    path: Annotated[list[str] | None, typer.Option("--path", help="Only documents like this glob.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Remember this exchange under a name.")] = None,
    expand: Annotated[
        str, typer.Option("--expand", help="section: use whole sections; parents: and what stands above them.")
    ] = "none",
    model: Annotated[str, typer.Option("--model", help="A model name, or auto to be routed.")] = "auto",
    tier: Annotated[str | None, typer.Option("--tier", metavar="TIER", help="local, medium or premium.")] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Show the best passages, ask no model.")] = False,
) -> ExitCode:
    """Answer a question from the indexed runbooks; exit 1 when they say nothing about it."""
    from avyay.cli.rag import expansion
    from avyay.rag.service import AskOptions

    options = AskOptions(
        limit=passages,
        session=session,
        sources=tuple(source or ()),
        paths=tuple(path or ()),
        model=model,
        tier=_tier(tier),
        extractive=no_model,
        expand=expansion(expand),
    )
    rag = run.services.rag
    prepared = rag.prepare(question, options)
    if prepared.request is None:
        answer = rag.finish(prepared)
        streamed = False
    else:
        import asyncio

        with run.out.waiting("Waiting for an answer") as answered:
            answer, streamed = asyncio.run(_show_stream(run, rag.answer_stream(prepared), answered))
    run.out.result(as_data(answer), lambda: _show(run, answer, streamed=streamed))
    return ExitCode.OK if answer.found else ExitCode.FINDINGS


async def _show_stream(
    run: Run, pieces: AsyncIterator[str | Answer], answered: Callable[[], None]
) -> tuple[Answer, bool]:
    """Show text as it arrives. The words "not in the runbooks" are a verdict and not shown as an answer."""
    from avyay.rag.answer import NOT_FOUND, plain_text

    held, shown = "", False
    answer: Answer | None = None
    async for piece in pieces:
        if not isinstance(piece, str):
            answer = piece
        elif not run.out.json:
            held += plain_text(piece)
            if shown or not NOT_FOUND.startswith(held.strip().upper()[: len(NOT_FOUND)]):
                answered()
                run.out.write(held)
                held, shown = "", True
    assert answer is not None
    if shown:
        run.out.line()
    return answer, shown


def _show(run: Run, answer: Answer, *, streamed: bool) -> None:
    from avyay.rag.answer import passage_text

    if answer.mode == "none":
        run.out.note(f"Not in the runbooks: {answer.question}")
        if answer.passages:
            run.out.note("Nearest, and probably about something else:")
            for passage in answer.passages[:3]:
                run.out.note(f"  {_reference(passage)}")
    elif answer.mode == "generated":
        if not streamed:
            run.out.line(answer.text)
        run.out.line()
        for number in answer.cited:
            run.out.line(f"[{number}] {_reference(answer.passages[number - 1])}")
    else:
        for number, passage in enumerate(answer.passages, 1):
            run.out.line(f"[{number}] {_reference(passage)}")
            for line in _plain(passage_text(passage)).strip("\n").splitlines():
                run.out.line(f"  | {line}".rstrip())
            run.out.line()
    for note in answer.notes:
        run.out.note(note)
    if reply := answer.reply:
        run.out.note(
            f"{reply.model} ({reply.provider}, {reply.tier}) · {reply.tokens.input}+{reply.tokens.output} tokens"
            f" · {reply.seconds:.1f} s"
        )
    if answer.found:
        run.out.note(f"Did it help? avyay rag feedback {answer.id} up|down")


def _tier(name: str | None) -> Tier | None:
    if name is not None and name not in TIERS:
        raise UsageError(f"There is no tier {name!r}.", hint=f"Tiers are: {', '.join(TIERS)}.")
    return cast("Tier | None", name)


def _reference(passage: Passage) -> str:
    age = f" · {age_text(passage.age_days)}" if passage.age_days is not None else ""
    return f"{_plain(passage.citation)}{age}"


def _plain(text: str) -> str:
    from avyay.rag.answer import plain_text

    return plain_text(text)


def age_text(days: float) -> str:
    """`today`, `12 days old`, `2.3 years old`."""
    if days < 1:
        return "today"
    if days < DAYS_A_YEAR:
        return f"{days:.0f} day{'s' if round(days) != 1 else ''} old"
    return f"{days / DAYS_A_YEAR:.1f} years old"


def as_data(answer: Answer) -> dict[str, Any]:
    """The answer as JSON."""
    return {
        "id": answer.id,
        "question": answer.question,
        "mode": answer.mode,
        "text": answer.text,
        "cited": list(answer.cited),
        "passages": [
            {"number": number, "citation": passage.citation, **asdict(passage)}
            for number, passage in enumerate(answer.passages, 1)
        ],
        "notes": list(answer.notes),
        "generation": answer.generation,
        "session": answer.session,
        "model": answer.reply.model if answer.reply else None,
        "provider": answer.reply.provider if answer.reply else None,
        "tier": answer.reply.tier if answer.reply else None,
        "cost": answer.reply.cost if answer.reply else None,
    }
