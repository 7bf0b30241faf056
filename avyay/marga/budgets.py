"""What callers may spend: a worst case is drawn before a call and settled with its cost afterwards.

Draws come from blocks that are reserved durably (`avyay.ledger`), so no call waits for a disk. After a `kill -9` an
open block counts as spent until another process, or the next one, has read from the records what it paid for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path

from avyay.clock import Clock
from avyay.config.marga import BudgetSettings
from avyay.errors import PolicyError
from avyay.ledger import BlockLedger, Draw, Ledger, ReservationState, Scope, daily, monthly
from avyay.marga.call_journal import blocks_in_use, recover_calls
from avyay.marga.cost import cost_of
from avyay.marga.store import SqliteStore
from avyay.marga.types import Model
from avyay.money import ZERO, Picodollars, parse_usd, usd_string

__all__ = ["Budgets", "Spending", "worst_case"]

_DAY = 86_400
_BEFORE = 60.0  # seconds: a call is decided, and dated, before its block is opened
# How much more an input may turn out to be than it was estimated at, for what is never to be overspent.
_MARGIN_PERCENT = 150
_UNBOUNDED_OUTPUT = 32_768  # tokens, where neither the caller nor the catalogue names a limit


def worst_case(model: Model, *, input_tokens: int, max_tokens: int | None) -> Picodollars | None:
    """The most a call can cost, None when the model has no known price."""
    output = 0 if model.mode == "embedding" else model.max_output or _UNBOUNDED_OUTPUT
    if max_tokens is not None and max_tokens > 0:
        output = min(output, max_tokens)
    bound = input_tokens * _MARGIN_PERCENT // 100 + 64
    plain = cost_of(model, input_tokens=bound, output_tokens=output)
    written = cost_of(model, input_tokens=bound, output_tokens=output, cache_write=bound, cache_write_1h=bound)
    return None if plain is None or written is None else max(plain, written)


class Budgets:
    """The caps of a configuration.

    Args:
        path: The ledger's file.
        block: What is reserved at a time per cap.
        calls: The file with the records of all calls: what a block paid for whose owner is dead.
    """

    def __init__(
        self,
        rules: Sequence[BudgetSettings],
        path: Path,
        clock: Clock,
        *,
        block: Picodollars,
        calls: Path | None = None,
    ) -> None:
        self._calls = calls
        # Rules for everybody first: one that names somebody replaces them.
        self._rules = sorted(rules, key=lambda rule: rule.name != "*")
        self._clock = clock
        self.ledger = Ledger(path, clock=clock)
        self._blocks = BlockLedger(self.ledger, block=block)
        self._known: dict[tuple[str | None, str | None, str | None], tuple[Scope, ...]] = {}
        self._known_until = 0.0

    def scopes(self, key: str | None, service: str | None, customer: str | None) -> tuple[Scope, ...]:
        """The caps that hold for a caller now."""
        now = self._clock.now()
        if now >= self._known_until or len(self._known) > 10_000:
            self._known.clear()
            self._known_until = (now // _DAY + 1) * _DAY
        who = (key, service, customer)
        found = self._known.get(who)
        if found is None:
            found = self._known[who] = tuple(self._find(who, now))
        return found

    def _find(self, who: tuple[str | None, str | None, str | None], now: float) -> list[Scope]:
        names = {"key": who[0], "service": who[1], "customer": who[2], "all": None}
        found: dict[str, Scope] = {}
        for rule in self._rules:
            name = names[rule.per]
            if rule.per != "all" and rule.name not in ("*", name):
                continue
            key = "all" if rule.per == "all" else f"{rule.per}:{name or '(none)'}"
            if rule.daily is not None:
                found[f"{key}/day"] = daily(key, parse_usd(rule.daily), now)
            if rule.monthly is not None:
                found[f"{key}/month"] = monthly(key, parse_usd(rule.monthly), now)
        return list(found.values())

    def spending(self, scopes: tuple[Scope, ...]) -> Spending:
        """The account of one call."""
        return Spending(self._blocks, scopes)

    def rows(self, prefix: str = "") -> list[dict[str, str | None]]:
        """What is spent and reserved of every cap, in USD; also of those that nothing was spent under yet."""
        found = {
            balance.key: (balance.cap, balance.spent, balance.reserved) for balance in self.ledger.balances(prefix)
        }
        for scope, each in self._configured(self._clock.now()):
            # A cap on everybody by himself is there by the names of those who spent.
            seen = [key for key in found if fnmatchcase(key, scope.key)] if each else [scope.key]
            if scope.key.startswith(prefix) and not any(key in found for key in seen):
                found[scope.key] = (scope.cap, ZERO, ZERO)
        return [
            {
                "budget": key,
                "cap_usd": None if cap is None else usd_string(cap),
                "spent_usd": usd_string(spent),
                "reserved_usd": usd_string(reserved),
            }
            for key, (cap, spent, reserved) in found.items()
        ]

    def _configured(self, now: float) -> Iterator[tuple[Scope, bool]]:
        """The caps as they are configured, and whether one holds for each name by itself ("key:*/day:2026-11-21")."""
        for rule in self._rules:
            key = "all" if rule.per == "all" else f"{rule.per}:{rule.name}"
            each = rule.per != "all" and rule.name == "*"
            if rule.daily is not None:
                yield daily(key, parse_usd(rule.daily), now), each
            if rule.monthly is not None:
                yield monthly(key, parse_usd(rule.monthly), now), each

    def sync(self) -> None:
        """Write down what was spent; blocks, so not on an event loop.

        Raises:
            AvyayError: the disk does not let us; the next call does it.
        """
        self._blocks.sync()

    def settle_orphans(self) -> int:
        """Settle what processes held that were killed; says how many blocks. Blocks, so not on an event loop.

        What they left of their records is taken over first. As spent count the calls that are recorded, and the worst
        case of those that were under way: nobody knows how they ended.

        Raises:
            AvyayError: the ledger or the records cannot be read; the next call does it.
        """
        orphans = self.ledger.orphaned_blocks() if self._calls is not None else []
        if self._calls is None or not orphans:
            return 0
        recover_calls(self._calls, self._clock.now())
        # A process that is ending lets go of its files one after the other: that with its calls may come last.
        unread = blocks_in_use(self._calls)
        orphans = [block for block in orphans if block.id not in unread]
        with closing(SqliteStore(self._calls)) as store:
            for block in orphans:
                recorded, killed = store.paid_from(block.id, since=block.created_at - _BEFORE)
                open_ = block.state is ReservationState.OPEN
                # Those that were under way when the block was last written may have been recorded since.
                under_way = max(killed, min(block.held, block.outstanding) if open_ else block.held)
                spent = max(block.spent, recorded)
                actual = max(spent, min(spent + under_way, block.spent + block.held))
                self.ledger.reconcile(block, Picodollars(actual), note="its owner is gone: by the records of calls")
        return len(orphans)

    def close(self) -> None:
        """Give back what is reserved and not drawn."""
        self._blocks.close()
        self.ledger.close()


class Spending:
    """One call's draws."""

    __slots__ = ("_blocks", "_draws", "_held", "_scopes", "paid_by")

    def __init__(self, blocks: BlockLedger, scopes: tuple[Scope, ...]) -> None:
        self._blocks = blocks
        self._scopes = scopes
        self._draws: list[Draw] = []
        self._held = ZERO
        self.paid_by: tuple[int, ...] = ()  # the ledger's numbers of the blocks drawn from; kept with the call

    async def draw(self, amount: Picodollars | None, *, model: str) -> None:
        """Draw the worst case of the first candidate.

        Raises:
            BudgetExceededError: a cap does not allow it.
            PolicyError: the price is not known, so that no cap could hold.
        """
        if amount is None:
            raise _unpriced(model)
        self._add(await self._blocks.draw(self._scopes, amount))
        self._held = amount

    @property
    def held(self) -> Picodollars:
        """The worst case that is drawn for it."""
        return self._held

    async def cover(self, amount: Picodollars | None, *, model: str) -> None:
        """Draw what another candidate's worst case lacks.

        Raises:
            BudgetExceededError: a cap does not allow it.
            PolicyError: the price is not known.
        """
        if amount is None:
            raise _unpriced(model)
        if amount > self._held:
            self._add(await self._blocks.draw(self._scopes, Picodollars(amount - self._held)))
            self._held = amount

    def _add(self, draw: Draw) -> None:
        self._draws.append(draw)
        self.paid_by += tuple(number for number in draw.blocks if number not in self.paid_by)

    def settle(self, cost: Picodollars) -> None:
        """The call cost so much."""
        draws, self._draws = self._draws, []
        for draw in draws:
            self._blocks.settle(draw, cost)
            cost = ZERO


def _unpriced(model: str) -> PolicyError:
    return PolicyError(
        f"A budget holds for this call, and no price of {model!r} is known.",
        hint="Is the name right (avyay marga prices)? Else set input_price and output_price in avyay.yaml.",
        code="price_unknown",
    )
