"""The scanner over HTTP: files, archives, jobs, limits."""

from __future__ import annotations

import io
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from avyay.config import Environment
from avyay.errors import PolicyError, UsageError
from avyay.serve.launch import Launch
from avyay.serve.raksha import build_app, serve_raksha
from avyay.serve.uploads import Limits, clone, unpack, write_files
from avyay.wiring import Services, open_services

BAD = "import yaml\n\n\ndef f(text):\n    return yaml.load(text)\n"


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home), **variables}
    return open_services(directory=home, environment=Environment(values))


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with TestClient(build_app(services(home), limits=Limits(files=20)), base_url="http://127.0.0.1") as running:
        yield running


def tar(entries: dict[str, bytes], *, mode: str = "w:gz", link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo("link.py")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return stream.getvalue()


def send(client: TestClient, data: bytes, kind: str = "application/gzip", **query: str) -> Any:
    return client.post("/v1/scan", content=data, headers={"content-type": kind}, params=query)


def places(document: dict[str, Any]) -> list[str]:
    found = [result["locations"][0]["physicalLocation"] for result in document["runs"][0]["results"]]
    return [f"{one['artifactLocation']['uri']}:{one['region']['startLine']}" for one in found]


def test_files_in_sarif_out(client: TestClient) -> None:
    answer = client.post("/v1/scan", json={"files": [{"path": "src/a.py", "content": BAD}]})
    assert answer.headers["content-type"] == "application/sarif+json"
    assert places(answer.json()) == ["src/a.py:5"]
    plain = client.post("/v1/scan?format=json", json={"files": [{"path": "a.py", "content": "x = 1\n"}]}).json()
    assert (plain["verdict"], plain["files"], plain["root"]) == ("clean", 1, ".")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tarballs(client: TestClient, mode: str) -> None:
    data = tar({"./a.py": BAD.encode(), ".git/config": b"[core]\n"}, mode=mode, link="/etc/passwd")
    answer = send(client, data, format="json").json()
    assert (answer["files"], [f["path"] for f in answer["findings"]]) == (1, ["a.py"])


def test_zip(client: TestClient) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.py", BAD)
    assert places(send(client, stream.getvalue(), "application/zip").json()) == ["a.py:5"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"no archive", "bad_archive"),
        (tar({"../out.py": b"x"}), "bad_path"),
        (tar({"/abs.py": b"x"}), "bad_path"),
        (tar({f"{n}.py": b"" for n in range(30)}), "too_large"),
        (tar({"bomb.py": b"\0" * 6_000_000}), "too_large"),
        (tar({"a.py": b"x"})[:40], "bad_archive"),
    ],
    # Names of our own: the archives carry the time, so names made of them differ between processes.
    ids=["no archive", "upwards", "absolute", "many files", "bomb", "cut off"],
)
def test_hostile_archives(client: TestClient, data: bytes, code: str) -> None:
    answer = send(client, data)
    assert (answer.status_code, answer.json()["code"]) == (413 if code == "too_large" else 400, code)


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.py", b"\0" * 3_000_000)
    with pytest.raises(UsageError, match="too many bytes"):
        unpack(stream.getvalue(), tmp_path, Limits(file_bytes=1_000_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a\0b", "a\\b", "x" * 300, "."])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        write_files([(name, b"x")], tmp_path, Limits())


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a file"):
        write_files([("a", b"x"), ("a/b", b"x")], tmp_path, Limits())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "bad_request"),
        ({"files": "x"}, "bad_request"),
        ({"files": [{"path": "a.py", "content": "x"}], "git": {"url": "https://h.io/r"}}, "bad_request"),
        ({"files": [{"path": "../a.py", "content": "x"}]}, "bad_path"),
    ],
)
def test_bad_requests(client: TestClient, body: dict[str, Any], code: str) -> None:
    answer = client.post("/v1/scan", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def finished(client: TestClient, identity: str) -> dict[str, Any]:
    for _ in range(600):
        job: dict[str, Any] = client.get(f"/v1/jobs/{identity}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError("the job does not end")


def test_jobs(client: TestClient) -> None:
    answer = client.post("/v1/scan?wait=false", json={"files": [{"path": "a.py", "content": BAD}]})
    assert answer.status_code == 202
    identity = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/jobs/{identity}"
    job = finished(client, identity)
    assert (job["state"], places(job["result"])) == ("done", ["a.py:5"])
    with client.stream("GET", f"/v1/jobs/{identity}/events") as stream:
        assert b'"state":"done"' in stream.read()
    assert client.get("/v1/jobs/nope").status_code == 404


def test_git_only_of_allowed_hosts(client: TestClient) -> None:
    job = finished(client, client.post("/v1/scan", json={"git": {"url": "https://evil.io/r"}}).json()["id"])
    assert (job["state"], "not fetched here" in job["error"]) == ("failed", True)


@pytest.mark.parametrize(
    "url",
    ["http://h.io/r", "file:///etc", "ssh://h.io/r", "https://u:p@h.io/r", "https://h.io/--upload-pack=x y", "ext::sh"],
)
def test_git_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError):
        clone(url, None, tmp_path / "x", hosts=["h.io"])
    with pytest.raises(UsageError, match="no branch"):
        clone("https://h.io/r", "--x", tmp_path / "x", hosts=["h.io"])


def test_rules_health_and_metrics(client: TestClient) -> None:
    client.post("/v1/scan", json={"files": [{"path": "a.py", "content": BAD}]})
    assert client.get("/v1/rules/bandit-b506").json()["cwe"] == ["CWE-502"]
    assert client.get("/v1/rules/nope").status_code == 404
    assert len(client.get("/v1/rules").json()["rules"]) > 10
    assert client.get("/health").json()["engines"]["semgrep"]
    assert client.get("/ready").json() == {"ready": True}
    assert 'raksha_scans_total{verdict="findings"} 1' in client.get("/metrics").text
    assert client.get("/openapi.json").json()["info"]["title"] == "avyay raksha"


def test_a_key(home: Path) -> None:
    with TestClient(build_app(services(home), key="k3y"), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/rules").status_code == 401
        assert client.get("/v1/rules", headers={"authorization": "Bearer k3y"}).status_code == 200
        assert client.get("/health").status_code == 200


def test_not_open_to_others_without_a_key(home: Path) -> None:
    with pytest.raises(PolicyError):
        serve_raksha(services(home), Launch(host="0.0.0.0", port=0))
    with pytest.raises(UsageError, match="not set"):
        serve_raksha(services(home, AVYAY_RAKSHA_API_KEY_ENV="NOT_SET"), Launch(port=0))


def test_a_foreign_name_is_refused(home: Path) -> None:
    with TestClient(build_app(services(home)), base_url="http://evil.io") as client:
        assert client.get("/health").status_code == 400
