"""Remote repositories over http and ssh: real git on both ends, on loopback, and everything the other side may do."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from avyay.embed.hashing import Hashing
from avyay.errors import AuthError, AvyayError, UnreachableError, UsageError
from avyay.rag.places import IndexPlaces
from avyay.rag.service import RagService
from avyay.rag.stores.memory import MemoryStore

NETRC = "machine 127.0.0.1 login {} password {}\n"


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


class Server:
    """`git http-backend` behind basic authentication."""

    def __init__(self, root: Path) -> None:
        self.user: str | None = None
        self.broken = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                self.answer(self.rfile.read(length))

            def answer(self, body: bytes) -> None:
                given = self.headers.get("authorization", "")
                wanted = f"Basic {base64.b64encode((outer.user or '').encode()).decode()}"
                if outer.broken:
                    self.send_error(503)
                    return
                if outer.user is not None and given != wanted:
                    self.send_response(401)
                    self.send_header("www-authenticate", 'Basic realm="git"')
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                path, _, query = self.path.partition("?")
                environment = {
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "GIT_CONFIG_GLOBAL": os.devnull,
                    "REQUEST_METHOD": self.command,
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "CONTENT_TYPE": self.headers.get("content-type", ""),
                    "CONTENT_LENGTH": str(len(body)),
                    "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                    "HTTP_GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                    "REMOTE_ADDR": "127.0.0.1",
                }
                done = subprocess.run(
                    ["git", "http-backend"], input=body, env=environment, capture_output=True, check=False
                )
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
                self.send_response(int(fields.pop("Status", "200").split()[0]))
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A clone whose pushes reach `served/ops.git`."""
    served, clone = tmp_path / "served", tmp_path / "clone"
    served.mkdir()
    git("init", "--quiet", "--bare", "--initial-branch=main", "ops.git", cwd=served)
    git("init", "--quiet", "--initial-branch=main", str(clone), cwd=tmp_path)
    git("remote", "add", "origin", str(served / "ops.git"), cwd=clone)
    push(clone, "etcd.md", "# Etcd is slow\n\nMove it to a faster disk.\n")
    return clone


def push(clone: Path, path: str, text: str, *, force: bool = False) -> str:
    (clone / path).write_text(text)
    git("add", "--all", cwd=clone)
    git("commit", "--quiet", "-m", path, *(["--amend"] if force else []), cwd=clone)
    git("push", "--quiet", *(["--force"] if force else []), "origin", "main", cwd=clone)
    return git("rev-parse", "HEAD", cwd=clone)


@pytest.fixture
def server(work: Path) -> Iterator[Server]:
    made = Server(work.parent / "served")
    yield made
    made.close()


@pytest.fixture
def rag(tmp_path: Path) -> Iterator[RagService]:
    store = MemoryStore()
    service = RagService(IndexPlaces.under(tmp_path / "index"), Hashing(), open_store=lambda: store)
    yield service
    service.close()


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avyay.rag.sources.git.FETCH_ATTEMPTS", 2)


def texts(rag: RagService) -> set[str]:
    return {one.row.chunk.text for one in rag.retrieve("etcd kafka disk", limit=50).found}


def test_over_http_with_a_password(rag: RagService, server: Server, work: Path, home: Path) -> None:
    server.user = "oncall:right"
    url = f"{server.url}/ops.git"
    with pytest.raises(AuthError, match="refused access"):
        rag.index(url)
    (home / ".netrc").write_text(NETRC.format("oncall", "wrong"))
    with pytest.raises(AuthError) as caught:
        rag.index(url)
    assert "wrong" not in f"{caught.value.message} {caught.value.hint}"
    (home / ".netrc").write_text(NETRC.format("oncall", "right"))
    assert rag.index(url).head == git("rev-parse", "HEAD", cwd=work)
    head = push(work, "kafka.md", "# Kafka broker down\n\nRestart it.\n")
    report = rag.sync()[0]
    assert (report.head, report.added, report.unchanged) == (head, ("kafka.md",), 1)
    assert {row.spec.location for row in rag.sources()} == {url}


