"""Lock files against advisories: what is read, which versions match, and what happens without a database."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.errors import DependencyError, UnreachableError
from avyay.raksha.engines.sca import ScaEngine
from avyay.raksha.sca.cvss import base_score
from avyay.raksha.sca.database import AdvisoryDatabase
from avyay.raksha.sca.lockfiles import LockfileError, is_lockfile, read_lockfile
from avyay.raksha.sca.update import update_database
from avyay.raksha.sca.versions import is_affected, newest, sort_key
from avyay.raksha.scan import CodeScanner
from avyay.raksha.types import verdict

LOCKS: dict[str, tuple[str, list[tuple[str, str, int]]]] = {
    "requirements.txt": (
        "# c\nJinja2[x]==2.4.1 \\\n    --hash=sha256:00\nflask>=1\nloose==1.*\n./local\nPy_Yaml === 5.1 ; x>'3'\n",
        [("jinja2", "2.4.1", 2), ("py-yaml", "5.1", 7)],
    ),
    "uv.lock": (
        'version = 1\n\n[[package]]\nname = "jinja2"\nversion = "2.4.1"\nsource = { registry = "https://x" }\n\n'
        '[[package]]\nname = "mine"\nversion = "0.1"\nsource = { editable = "." }\n',
        [("jinja2", "2.4.1", 4)],
    ),
    "poetry.lock": (
        '[[package]]\nname = "Jinja2"\nversion = "2.4.1"\n\n[[package]]\nname = "g"\nversion = "1"\n'
        '[package.source]\ntype = "git"\nurl = "x"\n',
        [("jinja2", "2.4.1", 2)],
    ),
    "Pipfile.lock": (
        json.dumps({"default": {"jinja2": {"version": "==2.4.1"}, "x": {"git": "y"}}, "develop": {}}, indent=2),
        [("jinja2", "2.4.1", 3)],
    ),
    "package-lock.json": (
        json.dumps(
            {
                "lockfileVersion": 3,
                "packages": {
                    "": {"name": "me", "version": "1.0.0"},
                    "node_modules/lodash": {"version": "4.17.0", "resolved": "https://r/l.tgz"},
                    "node_modules/a/node_modules/@s/b": {"version": "1.0.0"},
                    "node_modules/ws": {"resolved": "packages/ws", "link": True},
                    "node_modules/git": {"version": "1.0.0", "resolved": "git+ssh://x"},
                    "packages/ws": {"version": "1.0.0"},
                },
            },
            indent=2,
        ),
        [("lodash", "4.17.0", 8), ("@s/b", "1.0.0", 12)],
    ),
    "npm-shrinkwrap.json": (
        json.dumps({"dependencies": {"a": {"version": "1.0.0", "dependencies": {"b": {"version": "x"}}}}}, indent=2),
        [("a", "1.0.0", 3)],
    ),
    "pnpm-lock.yaml": (
        "lockfileVersion: '9.0'\npackages:\n  lodash@4.17.0:\n    resolution: {}\n"
        "  '@s/b@1.0.0(react@18.0.0)':\n    x: 1\n  /old/2.0.0:\n    x: 1\n  /@s/c@3.0.0:\n    x: 1\n  link:../x: {}\n",
        [("lodash", "4.17.0", 3), ("@s/b", "1.0.0", 5), ("old", "2.0.0", 7), ("@s/c", "3.0.0", 9)],
    ),
    "yarn.lock": (
        '# yarn lockfile v1\n\nlodash@^4.0.0, lodash@^4.1.0:\n  version "4.17.0"\n\n"@s/b@npm:^1.0.0":\n'
        '  version: 1.0.0\n\n"me@workspace:.":\n  version: 0.0.0\n\nalias@npm:real@^2.0.0:\n  version "2.0.0"\n',
        [("lodash", "4.17.0", 3), ("@s/b", "1.0.0", 6), ("real", "2.0.0", 12)],
    ),
    "go.mod": (
        "module example.com/me\n\ngo 1.22\n\nrequire github.com/a/b v1.2.3\nrequire (\n\tgolang.org/x/net v0.1.0 // x\n"
        "\tgithub.com/c/d v2.0.0+incompatible\n\tgithub.com/r/r v1.0.0\n)\nreplace github.com/r/r => ../r\n",
        [("github.com/a/b", "1.2.3", 5), ("golang.org/x/net", "0.1.0", 7), ("github.com/c/d", "2.0.0", 8)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files(name: str) -> None:
    text, expected = LOCKS[name]
    assert is_lockfile(f"sub/{name}")
    assert [(item.name, item.version, item.line) for item in read_lockfile(name, text)] == expected


def test_which_names_are_lock_files() -> None:
    for name in ("requirements-dev.txt", "dev_requirements.txt", "requirements/base.txt", "constraints.txt"):
        assert is_lockfile(name), name
    for name in ("notes.txt", "package.json", "pyproject.toml", "requirements.md"):
        assert not is_lockfile(name), name


@given(st.sampled_from(sorted(LOCKS)), st.text(max_size=200))
def test_garbage_is_refused_or_empty(name: str, text: str) -> None:
    try:
        read_lockfile(name, text)
    except LockfileError as error:
        assert name in str(error)


@pytest.mark.parametrize(
    ("ecosystem", "older", "newer"),
    [
        ("PyPI", "1.0rc1", "1.0"),
        ("PyPI", "1.9", "1.10"),
        ("PyPI", "1.0", "1.0.post1"),
        ("npm", "1.0.0-alpha.2", "1.0.0-alpha.10"),
        ("npm", "1.0.0-1", "1.0.0-a"),
        ("npm", "1.0.0-rc", "1.0.0"),
        ("Go", "0.0.0-20200101000000-abc", "0.0.1"),
    ],
)
def test_order_of_versions(ecosystem: str, older: str, newer: str) -> None:
    one, two = sort_key(ecosystem, older), sort_key(ecosystem, newer)
    assert one is not None
    assert one < two
    assert newest(ecosystem, [newer, older, "nonsense"]) == newer


def test_ranges() -> None:
    events = [[{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"last_affected": "2.3"}]]
    answers = {v: is_affected("PyPI", v, events) for v in ("0.1", "1.4.9", "1.5", "1.9", "2.0", "2.3", "2.3.1", "3")}
    assert [v for v, yes in answers.items() if yes] == ["0.1", "1.4.9", "2.0", "2.3"]
    assert is_affected("PyPI", "odd-version!", events) is None
    assert is_affected("PyPI", "odd-version!", events, ["odd-version!"]) is True
    assert is_affected("npm", "1.0.0", []) is False


@pytest.mark.parametrize(
    ("vector", "score"),
    [  # examples of the specification's own documents
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1),
        ("CVSS:3.0/AV:L/AC:L/PR:L/UI:N/S:U/C:H/I:H/A:H", 7.8),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0),
        ("CVSS:4.0/AV:N", None),
        ("CVSS:3.1/AV:N", None),
    ],
)
def test_cvss(vector: str, score: float | None) -> None:
    assert base_score(vector) == score


Record = dict[str, Any]


def record(name: str, package: str, events: list[dict[str, str]], ecosystem: str = "PyPI", **more: Any) -> Record:
    affected = {"package": {"ecosystem": ecosystem, "name": package}}
    affected["ranges"] = [{"type": "ECOSYSTEM", "events": events}]  # type: ignore[assignment]
    return {"id": name, "summary": f"About {package}", "affected": [affected], **more}


def until(version: str) -> list[dict[str, str]]:
    return [{"introduced": "0"}, {"fixed": version}]


WORST = [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}]
RECORDS: dict[str, list[Record]] = {
    "PyPI": [
        record("GHSA-1", "Jinja2", until("2.8.1"), aliases=["CVE-1"], database_specific={"severity": "HIGH"}),
        record("PYSEC-1", "jinja2", until("2.8.1"), aliases=["CVE-1"]),
        record("GHSA-2", "jinja2", until("3.1.6"), severity=WORST),
        record("GHSA-3", "jinja2", [{"introduced": "0"}], withdrawn="2024-01-01T00:00:00Z"),
        record("MAL-1", "evil", [{"introduced": "0"}]),
    ],
    "npm": [record("GHSA-9", "lodash", until("4.17.21"), "npm", database_specific={"severity": "LOW"})],
    "Go": [],
}


class Source(BaseHTTPRequestHandler):
    """An OSV bucket on loopback; `answers` maps a path to a list of (status, body), used one after the other."""

    answers: dict[str, list[tuple[int, bytes]]]

    def do_GET(self) -> None:
        queue = self.answers.get(self.path, [(404, b"")])
        status, body = queue.pop(0) if len(queue) > 1 else queue[0]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def bundle(records: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for item in records:
            archive.writestr(f"{item['id']}.json", json.dumps(item))
    return stream.getvalue()


@pytest.fixture
def source() -> Iterator[str]:
    Source.answers = {f"/{name}/all.zip": [(200, bundle(items))] for name, items in RECORDS.items() if items}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_update_and_scan(source: str, write, tmp_path: Path) -> None:
    path = tmp_path / "data" / "advisories.db"
    assert update_database(path, ecosystems=["PyPI", "npm"], source=source) == {"PyPI": 4, "npm": 1}
    root = write(
        {"requirements.txt": "jinja2==2.4.1\nflask==1.0\n", "package-lock.json": LOCKS["package-lock.json"][0]}
    )
    report = CodeScanner([ScaEngine(path)]).scan([root])
    assert [(f.rule, f.path, f.line, f.severity) for f in report.findings] == [
        ("vulnerable-dependency", "requirements.txt", 1, "critical"),
        ("vulnerable-dependency", "package-lock.json", 8, "low"),
    ]
    jinja = report.findings[0]
    assert jinja.message == "jinja2 2.4.1: GHSA-2, GHSA-1 (CVE-1): About jinja2."
    assert jinja.fix == "Upgrade jinja2 to 3.1.6 or later."
    write({"requirements.txt": "evil==9\n", "package-lock.json": "{}"})
    assert [(f.rule, f.severity) for f in CodeScanner([ScaEngine(path)]).scan([root]).findings] == [
        ("malicious-dependency", "critical")
    ]
    write({"requirements.txt": "jinja2==3.1.6\n"})
    assert verdict(CodeScanner([ScaEngine(path)]).scan([root]), "low") == "clean"


def test_an_update_keeps_other_ecosystems(source: str, tmp_path: Path) -> None:
    path = tmp_path / "advisories.db"
    update_database(path, ecosystems=["npm"], source=source)
    update_database(path, ecosystems=["PyPI"], source=source)
    database = AdvisoryDatabase(path)
    assert set(database.fetched()) == {"PyPI", "npm"}
    assert [a.id for a in database.advisories("npm", ["lodash"])["lodash"]] == ["GHSA-9"]
    database.close()
    assert [item.name for item in tmp_path.iterdir()] == ["advisories.db"]


@pytest.mark.parametrize(
    "answers",
    [
        [(404, b"")],
        [(200, b"no zip")],
        [(200, bundle([]))],
        [(200, bundle([{"id": "x", "affected": "odd"}]))],
        [(503, b""), (503, b""), (503, b"")],
    ],
)
def test_a_broken_source_leaves_the_old_copy(source: str, tmp_path: Path, answers: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "advisories.db"
    update_database(path, ecosystems=["PyPI"], source=source)
    before = path.read_bytes()
    Source.answers["/PyPI/all.zip"] = answers
    with pytest.raises(UnreachableError):
        update_database(path, ecosystems=["PyPI"], source=source)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["advisories.db"]


def test_a_hiccup_is_tried_again(source: str, tmp_path: Path) -> None:
    good = Source.answers["/PyPI/all.zip"][0]
    Source.answers["/PyPI/all.zip"] = [(503, b""), good]
    assert update_database(tmp_path / "a.db", ecosystems=["PyPI"], source=source)["PyPI"] == 4


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        update_database(tmp_path / "a.db", ecosystems=["PyPI"], source="http://127.0.0.1:9")


def test_three_outcomes_without_a_database(write, tmp_path: Path) -> None:
    root = write({"requirements.txt": "jinja2==2.4.1\n"})
    path = tmp_path / "none.db"
    optional = CodeScanner([ScaEngine(path)]).scan([root])
    assert verdict(optional, "low") == "clean"
    assert [item.engine for item in optional.ignored] == ["sca"], "but it is said"
    required = CodeScanner([ScaEngine(path, required=True)]).scan([root])
    assert verdict(required, "low") == "unchecked"
    with pytest.raises(DependencyError, match="no advisory database"):
        AdvisoryDatabase(path)


def test_what_cannot_be_read_or_judged_is_not_clean(source: str, write, tmp_path: Path) -> None:
    path = tmp_path / "advisories.db"
    update_database(path, ecosystems=["npm"], source=source)
    root = write({"requirements.txt": "jinja2==2.4.1\n", "uv.lock": "not [ toml", "yarn.lock": ""})
    report = CodeScanner([ScaEngine(path)]).scan([root])
    assert {item.path: item.reason for item in report.skipped} == {
        "requirements.txt": "No advisories for PyPI; run: avyay raksha db update",
        "uv.lock": "uv.lock cannot be read: TOMLDecodeError.",
    }


def test_an_old_database_is_mentioned(source: str, write, tmp_path: Path) -> None:
    path = tmp_path / "advisories.db"
    update_database(path, ecosystems=["PyPI"], source=source)
    clock = FakeClock()
    clock.advance(path.stat().st_mtime - clock.now() + 86_400 * 45)
    report = CodeScanner([ScaEngine(path, clock=clock)]).scan([write({"requirements.txt": "flask==1.0\n"})])
    assert "45 days old" in report.ignored[0].reason
