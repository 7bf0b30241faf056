"""`avyay rag`: what is indexed, and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError, why_unreadable

if TYPE_CHECKING:
    from avyay.rag.catalog import SourceRow
    from avyay.rag.evaluate import EvalQuery, EvalResult, Row
    from avyay.rag.passages import Expansion
    from avyay.rag.plan import SyncReport
    from avyay.rag.searcher import Mode
    from avyay.rag.service import RagService

app = command_group("Runbook indexes: index, sources, search.")

SHOWN_UNREAD = 5


@command(app, results=True)
def index(
    run: Run,
    location: Annotated[
        str | None, typer.Argument(help="A folder, a repository, or its URL; without it, all known sources again.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call the source.")] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="A branch, tag or commit instead of HEAD.")] = None,
    include: Annotated[list[str] | None, typer.Option("--include", help="Glob of documents (repeatable).")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Glob to leave out (repeatable).")] = None,
    worktree: Annotated[
        bool, typer.Option("--worktree", help="Read files as they lie on disk, not as committed.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Cut all sources again, and embed what is new.")] = False,
) -> None:
    """Index documents, or bring the index to their present state."""

    def waiting() -> None:
        run.out.note("Another avyay is indexing: waiting for it.")

    rag = run.services.rag
    with run.out.progress("Indexing") as progress:
        if location is None:
            if not rag.sources():
                raise UsageError("Nothing is indexed yet.", hint="Name a folder or a git URL: avyay rag index PATH")
            reports = rag.sync(rebuild=rebuild, progress=progress, waiting=waiting)
        else:
            reports = [
                rag.index(
                    location,
                    name=name,
                    branch=branch,
                    include=tuple(include or ()),
                    exclude=tuple(exclude or ()),
                    worktree=worktree,
                    rebuild=rebuild,
                    progress=progress,
                    waiting=waiting,
                )
            ]
    run.out.result({"sources": [_report_data(report) for report in reports]}, lambda: _show_reports(run, reports))
    for report in reports:
        _note_unread(run, report)


@command(app, results=True)
def sources(run: Run) -> None:
    """List the indexed sources with the commit and age of each."""
    rows = run.services.rag.sources()
    now = run.services.clock.now()
    if not rows:
        run.out.result({"sources": []}, None)
        run.out.note("Nothing is indexed yet. Start with: avyay rag index PATH_OR_GIT_URL")
        return
    columns = ("Source", "Location", "Commit", "Documents", "Chunks", "Checked")
    run.out.result(
        {"sources": [source_data(row) for row in rows]},
        lambda: run.out.table(columns, [_source_cells(row, now) for row in rows]),
    )


@command(app, results=True)
def reconcile(run: Run) -> ExitCode:
    """Compare the index with its sources and itself, and mend it; exit 3 when something could not be checked."""
    with run.out.progress("Checking") as progress:
        report = run.services.rag.reconcile(progress=progress)

    def show() -> None:
        for one in report.synced:
            _show_reports(run, [one])
        for what in report.mended:
            run.out.line(f"Mended: {what}.")
        for name, why in report.unchecked.items():
            run.out.line(f"Could not check {name}: {why}")
        run.out.line(f"{report.chunks} chunks and {report.vectors} vectors are as they should be.")

    data = {
        "sound": report.sound,
        "stale": report.stale,
        "mended": report.mended,
        "unchecked": report.unchecked,
        "chunks": report.chunks,
        "vectors": report.vectors,
        "sources": [_report_data(one) for one in report.synced],
    }
    run.out.result(data, show)
    return ExitCode.DEPENDENCY if report.unchecked else ExitCode.OK


@command(app)
def remove(run: Run, name: Annotated[str, typer.Argument(help="The source's name.")]) -> None:
    """Forget a source and its documents."""
    count = run.services.rag.remove(name)
    run.out.note(f"Removed {name}: {count} documents.")


@command(app, results=True)
def search(
    run: Run,
    query: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, max=1000, help="Results for each query.")] = 10,
    mode: Annotated[str | None, typer.Option("--mode", help="hybrid, keywords or vectors.")] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Only this source (repeatable).")] = None,
    path: Annotated[list[str] | None, typer.Option("--path", help="Only documents like this glob.")] = None,
    expand: Annotated[
        str, typer.Option("--expand", help="section: show whole sections; parents: and what stands above them.")
    ] = "none",
    batch: Annotated[
        Path | None, typer.Option("--batch", help='JSON lines with "qid" and "query"; writes JSON lines.')
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the batch's results here.")] = None,
) -> ExitCode:
    """Find sections, best first, with the scores they are ranked by."""
    from avyay.rag.answer import plain_text

    chosen = _mode(mode) if mode is not None else None
    how = expansion(expand)
    rag = run.services.rag
    if batch is not None:
        if query is not None:
            raise UsageError("Give a query or --batch, not both.")
        if how != "none" or source or path:
            raise UsageError("--expand, --source and --path are for a single query, not for --batch.")
        lines = (
            json.dumps(row, ensure_ascii=False) for row in rag.batch(list(_queries(batch)), limit=top, mode=chosen)
        )
        if output is None:
            for line in lines:
                run.out.line(line)
        else:
            _write_lines(output, lines)
        return ExitCode.OK
    if query is None:
        raise UsageError("What should be looked for?", hint='For example: avyay rag search "disk full"')
    found = rag.find(query, limit=top, mode=chosen, sources=source or (), paths=path or (), expand=how)
    result = found.result
    data = [
        {
            **asdict(one.passage),
            "citation": one.passage.citation,
            "headings": list(one.headings),
            "signals": one.best.hit.signals,
        }
        for one in found.passages
    ]

    def show() -> None:
        for number, one in enumerate(found.passages, 1):
            signals = "  ".join(f"{name} {value:.2f}" for name, value in one.best.hit.signals.items())
            run.out.line(f"{number:>3}. {one.passage.score:.3f}  {plain_text(one.passage.citation)}")
            run.out.detail(f"     {signals}")
            if how != "none":
                for parent in one.passage.parents:
                    _show_text(run, parent.text)
                _show_text(run, one.passage.text)

    run.out.result({"query": query, "generation": result.generation, "results": data}, show)
    for note in result.notes:
        run.out.note(note)
    return ExitCode.OK if result.found else ExitCode.FINDINGS


@command(app)
def feedback(
    run: Run,
    answer: Annotated[str, typer.Argument(help="The id that stands under the answer.")],
    verdict: Annotated[str, typer.Argument(help="up or down")],
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why.")] = "",
) -> None:
    """Say whether an answer helped."""
    run.services.rag.feedback(answer, verdict, comment)  # type: ignore[arg-type]
    run.out.note("Thank you: noted.")


@command(app, results=True)
def stats(run: Run) -> ExitCode:
    """Show how answers were received; exit 1 when they have become worse of late."""
    rag = run.services.rag
    verdicts, drift = rag.verdicts(), rag.drift()
    signs = [{**asdict(sign), "alarm": sign.alarm} for sign in drift.signs]

    def show() -> None:
        run.out.line(
            f"{verdicts.answers} answer{'' if verdicts.answers == 1 else 's'},"
            f" {verdicts.unanswered} of them not in the runbooks; {verdicts.up} helped, {verdicts.down} did not."
        )
        for sign in drift.signs:
            word = "WORSE" if sign.alarm else "steady"
            run.out.line(f"  {sign.name:<12}{sign.before:.2f} before, {sign.recent:.2f} of late: {word}")
        if not drift.enough:
            run.out.line("  Too few answers to tell whether they get worse.")

    data = {**asdict(verdicts), "drift": {"enough": drift.enough, "alarm": drift.alarm, "signs": signs}}
    run.out.result(data, show)
    return ExitCode.FINDINGS if drift.alarm else ExitCode.OK


@command(app, results=True)
def shadow(run: Run) -> None:
    """Show how the shadow ranking (rag.shadow) differs from the one in use, on live questions."""
    report = run.services.rag.shadow()

    def show() -> None:
        if not report.questions:
            run.out.line("No question has been compared yet. rag.shadow.share sets how many are: avyay config schema")
            return
        run.out.line(
            f"{report.questions} questions: {report.overlap:.0%} of the documents in common,"
            f" the same one first in {report.same_first:.0%};"
            f" confidence {report.confidence:.2f}, of the shadow {report.shadow_confidence:.2f}."
        )
        run.out.line(f"{report.disputed} answers did not help where the shadow had another document first.")

    run.out.result(asdict(report), show)


@command(app, "eval", results=True)
def evaluate(
    run: Run,
    queries: Annotated[Path, typer.Argument(help="JSON lines: qid, query, gold_docs; see docs/guides/runbooks.md.")],
    mode: Annotated[str | None, typer.Option("--mode", help="Compare: hybrid, keywords or vectors.")] = None,
    answerability: Annotated[
        bool, typer.Option("--answerability", help="Also ask each query with its documents left out.")
    ] = False,
    at_least: Annotated[
        float | None, typer.Option("--min", help="Exit 1 when the macro nDCG@10 of documents is lower.")
    ] = None,
) -> ExitCode:
    """Measure retrieval on labelled queries: recall, MRR and nDCG with 95 % intervals."""
    from avyay.rag.evaluate import compare, load_queries, macro
    from avyay.rag.evaluate import evaluate as measure

    rag = run.services.rag
    loaded = load_queries(queries)
    found = _results(rag, loaded, None)
    rows = measure(loaded, found)
    gains = compare(loaded, found, _results(rag, loaded, _mode(mode))) if mode is not None else []
    told = rag.answerability(loaded) if answerability else None

    def show() -> None:
        _show_rows(run, rows, None)
        if gains:
            _show_rows(run, gains, f"What --mode {mode} would gain")
        if told is not None:
            answered = _percent(told.answered, told.answered_interval)
            refused = _percent(told.refused, told.refused_interval)
            run.out.line(
                f"Answerable queries that get an answer: {answered}; refused without their documents: {refused};"
                f" AUC of the confidence: {told.auc:.2f}"
            )

    score = macro(rows, "doc").mean
    data = {
        "rows": [asdict(row) for row in rows],
        "gains": [asdict(row) for row in gains],
        "answerability": asdict(told) if told is not None else None,
        "macro_ndcg_at_10": score,
    }
    run.out.result(data, show)
    return ExitCode.FINDINGS if at_least is not None and score < at_least else ExitCode.OK


def _results(rag: RagService, queries: list[EvalQuery], mode: Mode | None) -> dict[str, list[EvalResult]]:
    from avyay.rag.evaluate import EvalResult

    pairs = [(query.qid, query.text) for query in queries]
    return {
        row["qid"]: [EvalResult(one["path"], tuple(one["headings"])) for one in row["results"]]
        for row in rag.batch(pairs, limit=10, mode=mode)
    }


def _percent(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{share:.0%} [{low:.0%}, {high:.0%}]"


def _show_rows(run: Run, rows: list[Row], title: str | None) -> None:
    from avyay.rag.evaluate import METRICS

    cells = [
        (
            row.level,
            row.group,
            row.queries,
            *(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in row.metrics.values()),
        )
        for row in rows
    ]
    run.out.table(("Level", "Queries of", "n", *METRICS), cells, title=title)


def _mode(name: str) -> Mode:
    if name not in ("hybrid", "keywords", "vectors"):
        raise UsageError(f"There is no mode {name!r}.", hint="Modes are: hybrid, keywords, vectors.")
    return cast("Mode", name)


@command(app, results=True)
def sessions(
    run: Run, forget: Annotated[str | None, typer.Option("--forget", help="Delete the session of this name.")] = None
) -> None:
    """List the conversations that `ask --session` remembers, or delete one."""
    interactions = run.services.rag.interactions
    if forget is not None:
        if not interactions.forget(forget):
            raise UsageError(f"There is no session {forget!r}.")
        run.out.note(f"Forgot {forget}.")
    found = interactions.sessions()
    now = run.services.clock.now()
    rows = [(name, count, _ago(now - at)) for name, count, at in found]
    data = [{"session": name, "turns": count, "last": at} for name, count, at in found]
    run.out.result({"sessions": data}, (lambda: run.out.table(("Session", "Turns", "Last"), rows)) if rows else None)
    if not rows:
        run.out.note('No conversation is remembered. Begin one with: avyay ask --session NAME "..."')


def expansion(name: str) -> Expansion:
    """What --expand says."""
    from avyay.rag.passages import EXPANSIONS

    if name not in EXPANSIONS:
        raise UsageError(f"There is no --expand {name!r}.", hint=f"There is: {', '.join(EXPANSIONS)}.")
    return name


def _show_text(run: Run, text: str) -> None:
    from avyay.rag.answer import plain_text

    for line in plain_text(text).strip("\n").splitlines():
        run.out.line(f"     | {line}".rstrip())


def _queries(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8") if str(path) != "-" else typer.get_text_stream("stdin").read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {why_unreadable(error)}.", hint="Name a file of queries, or - ."
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield str(row["qid"]), str(row["query"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'{path}:{number}: not a JSON object with "qid" and "query".',
                hint='One object a line: {"qid": "1", "query": "disk full"}',
            ) from error


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error


def _report_data(report: SyncReport) -> dict[str, Any]:
    data = asdict(report)
    return {**data, "up_to_date": report.up_to_date}


def _show_reports(run: Run, reports: list[SyncReport]) -> None:
    for report in reports:
        at = f" at {report.head[:7]}" if report.head else ""
        if report.up_to_date:
            run.out.line(f"{report.source} is up to date{at}: {report.unchanged} documents.")
            continue
        run.out.line(
            f"Indexed {report.source}{at}: {len(report.added)} added, {len(report.changed)} changed,"
            f" {len(report.removed)} removed, {report.unchanged} unchanged; {report.chunks} chunks"
            f" ({report.reused} embedded before) in {report.seconds:.1f} s."
        )


def _note_unread(run: Run, report: SyncReport) -> None:
    if not report.unread:
        return
    run.out.note(f"{len(report.unread)} documents of {report.source} could not be read:")
    shown = report.unread if run.out.verbose else report.unread[:SHOWN_UNREAD]
    for item in shown:
        run.out.note(f"  {item.path}: {item.reason}")
    if len(shown) < len(report.unread):
        run.out.note("  ... -v shows all")


def source_data(row: SourceRow) -> dict[str, Any]:
    """A source as JSON."""
    return {
        **asdict(row.spec),
        "head": row.head,
        "documents": row.documents,
        "chunks": row.chunks,
        "unread": row.unread,
        "indexed_at": row.indexed_at,
        "checked_at": row.checked_at,
    }


def _source_cells(row: SourceRow, now: float) -> tuple[str, ...]:
    spec = row.spec
    place = f"{spec.location}/{spec.prefix}".rstrip("/") + (f" ({spec.branch})" if spec.branch else "")
    return (
        *(spec.name, place, row.head[:7] or ("work tree" if spec.worktree else "-")),
        *(str(row.documents), str(row.chunks), _ago(now - row.checked_at)),
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
