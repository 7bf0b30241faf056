"""An application under the real server, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from daemon import wait_for

from avyay.serve.run import bind


@contextmanager
def running(app: Any) -> Iterator[str]:
    """`with running(app) as url:`"""
    listener = bind("127.0.0.1", 0, name="test")
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    assert server.started, "the application does not start"
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
