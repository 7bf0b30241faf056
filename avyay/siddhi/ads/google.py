"""Google Ads over REST: one search campaign with a total budget and an end date, made in one atomic call.

Written from the reference of Google Ads API v26 (developers.google.com/google-ads/api, read November 2026): budgets
with `totalAmountMicros` and `CUSTOM_PERIOD`, `startDateTime`/`endDateTime` in the customer's time zone, the
declaration on EU political advertising that every campaign needs, `googleAds:mutate` with temporary resource names.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx2

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import ConfigError
from avyay.money import Picodollars
from avyay.siddhi.ads.base import AdPlatform, Caller, Campaign, Order, RejectedError, Status

__all__ = ["GoogleAds", "GoogleKeys"]

_MICRO = 1_000_000  # picodollars
_CAMPAIGNS = (
    "SELECT campaign.resource_name, campaign.name, campaign.status, metrics.clicks, metrics.impressions,"
    " metrics.cost_micros FROM campaign WHERE campaign.name LIKE 'PREFIX%'"
)
_STATUS: dict[str, Status] = {"ENABLED": "enabled", "PAUSED": "paused", "REMOVED": "removed"}


@dataclass(frozen=True, slots=True)
class GoogleKeys:
    """What the API asks for. The customer id has ten digits, without dashes."""

    customer: str
    developer_token: str
    client_id: str
    client_secret: str
    refresh_token: str
    login_customer: str | None = None

    def __repr__(self) -> str:
        return f"GoogleKeys({self.customer})"


class GoogleAds(AdPlatform):
    """One customer account. Its currency must be the US dollar: the governor counts in dollars."""

    name = "google"
    # A total budget is not exceeded by the documentation; a daily one may be doubled. The cautious factor stands.
    overspend = Decimal(2)
    settle_after = 3 * 86_400.0

    def __init__(
        self,
        http: httpx2.Client,
        keys: GoogleKeys,
        *,
        endpoint: str = "https://googleads.googleapis.com/v26",
        token_endpoint: str = "https://oauth2.googleapis.com/token",  # noqa: S107 - an address
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._caller = Caller("Google Ads", http, failure=_words)
        self._http = http
        self._keys = keys
        self._endpoint = f"{endpoint}/customers/{keys.customer}"
        self._token_endpoint = token_endpoint
        self._clock = clock
        self._lock = threading.Lock()
        self._token: tuple[str, float] | None = None
        self._zone: tzinfo | None = None

    def zone(self) -> tzinfo:
        if self._zone is None:
            rows = self._search("SELECT customer.time_zone, customer.currency_code FROM customer LIMIT 1")
            customer = rows[0]["customer"]
            if customer["currencyCode"] != "USD":
                raise ConfigError(
                    f"The Google Ads account bills in {customer['currencyCode']}.",
                    hint="SIDDHI's caps are US dollars: use an account that bills in USD.",
                )
            self._zone = ZoneInfo(customer["timeZone"])
        return self._zone

    def create(self, order: Order) -> str:
        answer = self._mutate(order, validate_only=False)
        for response in answer.get("mutateOperationResponses", []):
            if "campaignResult" in response:
                return str(response["campaignResult"]["resourceName"])
        raise RejectedError("Google Ads made no campaign.", hint="Look at the account.")

    def validate(self, order: Order) -> str:
        self._mutate(order, validate_only=True)
        return "budget, campaign, ad group, ad and keywords accepted with validateOnly"

    def start(self, campaign: str) -> None:
        self._set_status(campaign, "ENABLED")

    def pause(self, campaign: str) -> None:
        self._set_status(campaign, "PAUSED")

    def remove(self, campaign: str) -> None:
        self._campaigns([{"remove": campaign}])

    def campaigns(self, prefix: str) -> list[Campaign]:
        rows = self._search(_CAMPAIGNS.replace("PREFIX", _literal(prefix)))
        found = []
        for row in rows:
            campaign, metrics = row["campaign"], row.get("metrics", {})
            found.append(
                Campaign(
                    id=campaign["resourceName"],
                    name=campaign["name"],
                    status=_STATUS.get(campaign["status"], "enabled"),
                    billed=Picodollars(int(metrics.get("costMicros", 0)) * _MICRO),
                    clicks=int(metrics.get("clicks", 0)),
                    impressions=int(metrics.get("impressions", 0)),
                )
            )
        return found

    def close(self) -> None:
        self._http.close()

    def _mutate(self, order: Order, *, validate_only: bool) -> Any:
        return self._caller.call(
            "POST",
            f"{self._endpoint}/googleAds:mutate",
            headers=self._headers(),
            repeatable=validate_only,
            json={"mutateOperations": self._operations(order), "validateOnly": validate_only},
        )

    def _operations(self, order: Order) -> list[dict[str, Any]]:
        owner = f"customers/{self._keys.customer}"
        budget, campaign, group = f"{owner}/campaignBudgets/-1", f"{owner}/campaigns/-2", f"{owner}/adGroups/-3"
        zone = self.zone()
        bidding: dict[str, Any] = {}
        if order.max_click is not None:
            bidding["cpcBidCeilingMicros"] = str(order.max_click // _MICRO)
        operations: list[dict[str, Any]] = [
            {
                "campaignBudgetOperation": {
                    "create": {
                        "resourceName": budget,
                        "name": order.name,
                        "period": "CUSTOM_PERIOD",
                        "totalAmountMicros": str(order.amount // _MICRO),
                        "explicitlyShared": False,
                    }
                }
            },
            {
                "campaignOperation": {
                    "create": {
                        "resourceName": campaign,
                        "name": order.name,
                        "status": "PAUSED",
                        "advertisingChannelType": "SEARCH",
                        "campaignBudget": budget,
                        "targetSpend": bidding,
                        "containsEuPoliticalAdvertising": "DOES_NOT_CONTAIN_EU_POLITICAL_ADVERTISING",
                        "networkSettings": {
                            "targetGoogleSearch": True,
                            "targetSearchNetwork": False,
                            "targetContentNetwork": False,
                        },
                        "startDateTime": _date_time(self._clock.now(), zone),
                        "endDateTime": _date_time(order.ends_at, zone),
                    }
                }
            },
            {
                "adGroupOperation": {
                    "create": {
                        "resourceName": group,
                        "name": order.name,
                        "campaign": campaign,
                        "type": "SEARCH_STANDARD",
                        "status": "ENABLED",
                    }
                }
            },
        ]
        operations += [
            {
                "adGroupAdOperation": {
                    "create": {
                        "adGroup": group,
                        "status": "ENABLED",
                        "ad": {
                            "finalUrls": [url],
                            "responsiveSearchAd": {
                                "headlines": [{"text": text} for text in order.headlines],
                                "descriptions": [{"text": text} for text in order.descriptions],
                            },
                        },
                    }
                }
            }
            for url in order.urls
        ]
        operations += [
            {
                "adGroupCriterionOperation": {
                    "create": {
                        "adGroup": group,
                        "status": "ENABLED",
                        "keyword": {"text": word, "matchType": "PHRASE"},
                    }
                }
            }
            for word in order.keywords
        ]
        return operations

    def _set_status(self, campaign: str, status: str) -> None:
        self._campaigns([{"update": {"resourceName": campaign, "status": status}, "updateMask": "status"}])

    def _campaigns(self, operations: list[dict[str, Any]]) -> None:
        self._caller.call(
            "POST",
            f"{self._endpoint}/campaigns:mutate",
            headers=self._headers(),
            repeatable=True,
            json={"operations": operations},
        )

    def _search(self, query: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page: str | None = None
        while True:
            body = {"query": query} | ({"pageToken": page} if page else {})
            answer = self._caller.call(
                "POST", f"{self._endpoint}/googleAds:search", headers=self._headers(), repeatable=True, json=body
            )
            rows += answer.get("results", [])
            page = answer.get("nextPageToken")
            if not page:
                return rows

    def _headers(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self._access()}", "developer-token": self._keys.developer_token}
        if self._keys.login_customer:
            headers["login-customer-id"] = self._keys.login_customer
        return headers

    def _access(self) -> str:
        with self._lock:
            if self._token is None or self._token[1] < self._clock.now():
                answer = self._caller.call(
                    "POST",
                    self._token_endpoint,
                    headers={},
                    repeatable=True,
                    data={
                        "grant_type": "refresh_token",
                        "client_id": self._keys.client_id,
                        "client_secret": self._keys.client_secret,
                        "refresh_token": self._keys.refresh_token,
                    },
                )
                self._token = (answer["access_token"], self._clock.now() + float(answer["expires_in"]) - 60)
            return self._token[0]


def _words(body: Any) -> str:
    error = body["error"]
    if isinstance(error, str):  # the token endpoint
        return f"{error}: {body.get('error_description', '')}"
    for detail in error.get("details", []):
        for failure in detail.get("errors", []):
            code = "/".join(str(value) for value in failure.get("errorCode", {}).values())
            return f"{code}: {failure.get('message', '')}"
    return str(error.get("message", error.get("status", "")))


def _date_time(moment: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(moment, zone).strftime("%Y-%m-%d %H:%M:%S")


def _literal(text: str) -> str:
    """In GAQL's LIKE, brackets quote the wildcards."""
    return "".join(f"[{c}]" if c in "%_[]" else c for c in text if c not in "'\\")
