"""Bounded retries with jittered backoff: stamina's, with its words in our log instead of on standard output."""

from __future__ import annotations

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from avyay.log import get_logger

__all__ = ["retry_context"]

retry_context = stamina.retry_context


def _log(details: RetryDetails) -> None:
    # Worth a line only to those who ask for it: what fails in the end is told as an error.
    get_logger("retry").info(
        "retry_scheduled", error=str(details.caused_by), attempt=details.retry_num, wait=round(details.wait_for, 2)
    )


set_on_retry_hooks([_log])
