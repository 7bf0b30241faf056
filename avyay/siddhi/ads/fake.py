"""An ad platform in memory with a market behind it: for the demo, and for trying things out. No money moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from decimal import Decimal

from avyay.money import ZERO, Picodollars
from avyay.siddhi.ads.base import AdPlatform, Campaign, Order, RejectedError

__all__ = ["FakePlatform"]


@dataclass(slots=True)
class _Run:
    order: Order
    campaign: Campaign


class FakePlatform(AdPlatform):
    """Bills `price` a click until the order is used up, each time it is told to `deliver`.

    Args:
        price: Of one click.
        visit: Called once for each click, with the campaign's name.
        overspend: Bills up to this many times the order.
    """

    name = "fake"

    def __init__(
        self,
        price: Picodollars,
        visit: Callable[[str], None] = lambda name: None,
        *,
        overspend: Decimal = Decimal(1),
        settle_after: float = 0.0,
    ) -> None:
        self.overspend = overspend
        self.settle_after = settle_after
        self._price = price
        self._visit = visit
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()

    def zone(self) -> tzinfo:
        return UTC

    def create(self, order: Order) -> str:
        self.validate(order)
        with self._lock:
            number = f"fake-{len(self._runs) + 1}"
            self._runs[number] = _Run(order, Campaign(number, order.name, "paused", ZERO))
        return number

    def validate(self, order: Order) -> str:
        with self._lock:
            if any(run.order.name == order.name for run in self._runs.values()):
                raise RejectedError(f"There is a campaign called {order.name} already.")
        return "the name is free"

    def start(self, campaign: str) -> None:
        self._set(campaign, "enabled")

    def pause(self, campaign: str) -> None:
        self._set(campaign, "paused")

    def remove(self, campaign: str) -> None:
        with self._lock:
            run = self._runs[campaign]
            run.campaign = replace(run.campaign, status="removed")

    def campaigns(self, prefix: str) -> list[Campaign]:
        with self._lock:
            return [run.campaign for run in self._runs.values() if run.campaign.name.startswith(prefix)]

    def deliver(self, clicks: int) -> int:
        """Send up to so many clicks to each enabled campaign, as far as its order pays; returns how many came."""
        sent = 0
        for run in list(self._runs.values()):
            for _ in range(clicks):
                with self._lock:
                    now = run.campaign
                    limit = int(run.order.amount * self.overspend)
                    if now.status != "enabled" or now.billed + self._price > limit:
                        break
                    run.campaign = replace(
                        now,
                        billed=Picodollars(now.billed + self._price),
                        clicks=now.clicks + 1,
                        impressions=now.impressions + 40,
                    )
                sent += 1
                self._visit(run.order.name)
        return sent

    def _set(self, campaign: str, status: str) -> None:
        with self._lock:
            run = self._runs.get(campaign)
            if run is None or run.campaign.status == "removed":
                raise RejectedError(f"There is no campaign {campaign}, or it was removed.")
            run.campaign = replace(run.campaign, status="enabled" if status == "enabled" else "paused")
