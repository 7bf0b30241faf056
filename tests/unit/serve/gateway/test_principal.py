"""The gateway's word on a caller, and what does not pass for it."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
import pytest

from avyay.clock import FakeClock
from avyay.errors import AuthError, ConfigError
from avyay.paths import open_paths
from avyay.principal import Principal, PrincipalSigner, PrincipalVerifier, open_secret, secret_source

SECRET = b"s" * 32
ALICE = Principal("key_1", "web", "acme", "free")


def test_a_component_believes_what_is_meant_for_it() -> None:
    clock = FakeClock()
    value = PrincipalSigner(SECRET, clock).sign(ALICE, "marga").encode()
    marga, rag = (PrincipalVerifier(lambda: SECRET, name, clock) for name in ("marga", "rag"))
    assert marga.verify(value) == ALICE
    with pytest.raises(AuthError):
        rag.verify(value)
    clock.advance(50)
    assert marga.verify(value) == ALICE
    clock.advance(60)
    with pytest.raises(AuthError):
        marga.verify(value)


def test_forgeries() -> None:
    clock = FakeClock()
    signer = PrincipalSigner(SECRET, clock)
    value = signer.sign(ALICE, "marga")
    payload, _, signature = value.partition(".")
    other = PrincipalSigner(b"t" * 32, clock).sign(ALICE, "marga")
    raised = base64.urlsafe_b64encode(
        orjson.dumps({**orjson.loads(base64.urlsafe_b64decode(payload + "==")), "key": "key_2"})
    ).rstrip(b"=")
    verifier = PrincipalVerifier(lambda: SECRET, "marga", clock)
    unsigned = (f"{payload}.".encode(), payload.encode(), raised + b"." + signature.encode())
    for forged in (b"", b".", b"x.y", b"\xff.\xff", other.encode(), *unsigned):
        with pytest.raises(AuthError):
            verifier.verify(forged)
    with pytest.raises(AuthError):
        PrincipalVerifier(lambda: None, "marga", clock).verify(value.encode())


def test_a_new_secret_is_noticed() -> None:
    clock, secrets = FakeClock(), [SECRET]
    verifier = PrincipalVerifier(lambda: secrets[-1], "marga", clock)
    verifier.verify(PrincipalSigner(SECRET, clock).sign(ALICE, "marga").encode())
    secrets.append(b"n" * 32)
    assert verifier.verify(PrincipalSigner(b"n" * 32, clock).sign(ALICE, "marga").encode()) == ALICE


def test_headers_are_made_anew_now_and_then() -> None:
    clock = FakeClock()
    signer = PrincipalSigner(SECRET, clock)
    first = signer.sign(ALICE, "marga")
    assert signer.sign(ALICE, "marga") is first
    clock.advance(20)
    assert signer.sign(ALICE, "marga") != first


def test_the_file(tmp_path: Path) -> None:
    paths = open_paths(str(tmp_path))
    source = secret_source(paths, None)
    assert source() is None  # nobody but the gateway makes it
    secret = open_secret(paths)
    assert secret == open_secret(paths) == source()
    file = paths.state / "principal.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in paths.state.iterdir()] == ["principal.key"]
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others") as caught:
        open_secret(paths)
    assert "chmod 600" in (caught.value.hint or "")
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(ConfigError, match="no secret"):
        source()
    with pytest.raises(ConfigError):
        secret_source(paths, "short")
    assert secret_source(paths, "x" * 32)() == b"x" * 32
