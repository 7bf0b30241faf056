"""One indexer at a time: a file lock, which the system lets go when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from avyay.errors import DependencyError, UnreachableError

__all__ = ["exclusive"]

PAUSE = 0.1


@contextmanager
def exclusive(path: Path, *, wait: float, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at `path` for the block.

    Args:
        wait: Seconds to wait for another holder.
        waiting: Called once when there is one.

    Raises:
        UnreachableError: the other holder did not finish in time.
        DependencyError: the lock file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DependencyError(
            f"Cannot write {path}: {error.strerror}.", hint="Fix its permissions, or set AVYAY_HOME."
        ) from error
    try:
        deadline = time.monotonic() + wait
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UnreachableError(
                        "Another avyay is indexing.", hint="Wait for it to finish and try again.", code="index_busy"
                    ) from None
                if not told and waiting is not None:
                    waiting()
                told = True
                time.sleep(PAUSE)
            else:
                break
        yield
    finally:
        os.close(descriptor)
