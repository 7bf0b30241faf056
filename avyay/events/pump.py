"""Delivery in the background: takes up new events for every sink and sends what is due, in one process per home."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError
from avyay.events.deliveries import Deliveries
from avyay.events.election import try_lock
from avyay.events.reader import Cursor, EventReader
from avyay.events.sinks import Message, NotDeliveredError, Sink
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff

__all__ = ["Pump"]

LOOK = 0.5  # seconds between two looks at the outboxes
ELECTION = 5.0  # seconds between two tries to become the one that delivers
PRUNE = 3_600.0
_BATCH = 500
_AT_ONCE = 4  # messages under way to one sink
_GRACE = 5.0


class Pump:
    """`run` until `stop`. Every daemon of a home may run one: a lock decides which of them delivers, and when that one
    dies the next takes over. A message may be sent twice after a crash, never not at all; its id stays the same.

    Args:
        lock: The lock's file.
        deliveries: Opens the file of deliveries; called once this one delivers.
        backoff: Between two tries of one message; a sink's own `attempts` bound them.
        keep_for: Seconds that ended deliveries are remembered.
        jitter: Random numbers in [0, 1).
    """

    def __init__(
        self,
        reader: EventReader,
        deliveries: Callable[[], Deliveries],
        sinks: Sequence[Sink],
        *,
        lock: Path,
        clock: Clock = SYSTEM_CLOCK,
        backoff: Backoff | None = None,
        keep_for: float = 2_592_000.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reader, self._open, self._sinks = reader, deliveries, sinks
        self._lock, self._clock, self._jitter = lock, clock, jitter
        self._backoff = backoff or Backoff(base=5.0, cap=3_600.0, patience=86_400.0)
        self._keep_for = keep_for
        self._stopping = asyncio.Event()
        self._log = get_logger("events")
        self.leads = False

    def stop(self) -> None:
        """End `run`; what is under way gets a few seconds."""
        self._stopping.set()

    async def run(self) -> None:
        """Deliver until stopped."""
        if not self._sinks:
            return
        held: int | None = None
        while not self._stopping.is_set():
            held = try_lock(self._lock)
            if held is not None:
                break
            await self._pause(ELECTION)
        if held is None:
            return
        try:
            await self._lead()
        finally:
            self.leads = False
            os.close(held)

    async def _lead(self) -> None:
        try:
            deliveries = await asyncio.to_thread(self._open)
        except AvyayError as error:
            self._log.error("deliveries_not_opened", error=error.message)
            return
        self.leads = True
        try:
            await asyncio.gather(
                *(self._serve(deliveries, sink) for sink in self._sinks), self._prune(deliveries), self._stopping.wait()
            )
        finally:
            for sink in self._sinks:
                await sink.close()
            await asyncio.to_thread(deliveries.close)
            await asyncio.to_thread(self._reader.close)

    async def _prune(self, deliveries: Deliveries) -> None:
        while not self._stopping.is_set():
            with suppress(AvyayError):
                await asyncio.to_thread(deliveries.prune, self._keep_for)
            await self._pause(PRUNE)

    async def _serve(self, deliveries: Deliveries, sink: Sink) -> None:
        sending: dict[int, asyncio.Task[None]] = {}
        cursor: Cursor | None = None
        while not self._stopping.is_set():
            try:
                if cursor is None:
                    cursor = await asyncio.to_thread(deliveries.begin, sink.name, self._reader.head)
                cursor = await asyncio.to_thread(self._collect, deliveries, sink, cursor)
                free = _AT_ONCE - len(sending)
                due = await asyncio.to_thread(deliveries.due, sink.name, free, leave=frozenset(sending)) if free else []
            except AvyayError as error:
                self._log.error("deliveries_not_read", sink=sink.name, error=error.message)
                due = []
            for number, message in due:
                task = asyncio.create_task(self._send(deliveries, sink, number, message))
                sending[number] = task
                task.add_done_callback(lambda _, number=number: sending.pop(number))  # type: ignore[misc]
            if sending:
                await asyncio.wait(sending.values(), timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
            elif not due:
                await self._pause(LOOK)
        if sending:
            _, late = await asyncio.wait(sending.values(), timeout=_GRACE)
            for task in late:
                task.cancel()  # it stays on the list, and is sent again

    def _collect(self, deliveries: Deliveries, sink: Sink, cursor: Cursor) -> Cursor:
        batch = self._reader.read(cursor, _BATCH, sink.names)
        for outbox, count in batch.missed.items():
            self._log.warning("events_missed", sink=sink.name, outbox=outbox, count=count)
        if str(batch.cursor) != str(cursor):
            deliveries.add(sink.name, batch.events, batch.cursor)
        return batch.cursor

    async def _send(self, deliveries: Deliveries, sink: Sink, number: int, message: Message) -> None:
        try:
            try:
                await sink.send(message)
            except NotDeliveredError as error:
                backoff = Backoff(self._backoff.base, self._backoff.cap, sink.attempts, self._backoff.patience)
                dead = await asyncio.to_thread(
                    deliveries.failed,
                    number,
                    error.why,
                    backoff,
                    self._jitter,
                    retry_after=error.retry_after,
                    final=error.final,
                )
                say = self._log.error if dead else self._log.warning
                say("delivery_failed", sink=sink.name, event_id=message.id, why=error.why, given_up=dead)
            else:
                await asyncio.to_thread(deliveries.delivered, number)
        except AvyayError as error:  # the disk: it is sent again
            self._log.error("delivery_not_recorded", sink=sink.name, error=error.message)
            await self._pause(LOOK)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
