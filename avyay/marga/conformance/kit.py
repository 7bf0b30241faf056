"""The kit itself: every case against a gateway, and what came of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from avyay.errors import UnreachableError, UsageError
from avyay.http import async_client
from avyay.marga.conformance.agreement import agree
from avyay.marga.conformance.registry import CALLERS, GROUPS, UPSTREAMS, Case, cases_of, traps
from avyay.marga.conformance.samples import plain
from avyay.marga.conformance.trial import NAMES, Bench, NotExpressibleError, Trial
from avyay.marga.conformance.upstream import Upstream
from avyay.marga.wire.model import Dialect
from avyay.ports import Progress

__all__ = ["DEFAULT_MODELS", "Outcome", "Report", "choose", "detect_models", "run_kit"]

# What a gateway must be configured with when `--model` does not say otherwise: one model per provider dialect.
DEFAULT_MODELS: dict[Dialect, str] = {
    "openai_chat": "conformance-chat",
    "openai_responses": "conformance-responses",
    "anthropic_messages": "conformance-messages",
    "ollama_chat": "conformance-ollama",
}
_SHORT = {dialect: name for name, dialect in NAMES.items()}
_AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case and what was wrong. `group` is its trap's."""

    id: str
    trap: str
    group: str
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class Report:
    """What a gateway did. `examples` counts the comparisons of streamed and unstreamed answers."""

    target: str
    outcomes: list[Outcome] = field(default_factory=list)
    examples: int = 0

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def passed(self) -> bool:
        return bool(self.outcomes) and not self.failed

    def groups(self) -> list[dict[str, Any]]:
        """Passed and all cases of each group."""
        rows = []
        for name in [*GROUPS, _AGREEMENT]:
            found = [outcome for outcome in self.outcomes if outcome.group == name]
            if found:
                rows.append({"group": name, "passed": sum(o.passed for o in found), "cases": len(found)})
        return rows


def choose(
    *, callers: Sequence[str] = (), upstreams: Iterable[Dialect] = UPSTREAMS, only: Sequence[str] = ()
) -> tuple[list[Case], list[tuple[Dialect, Dialect]]]:
    """The cases to run, and the pairs whose streamed and unstreamed answers are compared.

    Args:
        callers: Short names of the callers' dialects; all when empty.
        only: Ids of cases, or names of traps.

    Raises:
        UsageError: a name nobody knows.
    """
    for name in callers:
        if name not in NAMES:
            raise UsageError(f"There is no dialect {name!r}.", hint=f"Known: {', '.join(NAMES)}.")
    wanted = [NAMES[name] for name in callers] or list(CALLERS)
    ordered = list(upstreams)
    cases = cases_of(wanted, ordered)
    pairs = [(caller, upstream) for caller in wanted for upstream in ordered]
    if not only:
        return cases, pairs
    known = {trap.id for trap in traps()} | {case.id for case in cases_of()} | {_AGREEMENT}
    for name in only:
        if name not in known and name.partition(":")[0] != _AGREEMENT:
            raise UsageError(f"There is no case {name!r}.", hint="See: avyay marga conformance --list")
    kept = [case for case in cases if case.id in only or case.trap.id in only]
    return kept, [p for p in pairs if _AGREEMENT in only or _agreement_id(*p) in only]


def _agreement_id(caller: Dialect, upstream: Dialect) -> str:
    return f"{_AGREEMENT}:{_SHORT[caller]}>{_SHORT[upstream]}"


async def run_kit(
    target: str | Mapping[Dialect, str],
    upstream: Upstream,
    *,
    models: Mapping[Dialect, str] | None = None,
    key: str | None = None,
    callers: Sequence[str] = (),
    only: Sequence[str] = (),
    splits: int = 100,
    priced: bool = False,
    seed: int = 0,
    patience: float = 5.0,
    progress: Progress | None = None,
) -> Report:
    """Try every case on a gateway that forwards to `upstream`.

    Args:
        target: The gateway's base URL, or one for each upstream dialect.
        models: The gateway's model for each upstream dialect; those without one are left out.
        splits: Comparisons of streamed and unstreamed answers over all pairs; 0 leaves them out.
        priced: The models cost what `traps_avyay.PRICES` says.
        seed: Of the random examples.
        patience: Seconds in which what should happen at once must have happened.

    Raises:
        UsageError: an unknown dialect or case.
        UnreachableError: nothing answers there.
    """
    models = models or DEFAULT_MODELS
    cases, pairs = choose(callers=callers, upstreams=models, only=only)
    urls = dict.fromkeys(models, target) if isinstance(target, str) else {d: target[d] for d in models}
    urls = {dialect: url.rstrip("/") for dialect, url in urls.items()}
    report = Report(", ".join(dict.fromkeys(urls.values())))
    async with async_client(read=30.0) as http:
        bench = Bench(http, urls, key, upstream, models, priced=priced, patience=patience)
        bench = replace(bench, avyay=await _is_ours(bench, next(iter(models))))
        if not bench.avyay:
            cases = [case for case in cases if case.trap.group != "avyay"]
        for caller, dialect in dict.fromkeys((case.caller, case.upstream) for case in cases):
            bench.known[caller, dialect] = await _known(Trial(bench, caller, dialect))
        total = len(cases) + (splits if pairs else 0)
        for number, case in enumerate(cases):
            if progress is not None:
                progress(number, total, case.id)
            outcome = await _try(case, bench)
            if outcome is not None:
                report.outcomes.append(outcome)
        if splits and pairs:
            await _compare(report, bench, pairs, splits, random.Random(seed), progress, len(cases))  # noqa: S311
    return report


