"""Meta's Marketing API: a paused traffic campaign whose ad set has a lifetime budget and an end time.

Written from the reference of Marketing API v25.0 (developers.facebook.com/documentation/ads-commerce/marketing-api,
read November 2026). Names are not unique there: after an unknown outcome there may be two campaigns of one name, so
whatever is asked about a name is asked about all that carry it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

import httpx2

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import ConfigError
from avyay.money import ZERO, parse_usd
from avyay.siddhi.ads.base import AdPlatform, Caller, Campaign, Order, RejectedError, Status

__all__ = ["MetaAds", "MetaKeys"]

_CENT = 10**10  # picodollars
_STATUS: dict[str, Status] = {
    "ACTIVE": "enabled",
    "PAUSED": "paused",
    "DELETED": "removed",
    "ARCHIVED": "removed",
}
_EVERY_STATUS = (
    *("ACTIVE", "PAUSED", "DELETED", "ARCHIVED", "PENDING_REVIEW", "DISAPPROVED", "PREAPPROVED"),
    *("PENDING_BILLING_INFO", "CAMPAIGN_PAUSED", "ADSET_PAUSED", "IN_PROCESS", "WITH_ISSUES"),
)


@dataclass(frozen=True, slots=True)
class MetaKeys:
    """What the API asks for: the account's number without `act_`, the page ads appear under, a system user's token."""

    account: str
    page: str
    access_token: str

    def __repr__(self) -> str:
        return f"MetaKeys({self.account})"


class MetaAds(AdPlatform):
    """One ad account. Its currency must be the US dollar."""

    name = "meta"
    # A lifetime budget is said to hold, a daily one not: the cautious factor stands.
    overspend = Decimal(2)
    settle_after = 3 * 86_400.0

    def __init__(
        self,
        http: httpx2.Client,
        keys: MetaKeys,
        *,
        endpoint: str = "https://graph.facebook.com/v25.0",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._caller = Caller("Meta", http, failure=lambda body: str(body["error"]["message"]))
        self._http = http
        self._keys = keys
        self._endpoint = endpoint
        self._account = f"act_{keys.account}"
        self._clock = clock
        self._zone: tzinfo | None = None

    def zone(self) -> tzinfo:
        if self._zone is None:
            account = self._call("GET", self._account, {"fields": "timezone_name,currency"})
            if account["currency"] != "USD":
                raise ConfigError(
                    f"The Meta ad account bills in {account['currency']}.",
                    hint="SIDDHI's caps are US dollars: use an account that bills in USD.",
                )
            self._zone = ZoneInfo(account["timezone_name"])
        return self._zone

    def create(self, order: Order) -> str:
        if order.amount < _CENT:
            raise RejectedError("Meta takes no order below one cent.")
        campaign = str(self._make(f"{self._account}/campaigns", self._campaign(order))["id"])
        ad_set = self._make(
            f"{self._account}/adsets",
            {
                "name": order.name,
                "campaign_id": campaign,
                "lifetime_budget": str(order.amount // _CENT),
                "start_time": _iso(self._clock.now()),
                "end_time": _iso(order.ends_at),
                "billing_event": "IMPRESSIONS",
                "optimization_goal": "LINK_CLICKS",
                "bid_strategy": "LOWEST_COST_WITHOUT_CAP",
                "targeting": json.dumps({"geo_locations": {"countries": list(order.countries)}}),
                "status": "ACTIVE",
            },
        )
        for number, url in enumerate(order.urls, start=1):
            self._ad(order, f"{order.name}-{number}", url, str(ad_set["id"]))
        return campaign

    def _ad(self, order: Order, name: str, url: str, ad_set: str) -> None:
        story = {
            "page_id": self._keys.page,
            "link_data": {
                "link": url,
                "name": order.headlines[0],
                "message": order.descriptions[0],
                "description": order.descriptions[-1],
            },
        }
        creative = self._make(f"{self._account}/adcreatives", {"name": name, "object_story_spec": json.dumps(story)})
        self._make(
            f"{self._account}/ads",
            {
                "name": name,
                "adset_id": ad_set,
                "creative": json.dumps({"creative_id": str(creative["id"])}),
                "status": "ACTIVE",
            },
        )

    def validate(self, order: Order) -> str:
        self._call(
            "POST",
            f"{self._account}/campaigns",
            {**self._campaign(order), "execution_options": json.dumps(["validate_only"])},
        )
        return "campaign accepted with validate_only; ad set and ad cannot be checked before the campaign exists"

    def start(self, campaign: str) -> None:
        self._call("POST", campaign, {"status": "ACTIVE"})

    def pause(self, campaign: str) -> None:
        self._call("POST", campaign, {"status": "PAUSED"})

    def remove(self, campaign: str) -> None:
        self._call("POST", campaign, {"status": "DELETED"})

    def campaigns(self, prefix: str) -> list[Campaign]:
        return [self._read(row) for row in self._rows(prefix)]

    def enabled(self, prefix: str) -> list[str]:
        return [str(row["id"]) for row in self._rows(prefix) if _STATUS.get(row["status"], "enabled") == "enabled"]

    def _rows(self, prefix: str) -> list[dict[str, Any]]:
        parameters = {
            "fields": "id,name,status",
            "filtering": json.dumps([{"field": "name", "operator": "CONTAIN", "value": prefix}]),
            "effective_status": json.dumps(_EVERY_STATUS),
            "limit": "100",
        }
        rows = self._pages(f"{self._account}/campaigns", parameters)
        return [row for row in rows if row["name"].startswith(prefix)]

    def close(self) -> None:
        self._http.close()

    def _campaign(self, order: Order) -> dict[str, str]:
        return {
            "name": order.name,
            "objective": "OUTCOME_TRAFFIC",
            "buying_type": "AUCTION",
            "status": "PAUSED",
            "special_ad_categories": "[]",
            "is_adset_budget_sharing_enabled": "false",
        }

    def _read(self, row: dict[str, Any]) -> Campaign:
        answer = self._call(
            "GET",
            f"{row['id']}/insights",
            {"fields": "spend,inline_link_clicks,impressions", "date_preset": "maximum"},
        )
        numbers = (answer.get("data") or [{}])[0]
        return Campaign(
            id=str(row["id"]),
            name=row["name"],
            status=_STATUS.get(row["status"], "enabled"),
            billed=parse_usd(numbers["spend"]) if "spend" in numbers else ZERO,
            clicks=int(numbers.get("inline_link_clicks", 0)),
            impressions=int(numbers.get("impressions", 0)),
        )

    def _pages(self, path: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            answer = self._call("GET", path, parameters)
            rows += answer.get("data", [])
            after = answer.get("paging", {}).get("cursors", {}).get("after")
            if not answer.get("paging", {}).get("next") or not after:
                return rows
            parameters = {**parameters, "after": after}

    def _make(self, path: str, values: dict[str, str]) -> Any:
        return self._call("POST", path, values, repeatable=False)

    def _call(
        self, method: Literal["GET", "POST"], path: str, values: dict[str, str], *, repeatable: bool = True
    ) -> Any:
        return self._caller.call(
            method,
            f"{self._endpoint}/{path}",
            headers={"authorization": f"Bearer {self._keys.access_token}"},
            repeatable=repeatable,
            data=values if method == "POST" else None,
            params=values if method == "GET" else None,
        )


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
