"""`avyay siddhi`: from complaints to validated products, under a budget."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.siddhi.mine import Mined
    from avyay.siddhi.pipeline import Report
    from avyay.siddhi.types import Hypothesis

app = command_group("Find what people would sign up for: mine, score, test, decide, under a hard budget.")


def _mode(name: str) -> Any:
    if name not in ("value", "strict"):
        raise UsageError(f"There is no mode {name!r}.", hint="Modes are: value, strict.")
    return name


@command(app)
def decide(
    run: Run,
    stdio: Annotated[bool, typer.Option("--stdio", help="Answer JSON lines from standard input.")] = False,
    mode: Annotated[str, typer.Option("--mode", help="value (most money) or strict (few false alarms).")] = "value",
) -> None:
    """Run the decision policy: buy more clicks, or call the test."""
    from avyay.siddhi.stdio import converse

    if not stdio:
        raise UsageError("Say where the offers come from.", hint="avyay siddhi decide --stdio < offers.jsonl")
    for answer in converse(iter(sys.stdin.readline, ""), cast("Any", _mode(mode)), warn=run.out.note):
        run.out.write(f"{answer}\n")


@command(app, results=True)
def power(
    run: Run,
    price: Annotated[float, typer.Option("--price", help="US dollars a click.")],
    cap: Annotated[float, typer.Option("--cap", help="US dollars for one hypothesis.")] = 30.0,
    bar: Annotated[float, typer.Option("--bar", help="Sign-up rate from which it is worth building.")] = 0.05,
    rate: Annotated[float | None, typer.Option("--rate", help="The rate to tell from the bar; default: twice.")] = None,
    gain: Annotated[float, typer.Option("--gain", help="US dollars won by a product at twice the bar.")] = 300.0,
    overspend: Annotated[float, typer.Option("--overspend", help="Most a platform bills, times the order.")] = 1.0,
    mode: Annotated[str, typer.Option("--mode", help="value or strict.")] = "value",
) -> ExitCode:
    """Say what the money can tell apart, before it is spent. Exit 5 when the test cannot decide."""
    from avyay.siddhi.decide import Rules
    from avyay.siddhi.power import assess, expensive, require_decidable

    rules = Rules(cap=cap, bar=bar, gain=gain, overspend=overspend)
    found = assess(rules, price, rate=rate, mode=_mode(mode))
    if words := expensive(rules, price):
        run.out.note(words)
    detectable = f"{found.detectable:.1%}" if found.detectable is not None else "none"
    run.out.result(
        asdict(found),
        f"${cap:.2f} at ${price:.2f} a click, billed up to {overspend:g} times: {found.clicks} clicks\n"
        f"Telling {found.rate:.1%} from {bar:.1%}: power {found.fixed:.2f} with one look at the end,"
        f" {found.strict:.2f} looking after every click (strict)\n"
        f"Smallest rate found with 80 %: {detectable}\n"
        f"Worth of testing instead of deciding now: ${found.worth:.2f} (value)",
    )
    require_decidable(found)
    return ExitCode.OK


Identifier = Annotated[str, typer.Argument(help="The hypothesis, such as h3.", metavar="ID")]


@command(app, results=True)
def run(
    run: Run,
    spend: Annotated[str, typer.Option("--mode", help="dry-run, validate or live.")] = "dry-run",
    total: Annotated[str | None, typer.Option("--total", help="For live: the total budget, typed in dollars.")] = None,
) -> None:
    """One pass over everything: mine, score, generate, test, decide. Spends nothing unless live."""
    from avyay.siddhi.build import query_jobs

    mode = _spend(run, spend, total)
    settings = run.services.settings.siddhi
    queries = query_jobs(settings)
    if not queries and not run.services.siddhi.store.complaint_count():
        raise UsageError("There is nothing to mine.", hint="Set siddhi.mine in avyay.yaml, or try: avyay siddhi demo")

    async def go() -> Any:
        async with _Miners(run, [source for source, _ in queries]) as miners:
            jobs = [(miners[source], query) for source, query in queries if source in miners]
            return await run.services.siddhi.run(jobs, pages=settings.mine.pages, spend=mode)

    report = asyncio.run(go())
    run.out.result(
        {"mode": mode, "mined": [asdict(one) for one in report.mined], "lines": report.lines},
        lambda: _show_report(run, report),
    )


@command(app, results=True)
def mine(
    run: Run,
    source: Annotated[str | None, typer.Argument(help="hn, reddit, producthunt, x, rss or file.")] = None,
    query: Annotated[str | None, typer.Argument(help="Instead of the configured ones.")] = None,
    pages: Annotated[int | None, typer.Option("--pages", min=1, max=100, help="Pages of each query.")] = None,
    recheck: Annotated[bool, typer.Option("--recheck", help="Forget what was deleted at its source.")] = False,
) -> None:
    """Read the sources and keep what is new."""
    from avyay.siddhi.build import SOURCES, query_jobs

    settings = run.services.settings.siddhi
    if source is not None and source not in SOURCES:
        raise UsageError(f"There is no source {source!r}.", hint=f"Sources are: {', '.join(SOURCES)}.")
    queries = [(source, query)] if source and query else query_jobs(settings)
    queries = [(name, words) for name, words in queries if source in (None, name)]
    if not queries and not recheck:
        raise UsageError("There is nothing to mine.", hint="Name a query, or set siddhi.mine in avyay.yaml.")

    async def go() -> tuple[list[Mined], int]:
        names = [name for name, _ in queries] or list(run.services.siddhi.store.complaint_count())
        async with _Miners(run, [name for name in names if name in SOURCES]) as miners:
            if recheck:
                return [], await run.services.siddhi.recheck(list(miners.values()))
            jobs = [(miners[name], words) for name, words in queries if name in miners]
            return await run.services.siddhi.mine(jobs, pages or settings.mine.pages), 0

    mined, forgotten = asyncio.run(go())
    run.out.result(
        {"mined": [asdict(one) for one in mined], "forgotten": forgotten},
        lambda: _show_mined(run, mined) if not recheck else run.out.line(f"Forgot {forgotten} complaints."),
    )


@command(app, results=True)
def score(run: Run) -> None:
    """Gather complaints into hypotheses and score the new ones."""
    siddhi = run.services.siddhi
    from avyay.siddhi.machine import State

    siddhi.discover()

    async def go() -> list[Hypothesis]:
        return [await siddhi.score(one.id) for one in siddhi.store.hypotheses(State.DISCOVERED)]

    scored = asyncio.run(go())
    run.out.result({"scored": [_data(one) for one in scored]}, lambda: _show(run, scored))


@command(app, results=True)
def status(run: Run) -> None:
    """Every hypothesis with its state and score, and what was spent."""
    siddhi = run.services.siddhi
    found = siddhi.store.hypotheses()
    state = siddhi.status()
    data = {**state, "hypotheses": [{**_data(one), **asdict(siddhi.counts(one.id))} for one in found]}

    def text() -> None:
        if state["halted"]:
            run.out.line(f"HALTED: {state['halted']} (lift it with: avyay siddhi resume)")
        for line in state["alarms"]:
            run.out.line(f"ALARM {line}")
        _show(run, found)

    run.out.result(data, text)


@command(app, results=True)
def show(run: Run, identifier: Identifier) -> None:
    """A hypothesis with its complaints, score and test."""
    siddhi = run.services.siddhi
    one = siddhi.store.hypothesis(identifier)
    complaints = siddhi.store.complaints(identifier)
    counts = siddhi.counts(identifier)

    def text() -> None:
        run.out.line(f"{one.id} {one.state}  {one.title}")
        if one.score is not None:
            run.out.line(f"score {one.score:.2f} by {one.scored_by}: {one.reasons.get('note', '')}")
            for name, part in dict(one.reasons.get("parts", {})).items():
                run.out.line(f"  {name}: {part:.2f}")
        for claim in one.reasons.get("claims", []):
            run.out.line(f"  {claim['about']}: {claim['words']!r} {claim['permalink']}")
        run.out.line(
            f"{counts.clicks} clicks billed ${counts.billed:.2f}, {counts.visits} visits seen,"
            f" {counts.conversions} sign-ups"
        )
        for complaint in complaints:
            run.out.line(f"- {complaint.permalink}\n  {complaint.text}")

    run.out.result({**_data(one), "complaints": [asdict(c) for c in complaints], **asdict(counts)}, text)


@command(app, results=True)
def why(run: Run, identifier: Identifier) -> None:
    """The history of a hypothesis: every change with its reason and numbers."""
    siddhi = run.services.siddhi
    siddhi.store.hypothesis(identifier)
    events = siddhi.store.history(identifier)

    def text() -> None:
        from datetime import UTC, datetime

        for event in events:
            at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M")
            step = f"{event.before or 'new'} -> {event.after}" if event.after else event.kind
            by = " (by hand)" if event.manual else ""
            run.out.line(f"{at}  {step}{by}: {event.reason}")

    run.out.result({"events": [asdict(event) for event in events]}, text)


@command(app)
def override(
    run: Run,
    identifier: Identifier,
    state: Annotated[str, typer.Argument(help="The new state, such as KILLED.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")],
) -> None:
    """Move a hypothesis by hand, whatever the table of states says; recorded as such."""
    from avyay.siddhi.machine import State

    if state.upper() not in State.__members__:
        raise UsageError(f"There is no state {state!r}.", hint=f"States are: {', '.join(State)}.")
    changed = run.services.siddhi.store.change(identifier, State[state.upper()], reason, manual=True)
    run.out.note(f"{identifier} is {changed.state} now.")


@command(app, results=True)
def page(
    run: Run,
    identifier: Identifier,
    undo: Annotated[bool, typer.Option("--undo", help="Publish the version before the last again.")] = False,
    preview: Annotated[int | None, typer.Option("--preview", help="Show the pages on this port of 127.0.0.1.")] = None,
) -> None:
    """Make the landing pages of a hypothesis; publish them where a place is configured."""
    from avyay.siddhi.landing import VARIANTS
    from avyay.siddhi.machine import State

    siddhi = run.services.siddhi
    if undo:
        kept = siddhi.unpublish(identifier)
        run.out.result({"now": str(kept) if kept else None}, "The page was taken down." if not kept else f"Now: {kept}")
        return
    if preview is not None:
        _preview(run, identifier, siddhi.site.versions(siddhi.store.hypothesis(identifier).id), preview)
        return
    siddhi.require(identifier, State.SCORED, State.GENERATING, State.TESTING)
    files = [str(file) for file in asyncio.run(siddhi.generate(identifier))]
    run.out.result({"pages": dict(zip(VARIANTS, files, strict=True))}, "\n".join(files))


@command(app, results=True)
def ads(run: Run) -> None:
    """All campaigns, after a look at the platforms."""
    governor = run.services.siddhi.governor
    swept = governor.sweep()
    rows = governor.campaigns.all()
    from avyay.money import format_usd, usd_string

    def text() -> None:
        for line in (*swept.done, *swept.failed):
            run.out.note(line)
        cells = [
            (
                r.name,
                r.platform,
                r.phase.value,
                format_usd(r.ordered),
                format_usd(r.worst),
                format_usd(r.billed),
                r.clicks,
            )
            for r in rows
        ]
        run.out.table(("Campaign", "Platform", "Phase", "Ordered", "Worst case", "Billed", "Clicks"), cells)

    data = [
        {**asdict(r), "ordered": usd_string(r.ordered), "worst": usd_string(r.worst), "billed": usd_string(r.billed)}
        for r in rows
    ]
    run.out.result({"campaigns": data, "done": swept.done, "failed": swept.failed}, text)


@command(app, results=True)
def budget(run: Run) -> None:
    """What was spent and what is reserved, in every scope."""
    from avyay.money import format_usd, usd_string

    governor = run.services.siddhi.governor
    balances = governor.ledger.balances()
    caps = governor.caps

    def text() -> None:
        run.out.line(
            f"Caps: {format_usd(caps.hypothesis)} a hypothesis, {format_usd(caps.day)} a day,"
            f" {format_usd(caps.month)} a month, {format_usd(caps.total)} in all"
        )
        cells = [
            (b.key, format_usd(b.spent), format_usd(b.reserved), format_usd(b.cap) if b.cap is not None else "-")
            for b in balances
        ]
        run.out.table(("Scope", "Spent", "Reserved", "Cap"), cells)
        for line in (*governor.ledger.problems(), *governor.campaigns.alarms()):
            run.out.line(f"ALARM {line}")

    data = [
        {
            "scope": b.key,
            "spent": usd_string(b.spent),
            "reserved": usd_string(b.reserved),
            "cap": usd_string(b.cap) if b.cap is not None else None,
        }
        for b in balances
    ]
    run.out.result({"scopes": data, "alarms": governor.campaigns.alarms()}, text)


@command(app)
def stop(
    run: Run,
    everything: Annotated[bool, typer.Option("--all", help="Pause every campaign; nothing starts any more.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown until somebody resumes.")] = "stopped by hand",
) -> ExitCode:
    """Pause everything that spends, at once."""
    if not everything:
        raise UsageError("Say that you mean all campaigns.", hint="avyay siddhi stop --all")
    failures = run.services.siddhi.governor.stop_all(reason)
    for line in failures:
        run.out.note(f"NOT STOPPED {line}")
    run.out.note("Nothing starts until: avyay siddhi resume")
    return ExitCode.DEPENDENCY if failures else ExitCode.OK


@command(app)
def resume(run: Run) -> None:
    """Let campaigns start again; what was paused stays paused until then."""
    run.services.siddhi.governor.resume()
    run.out.note("Campaigns may start again.")


@command(app, results=True)
def emails(
    run: Run,
    identifier: Annotated[str | None, typer.Argument(help="Only of this hypothesis.")] = None,
    delete: Annotated[str | None, typer.Option("--delete", help="Forget this address everywhere.")] = None,
) -> None:
    """Export the addresses that visitors left, or delete one."""
    visitors = run.services.siddhi.visitors
    if delete is not None:
        count = visitors.delete(address=delete)
        run.out.result({"deleted": count}, f"Deleted {count} sign-ups.")
        return
    rows = visitors.export(identifier)
    columns = ("Hypothesis", "Variant", "Address", "Confirmed")
    run.out.result(
        {"signups": [asdict(row) for row in rows]},
        lambda: run.out.table(columns, [(r.hypothesis, r.variant, r.address, r.confirmed) for r in rows]),
    )


@command(app)
def collect(
    run: Run,
    host: Annotated[str, typer.Option("--host", help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 8085,
) -> None:
    """Run the collector that landing pages report to: the only part meant for strangers."""
    from avyay.serve.run import bind, serve
    from avyay.siddhi.build import build_mailer
    from avyay.siddhi.collector import collector_app

    settings = run.services.settings.siddhi
    app = collector_app(
        run.services.siddhi.visitors,
        mailer=build_mailer(settings, run.services.loaded.environment),
        public_url=settings.page.collector,
        contact=settings.page.contact,
        own=settings.page.own,
        proxies=settings.page.proxies,
    )
    listener = bind(host, port, name="siddhi")
    run.out.note(f"The collector listens on http://{host}:{listener.getsockname()[1]}")
    serve(cast("Any", app), listener)


@command(app, results=True)
def demo(run: Run) -> None:
    """The whole loop on built-in fakes: no key, no network, no money; under a minute."""
    import tempfile

    from avyay.siddhi.demo import LABEL
    from avyay.siddhi.demo import demo as play

    with tempfile.TemporaryDirectory(prefix="avyay-siddhi-demo-") as folder:
        siddhi = play(Path(folder), run.out.note)
        found = siddhi.store.hypotheses()
        rows = [{**_data(one), **asdict(siddhi.counts(one.id))} for one in found]
        siddhi.close()

    def text() -> None:
        cells = [
            (r["id"], r["state"], f"{r['score']:.2f}", r["clicks"], r["conversions"], f"${r['billed']:.2f}", r["title"])
            for r in rows
        ]
        run.out.table(("ID", "State", "Score", "Clicks", "Sign-ups", "Billed", "Title"), cells, title=LABEL)

    run.out.result({"demo": True, "label": LABEL, "hypotheses": rows}, text)


def _spend(run: Run, name: str, total: str | None) -> Any:
    from avyay.siddhi.pipeline import LIVE_SWITCH, live

    if name not in ("dry-run", "validate", "live"):
        raise UsageError(f"There is no mode {name!r}.", hint="Modes are: dry-run, validate, live.")
    if name == "live":
        services = run.services
        live(services.paths.config / LIVE_SWITCH, total, services.siddhi.governor.caps.total)
    return name


class _Miners:
    """Opened for the time of a block; says what is left out for want of keys."""

    def __init__(self, run: Run, sources: list[str]) -> None:
        self._run = run
        self._sources = sources
        self._made: dict[str, Any] = {}

    async def __aenter__(self) -> dict[str, Any]:
        from avyay.siddhi.build import open_miners

        services = self._run.services
        self._made, missing = open_miners(self._sources, services.loaded.environment, services.clock)
        for line in missing:
            self._run.out.note(line)
        return self._made

    async def __aexit__(self, *_: object) -> None:
        for miner in self._made.values():
            await miner.close()


def _preview(run: Run, identifier: str, versions: list[Path], port: int) -> None:
    from avyay.serve.run import bind, serve

    if not versions:
        raise UsageError("There is no page yet.", hint=f"Make it: avyay siddhi page {identifier}")
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    listener = bind("127.0.0.1", port, name="siddhi")
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    run.out.note(f"Variant a: {address}  variant b: {address}b/  (from {versions[-1]})")
    serve(cast("Any", Starlette(routes=[Mount("/", StaticFiles(directory=versions[-1], html=True))])), listener)


def _data(one: Hypothesis) -> dict[str, Any]:
    return asdict(one)


def _show(run: Run, found: list[Hypothesis]) -> None:
    if not found:
        run.out.note("There are no hypotheses yet. Start with: avyay siddhi mine")
        return
    cells = [
        (one.id, one.state, f"{one.score:.2f}" if one.score is not None else "-", one.scored_by, one.segment, one.title)
        for one in found
    ]
    run.out.table(("ID", "State", "Score", "By", "Segment", "Title"), cells)


def _show_mined(run: Run, mined: list[Mined]) -> None:
    for one in mined:
        stopped = f"; stopped: {one.stopped}" if one.stopped else ""
        run.out.line(f"{one.source} {one.query!r}: {one.new} new of {one.seen} on {one.pages} pages{stopped}")


def _show_report(run: Run, report: Report) -> None:
    _show_mined(run, report.mined)
    for line in report.lines:
        run.out.line(line)
