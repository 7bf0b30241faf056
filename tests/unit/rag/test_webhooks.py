"""Pushes: signed by whom they should be, and mapped to the sources they concern."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import AuthError, UsageError
from avyay.rag.sources import SourceSpec
from avyay.rag.webhooks import Push, read_push, repository_key, sources_of

SECRET = "whsec_" + base64.b64encode(b"a secret of some length").decode()
NOW = 1_770_000_000.0
GITHUB = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": "https://github.com/Acme/Ops.git"}}).encode()
GITLAB = json.dumps(
    {"ref": "refs/heads/main", "project": {"git_http_url": "https://gitlab.com/acme/ops.git", "name": "ops"}}
).encode()


def mac(body: bytes, key: str = SECRET) -> str:
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def standard(body: bytes, key: bytes, *, stamp: int = int(NOW)) -> dict[str, str]:
    signed = f"id-1.{stamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": "id-1",
        "webhook-timestamp": str(stamp),
        "webhook-signature": f"v1,bm9uc2Vuc2U= v1,{signature}",
        "x-gitlab-event": "Push Hook",
    }


@pytest.mark.parametrize(
    "headers, body",
    [
        ({"x-hub-signature-256": f"sha256={mac(GITHUB)}", "x-github-event": "push"}, GITHUB),
        ({"x-gitea-signature": mac(GITHUB), "x-gitea-event": "push"}, GITHUB),
        ({"x-forgejo-signature": mac(GITHUB), "x-forgejo-event": "push"}, GITHUB),
        ({"x-gitlab-token": SECRET, "x-gitlab-event": "Push Hook"}, GITLAB),
        (standard(GITLAB, SECRET.encode()), GITLAB),
        (standard(GITLAB, b"a secret of some length"), GITLAB),
    ],
    ids=["github", "gitea", "forgejo", "gitlab-token", "gitlab-signed", "gitlab-signed-decoded"],
)
def test_genuine_pushes(headers: dict[str, str], body: bytes) -> None:
    push = read_push(headers, body, secret=SECRET, now=NOW)
    assert push is not None
    assert push.ref == "refs/heads/main"
    with pytest.raises(AuthError):
        read_push(headers, body + (b" " if "x-gitlab-token" not in headers else b""), secret=SECRET + "x", now=NOW)
    if "x-gitlab-token" not in headers:
        with pytest.raises(AuthError):
            read_push(headers, body + b" ", secret=SECRET, now=NOW)


def test_old_and_unsigned_deliveries() -> None:
    for headers in (
        {},
        {"x-github-event": "push"},
        {"x-hub-signature-256": "", "x-github-event": "push"},
        standard(GITLAB, SECRET.encode(), stamp=int(NOW) - 3_600),
        {**standard(GITLAB, SECRET.encode()), "webhook-timestamp": "٣"},
    ):
        with pytest.raises(AuthError):
            read_push(headers, GITLAB, secret=SECRET, now=NOW)
    with pytest.raises(AuthError):
        read_push({"x-gitlab-token": "", "x-gitlab-event": "Push Hook"}, GITLAB, secret="", now=NOW)


@pytest.mark.parametrize("body", [b"payload=x", b"[]", b"{", b'{"ref": "refs/heads/main"}'])
def test_signed_nonsense(body: bytes) -> None:
    headers = {"x-hub-signature-256": f"sha256={mac(body)}", "x-github-event": "push"}
    with pytest.raises(UsageError):
        read_push(headers, body, secret=SECRET, now=NOW)


def test_other_events_are_none_of_ours() -> None:
    headers = {"x-hub-signature-256": f"sha256={mac(b'{}')}", "x-github-event": "ping"}
    assert read_push(headers, b"{}", secret=SECRET, now=NOW) is None


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4), st.binary(max_size=50))
def test_no_delivery_without_the_secret_passes(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(AuthError):
        read_push(headers, body, secret=SECRET, now=NOW)


def test_addresses_of_one_repository() -> None:
    urls = [
        "https://GitHub.com/acme/Ops.git",
        "https://github.com/acme/ops/",
        "git@github.com:acme/ops.git",
        "ssh://git@github.com:22/acme/ops.git",
    ]
    assert {repository_key(url) for url in urls} == {"github.com/acme/ops"}


def test_which_sources_a_push_concerns() -> None:
    def spec(name: str, location: str, branch: str | None = None) -> SourceSpec:
        return SourceSpec(name, "git", location, branch)

    specs = [
        spec("head", "git@github.com:acme/ops.git"),
        spec("main", "https://github.com/acme/ops", "main"),
        spec("other-branch", "https://github.com/acme/ops", "next"),
        spec("other", "https://github.com/acme/other"),
        spec("local", "/srv/acme/ops"),
    ]
    push = Push(("https://github.com/acme/ops.git",), "refs/heads/main")
    assert sources_of(push, specs) == ["head", "main"]
