"""`avyay usage` where the router is in another home: it is asked over HTTP, or it is said why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, wait_for
from gate import Gate, make_key
from upstream import Upstream

from avyay.cli.app import run as avyay

PLACE = {"api_key_env": "ROUTER_KEY", "connect": 1}
SECRET = "0123456789abcdef0123456789abcdef"


class Here:
    """A gateway's home; its router is another's."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def gate(self, url: str, **environment: str) -> Gate:
        place = {"url": url, **PLACE, **({"principal_key_env": "SHARED"} if "SHARED" in environment else {})}
        return Gate(self.folder, {}, {"upstreams": {"marga": place}}, **environment)

    def usage(self, *options: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        config = ("--config", str(self.folder / "gateway.yaml"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AVYAY_HOME": str(self.folder / "home"), **environment}.items():
                patch.setenv(name, value)
            self.capsys.readouterr()
            code = avyay(["usage", "--json", *options, *config])
        found = self.capsys.readouterr()
        return code, json.loads(found.out), found.err


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path / "here", capsys)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Daemon]:
    with Upstream() as upstream:
        models = [{"name": "m", "input_price": 1, "output_price": 2}]
        place = {"name": "u", "kind": "openai", "endpoint": f"{upstream.url}/v1", "api_key_env": "K", "models": models}
        more = {"serve": {"principal_secret_env": "SHARED"}}
        keys = {"K": "k", "SHARED": SECRET}
        with Daemon(tmp_path / "there", {"providers": [place]}, key="r0uter", more=more, **keys) as daemon:
            yield daemon


def test_the_router_of_another_home_is_asked(here: Here, router: Daemon) -> None:
    key = make_key(here.folder, "app")
    with here.gate(router.url, ROUTER_KEY="r0uter", SHARED=SECRET) as gate:
        for _ in range(2):
            assert gate.chat("m", authorization=f"Bearer {key}").status == 200
        gate.gateway.journal.flush()
        router.calls(2)
    code, found, _ = here.usage(ROUTER_KEY="r0uter", SHARED=SECRET)
    assert code == 0
    assert found["router_problem"] is None
    (line,) = found["reconciled"]
    assert (line["gateway"], line["ledger"], line["agrees"]) == (2, 2, True)
    assert [row["calls"] for row in found["router"]] == [2]
    assert here.usage("--key", "app", ROUTER_KEY="r0uter", SHARED=SECRET)[1]["reconciled"] == [line]


def test_what_it_cannot_be_asked_is_said_beside_the_requests(here: Here, router: Daemon) -> None:
    key = make_key(here.folder, "app")
    with here.gate(router.url, ROUTER_KEY="r0uter") as gate:
        assert gate.chat("m", authorization=f"Bearer {key}").status == 200
        gate.gateway.journal.flush()
        router.calls(1)
    code, found, words = here.usage(ROUTER_KEY="wrong")
    assert (code, found["router"], found["reconciled"]) == (4, None, None)
    assert "HTTP 401" in found["router_problem"]
    assert "api_key_env" in words
    assert [row["requests"] for row in found["gateway"]] == [1]
    code, found, words = here.usage()
    assert code == 4
    assert "names ROUTER_KEY, which is not set" in found["router_problem"]
    assert "export ROUTER_KEY=" in words
    wait_for(lambda: here.usage(ROUTER_KEY="r0uter")[0] == 0)


def test_a_router_that_is_away_leaves_the_requests(here: Here) -> None:
    key = make_key(here.folder, "app")
    with here.gate("http://127.0.0.1:9", ROUTER_KEY="r0uter") as gate:
        assert gate.chat("m", authorization=f"Bearer {key}").status == 503
        gate.gateway.journal.flush()
    code, found, _ = here.usage(ROUTER_KEY="r0uter")
    assert (code, found["router"]) == (3, None)
    assert "cannot be asked" in found["router_problem"]
    assert [(row["requests"], row["errors"]) for row in found["gateway"]] == [(1, 1)]
