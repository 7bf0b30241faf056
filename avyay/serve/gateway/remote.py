"""The router's ledger where it is in another home, for who is no gateway: asked over HTTP, as a gateway asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from avyay.errors import AuthError, ConfigError
from avyay.marga.transport import TransportError
from avyay.retries import retry_context
from avyay.serve.gateway.daemon import open_upstream
from avyay.serve.gateway.reconcile import RemoteLedger

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["asking_router"]

_PATIENCE = 10.0  # seconds the router may take for one question
_ATTEMPTS = 3


@contextmanager
def asking_router(services: Services) -> Iterator[RemoteLedger]:
    """The ledger of the router that the configuration names. Asking blocks; not for an event loop.

    A variable with a key that is not set makes it refuse every question, as the router would.
    """
    with asyncio.Runner() as runner:
        try:
            router = open_upstream(services, "marga")
        except ConfigError as error:
            missing = AuthError(error.message, hint=error.hint, code="no_key")

            def refuse(target: str) -> tuple[int, bytes]:
                raise missing

            yield RemoteLedger(refuse)
            return

        def get(target: str) -> tuple[int, bytes]:
            for attempt in retry_context(on=OSError, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=2.0):
                with attempt:
                    try:
                        return runner.run(router.get(target, patience=_PATIENCE))
                    except TransportError as error:
                        raise OSError(f"{router.url}: {error}") from error
            raise AssertionError("the last attempt returns or raises")

        try:
            yield RemoteLedger(get)
        finally:
            runner.run(router.close())
