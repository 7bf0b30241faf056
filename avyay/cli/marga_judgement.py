"""`avyay marga complexity` and its kin: how the router judges, and how well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from avyay.cli.command import Run, command


def add_commands(app: typer.Typer) -> None:
    """Put these commands into the group `avyay marga`."""
    command(app)(complexity)
    for shown in (classes, shadow, replay, calibrate, anomalies, experiments, cache):
        command(app, results=True)(shown)


def complexity(
    run: Run,
    file: Annotated[
        Path, typer.Argument(help="Requests as JSON lines {id, prompt} or {id, messages, ...}; - for stdin.")
    ],
) -> None:
    """Score requests: one line {id, complexity, tier, reasons} for each."""
    import sys

    from avyay.errors import UsageError
    from avyay.marga.scoring import score_lines

    routing = run.loaded.settings.marga.routing
    write = run.out.stdout.write

    def work(lines: Iterable[bytes]) -> None:
        for line in score_lines(lines, local_below=routing.local_below, premium_from=routing.premium_from):
            write(line.decode())

    if str(file) == "-":
        work(sys.stdin.buffer)
        return
    try:
        with file.open("rb") as source:
            work(source)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}.", hint="Name a file of JSON lines, or - for stdin.") from error


def classes(run: Run) -> None:
    """List request classes: the tier each needs at least, and the evidence."""
    from avyay.marga.shadow import DEFAULT_TEST

    store = run.services.verdicts
    changes = {change.request_class: change.sentence() for change in reversed(store.changes(limit=1000))}
    data = [{**state.as_data(), "last_change": changes.get(name)} for name, state in store.states().items()]

    def text() -> None:
        if not data:
            run.out.line("No class was compared yet. Turn on marga.shadow, and name classes with X-Request-Class.")
            return
        rows = []
        for entry in data:
            tests = "; ".join(
                f"{tier}: {test['failures']:g} of {test['count']} worse, evidence {test['evidence']:+.2f}"
                for tier, test in entry["tests"].items()
                if test["count"]
            )
            rows.append((entry["name"], entry["floor"], entry["tests_done"], tests, entry["last_change"] or ""))
        run.out.table(("Class", "At least", "Tests", "Now", "Last change"), rows)
        run.out.line(
            f"Promoted at log evidence {DEFAULT_TEST.upper:+.2f}, demoted at {DEFAULT_TEST.lower:+.2f}:"
            f" wrong in at most {DEFAULT_TEST.false_alarm:.0%} of tests when {DEFAULT_TEST.good:.0%} or fewer answers"
            f" are worse, missed in at most {DEFAULT_TEST.miss:.0%} when {DEFAULT_TEST.bad:.0%} or more are."
        )

    run.out.result({"classes": data}, text)
    run.services.close()


def shadow(
    run: Run,
    request_class: Annotated[str | None, typer.Option("--class", help="Only this class.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
) -> None:
    """List the newest comparisons of cheap answers with premium's, and what moved."""
    from dataclasses import asdict

    from avyay.money import Picodollars, usd_string

    store = run.services.verdicts
    rows = [
        {
            **{name: value for name, value in row.items() if name != "cost"},
            "cost_usd": usd_string(Picodollars(row["cost"])),
        }
        for row in store.comparisons(limit=limit, request_class=request_class)
    ]
    changes = [{**asdict(change), "sentence": change.sentence()} for change in store.changes(limit=limit)]

    def text() -> None:
        cells = [
            (
                r["request_class"],
                r["tier"],
                r["model"],
                r["reference"],
                f"{r['degraded']:.2f}",
                r["method"],
                r["detail"],
            )
            for r in rows
        ]
        run.out.table(("Class", "Tier", "Model", "Against", "Worse", "By"), cells)
        for change in changes:
            run.out.line(change["sentence"])

    run.out.result({"comparisons": rows, "changes": changes}, text)
    run.services.close()


