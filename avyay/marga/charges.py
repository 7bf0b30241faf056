"""The router's ledger as a bill: what a customer or a service was charged, from the file here or a daemon elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from avyay.marga.store import SqliteStore
from avyay.money import Picodollars
from avyay.ports import Bill

__all__ = ["LedgerBill", "RemoteBill"]

_TIMEOUT = 5.0


class LedgerBill:
    """Reads the ledger of this home.

    Args:
        open_store: Makes a connection; called for each reading, so that any thread may ask.
    """

    def __init__(self, open_store: Callable[[], SqliteStore]) -> None:
        self._open_store = open_store

    def customer(self, name: str, since: float) -> Bill:
        """Everything charged to a customer since a time."""
        return self._sum("customer", name, since)

    def service(self, name: str, since: float) -> Bill:
        """Everything charged to a service since a time."""
        return self._sum("service", name, since)

    def _sum(self, column: str, name: str, since: float) -> Bill:
        store = self._open_store()
        try:
            return store.bill(column, name, since=since)
        finally:
            store.close()


class RemoteBill:
    """Reads the ledger of the daemon at a URL."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def customer(self, name: str, since: float) -> Bill:
        """Everything charged to a customer since a time.

        Raises:
            UnreachableError: the daemon does not answer, or answers something else.
        """
        return self._ask({"by": "customer", "name": name, "since": repr(since)})

    def service(self, name: str, since: float) -> Bill:
        """Everything charged to a service since a time; the same errors."""
        return self._ask({"by": "service", "name": name, "since": repr(since)})

    def _ask(self, query: dict[str, str]) -> Bill:
        from urllib.parse import urlencode

        from avyay.http import client, request_json

        with client(read=_TIMEOUT) as http:
            found = request_json(
                http,
                "GET",
                f"{self._url}/marga/bill?{urlencode(query)}",
                who="the router",
                headers=self._headers,
                check=lambda data: isinstance(data, dict) and {"picodollars", "calls"} <= set(data),
            )
        return Bill(Picodollars(int(found["picodollars"])), int(found["calls"]))
