"""A process that ends with the one that started it, however that one ends: it watches the other end of a pipe."""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["tether"]

_PATIENCE = 40.0  # seconds a drain may take once nobody is left to watch over it


def tether(descriptor: int) -> None:
    """Send this process SIGTERM once nobody holds the writing end of the pipe any more."""

    def watch() -> None:
        while True:
            try:
                if not os.read(descriptor, 64):
                    break
            except InterruptedError:
                continue
            except OSError:
                break
        os.kill(os.getpid(), signal.SIGTERM)
        ended.wait(_PATIENCE)
        os._exit(1)

    os.set_inheritable(descriptor, False)
    ended = threading.Event()
    threading.Thread(target=watch, name="tether", daemon=True).start()
