"""A daemon of several workers, as a user starts it; and connections that stay with one of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from daemon import wait_for


class Line:
    """A connection kept open: every request over it meets the same worker."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"content-type": "application/json", **names})
        with self._connection.getresponse() as answer:
            raw = answer.read()
        return answer.status, json.loads(raw) if "json" in answer.headers.get("content-type", "") else raw.decode()

    def stream(self, path: str) -> http.client.HTTPResponse:
        """An answer that has begun, to be read to its end."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        assert answer.status == 200
        return answer

    def get(self, path: str) -> Any:
        status, found = self.ask("GET", path)
        assert status == 200, found
        return found


class Family:
    """`avyay serve NAME --workers 2` at home in a folder."""

    def __init__(self, name: str, home: Path, *options: str, path: Path | None = None, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.name, self.home = name, home
        command = [sys.executable, "-m", "avyay", "serve", name, "--port", str(self.port), "--workers", "2"]
        self._words = (home / "words").open("w+")
        self.process = subprocess.Popen(
            [*command, *options],
            env={
                **os.environ,
                "PYTHONPATH": str(Path.cwd()),
                "AVYAY_HOME": str(home / "avyay"),
                "HOME": str(home),
                "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"],
                **environment,
            },
            cwd=home,
            stderr=self._words,
        )

    def words(self) -> str:
        return Path(self._words.name).read_text()

    def workers(self) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def leader(self) -> int | None:
        """The worker that has the lead's file open."""
        for pid in self.workers():
            try:
                if any(link.readlink().name == "lead.lock" for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
            except OSError:
                continue
        return None

    def answers(self) -> bool:
        try:
            with Line(self.port) as line:
                return line.ask("GET", "/health")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def up(self) -> Self:
        try:
            wait_for(lambda: self.process.poll() is not None or self.answers(), 90)
            assert self.process.poll() is None
            with self.both():
                pass
        except AssertionError as error:
            self.kill()
            raise AssertionError(self.words()) from error
        return self

    @contextmanager
    def both(self) -> Iterator[tuple[Line, Line]]:
        """A connection to the worker that leads, and one to the other."""
        found: dict[str, Line] = {}
        tried: list[Line] = []

        def look() -> bool:
            line = Line(self.port)
            tried.append(line)
            try:
                found[line.get("/health")["duties"]] = line
            except (OSError, http.client.HTTPException):
                found.clear()
            if len(tried) > 40:
                for old in tried[:20]:
                    old.__exit__()
                    found.update({where: one for where, one in found.items() if one is not old})
                del tried[:20]
            return {"here", "another worker"} <= found.keys()

        try:
            wait_for(look, 60)
            yield found["here"], found["another worker"]
        finally:
            for line in tried:
                line.__exit__()

    def jobs(self) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "avyay" / "data" / self.name / "jobs.db")) as database:
            return database.execute("SELECT state, runs FROM jobs ORDER BY number").fetchall()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._words.close()
