"""`avyay rag index` and `avyay ask` as a user runs them, with the bundled embedder and a real vector store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

ETCD = """# etcdHighFsyncDurations

## Meaning

The disk under etcd is slow to flush its write-ahead log.

## Mitigation

```shell
fio --rw=write --ioengine=sync --fdatasync=1 --directory=/var/lib/etcd
```

Move etcd to a faster disk. \x1b[31mred\x1b[0m
"""


def avyay(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "runbooks"
    (root / "alerts").mkdir(parents=True)
    (root / "alerts" / "etcd.md").write_text(ETCD)
    (root / "README.md").write_text("# Runbooks\n\nWhat to do when things break.\n")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def test_index_then_ask(repository: Path, tmp_path: Path, home: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True)
    sha7 = head.stdout[:7]

    nothing = avyay("ask", "why is etcd slow?", cwd=tmp_path)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "avyay rag index" in nothing.stderr

    indexed = avyay("rag", "index", str(repository), cwd=tmp_path)
    assert indexed.returncode == 0, indexed.stderr
    assert f"Indexed runbooks at {sha7}: 2 added" in indexed.stdout
    assert list((home / "avyay" / "data" / "rag" / "vectors.lance").iterdir())
    with closing(sqlite3.connect(home / "avyay" / "data" / "rag" / "rag.db")) as index:
        # Told in the transaction of the index itself.
        assert index.execute("SELECT name FROM outbox").fetchall() == [("rag.documents.indexed",)]

    asked = avyay("ask", "which command measures the latency of the etcd disk?", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert f"alerts/etcd.md:7-13@{sha7} (Mitigation) · today" in asked.stdout
    assert "  | fio --rw=write --ioengine=sync --fdatasync=1 --directory=/var/lib/etcd\n" in asked.stdout
    assert "\x1b" not in asked.stdout
    assert "the best passages, not an answer" in asked.stderr

    as_json = json.loads(avyay("ask", "etcdHighFsyncDurations", "--json", cwd=tmp_path).stdout)
    assert (as_json["schema_version"], as_json["mode"]) == (1, "extractive")
    assert as_json["passages"][0]["path"] == "alerts/etcd.md"

    off = avyay("ask", "how do I bake sourdough bread?", cwd=tmp_path)
    assert (off.returncode, off.stdout) == (1, "")
    assert "Not in the runbooks" in off.stderr

    helped = avyay("rag", "feedback", as_json["id"], "up", cwd=tmp_path)
    assert helped.returncode == 0
    assert avyay("rag", "feedback", "nonsense", "up", cwd=tmp_path).returncode == 2

    listed = json.loads(avyay("rag", "sources", "--json", cwd=tmp_path).stdout)["sources"]
    assert [(row["name"], row["documents"], row["head"][:7]) for row in listed] == [("runbooks", 2, sha7)]

    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"qid": "q1", "query": "etcd disk slow"}\n\n{"qid": "q2", "query": "runbooks"}\n')
    batch = avyay("rag", "search", "--batch", str(queries), "--top", "1", cwd=tmp_path)
    rows = [json.loads(line) for line in batch.stdout.splitlines()]
    assert [(row["qid"], row["results"][0]["path"]) for row in rows] == [("q1", "alerts/etcd.md"), ("q2", "README.md")]
    assert {"path", "heading", "lines", "commit", "score"} <= rows[0]["results"][0].keys()


def test_measuring_and_statistics(repository: Path, tmp_path: Path) -> None:
    hashing = {"AVYAY_RAG_EMBEDDER_NAME": "hashing", "AVYAY_RAG_SHADOW_SHARE": "1", "AVYAY_RAG_SHADOW_MODE": "keywords"}
    assert avyay("rag", "index", str(repository), cwd=tmp_path, **hashing).returncode == 0
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"qid": "1", "query": "etcdHighFsyncDurations", "gold_docs": ["alerts/etcd.md"]}\n')
    done = avyay("rag", "eval", str(queries), "--answerability", "--min", "0.9", "--json", cwd=tmp_path, **hashing)
    measured = json.loads(done.stdout)
    assert (done.returncode, measured["macro_ndcg_at_10"], measured["answerability"]["answered"]) == (0, 1.0, 1.0)
    queries.write_text('{"qid": "1", "query": "etcdHighFsyncDurations", "gold_docs": ["README.md"]}\n')
    assert avyay("rag", "eval", str(queries), "--min", "0.9", cwd=tmp_path, **hashing).returncode == 1
    assert avyay("ask", "etcdHighFsyncDurations", cwd=tmp_path, **hashing).returncode == 0
    shadow = json.loads(avyay("rag", "shadow", "--json", cwd=tmp_path, **hashing).stdout)
    assert (shadow["questions"], shadow["same_first"]) == (1, 1.0)
    stats = avyay("rag", "stats", cwd=tmp_path, **hashing)
    assert (stats.returncode, stats.stdout.splitlines()[0]) == (
        0,
        "1 answer, 0 of them not in the runbooks; 0 helped, 0 did not.",
    )


def test_a_question_loads_no_vector_database(repository: Path, tmp_path: Path) -> None:
    assert avyay("rag", "index", str(repository), cwd=tmp_path).returncode == 0
    code = (
        "import sys\nfrom avyay.cli.main import main\n"
        "try: main(['ask', 'etcd', '--quiet'])\nexcept SystemExit: pass\n"
        "heavy = {'lancedb', 'pyarrow', 'pandas', 'mcp', 'starlette', 'openai', 'anthropic', 'markdown_it'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("rag", "index", "nowhere"), 2, "There is no file or folder nowhere"),
        (("rag", "index"), 2, "Nothing is indexed yet"),
        (("rag", "index", "empty"), 2, "There are no documents in"),
        (("rag", "remove", "x"), 2, "No source is called 'x'"),
        (("ask", "  "), 2, "The question is empty"),
        (("ask", "x", "--tier", "best"), 2, "There is no tier 'best'"),
        (("rag", "search", "x", "--mode", "magic"), 2, "There is no mode 'magic'"),
        (("rag", "search", "--batch", "broken.jsonl"), 2, "broken.jsonl:2: not a JSON object"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text('{"qid": "1", "query": "x"}\nnonsense\n')
    done = avyay(*arguments, cwd=tmp_path, AVYAY_RAG_EMBEDDER_NAME="hashing")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


class Provider(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that streams one answer, and keeps what it was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word in ("Measure it ", "[1] with:\n```\n", "rm -rf /\n```\n"):
            chunk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        last = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        last["usage"] = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        self.wfile.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *args: object) -> None:
        return None


def test_an_answer_by_a_model(repository: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tmp_path / "settings.yaml"
    endpoint = f"http://127.0.0.1:{server.server_port}/v1"
    provider = {"name": "here", "kind": "openai-compatible", "endpoint": endpoint, "models": ["m"], "tier": "local"}
    settings = {"marga": {"discover": False, "providers": [provider]}, "rag": {"embedder": {"name": "hashing"}}}
    config.write_text(json.dumps(settings))
    try:
        assert avyay("rag", "index", str(repository), "--config", str(config), cwd=tmp_path).returncode == 0
        done = avyay("ask", "etcdHighFsyncDurations", "--config", str(config), cwd=tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Measure it [1] with:\n```\nrm -rf /\n```\n")
    assert "\n[1] alerts/etcd.md:" in done.stdout
    assert "Not in the runbooks word for word: rm -rf /" in done.stderr
    assert "m (here, local) · 9+5 tokens" in done.stderr
    (asked,) = Provider.asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert "fio --rw=write" in asked["messages"][1]["content"]