def replay(
    run: Run,
    file: Annotated[Path | None, typer.Argument(help="Records of another tool; by default our own ledger.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="ledger; or a file of openai or litellm records; or which of these FILE holds."),
    ] = None,
    since: Annotated[str, typer.Option("--since", help="How far back in the ledger.", metavar="DURATION")] = "30d",
) -> None:
    """Show what past calls would have cost, and where they would have gone, under this configuration (--config)."""
    from avyay.config.types import parse_duration
    from avyay.errors import UsageError
    from avyay.marga.replay import ledger_calls
    from avyay.marga.replay import replay as replay_calls
    from avyay.marga.usage_logs import read_usage, tool_of
    from avyay.money import Picodollars, usd_string

    router = run.services.router
    if source not in (None, "ledger", "openai", "litellm"):
        if file is not None:
            raise UsageError(f"--from {source}: not ledger, openai or litellm.", hint="See: avyay marga replay -h")
        file, source = Path(source), None
    if (file is None) != (source in (None, "ledger")) and not (file is not None and source is None):
        raise UsageError(
            "Name a file together with --from openai or --from litellm.", hint="See: avyay marga replay -h"
        )
    if not router.candidates():
        raise UsageError("This configuration has no model to route to.", hint="See: avyay marga providers")
    if file is None:
        try:
            start = run.services.clock.now() - float(parse_duration(since))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--since {since}: {error}.", hint="For example: --since 7d") from error
        past = ledger_calls(run.services.calls.history(since=start))
    else:
        past = read_usage(file, "openai" if source == "openai" else "litellm" if source else tool_of(file), router)
    found = replay_calls(router, past)
    money = {
        "recorded_cost_usd": usd_string(Picodollars(found.recorded_cost)),
        "new_cost_usd": usd_string(Picodollars(found.new_cost)),
        "premium_cost_usd": usd_string(Picodollars(found.premium_cost)),
    }
    data: dict[str, Any] = {
        "calls": found.calls,
        "decided": found.decided,
        "same": found.same,
        "unroutable": found.unroutable,
        "unpriced": found.unpriced,
        **money,
        "tiers": dict(found.tiers),
        "before": dict(found.before.most_common()),
        "after": dict(found.after.most_common()),
        "changed": [{"id": a, "recorded": b, "now": c} for a, b, c in found.changed],
    }

    def text() -> None:
        out = run.out
        out.line(f"{found.calls} calls: ${money['recorded_cost_usd']} as recorded, ${money['new_cost_usd']} this way,")
        out.line(f"${money['premium_cost_usd']} if all had gone to the cheapest premium model.")
        if found.decided:
            out.line(f"{found.same} of {found.decided} decisions come out as recorded.")
        for name in sorted(set(found.before) | set(found.after)):
            out.line(f"  {name}: {found.before[name]} -> {found.after[name]}")
        if found.unroutable or found.unpriced:
            out.line(f"Left out of the costs: {found.unroutable} nobody could take, {found.unpriced} without a price.")

    run.out.result(data, text)
    run.services.close()


def calibrate(
    run: Run,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON lines {prompt, weak, strong}; by default the comparisons of marga.shadow."),
    ] = None,
) -> None:
    """Learn from your own traffic how much a stronger model gains; exit 1 when that is no better than what is there."""
    from avyay.errors import ExitCode, UsageError
    from avyay.marga.calibrate import Label, features_of, read_labels
    from avyay.marga.calibrate import calibrate as learn
    from avyay.marga.complexity import score
    from avyay.marga.scoring import view_json

    if labels is None:
        rows = run.services.verdicts.comparisons(limit=100_000)
        known = [
            Label(features_of(r["features"], r["complexity"]), r["degraded"], r["decision"], r["request_class"])
            for r in rows
            if r["tier"] == "local"
        ]
    else:
        try:
            lines = labels.read_bytes().splitlines()
        except OSError as error:
            raise UsageError(f"{labels}: {error.strerror}.", hint="Name a file of JSON lines.") from error

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], float]:
            view = view_json(row)
            return view.features(), score(view).score

        known = read_labels(lines, read)
    found = learn(known)
    data: dict[str, Any] = {
        "labels": found.labels,
        "mean_gain": found.mean_gain,
        "apgr": dict(found.apgr),
        "over": {name: {"difference": d, "low": low, "high": high} for name, (d, low, high) in found.over.items()},
        "adopted": found.adopted,
        "why": found.why,
    }
    if found.adopted and found.model is not None:
        import json

        path = run.services.paths.component("marga") / "calibration.json"
        document = {
            "model": found.model.as_data(),
            "local_below": found.local_below,
            "premium_from": found.premium_from,
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        data["file"] = str(path)

    def text() -> None:
        run.out.line(f"{found.labels} labels; a stronger model gains {found.mean_gain:+.3f} on average.")
        for name, value in found.apgr.items():
            run.out.line(f"  {name:8} APGR {value:.3f}")
        for name, (difference, low, high) in found.over.items():
            run.out.line(f"  learned minus {name}: {difference:+.3f} [{low:+.3f}, {high:+.3f}]")
        run.out.line(f"{'Adopted' if found.adopted else 'Not adopted'}: {found.why}.")

    run.out.result(data, text)
    run.services.close()
    if not found.adopted:
        raise typer.Exit(ExitCode.FINDINGS)


def anomalies(
    run: Run,
    days: Annotated[float, typer.Option("--days", min=0.1, max=90, help="How much past to judge by.")] = 14.0,
) -> None:
    """Say what was unusual in the last full hour, by provider and class; exit 1 when anything was."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from avyay.errors import ExitCode

    found = run.services.marga.anomalies(days=days)
    told = run.services.verdicts.alarms(since=run.services.clock.now() - days * 86_400)
    data, told_data = ([{**asdict(a), "sentence": a.sentence()} for a in rows] for rows in (found, told))

    def text() -> None:
        for anomaly in found:
            run.out.line(anomaly.sentence())
        if not found:
            run.out.line("Nothing unusual in the last full hour.")
        if told:
            run.out.line(f"Told by the daemon in the last {days:g} days, newest first:")
        for anomaly in told:
            when = datetime.fromtimestamp(anomaly.at, UTC).strftime("%Y-%m-%d %H:%M")
            run.out.line(f"  {when} {anomaly.sentence()}")

    run.out.result({"anomalies": data, "told": told_data}, text)
    run.services.close()
    if found:
        raise typer.Exit(ExitCode.FINDINGS)


def experiments(run: Run) -> None:
    """Read the configured A/B experiments; valid at any time, however often it is read."""
    import math

    from avyay.marga.experiments import report, results_of
    from avyay.marga.sequential import Interval

    rows = list(run.services.calls.history())
    quality = {row["decision"]: 1 - row["degraded"] for row in run.services.verdicts.comparisons(limit=100_000)}
    reports = [
        report(experiment, results_of(experiment, rows, quality))
        for experiment in run.services.router.experiments.values()
    ]

    def interval(found: Interval) -> dict[str, float | None]:
        low, high = (value if math.isfinite(value) else None for value in (found.low, found.high))
        return {"mean": found.mean, "low": low, "high": high}

    data = [
        {
            "name": each.experiment,
            "assigned": dict(each.assigned),
            "sound": each.sound,
            "mismatch": each.mismatch,
            "means": {arm: {m: interval(i) for m, i in found.items()} for arm, found in each.means.items()},
            "differences": {arm: {m: interval(i) for m, i in found.items()} for arm, found in each.differences.items()},
        }
        for each in reports
    ]

    def text() -> None:
        if not reports:
            run.out.line("No experiment is configured (marga.experiments).")
        for each in reports:
            counts = ", ".join(f"{arm} {count}" for arm, count in each.assigned.items())
            run.out.line(f"{each.experiment}: {counts}")
            if not each.sound:
                run.out.line("  Assignment is not as planned: believe nothing below.")
            for arm, metrics in each.differences.items():
                for metric, found in metrics.items():
                    sure = "" if found.excludes_zero else " (not told apart yet)"
                    span = f"[{found.low:+.4g}, {found.high:+.4g}]"
                    run.out.line(f"  {arm}: {metric} {found.mean:+.4g} {span}{sure}")

    run.out.result({"experiments": data}, text)
    run.services.close()


def cache(
    run: Run,
    clear: Annotated[bool, typer.Option("--clear", help="Forget the answers kept on disk.")] = False,
    key: Annotated[str | None, typer.Option("--key", help="Only what this key asked, by its label.")] = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only what was asked for this customer.")] = None,
    since: Annotated[str, typer.Option("--since", help="How far back in the ledger.", metavar="DURATION")] = "24h",
) -> None:
    """Show how often earlier answers were given again and what that saved; forget them with --clear."""
    from avyay.config.types import parse_duration
    from avyay.errors import UsageError
    from avyay.marga.cache import tenant_of
    from avyay.marga.cache_store import DiskCache
    from avyay.money import Picodollars, usd_string

    services = run.services
    settings = services.settings.marga.cache
    path = services.paths.data / "marga" / "cache.db"
    if clear and not path.exists():
        raise UsageError(
            "No answers are kept on disk.",
            hint="A daemon's memory is forgotten when it ends (marga.cache.storage).",
        )
    data: dict[str, Any] = {"enabled": settings.enabled, "storage": settings.storage}
    if path.exists():
        store = DiskCache(path, settings.max_size)
        try:
            if clear:
                whose = None if key is None and customer is None else tenant_of(key, customer)
                data["cleared"] = store.clear(whose)
            size = store.size()
        finally:
            store.close()
        data |= {"entries": size.entries, "bytes": size.size}
    try:
        start = services.clock.now() - float(parse_duration(since))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--since {since}: {error}.", hint="For example: --since 7d") from error
    groups = services.calls.stats("cache", since=start)
    calls = sum(row.calls for row in groups)
    hits = {row.group: row.hits for row in groups if row.hits}
    saved = usd_string(Picodollars(sum(row.saved for row in groups)))
    data |= {"since": since, "calls": calls, "hits": hits, "saved_usd": saved}

    def text() -> None:
        out = run.out
        if not settings.enabled:
            out.line("Answers are not kept (marga.cache.enabled).")
        if "cleared" in data:
            out.line(f"Forgot {data['cleared']} answers.")
        if "entries" in data:
            out.line(f"{data['entries']} answers on disk, {data['bytes']} bytes.")
        given = ", ".join(f"{count} {kind}" for kind, count in hits.items()) or "none"
        out.line(f"Last {since}: {calls} calls, given again: {given}; saved ${saved}.")

    run.out.result(data, text)
    services.close()
