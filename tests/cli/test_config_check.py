"""`avyay config check`: everything that is wrong at once, with its place and a way out, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avyay.cli.app import run as avyay

BAD = """\
marga:
  providers:
    - name: openai
      endpont: https://api.openai.com/v1
      circuit_breaker: {failure_treshold: 5}
    - {name: other}
    - 7
  budgets: 7
serve:
  hst: 127.0.0.1
  worker_timeout: 1s
gateway:
  upstreams: {marga: {url: "https://user:sk-abcdefghijklmnopqrstuvwx@host"}}
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "home"))

    def check(text: str | bytes | None, *options: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "given.yaml"
        if text is not None:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = avyay(["config", "check", "--json", *options, "--config", str(file)])
        return code, json.loads(capsys.readouterr().out)

    return check


def test_everything_is_told_at_once(check: Any) -> None:
    code, found = check(BAD)
    assert (code, found["ok"]) == (2, False)
    told = [(one["where"].rpartition(":")[2], one["key"], one["hint"]) for one in found["problems"]]
    assert [(line, key) for line, key, _ in told] == [
        ("4", "marga.providers.0.endpont"),
        ("5", "marga.providers.0.circuit_breaker.failure_treshold"),
        ("6", "marga.providers.1.endpoint"),
        ("7", "marga.providers.2"),
        ("8", "marga.budgets"),
        ("10", "serve.hst"),
        ("11", "serve.worker_timeout"),
        ("13", "gateway.upstreams.marga.url"),
    ]
    hints = {key.rpartition(".")[2]: hint for _, key, hint in told}
    assert hints["endpont"] == "Did you mean 'endpoint'?"
    assert hints["failure_treshold"] == "Did you mean 'failure_threshold'?"
    assert hints["hst"] == "Did you mean 'host'?"
    assert all(one["message"] and one["hint"] for one in found["problems"])
    assert "abcdefghij" not in json.dumps(found)


def test_what_can_be_used_is_said_to_be_and_what_is_hardly_meant(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVYAY_SERVE_WROKERS", "3")
    monkeypatch.setenv("SET", "k")
    providers = (
        "[{name: a, endpoint: https://a.test, api_key_env: SET}, {name: b, endpoint: https://b.test, api_key_env: NOT}]"
    )
    code, found = check(f"marga: {{providers: {providers}}}\n")
    assert (code, found["ok"], found["problems"]) == (0, True, [])
    assert [(one["code"], one["hint"]) for one in found["doubts"]] == [
        ("unknown_variable", "Did you mean AVYAY_SERVE_WORKERS?"),
        ("unset", "export NOT=..."),
    ]


@pytest.mark.parametrize("secret", ["hunter2-hunter2", "sk-abcdefghijklmnopqrstuvwx"])
def test_a_secret_in_the_place_of_its_variable_is_not_shown(
    check: Any, secret: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(f"gateway: {{upstreams: {{marga: {{api_key_env: {secret}}}}}}}\n")
    assert (code, [one["code"] for one in found["doubts"]]) == (0, ["unset"])
    assert secret not in json.dumps(found)
    if secret.startswith("sk-"):  # what has the shape of a credential is shown by no command
        assert avyay(["serve", "gateway", "--port", "0", "--config", str(tmp_path / "given.yaml")]) == 2
        assert secret not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "There is no configuration file"),
        ("a: [\n", "broken YAML"),
        ("- a\n", "expected `key: value` lines"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("serve: {port: 1}\nserve: {}\n", "stands here a second time"),
        ("gateway: {cors_origins: [nope]}\n", "is no origin"),
        ("gateway: {limits: [{tier: free}]}\n", "limits nothing"),
        ("gateway: {limits: [{endpoint: nope, requests: 1}]}\n", "is no endpoint"),
    ],
    ids=["no-file", "yaml", "list", "utf-8", "twice", "origin", "limit", "endpoint"],
)
def test_what_cannot_be_read_or_used(check: Any, text: str | bytes | None, says: str) -> None:
    code, found = check(text)
    assert code == 2
    (problem,) = found["problems"]
    assert says in problem["message"]
    assert problem["hint"]


def test_faults_of_both_files_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avyay.yaml").write_text("raksha: {nope: 1}\nserve: {port: 9}\n")
    user = tmp_path / "home" / "config" / "avyay.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("a: [\n")
    assert avyay(["config", "check"]) == 2
    words = capsys.readouterr().out
    assert f"{user}:2: broken YAML" in words
    assert f"{tmp_path / 'avyay.yaml'}:1: unknown key 'raksha.nope'." in words
    user.write_text("rag: {nope: 1}\n")
    (tmp_path / "avyay.yaml").write_text("serve: {port: 9}\n")
    assert avyay(["config", "check"]) == 2
    assert f"{user}:1: unknown key 'rag.nope'." in capsys.readouterr().out
    user.unlink()
    assert avyay(["config", "check"]) == 0
    assert "Not sure: " in capsys.readouterr().out  # what a project may not set before it is trusted
