"""What commands print with --json is what their schemas say, no more and no less."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from avyay.cli.app import run
from avyay.cli.documents import DOCUMENTS, document_type, schema
from avyay.raksha.report.documents import FindingDocument, SkippedDocument

ROOT = Path(__file__).parents[2]


def printed(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        run([*arguments, "--json"])
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def check(command: str, document: dict[str, Any]) -> None:
    assert document.pop("schema_version") == 1
    kind = document_type(command)
    TypeAdapter(kind).validate_python(document)
    assert set(document) == set(kind.__annotations__)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_scan(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("import yaml\nyaml.load(x)\nx = 1  # avyay: ignore[bandit-b506] gone\n")
    (code / "b.py").write_text("def (:\n")
    (code / "c.png").write_text("")
    document = printed("scan", str(code))
    assert document["findings"]
    assert document["skipped"]
    assert document["ignored"]
    for name, kind in (("findings", FindingDocument), ("skipped", SkippedDocument)):
        assert all(set(item) == set(kind.__annotations__) for item in document[name])
    check("scan", document)


def test_rules_and_one_of_them() -> None:
    document = printed("raksha", "rules")
    assert len(document["rules"]) > 100
    assert {rule["repair"] for rule in document["rules"]} == {"none", "safe", "unsafe"}
    check("raksha rules", document)
    check("raksha explain", printed("raksha", "explain", "sql-injection"))


class Source(BaseHTTPRequestHandler):
    """OSV with one advisory for each ecosystem."""

    def do_GET(self) -> None:
        name = self.path.split("/")[1]
        affected = [{"package": {"ecosystem": name, "name": "demo"}, "versions": ["1.0"]}]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(
                "X-1.json", json.dumps({"id": "X-1", "modified": "2026-01-01T00:00:00Z", "affected": affected})
            )
        self.send_response(200)
        self.send_header("content-length", str(len(archive.getvalue())))
        self.end_headers()
        self.wfile.write(archive.getvalue())

    def log_message(self, *args: object) -> None:
        pass


def test_advisories(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AVYAY_RAKSHA_ADVISORIES_URL", f"http://127.0.0.1:{server.server_port}")
        check("raksha db update", printed("raksha", "db", "update", "--ecosystem", "npm"))
        server.shutdown()
    check("raksha db show", printed("raksha", "db", "show"))


@pytest.mark.parametrize("command", DOCUMENTS)
def test_schemas_are_written_down(command: str) -> None:
    path = ROOT / "docs" / "reference" / "json" / f"{command.replace(' ', '-')}.json"
    assert json.loads(path.read_text()) == schema(command)
