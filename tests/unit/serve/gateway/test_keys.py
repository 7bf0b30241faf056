"""API keys: shown once, stored as hashes, rotated, revoked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.errors import UsageError
from avyay.log import redact
from avyay.serve.gateway.keys import KeyBook, parse_key


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def book(tmp_path: Path, clock: FakeClock) -> Iterator[KeyBook]:
    book = KeyBook(tmp_path / "keys.db", clock)
    yield book
    book.close()


def test_a_key_is_found_by_its_secret_alone(book: KeyBook) -> None:
    made = book.create("app", scopes=["marga:chat"], tier="free", owner="ops", customer="acme", service="web")
    prefix = parse_key(made.secret)
    assert prefix is not None
    secret = book.secret(prefix)
    assert book.matches(secret, made.secret)
    wrong = made.secret[:-1] + ("a" if made.secret[-1] != "a" else "b")
    assert not book.matches(secret, wrong)
    assert not book.matches(None, made.secret)
    assert made.info.prefixes == (prefix,)
    assert (made.info.tier, made.info.customer, made.info.service) == ("free", "acme", "web")


def test_the_secret_is_nowhere(book: KeyBook, tmp_path: Path) -> None:
    made = book.create("app")
    book.close()
    rest = made.secret.rpartition("_")[2].encode()
    assert all(rest not in file.read_bytes() for file in tmp_path.iterdir())
    assert (tmp_path / "keys.db").stat().st_mode & 0o077 == 0
    assert made.secret not in redact(f"seen {made.secret} here")


def test_rotation_keeps_the_identity(book: KeyBook, clock: FakeClock) -> None:
    first = book.create("app", lifetime=86_400)
    second = book.rotate("app", grace=60)
    assert second.info.id == first.info.id
    assert second.secret != first.secret
    old, new = (book.secret(parse_key(made.secret) or "") for made in (first, second))
    assert old is not None
    assert new is not None
    assert old.expires_at == clock.now() + 60
    assert new.expires_at == clock.now() + 86_400
    third = book.rotate(first.info.id, grace=3_600)
    assert (book.secret(parse_key(first.secret) or "") or old).expires_at == clock.now() + 60  # not prolonged
    assert book.find(third.secret).id == first.info.id
    assert len(book.all()) == 1


def test_revoking_ends_every_secret(book: KeyBook) -> None:
    first = book.create("app")
    second = book.rotate("app", grace=60)
    assert book.revoke(second.secret).state(0) == "revoked"
    for made in (first, second):
        found = book.secret(parse_key(made.secret) or "")
        assert found is not None
        assert found.revoked
    with pytest.raises(UsageError, match="revoked"):
        book.rotate("app", grace=0)
    assert book.any  # from the first key on, nobody enters without


def test_changes_by_others_are_seen(book: KeyBook, tmp_path: Path) -> None:
    assert not book.changed()
    other = KeyBook(tmp_path / "keys.db")
    other.create("app")
    other.close()
    assert book.changed()
    assert not book.changed()


def test_bad_input(book: KeyBook) -> None:
    for options in (
        {"scopes": ["marga:nothing"]},
        {"scopes": []},
        {"tier": "a\nb"},
        {"customer": ""},
        {"owner": "x" * 101},
    ):
        with pytest.raises(UsageError) as caught:
            book.create("app", **options)  # type: ignore[arg-type]
        assert caught.value.hint
    with pytest.raises(UsageError):
        book.create("bad\x1bname")
    with pytest.raises(UsageError, match="No key"):
        book.find("nobody")
    book.create("twin")
    book.create("twin")
    with pytest.raises(UsageError, match="More than one"):
        book.revoke("twin")


@given(st.text(max_size=80))
def test_what_is_no_key_is_none(text: str) -> None:
    prefix = parse_key(text)
    assert prefix is None or text == f"avy_{prefix}_{text[13:]}"
