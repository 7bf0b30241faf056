"""The configuration is read anew while requests are under way: nobody is cut off, and a bad one changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for

from avyay.config import Environment
from avyay.errors import ConfigError
from avyay.serve.reload import Reloading
from avyay.serve.run import App, Stopping
from avyay.wiring import Services, open_services


class Trial:
    """A configuration file, applications made of it that say which one they are, and what became of them."""

    def __init__(self, home: Path) -> None:
        self.file = home / "avyay.yaml"
        self.environment = Environment({"AVYAY_HOME": str(home / "avyay")})
        self.lives: list[str] = []
        self.gate = asyncio.Event()
        self.write("first")
        self.app = Reloading(self.load(), self.build, self.load)

    def write(self, sender: str, **serve: Any) -> None:
        self.file.write_text(json.dumps({"siddhi": {"mail": {"sender": sender}}, "serve": serve}))

    def load(self) -> Services:
        return open_services(config_file=self.file, environment=self.environment)

    def build(self, services: Services, stopping: Stopping) -> App:
        name = services.settings.siddhi.mail.sender
        if name == "unbuildable":
            raise ConfigError("It cannot be built.")
        ending = asyncio.Event()
        stopping.add(ending.set)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await receive()
                if name == "unstartable":
                    await send({"type": "lifespan.startup.failed", "message": "it does not start"})
                    return
                self.lives.append(f"{name} began")
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self.lives.append(f"{name} ended")
                await send({"type": "lifespan.shutdown.complete"})
                return
            if scope["path"] == "/wait":
                await self.gate.wait()
            if scope["path"] == "/stream":
                await ending.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})

        return app

    async def get(self, path: str) -> str:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        await self.app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
        return str(sent[-1]["body"].decode())

    async def run(self, body: Any) -> None:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        life = asyncio.create_task(self.app({"type": "lifespan"}, inbox.get, outbox.put))
        await inbox.put({"type": "lifespan.startup"})
        assert (await outbox.get())["type"] == "lifespan.startup.complete"
        await body()
        await inbox.put({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await life


def test_requests_under_way_end_where_they_began(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avyay.serve.reload._LOOK", 0.005)

    async def main() -> None:
        trial = Trial(home)

        async def body() -> None:
            waiting = asyncio.create_task(trial.get("/wait"))
            stream = asyncio.create_task(trial.get("/stream"))
            await asyncio.sleep(0)
            trial.write("second", port=9999)
            assert await trial.app.reload()
            assert await trial.get("/") == "second"
            assert await stream == "first"  # an endless one is asked to end at once
            assert trial.lives == ["first began", "second began"]
            trial.gate.set()
            assert await waiting == "first"
            async with asyncio.timeout(60):
                while "first ended" not in trial.lives:
                    await asyncio.sleep(0.005)

        await trial.run(body)
        assert trial.lives == ["first began", "second began", "first ended", "second ended"]

    asyncio.run(main())


@pytest.mark.parametrize("bad", ["{nonsense: 1}", "serve: {port: many}", "unbuildable", "unstartable", ": ["])
def test_a_bad_configuration_changes_nothing(home: Path, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        trial = Trial(home)

        async def body() -> None:
            if bad.startswith("un"):
                trial.write(bad)
            else:
                trial.file.write_text(bad)
            assert not await trial.app.reload()
            assert await trial.get("/") == "first"
            trial.write("mended")
            assert await trial.app.reload()
            assert await trial.get("/") == "mended"

        await trial.run(body)

    asyncio.run(main())
    assert "reload_refused" in capsys.readouterr().out


def test_what_only_a_restart_changes_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        trial = Trial(home)

        async def body() -> None:
            trial.write("first", port=9999)
            await trial.app.reload()

        await trial.run(body)

    asyncio.run(main())
    assert "serve.port" in capsys.readouterr().out


def test_a_daemon_reloads_on_sighup_and_no_request_fails(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = home / "avyay.yaml"
    config.write_text("raksha: {}\n")
    command = [sys.executable, "-m", "avyay", "serve", "raksha", "--config", str(config), "--port", str(port)]
    command.append("--reload-config")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "RAKSHA_KEY": "k3y"}
    process = subprocess.Popen(command, env=environment, cwd=home, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    seen: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen.append(status("/health"))

    asking = threading.Thread(target=ask)
    try:
        wait_for(lambda: status("/health") == 200, 60)
        assert status("/v1/jobs") == 200
        asking.start()
        config.write_text("raksha: {api_key_env: RAKSHA_KEY}\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: status("/v1/jobs") == 401, 60)  # the new configuration asks for a key
        config.write_text("raksha: {api_key_env: 7\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        words = ""
        while "reload_refused" not in words:
            words = process.stderr.readline()
        assert status("/v1/jobs") == 401  # and stays
    finally:
        done.set()
        if asking.ident is not None:
            asking.join()
        process.terminate()
        code = process.wait(60)
        if process.stderr is not None:
            process.stderr.close()
    assert code == 0
    assert set(seen) == {200}