async def detect_models(
    target: str, upstream: Upstream, given: Mapping[Dialect | None, str], key: str | None
) -> dict[Dialect, str]:
    """The models with their upstreams; where the caller named only a model, a request shows where it goes.

    Raises:
        UnreachableError: the gateway does not answer, or does not forward to the upstream.
    """
    unknown = given.get(None)
    if unknown is None:
        return {dialect: name for dialect, name in given.items() if dialect is not None}
    async with async_client(read=30.0) as http:
        models: dict[Dialect, str] = {"openai_chat": unknown}
        bench = Bench(http, {"openai_chat": target.rstrip("/")}, key, upstream, models)
        try:
            got, arrived = await Trial(bench, "openai_chat", "openai_chat").send(plain(), stream=False)
        except httpx2.HTTPError as error:
            raise _silent(target, error) from error
    if arrived is None or arrived.dialect is None:
        raise UnreachableError(
            f"The gateway answered HTTP {got.status}, but nothing reached {upstream.url}.",
            hint=f"Configure its model {unknown!r} to use {upstream.url} as provider.",
        )
    return {arrived.dialect: unknown}


def _silent(url: str, error: Exception) -> UnreachableError:
    return UnreachableError(f"Nothing answers at {url} ({type(error).__name__}).", hint="Is the gateway running there?")


async def _is_ours(bench: Bench, upstream: Dialect) -> bool:
    """Whether the gateway writes our headers."""
    try:
        got, _ = await Trial(bench, "openai_chat", upstream).send(plain(), stream=False)
    except httpx2.HTTPError as error:
        raise _silent(bench.urls[upstream], error) from error
    return "x-avyay-decision-id" in got.headers


async def _known(trial: Trial) -> frozenset[str]:
    """The breaches of form in a pair's plainest answers; `text` counts them."""
    found: set[str] = set()
    for stream in (False, True):
        try:
            got, _ = await trial.send(plain(), stream=stream)
        except (httpx2.HTTPError, NotExpressibleError):
            continue
        observed = trial.read(got, stream=stream) if got.status == 200 else None
        found.update(observed.violations if observed is not None else ())
    return frozenset(found)


async def _try(case: Case, bench: Bench) -> Outcome | None:
    """The outcome of a case; None when its caller's dialect cannot even ask."""
    problems: list[str] = []
    asked = False
    for stream in case.trap.modes:
        trial = Trial(bench, case.caller, case.upstream, label="streamed" if stream else "whole")
        try:
            async with asyncio.timeout(60):
                await case.trap.check(trial, stream)
        except NotExpressibleError:
            continue
        except (httpx2.HTTPError, TimeoutError) as error:
            trial.expect(False, f"no answer: {type(error).__name__}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            trial.expect(False, f"the answer cannot be read: {type(error).__name__}: {error}")
        asked = True
        problems += trial.problems
        if case.trap.isolated:
            await _forgive(trial)
    return Outcome(case.id, case.trap.id, case.trap.group, tuple(problems)) if asked else None


async def _forgive(trial: Trial) -> None:
    """Successes after a failure, so that no gateway gives the provider up because of our own script."""
    for _ in range(4):
        try:
            await trial.send(plain(), stream=False)
        except httpx2.HTTPError:
            return


async def _compare(
    report: Report,
    bench: Bench,
    pairs: Sequence[tuple[Dialect, Dialect]],
    splits: int,
    source: random.Random,
    progress: Progress | None,
    done: int,
) -> None:
    found: dict[str, list[str]] = {_agreement_id(*pair): [] for pair in pairs[:splits]}
    for number in range(splits):
        caller, upstream = pairs[number % len(pairs)]
        trial = Trial(bench, caller, upstream, label=f"example {number}")
        name = _agreement_id(caller, upstream)
        if progress is not None:
            progress(done + number, done + splits, name)
        try:
            async with asyncio.timeout(60):
                await agree(trial, source)
        except (httpx2.HTTPError, TimeoutError) as error:
            trial.expect(False, f"no answer: {type(error).__name__}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            trial.expect(False, f"the answer cannot be read: {type(error).__name__}: {error}")
        found[name] += trial.problems
        report.examples += 1
    report.outcomes += [Outcome(name, _AGREEMENT, _AGREEMENT, tuple(problems)) for name, problems in found.items()]
