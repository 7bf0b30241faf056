"""What comparisons have taught of request classes, handed to the router of every worker as soon as one learns it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.router import Router
from avyay.marga.select import QUALITY_OF_TIER
from avyay.marga.verdicts import VerdictStore
from avyay.ports import Tier

__all__ = ["ClassKnowledge", "measured_quality"]

_LOOK = 1.0  # seconds between two looks for what other workers have learned
_WINDOW = 30 * 86_400.0  # seconds a comparison counts for; models change
_PRIOR = 20.0  # comparisons that the table of tiers is worth


def measured_quality(found: Mapping[Tier, tuple[int, float]]) -> dict[Tier, float]:
    """Quality relative to premium by tier: what was measured, drawn towards the table where little was."""
    return {
        tier: (_PRIOR * QUALITY_OF_TIER[tier] + count * quality) / (_PRIOR + count)
        for tier, (count, quality) in found.items()
    }


class ClassKnowledge:
    """Follows a store for a router.

    Attributes:
        alarms: How many alarms there were, by series and signal.
    """

    def __init__(self, store: VerdictStore, router: Router) -> None:
        self._store = store
        self._router = router
        self._seen: int | None = None
        self._log = get_logger("marga")
        self.alarms: dict[tuple[str, str], int] = {}

    def refresh(self) -> None:
        """Read everything and hand it over. Waits for a disk.

        Raises:
            AvyayError: it cannot be read.
        """
        router, store = self._router, self._store
        floors = {name: state.floor for name, state in store.states().items()}
        qualities = store.qualities(since=router.clock.now() - _WINDOW)
        self.alarms = store.alarm_counts()
        # Whole mappings at once: requests are being decided meanwhile.
        router.floors = floors
        router.qualities = {name: measured_quality(found) for name, found in qualities.items()}

    def look(self) -> None:
        """Read, if another process has written since."""
        version = self._store.version()
        if version != self._seen:
            self._seen = version
            self.refresh()

    async def follow(self) -> None:
        """Look again and again."""
        troubled = False
        while True:
            try:
                await asyncio.to_thread(self.look)
                troubled = False
            except AvyayError as error:
                if not troubled:
                    self._log.error("class_knowledge_unreadable", error=error.message)
                troubled = True
            await self._router.clock.sleep(_LOOK)
