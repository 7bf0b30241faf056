"""The router daemon for tests: the real application under the real server, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import uvicorn
import yaml

from avyay.config.environment import Environment
from avyay.serve.marga import build_app
from avyay.serve.run import bind
from avyay.wiring import Services, open_services


@dataclass
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Served:
    """An application under the real server, in a thread of its own; `services` closes with it."""

    def __init__(
        self, services: Services, app: Any, *, protocol: Any = "httptools", drain: int = 2, port: int = 0
    ) -> None:
        self.services = services
        self.app = app
        self._listener = bind("127.0.0.1", port, name="test")
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            proxy_headers=False,
            timeout_graceful_shutdown=drain,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def request(self, method: str, path: str, data: bytes | None = None, **headers: str) -> Got:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Got(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Got(error.code, dict(error.headers), error.read())

    def post(self, path: str, body: Any, **headers: str) -> Got:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, content_type="application/json", **headers)

    def get(self, path: str, **headers: str) -> Got:
        return self.request("GET", path, **headers)

    def chat(self, model: str = "auto", *, stream: bool = False, **headers: str) -> Got:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        return self.post("/v1/chat/completions", body, **headers)


class Daemon(Served):
    """`with Daemon(tmp_path, {"providers": [...]}) as daemon:` then `daemon.post("/v1/chat/completions", {...})`."""

    def __init__(
        self,
        folder: Path,
        marga: dict[str, Any],
        *,
        key: str | None = None,
        more: dict[str, Any] | None = None,
        **environment: str,
    ) -> None:
        services = services_in(folder, {"marga": {"discover": False, **marga}, **(more or {})}, **environment)
        self.database = folder / "home" / "data" / "marga" / "marga.db"
        super().__init__(services, build_app(services, key=key))

    def calls(self, count: int) -> list[dict[str, Any]]:
        """The rows of the ledger, newest first, once there are so many."""
        wait_for(lambda: len(list(self.services.calls.calls(limit=10_000))) >= count)
        return list(self.services.calls.calls(limit=10_000))


def services_in(folder: Path, settings: dict[str, Any], **environment: str) -> Services:
    """The services of a configuration, at home in `folder`/home."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{'-'.join(settings)}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return open_services(
        config_file=config, environment=Environment({"AVYAY_HOME": str(folder / "home"), **environment})
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it holds; the bound only ends a test that would hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