def test_a_server_that_fails_leaves_the_index(rag: RagService, server: Server, work: Path) -> None:
    rag.index(f"{server.url}/ops.git")
    before = texts(rag)
    push(work, "kafka.md", "# Kafka\n\nRestart it.\n")
    server.broken = True
    with pytest.raises(UnreachableError, match="cannot be fetched"):
        rag.sync()
    server.close()
    with pytest.raises(UnreachableError):
        rag.sync()
    assert texts(rag) == before
    assert rag.reconcile().unchecked.keys() == {"ops"}
    assert texts(rag) == before


def test_a_repository_that_is_not_there(rag: RagService, server: Server) -> None:
    with pytest.raises(UsageError, match="is not a git repository"):
        rag.index(f"{server.url}/nothing.git")
    with pytest.raises(UsageError, match="no branch or tag 'nope'"):
        rag.index(f"{server.url}/ops.git", branch="nope")


def test_a_rewritten_history_over_http(rag: RagService, server: Server, work: Path) -> None:
    rag.index(f"{server.url}/ops.git")
    head = push(work, "etcd.md", "# Etcd is slow\n\nDefragment it.\n", force=True)
    report = rag.sync()[0]
    assert (report.head, report.changed) == (head, ("etcd.md",))
    passage = rag.search("etcd slow")[0]
    assert (passage.commit, "Defragment" in passage.text) == (head, True)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for ssh: it runs the command here. The file beside it, when there, is what it says instead."""
    program, says = tmp_path / "ssh.sh", tmp_path / "says"
    program.write_text(
        f'#!/bin/sh\n[ -f {says} ] && {{ cat {says} >&2; exit 255; }}\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(program))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    return says


@pytest.mark.parametrize("form", ["ssh://git@127.0.0.1{}", "git@127.0.0.1:{}"], ids=["url", "scp"])
def test_over_ssh(rag: RagService, work: Path, ssh: Path, form: str) -> None:
    location = form.format(work.parent / "served" / "ops.git")
    assert rag.index(location).added == ("etcd.md",)
    push(work, "kafka.md", "# Kafka\n\nRestart it.\n")
    assert rag.sync()[0].added == ("kafka.md",)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("git@127.0.0.1: Permission denied (publickey).", AuthError),
        ("Host key verification failed.", AuthError),
        ("ssh: connect to host 127.0.0.1 port 22: Connection refused", UnreachableError),
        ("ssh: Could not resolve hostname ops: Name or service not known", UnreachableError),
        ("ERROR: Repository not found.", UsageError),
    ],
    ids=["no key", "host key", "refused", "no such host", "not found"],
)
def test_what_ssh_says(rag: RagService, work: Path, ssh: Path, said: str, error: type[AvyayError]) -> None:
    location = f"ssh://git@127.0.0.1{work.parent}/served/ops.git"
    rag.index(location)
    before = texts(rag)
    ssh.write_text(said + "\n")
    with pytest.raises(error) as caught:
        rag.sync()
    assert caught.value.hint
    assert texts(rag) == before


def test_a_repository_of_somebody_else(rag: RagService, work: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rag.index(str(work))
    before = texts(rag)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for again in (rag.sync, lambda: rag.index(str(work)), lambda: rag.index(f"file://{work}", name="other")):
        with pytest.raises(UsageError, match="belongs to another user") as caught:
            again()
        assert "safe.directory" in (caught.value.hint or "")
    assert texts(rag) == before


def test_a_mirror_that_was_damaged_is_fetched_anew(rag: RagService, server: Server, work: Path, tmp_path: Path) -> None:
    rag.index(f"{server.url}/ops.git")
    (mirror,) = (tmp_path / "index" / "mirrors").glob("*.git")
    shutil.rmtree(mirror / "objects")
    push(work, "kafka.md", "# Kafka\n\nRestart it.\n")
    assert rag.sync()[0].added == ("kafka.md",)
