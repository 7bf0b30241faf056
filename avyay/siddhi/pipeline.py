"""The service: mine, score, generate, test, decide; every step can be run again and goes on where it was."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError, PolicyError, UsageError
from avyay.money import ZERO, Picodollars, format_usd, parse_usd, usd_number
from avyay.ports import Completer, Completion, Embedder, Message, Scanner
from avyay.siddhi.ads.base import Order
from avyay.siddhi.budget import Governor
from avyay.siddhi.campaigns import CampaignRow, Phase
from avyay.siddhi.cluster import cluster, keywords, phrases
from avyay.siddhi.decide import Decide, Mode, Policy, Rules
from avyay.siddhi.deploy import Target
from avyay.siddhi.landing import VARIANTS, page_token, render, write_copy
from avyay.siddhi.learn import Counts, finished_tests, gap, judge, policy_from
from avyay.siddhi.machine import State
from avyay.siddhi.mine import Mined, mine
from avyay.siddhi.miners.base import Miner
from avyay.siddhi.power import assess, require_decidable
from avyay.siddhi.score import score
from avyay.siddhi.site import Site
from avyay.siddhi.spending import WORST, GovernedCompleter
from avyay.siddhi.store import Store
from avyay.siddhi.types import Hypothesis
from avyay.siddhi.visitors import Visitors

__all__ = ["LIVE_SWITCH", "Siddhi", "Spend", "Terms", "live"]

Spend = Literal["dry-run", "validate", "live"]
LIVE_SWITCH = "siddhi-live"
"""The file in the configuration folder without which no money is spent."""
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Terms:
    """How hypotheses are tested; see the settings of the same names."""

    bar: float = 0.05
    gain: float = 300.0
    caution: float = 0.5
    mode: Mode = "value"
    price: float = 0.6
    days: int = 3
    least_score: float = 0.4
    platform: str | None = None
    countries: tuple[str, ...] = ("US",)
    contact: str = ""
    url: str = ""
    collector: str = "http://127.0.0.1:8085"
    confirmed_only: bool = False


@dataclass(slots=True)
class Report:
    """What a run did, line by line."""

    mined: list[Mined] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def live(switch: Path, typed: str | None, total: Picodollars) -> None:
    """Refuse to spend unless the switch file exists and the total was typed.

    Raises:
        PolicyError: One of the two is missing.
    """
    if not switch.is_file():
        raise PolicyError(
            f"Live spending is switched off: there is no file {switch}.",
            hint=f"When you mean it: touch {switch}",
            code="not_live",
        )
    if typed is None or parse_usd(typed) != total:
        raise PolicyError(
            f"Live spending needs the total typed: {format_usd(total)}.",
            hint=f"Add --total {format_usd(total).lstrip('$')}",
            code="total_not_typed",
        )


class Siddhi:
    """Joins the parts. Not thread-safe: one run at a time in a process, any number of processes."""

    def __init__(
        self,
        *,
        home: Path,
        terms: Terms,
        store: Store,
        governor: Governor,
        visitors: Visitors,
        embedder: Callable[[], Embedder],
        completer: Callable[[], Completer | None] = lambda: None,
        target: Target | None = None,
        scanner: Callable[[], Scanner] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.home = home
        self.terms = terms
        self.store = store
        self.governor = governor
        self.visitors = visitors
        self.clock = clock
        self._embedder = embedder
        self._completer = completer
        self._target = target
        self._scanner = scanner
        self.site = Site(home / "pages")

    def close(self) -> None:
        """Close the files."""
        self.visitors.close()
        self.governor.close()
        self.store.close()

    @property
    def rules(self) -> Rules:
        """The terms of a test, with the platform's overspend."""
        platform = self.governor.platforms.get(self.terms.platform or "")
        return Rules(
            cap=usd_number(self.governor.caps.hypothesis),
            bar=self.terms.bar,
            gain=self.terms.gain,
            caution=self.terms.caution,
            overspend=float(platform.overspend) if platform else 1.0,
        )

    # ------------------------------------------------------------ mine and score

    async def mine(self, jobs: Sequence[tuple[Miner, str]], pages: int) -> list[Mined]:
        """Read the sources."""
        return await mine(self.store, jobs, pages=pages, governor=self.governor, clock=self.clock)

    async def recheck(self, miners: Sequence[Miner]) -> int:
        """Ask the sources what was deleted there, and forget it; returns how much."""
        known = self.store.complaints()
        forgotten = 0
        for miner in miners:
            for identifier in await miner.gone([one.id for one in known if one.source == miner.name]):
                forgotten += self.store.forget(miner.name, identifier)
        return forgotten

    def discover(self) -> list[Hypothesis]:
        """Make hypotheses of the complaints that support none yet."""
        waiting = self.store.unclaimed()
        found = cluster(waiting, self._embedder()) if waiting else []
        made = []
        for one in found:
            segments = [complaint.segment for complaint in one.complaints if complaint.segment]
            segment = max(set(segments), key=segments.count) if segments else "general"
            reason = f"{len(one.complaints)} complaints ({one.copies} copies) from {', '.join(one.sources)}"
            made.append(self.store.discover(one.title, segment, one.complaints, reason))
        return made

    async def score(self, identifier: str) -> Hypothesis:
        """DISCOVERED -> SCORED."""
        found = await score(
            self.store.complaints(identifier), hypothesis=identifier, completer=self._model(), store=self.store
        )
        reason = f"score {found.value:.2f} by {found.by}: {found.note}"
        return self.store.change(
            identifier, State.SCORED, reason, data=found.data(), score=(found.value, found.by, found.data())
        )

    # ------------------------------------------------------------ pages

    async def generate(self, identifier: str) -> list[Path]:
        """Write both variants of a GENERATING hypothesis' page, and publish them where a target is set."""
        hypothesis = self.store.hypothesis(identifier)
        complaints = self.store.complaints(identifier)
        words = phrases(complaints) or keywords(complaints)
        files: dict[str, str] = {}
        notes = []
        for variant in VARIANTS:
            copy, note = await write_copy(hypothesis, complaints, words, variant, self._model())
            token = page_token(self.visitors.page_secret, identifier, variant, hypothesis.round)
            made = render(
                hypothesis,
                variant,
                copy,
                token=token,
                collector=self.terms.collector,
                contact=self.terms.contact,
            )
            files |= {f"{_place(variant)}{name}": content for name, content in made.files.items()}
            notes.append(f"variant {variant}: {note}")
        folder = await asyncio.to_thread(self.site.add, identifier, files)
        if (refused := await asyncio.to_thread(self._faults, folder)) is not None:
            await asyncio.to_thread(shutil.rmtree, folder)
            self.store.note(identifier, "page", f"refused: {refused}")
            raise PolicyError(
                f"The page may not be shown: {refused}.", hint=f"Try again: avyay siddhi page {identifier}"
            )
        self.store.note(identifier, "page", "; ".join(notes), {"folder": str(folder)})
        if self._target is not None:
            await asyncio.to_thread(self.site.publish, self._target)
            self.store.note(identifier, "published", "both variants", {"urls": list(self.page_urls(identifier))})
        return [folder / f"{_place(variant)}index.html" for variant in VARIANTS]

    def _faults(self, folder: Path) -> str | None:
        """What the scanner finds wrong with a page, or why it could not look; None when the page is fine."""
        if self._scanner is None:
            return None
        report = self._scanner().scan([folder])
        found = [
            f"{one.path}:{one.line} {one.message}"
            for one in report.findings
            if one.rule.startswith("landing-page-") or one.severity in ("critical", "high")
        ]
        found += [f"{one.path} could not be checked: {one.reason}" for one in report.skipped]
        return "; ".join(found) or None

    def unpublish(self, identifier: str) -> Path | None:
        """Go back to the page before the last; None when there is none now.

        Raises:
            UsageError: nothing was published, or there is no place to publish.
        """
        if self._target is None:
            raise UsageError("There is no place to publish.", hint="Set siddhi.page.publish in avyay.yaml.")
        kept = self.site.undo(identifier, self._target)
        self.store.note(identifier, "unpublished", f"back to {kept.name}" if kept else "the page was taken down")
        return kept

    def page_urls(self, identifier: str) -> tuple[str, ...]:
        """Where the variants appear; nothing when no address is set."""
        if not self.terms.url:
            return ()
        base = self.terms.url if "{id}" in self.terms.url else f"{self.terms.url.rstrip('/')}/{{id}}"
        base = base.replace("{id}", identifier).rstrip("/")
        return tuple(f"{base}/{_place(variant)}" for variant in VARIANTS)

    # ------------------------------------------------------------ testing

    def order(self, identifier: str, spend: Spend) -> str:
        """Have clicks ordered for a TESTING hypothesis; says what was done.

        Raises:
            CannotDecideError: The money cannot change the verdict.
            BudgetExceededError, HaltedError: The governor refuses.
        """
        platform = self.terms.platform
        if platform is None:
            where = " and ".join(self.page_urls(identifier)) or "the page"
            return f"bring visitors to {where}: no platform is set"
        require_decidable(assess(self.rules, self.terms.price, mode=self.terms.mode))
        ends_at = self.clock.now() + self.terms.days * _DAY
        if spend == "dry-run":
            rules = self.rules
            return (
                f"dry run: would order {format_usd(parse_usd(f'{rules.cap / rules.overspend:.2f}'))} of clicks at"
                f" {platform}, billed at most ${rules.cap:.2f}, for {self.terms.days} days"
            )
        # A campaign must not eat what the models that comment on its end will need.
        completer = self._completer()
        leave = WORST if completer is not None and completer.available() else ZERO
        amount = self.governor.largest_order(platform, identifier, self.terms.days, leave=leave)
        if amount < parse_usd(repr(self.terms.price)):
            raise PolicyError(
                f"{format_usd(amount)} is left for {identifier}: less than a click.", hint="See: avyay siddhi budget"
            )
        if spend == "validate":
            checked = self.governor.platforms[platform].validate(
                self._order(f"avyay-check-{identifier}", identifier, amount, ends_at)
            )
            return f"validated at {platform}: {checked}"
        row = self.governor.order(
            platform, identifier, amount, ends_at, lambda name: self._order(name, identifier, amount, ends_at)
        )
        self.governor.start(row.name)
        self.store.note(
            identifier, "campaign", f"{row.name} started at {platform} for {format_usd(amount)}", {"name": row.name}
        )
        return f"{row.name} runs at {platform}: {format_usd(amount)} ordered, {format_usd(row.worst)} reserved"

    def _order(self, name: str, identifier: str, amount: Picodollars, ends_at: float) -> Order:
        complaints = self.store.complaints(identifier)
        words = keywords(complaints)
        about = next((one for one in phrases(complaints) if len(one) <= 18), (words or ("this job",))[0][:18])
        return Order(
            name=name,
            amount=amount,
            ends_at=ends_at,
            urls=self.page_urls(identifier) or (self.terms.collector,),
            headlines=(f"Tired of {about}?"[:30], "An idea, not a product yet", "Tell us if you want it"),
            descriptions=(
                "We ask whether somebody should make this. Leave your address if so.",
                "Nothing to buy: we are finding out whether it is worth making.",
            ),
            keywords=tuple(" ".join(words[i : i + 2]) for i in range(0, min(4, len(words)), 2)),
            countries=self.terms.countries,
            max_click=parse_usd(f"{3 * self.terms.price:.2f}"),
        )

    def campaigns(self, identifier: str) -> list[CampaignRow]:
        """The campaigns of a hypothesis."""
        return self.governor.campaigns.all(hypothesis=identifier)

    def counts(self, identifier: str) -> Counts:
        """What all rounds of a hypothesis have brought so far."""
        funnels = self.visitors.funnel(identifier)
        rows = self.campaigns(identifier)
        billed = Picodollars(sum(row.billed for row in rows)) if rows else ZERO
        return Counts(
            clicks=sum(row.clicks for row in rows),
            visits=sum(funnel.seen for funnel in funnels),
            conversions=sum(f.confirmed if self.terms.confirmed_only else f.signups for f in funnels),
            billed=usd_number(billed),
            bought=bool(rows),
        )

    def read(self, identifier: str) -> str:
        """Look at a TESTING hypothesis; when its test is over or decided, stop buying: TESTING -> ANALYZING."""
        counts = self.counts(identifier)
        rows = self.campaigns(identifier)
        running = [row for row in rows if row.phase in (Phase.STARTING, Phase.RUNNING)]
        hypothesis = self.store.hypothesis(identifier)
        over = bool(rows) and not running
        step = judge(self._policy(identifier), hypothesis.segment, self.terms.price, counts, over=over)
        if not rows and not counts.trials:
            return "waits for visitors"
        if not isinstance(step, Decide):
            return f"goes on: {counts.trials} clicks, {counts.conversions} sign-ups"
        for row in running:
            self.governor.stop(row.name)
        self.store.change(
            identifier, State.ANALYZING, f"the test is over: {step.reason}", data={"trials": counts.trials}
        )
        return f"test over: {step.reason}"

    def analyse(self, identifier: str) -> str:
        """ANALYZING -> a verdict, unless billed clicks and seen visits disagree."""
        hypothesis = self.store.hypothesis(identifier)
        counts = self.counts(identifier)
        if (words := gap(counts)) is not None:
            if not any(event.reason == words for event in self.store.history(identifier)):
                self.store.note(identifier, "blocked", words)
            return f"blocked: {words}"
        step = judge(self._policy(identifier), hypothesis.segment, self.terms.price, counts, over=True)
        if not isinstance(step, Decide):
            return "waits"
        data = {
            "trials": counts.trials,
            "clicks": counts.clicks,
            "visits": counts.visits,
            "conversions": counts.conversions,
            "billed": counts.billed,
            "mode": self.terms.mode,
        }
        self.store.change(identifier, State(step.verdict), step.reason, data=data)
        for row in self.campaigns(identifier):
            if row.phase not in (Phase.CLOSING, Phase.CLOSED):
                self.governor.finish(row.name)
        if step.verdict == "KILLED":
            self._end_page(identifier)
        return f"{step.verdict}: {step.reason}"

    def _end_page(self, identifier: str) -> None:
        """Nobody is asked for an address for what will not be made."""
        if self._target is None or not self.site.versions(identifier):
            return
        self.site.end(identifier)
        try:
            self.site.publish(self._target)
        except AvyayError as error:
            self.store.note(identifier, "published", f"the page could not be ended: {error}; run again")
        else:
            self.store.note(identifier, "published", "the page says that it has ended")

    async def opinion(self, identifier: str) -> str | None:
        """What the premium model makes of a verdict, for the record: the statistics have decided already."""
        completer = self._model()
        if completer is None or not completer.available():
            return None
        hypothesis = self.store.hypothesis(identifier)
        last = next(event for event in reversed(self.store.history(identifier)) if event.after is hypothesis.state)
        prompt = (
            f"A test of demand ended {hypothesis.state}. Numbers: {dict(last.data)}. Reason: {last.reason}. Bar:"
            f" {self.terms.bar}. Say in three sentences what to do next. The verdict stands; do not argue with it."
        )
        request = Completion(
            (Message("user", prompt),),
            tier="premium",
            request_class="siddhi_verdict",
            max_tokens=250,
            service="siddhi",
            customer=identifier,
        )
        try:
            reply = await completer.complete(request)
        except AvyayError as error:
            self.store.note(identifier, "opinion", f"no model gave an opinion: {error}")
            return None
        self.store.note(identifier, "opinion", reply.text.strip()[:600], {"model": reply.model})
        return reply.text

    # ------------------------------------------------------------ a whole run

    async def run(self, jobs: Sequence[tuple[Miner, str]], *, pages: int, spend: Spend = "dry-run") -> Report:
        """One pass over everything. Without `live` no hypothesis leaves SCORED: pages and ads wait for money."""
        report = Report()
        report.mined = await self.mine(jobs, pages)
        report.lines += [f"{one.id} found: {one.title}" for one in await asyncio.to_thread(self.discover)]
        for one in self.store.hypotheses(State.DISCOVERED):
            scored = await self.score(one.id)
            report.lines.append(f"{one.id} scored {scored.score:.2f} by {scored.scored_by}")
        swept = await asyncio.to_thread(self.governor.sweep)
        report.lines += [*swept.done, *(f"FAILED {line}" for line in swept.failed)]
        for one in self.store.hypotheses():
            try:
                report.lines += [f"{one.id} {line}" for line in await self.step(one.id, spend)]
            except AvyayError as error:
                report.lines.append(f"{one.id} {error}")
        return report

    async def step(self, identifier: str, spend: Spend) -> list[str]:
        """Move one hypothesis on as far as it goes now; says what happened."""
        hypothesis = self.store.hypothesis(identifier)
        lines = []
        worth = (hypothesis.score or 0) >= self.terms.least_score
        if hypothesis.state is State.SCORED and worth:
            if spend != "live" and self.terms.platform is not None:
                return [self.order(identifier, spend)]
            hypothesis = self.store.change(
                identifier, State.GENERATING, f"score {hypothesis.score:.2f} of {self.terms.least_score:.2f} needed"
            )
        if hypothesis.state is State.PROMISING and spend == "live" and hypothesis.round < 3:
            hypothesis = self.store.change(identifier, State.GENERATING, "undecided: another round")
        if hypothesis.state is State.GENERATING:
            await self.generate(identifier)
            hypothesis = self.store.change(identifier, State.TESTING, "pages are made")
            lines.append("pages made")
        if hypothesis.state is State.TESTING:
            if spend == "live" and not self._ordered(hypothesis):
                lines.append(await asyncio.to_thread(self.order, identifier, spend))
            lines.append(await asyncio.to_thread(self.read, identifier))
            hypothesis = self.store.hypothesis(identifier)
        if hypothesis.state is State.ANALYZING:
            lines.append(await asyncio.to_thread(self.analyse, identifier))
            if self.store.hypothesis(identifier).state is not State.ANALYZING:
                await self.opinion(identifier)
        return lines

    def _ordered(self, hypothesis: Hypothesis) -> bool:
        """Whether this round has its campaign."""
        return len(self.campaigns(hypothesis.id)) >= hypothesis.round

    def _policy(self, identifier: str) -> Policy:
        """What all other hypotheses have taught."""
        others = [one for one in self.store.hypotheses() if one.id != identifier]
        earlier = finished_tests((one.segment, self.store.history(one.id)) for one in others)
        return policy_from(self.rules, self.terms.mode, earlier)

    def _model(self) -> Completer | None:
        inner = self._completer()
        return GovernedCompleter(inner, self.governor) if inner is not None else None

    def status(self) -> Mapping[str, Any]:
        """Counts for a board."""
        found = self.store.hypotheses()
        return {
            "complaints": self.store.complaint_count(),
            "states": {state.value: sum(one.state is state for one in found) for state in State},
            "halted": self.governor.campaigns.halted(),
            "alarms": self.governor.campaigns.alarms(),
        }

    def require(self, identifier: str, *states: State) -> Hypothesis:
        """A hypothesis that must be in one of `states`."""
        found = self.store.hypothesis(identifier)
        if found.state not in states:
            raise UsageError(f"{identifier} is {found.state}, not {' or '.join(states)}.", hint="See its history.")
        return found


def _place(variant: str) -> str:
    """Path of a variant under its hypothesis."""
    return "" if variant == VARIANTS[0] else f"{variant}/"
