"""Scripted ad platforms: real loopback HTTP servers that speak Google's and Meta's wire formats over one market.

The market can bill up to twice an order, show part of a bill late, fail with 5xx after an effect, make a campaign
twice, and count days in a time zone of its own. Written from the platforms' references (Google Ads API v26,
developers.google.com/google-ads/api; Marketing API v25.0, developers.facebook.com/documentation/ads-commerce), read in
November 2026; nothing here was recorded from them.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

MICROS = 1_000_000


@dataclass
class Sold:
    """A campaign as the market knows it; money in micros of a dollar."""

    number: int
    name: str
    budget: int
    ends_at: float
    status: str = "PAUSED"
    billed: int = 0
    late: list[tuple[float, int]] = field(default_factory=list)
    clicks: int = 0
    days: dict[str, int] = field(default_factory=dict)
    complete: bool = True  # Meta: its ad set exists


class Market:
    """What happens behind the wire. `overspend`: bills up to this many times a budget."""

    def __init__(self, *, overspend: float = 2.0, delay: float = 0.0, seed: int = 1, zone: str = "UTC") -> None:
        self.overspend = overspend
        self.delay = delay  # seconds until a part of a bill shows
        self.zone = zone
        self.chance = random.Random(seed)
        self.sold: dict[int, Sold] = {}
        self.lock = threading.Lock()
        self.fail_before = 0.0  # probability of 503 without effect
        self.fail_after = 0.0  # probability of 503 after the effect
        self.twice = 0.0  # probability that a creation happens twice
        self.now: Callable[[], float] = time.time
        self.requests: list[tuple[str, str, Any]] = []
        self.remember = True

    def sell(self, name: str, budget: int, ends_at: float, *, complete: bool = True) -> Sold:
        one = Sold(len(self.sold) + 1, name, budget, ends_at, complete=complete)
        self.sold[one.number] = one
        return one

    def spend(self, share: float | None = None) -> None:
        """Every enabled campaign spends some of what it has, up to the overspend; some of it shows late."""
        now = self.now()
        for one in self.sold.values():
            if one.status != "ENABLED" or not one.complete or now >= one.ends_at:
                continue
            limit = int(one.budget * self.overspend)
            spent = one.billed + sum(amount for _, amount in one.late)
            part = self.chance.random() if share is None else share
            amount = int((limit - spent) * part)
            if amount <= 0:
                continue
            day = datetime.fromtimestamp(now, ZoneInfo(self.zone)).date().isoformat()
            one.days[day] = one.days.get(day, 0) + amount
            one.clicks += 1
            late = self.chance.randrange(amount + 1) if self.delay else 0
            one.billed += amount - late
            if late:
                one.late.append((now + self.delay, late))

    def settle(self) -> None:
        """Late bills that are due appear."""
        now = self.now()
        for one in self.sold.values():
            one.billed += sum(amount for due, amount in one.late if due <= now)
            one.late = [(due, amount) for due, amount in one.late if due > now]

    def total(self, matching: str = "") -> int:
        """All that was or will be billed for names that contain `matching`, in micros."""
        return sum(
            one.billed + sum(amount for _, amount in one.late) for one in self.sold.values() if matching in one.name
        )


class RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Platform:
    """`with GooglePlatform(market) as server:` and point the adapter at `server.url`."""

    def __init__(self, market: Market | None = None) -> None:
        self.market = market or Market()
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                self.serve("GET")

            def do_POST(self) -> None:
                self.serve("POST")

            def serve(self, method: str) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, body = platform.answer(method, self.path, raw, {k.lower(): v for k, v in self.headers.items()})
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                return  # a killed client is part of the script

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Platform:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    def answer(self, method: str, path: str, raw: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        market = self.market
        parts = urlsplit(path)
        with market.lock:
            market.settle()
            body = self.parse(raw, headers, parts.query)
            if market.remember:
                market.requests.append((method, parts.path, body))
            if market.chance.random() < market.fail_before:
                return 503, {"error": {"code": 503, "message": "unavailable", "status": "UNAVAILABLE"}}
            try:
                answer = self.handle(method, parts.path, body)
            except RefusedError as refused:
                return refused.status, self.failure(refused)
            if method == "POST" and market.chance.random() < market.fail_after:
                return 503, {"error": {"code": 503, "message": "unavailable", "status": "UNAVAILABLE"}}
            return 200, answer

    def parse(self, raw: bytes, headers: dict[str, str], query: str) -> Any:
        raise NotImplementedError

    def handle(self, method: str, path: str, body: Any) -> Any:
        raise NotImplementedError

    def failure(self, refused: RefusedError) -> Any:
        raise NotImplementedError


class GooglePlatform(Platform):
    """`googleAds:mutate`, `campaigns:mutate`, `googleAds:search` and the token endpoint."""

    customer = "1234567890"
    page = 50

    def parse(self, raw: bytes, headers: dict[str, str], query: str) -> Any:
        if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return {name: values[0] for name, values in parse_qs(raw.decode()).items()}
        return json.loads(raw) if raw else {}

    def handle(self, method: str, path: str, body: Any) -> Any:
        if path == "/token":
            return {"access_token": "ya29.scripted", "expires_in": 3599, "token_type": "Bearer"}
        call = path.removeprefix(f"/v26/customers/{self.customer}/")
        if call == "googleAds:mutate":
            return self.make(body)
        if call == "campaigns:mutate":
            return {"results": [self.change(operation) for operation in body["operations"]]}
        if call == "googleAds:search":
            return self.search(body)
        raise RefusedError(404, "requestError/UNKNOWN", path)

    def make(self, body: dict[str, Any]) -> Any:
        operations = {next(iter(operation)): next(iter(operation.values())) for operation in body["mutateOperations"]}
        budget = operations["campaignBudgetOperation"]["create"]
        campaign = operations["campaignOperation"]["create"]
        if budget["period"] != "CUSTOM_PERIOD" or budget["explicitlyShared"]:
            raise RefusedError(400, "campaignBudgetError/INVALID", "a total budget is not shared")
        if campaign["status"] != "PAUSED" or campaign["campaignBudget"] != budget["resourceName"]:
            raise RefusedError(400, "campaignError/INVALID", "wrong status or budget")
        if campaign.get("containsEuPoliticalAdvertising") is None:
            raise RefusedError(400, "fieldError/REQUIRED", "contains_eu_political_advertising")
        for operation in body["mutateOperations"]:
            if (one_ad := operation.get("adGroupAdOperation")) is not None:
                (url,) = one_ad["create"]["ad"]["finalUrls"]
                if not url.startswith("https://"):
                    raise RefusedError(400, "adError/INVALID_URL", url)
        ad = operations["adGroupAdOperation"]["create"]["ad"]["responsiveSearchAd"]
        if len(ad["headlines"]) < 3 or len(ad["descriptions"]) < 2:
            raise RefusedError(400, "adError/TOO_FEW", "three headlines and two descriptions")
        if any(len(line["text"]) > 30 for line in ad["headlines"]):
            raise RefusedError(400, "stringLengthError/TOO_LONG", "headline")
        zone = ZoneInfo(self.market.zone)
        ends_at = datetime.strptime(campaign["endDateTime"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone).timestamp()
        if any(one.name == campaign["name"] and one.status != "REMOVED" for one in self.market.sold.values()):
            raise RefusedError(400, "campaignError/DUPLICATE_CAMPAIGN_NAME", "The name is taken.")
        if body.get("validateOnly"):
            return {}
        one = self.market.sell(campaign["name"], int(budget["totalAmountMicros"]), ends_at)
        return {
            "mutateOperationResponses": [
                {"campaignBudgetResult": {"resourceName": f"customers/{self.customer}/campaignBudgets/{one.number}"}},
                {"campaignResult": {"resourceName": self.resource(one)}},
            ]
        }

    def change(self, operation: dict[str, Any]) -> Any:
        name = operation.get("remove") or operation["update"]["resourceName"]
        one = self.market.sold[int(name.rsplit("/", 1)[1])]
        if "remove" in operation:
            one.status = "REMOVED"
        elif one.status == "REMOVED":
            raise RefusedError(400, "campaignError/CANNOT_MODIFY_REMOVED", "The campaign was removed.")
        else:
            assert operation["updateMask"] == "status"
            one.status = operation["update"]["status"]
        return {"resourceName": name}

    def search(self, body: dict[str, Any]) -> Any:
        query = body["query"]
        if "FROM customer" in query:
            return {"results": [{"customer": {"timeZone": self.market.zone, "currencyCode": "USD"}}]}
        prefix = re.search(r"LIKE '(.*)%'", query)
        assert prefix
        matching = [one for one in self.market.sold.values() if one.name.startswith(prefix[1])]
        start = int(body.get("pageToken", 0))
        rows = [
            {
                "campaign": {"resourceName": self.resource(one), "name": one.name, "status": one.status},
                "metrics": {"clicks": str(one.clicks), "impressions": "10", "costMicros": str(one.billed)},
            }
            for one in matching[start : start + self.page]
        ]
        more = {"nextPageToken": str(start + self.page)} if start + self.page < len(matching) else {}
        return {"results": rows, "fieldMask": "campaign.name"} | more

    def resource(self, one: Sold) -> str:
        return f"customers/{self.customer}/campaigns/{one.number}"

    def failure(self, refused: RefusedError) -> Any:
        family, _, code = refused.code.partition("/")
        failure = {"errorCode": {family: code}, "message": refused.message}
        kind = "type.googleapis.com/google.ads.googleads.v26.errors.GoogleAdsFailure"
        return {
            "error": {
                "code": refused.status,
                "message": "Request contains an invalid argument.",
                "status": "INVALID_ARGUMENT",
                "details": [{"@type": kind, "errors": [failure]}],
            }
        }


class MetaPlatform(Platform):
    """Campaigns, ad sets, creatives, ads, insights and the account node."""

    account = "act_99"
    page = 100

    def parse(self, raw: bytes, headers: dict[str, str], query: str) -> Any:
        fields = parse_qs(raw.decode()) | parse_qs(query)
        return {name: values[0] for name, values in fields.items()}

    def handle(self, method: str, path: str, body: Any) -> Any:
        call = path.removeprefix("/v25.0/")
        if call == self.account:
            return {"timezone_name": self.market.zone, "currency": "USD", "id": self.account}
        if call == f"{self.account}/campaigns" and method == "GET":
            return self.list(body)
        if call == f"{self.account}/campaigns":
            if body["special_ad_categories"] != "[]" or body["status"] != "PAUSED":
                raise RefusedError(400, "100", "(#100) Invalid parameter")
            if "validate_only" in body.get("execution_options", ""):
                return {"success": True}
            one = self.market.sell(body["name"], 0, 0.0, complete=False)
            if self.market.chance.random() < self.market.twice:
                self.market.sell(body["name"], 0, 0.0, complete=False)
            return {"id": str(one.number)}
        if call == f"{self.account}/adsets":
            one = self.market.sold[int(body["campaign_id"])]
            ends = datetime.strptime(body["end_time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
            one.budget, one.ends_at = int(body["lifetime_budget"]) * 10_000, ends
            return {"id": f"7{one.number}"}
        if call == f"{self.account}/adcreatives":
            assert json.loads(body["object_story_spec"])["link_data"]["link"].startswith("https://")
            return {"id": "8"}
        if call == f"{self.account}/ads":
            self.market.sold[int(body["adset_id"][1:])].complete = True
            return {"id": "9"}
        if call.endswith("/insights"):
            one = self.market.sold[int(call.removesuffix("/insights"))]
            row = {"spend": f"{one.billed / MICROS:.2f}", "inline_link_clicks": str(one.clicks), "impressions": "10"}
            return {"data": [row] if one.billed else []}
        one = self.market.sold[int(call)]
        if one.status == "REMOVED" and body["status"] != "DELETED":
            raise RefusedError(400, "100", "(#100) The campaign was deleted")
        one.status = {"ACTIVE": "ENABLED", "PAUSED": "PAUSED", "DELETED": "REMOVED"}[body["status"]]
        return {"success": True}

    def list(self, body: dict[str, str]) -> Any:
        (wanted,) = json.loads(body["filtering"])
        matching = [one for one in self.market.sold.values() if wanted["value"] in one.name]
        start = int(body.get("after", 0))
        names = {"ENABLED": "ACTIVE", "PAUSED": "PAUSED", "REMOVED": "DELETED"}
        rows = [
            {"id": str(one.number), "name": one.name, "status": names[one.status]}
            for one in matching[start : start + self.page]
        ]
        end = start + self.page
        paging = {"cursors": {"before": str(start), "after": str(end)}}
        if end < len(matching):
            paging["next"] = "https://graph.facebook.com/next"  # type: ignore[assignment]
        return {"data": rows, "paging": paging}

    def failure(self, refused: RefusedError) -> Any:
        return {
            "error": {
                "message": refused.message,
                "type": "OAuthException",
                "code": int(refused.code),
                "fbtrace_id": "A",
            }
        }
