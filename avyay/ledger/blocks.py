"""Budgets on the hot path: blocks are reserved durably and drawn in memory, so that a call waits for no disk.

Per scope one block is held in the ledger. A call draws its worst case from the blocks of all its scopes and settles
what it cost, both in memory; now and then `sync` writes down what was spent and gives back what lies idle. All a block
holds counts as spent for everybody else, so no crash and no number of processes takes a scope past its cap. After a
`kill -9` the block stays held until `Ledger.reconcile` is told the truth, which the call records know: every draw names
its blocks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from avyay.db_gaps import hold_liveness, liveness_file
from avyay.errors import AvyayError, InternalError, UsageError
from avyay.ledger.durable import Ledger
from avyay.ledger.types import BudgetExceededError, Scope
from avyay.log import get_logger
from avyay.money import DOLLAR, ZERO, Picodollars

__all__ = ["BlockLedger", "Draw"]

# How long a refusal is believed before the ledger is asked again, and how often blocks are topped up in the background:
# a budget that is nearly used up must not cost a transaction per call.
_REFUSAL_SECONDS = 1.0
_MOST_REFUSALS = 10_000  # remembered: scopes are named by callers
_TOP_UP_SECONDS = 0.25
# A block is at most this share of what is left, so that several processes can all work near the cap.
_SHARE = 8


@dataclass(slots=True)
class Draw:
    """A worst case drawn from the blocks of all scopes of one call; give it back with `settle`.

    Args:
        amount: What was drawn.
        blocks: The ledger's number of each block: store them with the call, for `Ledger.reconcile`.
    """

    amount: Picodollars
    blocks: tuple[int, ...]
    _from: tuple[_Block, ...] = field(repr=False)
    _done: bool = False


@dataclass(slots=True, eq=False)
class _Block:
    scope: Scope
    number: int
    free: int  # may fall below zero when calls cost more than their worst case
    outstanding: int = 0
    spent: int = 0
    draws: int = 0  # since the last sync
    synced: tuple[int, int] = (0, 0)  # `spent` and `outstanding` as the ledger knows them


class BlockLedger:
    """Draws from blocks of a `Ledger`. Thread-safe; its asynchronous method is for one event loop.

    Args:
        ledger: The durable ledger; any number of processes may use its file.
        block: The size of a block: what a `kill -9` may leave to be reconciled per scope, and how often the ledger is
            asked. Blocks shrink as a cap comes near.
    """

    def __init__(self, ledger: Ledger, *, block: Picodollars = DOLLAR) -> None:
        self._ledger = ledger
        self._size = block
        self._owner = secrets.token_hex(8)
        self._liveness: int | None = hold_liveness(liveness_file(ledger.path, self._owner))
        self._lock = threading.Lock()  # guards the blocks' amounts: held for microseconds
        self._refilling = threading.Lock()  # one conversation with the ledger at a time
        self._blocks: dict[str, _Block] = {}
        self._refusals: dict[str, tuple[float, Scope, BudgetExceededError]] = {}
        self._sequence = 0
        self._next_top_up = float("-inf")
        self._refill_task: asyncio.Future[None] | None = None
        self._log = get_logger(__name__)

    @property
    def owner(self) -> str:
        """What its blocks carry as `Reservation.owner`."""
        return self._owner

    def try_draw(self, scopes: Sequence[Scope], worst_case: Picodollars) -> Draw | None:
        """Draw from memory, from all scopes or none; scopes without a cap are passed over.

        Returns:
            None when a block must be filled first: then use `draw` or `draw_blocking`.

        Raises:
            BudgetExceededError: The ledger refused this scope a moment ago.
            UsageError: A negative amount.
        """
        if worst_case < 0:
            raise UsageError("a call cannot cost less than nothing")
        with self._lock:
            blocks = []
            for scope in scopes:
                if scope.cap is None:
                    continue
                block = self._blocks.get(scope.key)
                if block is None or block.free < worst_case or block.scope != scope:
                    self._check_refusal(scope, worst_case)
                    return None
                blocks.append(block)
            for block in blocks:
                block.free -= worst_case
                block.outstanding += worst_case
                block.draws += 1
        return Draw(worst_case, tuple([block.number for block in blocks]), tuple(blocks))

    async def draw(self, scopes: Sequence[Scope], worst_case: Picodollars) -> Draw:
        """Draw, from memory whenever possible; blocks that run low are filled in the background.

        Raises:
            BudgetExceededError: A scope's cap does not allow it; nothing was drawn.
            AvyayError: The ledger cannot be reached and memory does not suffice.
        """
        while (draw := self.try_draw(scopes, worst_case)) is None:
            # One filling serves all that wait for it.
            task = self._refill_task
            if task is None:
                task = self._refill_task = asyncio.ensure_future(
                    asyncio.to_thread(self._refill, tuple(scopes), worst_case)
                )
                task.add_done_callback(self._refilled)
                await asyncio.shield(task)
            else:
                await asyncio.wait((task,))
        if self._refill_task is None and self._wants_more(draw):
            self._refill_task = asyncio.ensure_future(asyncio.to_thread(self._top_up, tuple(scopes), worst_case))
            self._refill_task.add_done_callback(self._refilled)
        return draw

    def draw_blocking(self, scopes: Sequence[Scope], worst_case: Picodollars) -> Draw:
        """`draw` for threads."""
        while (draw := self.try_draw(scopes, worst_case)) is None:
            self._refill(scopes, worst_case)
        return draw

    def settle(self, draw: Draw, actual: Picodollars) -> None:
        """The call cost `actual`; the rest can be drawn again. More than was drawn is recorded all the same.

        Raises:
            UsageError: It was given back before, or the amount is negative.
        """
        if actual < 0:
            raise UsageError("a call cannot cost less than nothing")
        with self._lock:
            self._give_back(draw)
            for block in draw._from:
                block.outstanding -= draw.amount
                block.spent += actual
                block.free += draw.amount - actual

    def release(self, draw: Draw) -> None:
        """The call was never made."""
        self.settle(draw, ZERO)

    def keep(self, draw: Draw) -> None:
        """Nobody knows how the call ended: its worst case stays held, also when this ledger closes."""
        with self._lock:
            self._give_back(draw)

    def sync(self) -> None:
        """Write down what was spent, give back what lay idle since the last time. Call it every few seconds.

        Raises:
            AvyayError: The ledger cannot be reached; nothing is forgotten, the next call does it.
        """
        with self._refilling:
            for block in list(self._blocks.values()):
                with self._lock:
                    idle, block.draws = block.draws == 0, 0
                    finished = idle and block.outstanding == 0
                    if finished:
                        del self._blocks[block.scope.key]
                    elif idle:
                        block.free = min(block.free, 0)
                    changed = idle or (block.spent, block.outstanding) != block.synced
                if finished:
                    self._close(block)
                elif changed:
                    self._resize(block, block.scope, 0, 0)

    def close(self) -> None:
        """Give everything back but what is drawn and not settled: that stays held, as unknown.

        Raises:
            AvyayError: The ledger cannot be reached; the blocks stay held until reconciled.
        """
        with self._refilling:
            while self._blocks:
                with self._lock:
                    _, block = self._blocks.popitem()
                self._close(block)
            if self._liveness is not None:
                liveness_file(self._ledger.path, self._owner).unlink(missing_ok=True)
                os.close(self._liveness)
                self._liveness = None

    def __enter__(self) -> BlockLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows may talk to the ledger, and runs off the event loop.

    def _refill(self, scopes: Sequence[Scope], need: Picodollars) -> None:
        with self._refilling:
            if self._liveness is None:
                raise InternalError("the block ledger is closed", code="ledger_closed")
            for scope in scopes:
                if scope.cap is not None:
                    self._fill(scope, need, want=max(need, self._size))

    def _top_up(self, scopes: Sequence[Scope], typical: Picodollars) -> None:
        try:
            self._refill(scopes, typical)
        except BudgetExceededError:
            pass  # the call that needs it will be told
        except AvyayError as error:
            self._log.warning("budget_refill_failed", code=error.code, reason=str(error))

    def _fill(self, scope: Scope, need: int, *, want: int) -> None:
        with self._lock:
            block = self._blocks.get(scope.key)
            if block is not None and block.scope != scope:
                block.free = min(block.free, 0)  # the cap changed: what is free was granted under the old one
            elif block is not None and block.free >= max(need, want // 2):
                return
        try:
            if block is None or not self._resize(block, scope, need, want):
                self._open(scope, need, want)
        except BudgetExceededError as error:
            with self._lock:
                if len(self._refusals) >= _MOST_REFUSALS:
                    self._refusals.clear()
                self._refusals[scope.key] = (self._ledger.clock.monotonic(), scope, error)
            raise

    def _open(self, scope: Scope, need: int, want: int) -> None:
        self._sequence += 1
        key = f"block:{self._owner}:{self._sequence}"
        want = max(need, min(want, self._left(scope) // _SHARE))
        granted = self._ledger.open_block(scope, Picodollars(need), Picodollars(want), key, self._owner)
        with self._lock:
            self._blocks[scope.key] = _Block(scope, granted.id, granted.held)
            self._refusals.pop(scope.key, None)

    def _resize(self, block: _Block, scope: Scope, need: int, want: int) -> bool:
        """Write down what was spent, and let `want`, but at least `need`, be free.

        Returns:
            False when the block is gone: somebody reconciled it, taking this process for dead.

        Raises:
            BudgetExceededError: The cap does not even allow `need`.
        """
        left = self._left(scope) if want else 0
        with self._lock:
            granted = block.spent + block.outstanding + block.free  # drawing and settling do not change this sum
            spent, outstanding = block.spent, block.outstanding
        held = max(0, granted - spent)
        grow_to = min(outstanding + want, max(outstanding + need, held + left // _SHARE)) if want else 0
        try:
            reservation, balance = self._ledger.resize_block(
                block.number,
                scope,
                spent=Picodollars(spent),
                held=Picodollars(held),
                grow_to=Picodollars(grow_to),
                outstanding=Picodollars(outstanding),
            )
        except UsageError as error:
            if error.code != "block_closed":
                raise
            self._log.error("block_reconciled_under_its_owner", block=block.number, scope=scope.key)
            with self._lock:
                block.free = 0
                self._blocks.pop(scope.key, None)
            return False
        with self._lock:
            block.free += reservation.spent + reservation.held - granted
            block.synced = spent, outstanding
            block.scope = scope
        if want and reservation.held < outstanding + need:
            raise BudgetExceededError(balance, Picodollars(need))
        return True

    def _left(self, scope: Scope) -> int:
        balance = self._ledger.balance(scope.key)
        return max(0, (scope.cap or 0) - balance.spent - balance.reserved)

    def _close(self, block: _Block) -> None:
        with self._lock:
            spent, outstanding = block.spent, block.outstanding
            block.free = 0
        try:
            self._ledger.close_block(block.number, spent=Picodollars(spent), outstanding=Picodollars(outstanding))
        except AvyayError:
            with self._lock:  # nothing is lost: it counts as held, and the next sync closes it
                self._blocks.setdefault(block.scope.key, block)
            raise

    # What follows is called with the lock held, or on the event loop.

    def _give_back(self, draw: Draw) -> None:
        if draw._done:
            raise UsageError("this draw was already settled", code="already_settled")
        draw._done = True

    def _check_refusal(self, scope: Scope, worst_case: Picodollars) -> None:
        refusal = self._refusals.get(scope.key)
        if refusal is None:
            return
        at, refused, error = refusal
        if refused != scope or self._ledger.clock.monotonic() - at >= _REFUSAL_SECONDS:
            del self._refusals[scope.key]
        elif worst_case >= error.asked:
            raise BudgetExceededError(error.balance, worst_case)

    def _wants_more(self, draw: Draw) -> bool:
        if all(block.free >= self._size // 4 for block in draw._from):
            return False
        now = self._ledger.clock.monotonic()
        if now < self._next_top_up:
            return False
        self._next_top_up = now + _TOP_UP_SECONDS
        return True

    def _refilled(self, task: asyncio.Future[None]) -> None:
        if self._refill_task is task:
            self._refill_task = None
        if not task.cancelled():
            task.exception()  # told to whoever asked for it; nobody else needs a warning
