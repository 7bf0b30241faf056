"""Canary secrets in the environment, in a provider's answer and in scanned code reach no output, log or database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CANARIES = {
    "OPENAI_API_KEY": "sk-proj-canary0openai0canary0openai0canary0openai",
    "ANTHROPIC_API_KEY": "sk-ant-api03-canary0anthropic0canary0anthropic0canary",
    "MARGA_API_KEY": "avy_canary0marga0canary0marga0canary",
    "GITHUB_TOKEN": "ghp_canary0github0canary0github0cana0",
    "AWS_SECRET_ACCESS_KEY": "canaryAws/canaryAws/canaryAws/canaryAws0",
}
IN_CODE = "sk-live-canary0code0canary0code0canary0code0canary"


class Provider:
    """A provider that fails and repeats the caller's key in its answer, as real ones have."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.status = 401
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                key = self.headers.get("authorization") or self.headers.get("x-api-key") or ""
                outer.seen.append(key)
                message = f"Incorrect API key provided: {key.removeprefix('Bearer ')}."
                body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
                self.send_response(outer.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = answer  # noqa: N815
            do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture
def project(tmp_path: Path, provider: Provider) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README.md").write_text("# Widget\n\n## Install\n\nRun `pip install widget`.\n")
    (folder / "app.py").write_text(f'import os\n\nAPI_KEY = "{IN_CODE}"\nos.system("ls " + input())\n')
    port = provider.server.server_port
    (folder / "settings.yaml").write_text(
        "marga:\n  discover: false\n  providers:\n"
        f"    - {{name: openai, endpoint: 'http://127.0.0.1:{port}/v1', kind: openai}}\n"
        f"    - {{name: anthropic, endpoint: 'http://127.0.0.1:{port}/v1', kind: anthropic, priority: 2}}\n"
    )
    return folder


COMMANDS = (
    ("route", "Say hi"),
    ("route", "--explain", "Say hi"),
    ("rag", "index", "."),
    ("ask", "How do I install it?"),
    ("scan", "."),
    ("scan", ".", "--json", "--sarif", "raksha-results.sarif"),
    ("config", "show"),
    ("config", "show", "--json"),
    ("doctor", "--json"),
    ("marga", "providers", "--json"),
    ("marga", "decisions", "--json"),
)


@pytest.mark.parametrize("status", [401, 500])
def test_no_canary_is_found_anywhere(project: Path, home: Path, provider: Provider, status: int) -> None:
    provider.status = status
    said: list[str] = []
    environment = {**os.environ, **CANARIES, "AVYAY_LOG": "json", "AVYAY_DEBUG": "1"}
    for command in COMMANDS if status == 401 else COMMANDS[:4]:
        done = subprocess.run(
            [sys.executable, "-m", "avyay", *command, "--config", "settings.yaml", "-vv"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode != 70, done.stderr
        said.append(done.stdout + done.stderr)
    assert any(CANARIES["OPENAI_API_KEY"] in key for key in provider.seen), (
        "the provider was really called with the key"
    )

    places = {f"output of {' '.join(command)}": text for command, text in zip(COMMANDS, said, strict=False)}
    for folder in (home, project):
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "app.py":
                places[str(file)] = file.read_bytes().decode("latin-1")
    secrets = (*CANARIES.values(), IN_CODE)
    assert not [(place, secret) for place, text in places.items() for secret in secrets if secret in text]


def test_a_password_in_a_url_is_not_shown() -> None:
    url = "postgresql://ada:canary0password@db.internal/queue"
    for flags in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "avyay", "config", "show", "engine", *flags],
            env={**os.environ, "AVYAY_ENGINE_QUEUE_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0
        assert "db.internal" in done.stdout
        assert "canary0password" not in done.stdout + done.stderr
