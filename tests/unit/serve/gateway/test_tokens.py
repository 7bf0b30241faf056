"""Tokens: which are believed, and every way to forge one."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import ValidationError

from avyay.clock import FakeClock
from avyay.config.serve import JwtSettings
from avyay.errors import ConfigError, UnreachableError
from avyay.serve.gateway.tokens import Issuer, Issuers, TokenError, looks_like_token

SECRET = "s" * 40
ISSUER, AUDIENCE = "https://issuer.example", "avyay"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "scope": "marga rag:ask", **changes}
    return {name: value for name, value in found.items() if value is not None}


def jwk(key: Any, algorithm: str, **extra: Any) -> dict[str, Any]:
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)  # type: ignore[call-overload]
    return {**found, **extra}


def document(*keys: dict[str, Any]) -> bytes:
    return orjson.dumps({"keys": list(keys)})


KEYS = document(
    jwk(RSA, "RS256", kid="rsa"),
    jwk(EC, "ES256", kid="ec"),
    jwk(ED, "EdDSA", kid="ed"),
    {"kty": "oct", "k": base64.urlsafe_b64encode(b"o" * 33).decode(), "kid": "o"},
)


class Door:
    """One issuer whose keys come from `self.document`."""

    def __init__(self, *algorithms: str, keys: bytes = KEYS, **options: Any) -> None:
        self.clock = FakeClock(time.time())
        self.document: bytes | None = keys
        self.fetches = 0
        symmetric = algorithms[0].startswith("HS")
        place: dict[str, Any] = {"secret_env": "SECRET"} if symmetric else {"jwks": "https://issuer.example/keys"}
        settings = JwtSettings(issuer=ISSUER, audience=AUDIENCE, algorithms=algorithms, **place, **options)  # type: ignore[arg-type]
        issuer = Issuer(settings, secret=SECRET if symmetric else None, fetch=self.fetch, clock=self.clock)
        self.issuers = Issuers([issuer])

    async def fetch(self, place: str) -> bytes:
        assert place == "https://issuer.example/keys"
        self.fetches += 1
        if self.document is None:
            raise UnreachableError("down")
        return self.document

    def verify(self, token: str) -> Any:
        return asyncio.run(self.issuers.verify(token))


def part(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def test_a_secret_of_both() -> None:
    found = Door("HS256", customer_claim="org", tier_claim="plan", scopes=("raksha",)).verify(
        jwt.encode(claims(org="acme", plan="gold"), SECRET, "HS256")
    )
    assert (found.subject, found.customer, found.tier) == ("alice", "acme", "gold")
    assert found.scopes == {"marga", "rag:ask", "raksha"}


@pytest.mark.parametrize(
    "key, algorithm, kid",
    [
        pytest.param(RSA, "RS256", "rsa", id="RS256"),
        pytest.param(RSA, "PS256", "rsa", id="PS256"),
        pytest.param(EC, "ES256", "ec", id="ES256"),
        pytest.param(ED, "EdDSA", "ed", id="EdDSA"),
    ],
)
def test_public_keys(key: Any, algorithm: str, kid: str) -> None:
    door = Door("RS256", "PS256", "ES256", "EdDSA")
    token = jwt.encode(claims(scope=["marga"]), key, algorithm, headers={"kid": kid})
    assert door.verify(token).scopes == {"marga"}
    if algorithm in ("ES256", "EdDSA"):
        assert door.verify(jwt.encode(claims(), key, algorithm)).subject == "alice"  # one key fits: no id is needed


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"nbf": int(time.time()) + 600},
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "x\nadmin"},
        {"exp": "soon"},
        {"iat": int(time.time()) + 600},
    ],
    ids=lambda changes: repr(next(iter(changes))),
)
def test_claims_that_do_not_hold(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        Door("HS256").verify(jwt.encode(claims(**changes), SECRET, "HS256"))


def test_forgeries() -> None:
    door = Door("RS256")
    good = jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"})
    head, body, signature = good.split(".")
    pem = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    import hashlib
    import hmac

    def confused(secret: bytes) -> str:
        text = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa'})}.{body}"
        mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
        return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    forged = {
        "none": f"{part({'alg': 'none'})}.{body}.",
        "None": f"{part({'alg': 'NoNe'})}.{body}.",
        "no signature": f"{head}.{body}.",
        "confusion with the PEM": confused(pem),
        "confusion with the document": confused(KEYS),
        "the symmetric key of the document": jwt.encode(claims(), "o" * 33, "HS256", headers={"kid": "o"}),
        "another key": jwt.encode(claims(), other, "RS256", headers={"kid": "rsa"}),
        "its own key": jwt.encode(claims(), other, "RS256", headers={"kid": "x", "jwk": jwk(other, "RS256")}),
        "a place of its own": jwt.encode(
            claims(), other, "RS256", headers={"kid": "x", "jku": "https://evil.example/k"}
        ),
        "an algorithm not allowed": jwt.encode(claims(), RSA, "RS512", headers={"kid": "rsa"}),
        "extensions": jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa", "crit": ["b64"], "b64": False}),
        "a path for an id": jwt.encode(claims(), RSA, "RS256", headers={"kid": "../../etc/passwd"}),
        "changed claims": f"{head}.{part(claims(sub='root'))}.{signature}",
        "garbage": "eyJ.x.y",
        "too long": f"{good}{'A' * 9_000}",
    }
    assert door.verify(good).subject == "alice"
    for name, token in forged.items():
        try:
            believed = door.verify(token)
        except TokenError:
            continue
        pytest.fail(f"{name}: {believed}")
    for token in ("", "avy_x", "a.b", "e.y.j.x"):
        assert not looks_like_token(token)


def test_a_key_is_for_its_own_algorithm() -> None:
    door = Door(
        "ES256",
        "ES384",
        "RS256",
        keys=document(jwk(EC384, "ES384", kid="p384"), jwk(RSA, "RS256", kid="r", alg="RS512")),
    )
    assert door.verify(jwt.encode(claims(), EC384, "ES384", headers={"kid": "p384"})).subject == "alice"
    with pytest.raises(TokenError):
        door.verify(jwt.encode(claims(), RSA, "RS256", headers={"kid": "r"}))
    encryption = Door("RS256", keys=document(jwk(RSA, "RS256", kid="rsa", use="enc")))
    with pytest.raises(TokenError):
        encryption.verify(jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"}))


def test_keys_are_fetched_seldom_and_again_when_they_change() -> None:
    door = Door("RS256", "ES256", keys=document(jwk(RSA, "RS256", kid="rsa")))
    old = jwt.encode(claims(exp=int(time.time()) + 200_000), RSA, "RS256", headers={"kid": "rsa"})
    new = jwt.encode(claims(exp=int(time.time()) + 200_000), EC, "ES256", headers={"kid": "ec"})
    door.verify(old)
    door.verify(old)
    assert door.fetches == 1
    for _ in range(3):  # strangers' key ids do not make us ask for each
        with pytest.raises(TokenError):
            door.verify(new)
    assert door.fetches == 1
    door.document = document(jwk(EC, "ES256", kid="ec"))
    door.clock.advance(11)
    assert door.verify(new).subject == "alice"
    with pytest.raises(TokenError):
        door.verify(old)  # its key is no longer published
    door.document = None
    door.clock.advance(400)
    assert door.verify(new).subject == "alice"  # the issuer is down: the known keys hold for a day
    door.clock.advance(86_400)
    with pytest.raises(UnreachableError):
        door.verify(new)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b"x" * 1_100_000],
    ids=["nothing", "list", "empty", "number", "no key", "endless"],
)
def test_documents_that_are_none(document: bytes) -> None:
    door = Door("RS256", keys=document)
    with pytest.raises(UnreachableError):
        door.verify(jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"}))


@pytest.mark.parametrize(
    "options",
    [
        {"algorithms": ["HS256", "RS256"], "secret_env": "S", "jwks": "keys.json"},
        {"algorithms": ["HS256"], "jwks": "keys.json"},
        {"algorithms": ["RS256"], "secret_env": "S"},
        {"algorithms": ["none"], "secret_env": "S"},
        {"algorithms": []},
        {"algorithms": ["RS256"], "jwks": "http://issuer.example/keys"},
    ],
    ids=lambda options: "+".join(options["algorithms"]) or "nothing",
)
def test_configurations_that_invite_confusion(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JwtSettings(issuer=ISSUER, audience=AUDIENCE, **options)


def test_a_short_secret_is_refused() -> None:
    settings = JwtSettings(issuer=ISSUER, audience=AUDIENCE, algorithms=("HS256",), secret_env="S")
    with pytest.raises(ConfigError, match="32"):
        Issuer(settings, secret="short", fetch=Door("RS256").fetch)
