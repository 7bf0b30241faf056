"""The network is asked little, believed carefully, and its silence is no answer."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.raksha.project import PackageFacts
from avyay.raksha.resolve import KEEP_SECONDS, KNOWN_HOSTS, NO_HOST, Clients, NetworkResolver, lookup_host


class Names:
    """A resolver that knows some hosts, and counts."""

    def __init__(self, *known: str, otherwise: bool | None = False) -> None:
        self.known = known
        self.otherwise = otherwise
        self.asked: list[str] = []

    def __call__(self, host: str) -> bool | None:
        self.asked.append(host)
        return True if host in self.known else self.otherwise


def test_hosts() -> None:
    names = Names("real.io", *KNOWN_HOSTS)
    resolver = NetworkResolver(lookup=names)
    assert resolver.host_exists("Real.IO.") is True
    assert resolver.host_exists("fake.io") is False
    assert resolver.host_exists("fake.io") is False
    assert names.asked.count("fake.io") == 1, "asked once"
    for odd in ("localhost", "a b.io", "-x.io", "1.2.3.4", "x" * 300 + ".io", ""):
        assert resolver.host_exists(odd) is None


def test_without_a_network_nothing_is_known() -> None:
    assert NetworkResolver(lookup=Names()).host_exists("fake.io") is None, "not even the known hosts resolve"
    assert NetworkResolver(lookup=Names(otherwise=None)).host_exists("fake.io") is None


def test_a_resolver_that_makes_answers_up_is_not_believed() -> None:
    assert NetworkResolver(lookup=Names(NO_HOST, "any.io", otherwise=True)).host_exists("any.io") is None


def test_the_number_of_questions_is_bounded() -> None:
    names = Names(*KNOWN_HOSTS)
    resolver = NetworkResolver(lookup=names, questions=2)
    assert [resolver.host_exists(f"h{n}.io") for n in range(4)] == [False, False, None, None]


def test_a_resolver_that_hangs_is_left_behind() -> None:
    import threading

    release = threading.Event()
    resolver = NetworkResolver(lookup=lambda host: release.wait(30) and None, seconds=0.01)
    assert resolver.host_exists("slow.io") is None
    release.set()


def test_answers_are_remembered_for_a_week(tmp_path: Path) -> None:
    clock = FakeClock()
    names = Names("real.io", *KNOWN_HOSTS)

    def ask() -> bool | None:
        resolver = NetworkResolver(tmp_path / "lookups.db", lookup=names, clock=clock)
        try:
            return resolver.host_exists("real.io")
        finally:
            resolver.close()

    assert (ask(), ask()) == (True, True)
    assert names.asked.count("real.io") == 1
    clock.advance(KEEP_SECONDS + 1)
    assert ask() is True
    assert names.asked.count("real.io") == 2


def test_the_systems_own_resolver_is_asked_for_loopback() -> None:
    assert lookup_host("localhost") is True
    assert lookup_host("\ud800") is None


def client(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "client"
    path.write_text(f"#!{sys.executable}\nimport sys\nname = sys.argv[-1]\n{body}\n")
    path.chmod(0o755)
    return (str(path),)


PIP = """
if name in ('pip', 'real'): print('real (2.0)\\nAvailable versions: 2.0, 1.0')
else: sys.exit('ERROR: No matching distribution found for ' + name)
"""
NPM = """
name = sys.argv[-2]
times = '{"created": "2020-01-02T03:04:05Z", "modified": "2021-01-01", "1.0.0": "2020-02-02"}'
if name in ('npm', '@s/real'): print(times)
else: sys.exit('npm error code E404')
"""
GO = """
if name.startswith(('golang.org', 'real.io/mod')): print(name, 'v1.0.0 v1.1.0')
else: sys.exit('go: module x: 404 Not Found')
"""


def test_packages(tmp_path: Path) -> None:
    for folder in ("pip", "npm", "go"):
        (tmp_path / folder).mkdir()
    clients = Clients(client(tmp_path / "pip", PIP), client(tmp_path / "npm", NPM), client(tmp_path / "go", GO))
    resolver = NetworkResolver(clients=clients)
    assert resolver.package("pypi", "real") == PackageFacts(True, None, 2)
    assert resolver.package("pypi", "fake") == PackageFacts(False)
    assert resolver.package("npm", "@s/real") == PackageFacts(True, date(2020, 1, 2), 1)
    assert resolver.package("npm", "fake") == PackageFacts(False)
    assert resolver.package("go", "real.io/mod") == PackageFacts(True, None, 2)
    assert resolver.package("go", "fake.io/mod") == PackageFacts(False)
    for odd in ("--index-url=http://x", "../x", "a b", ""):
        assert resolver.package("pypi", odd) is None
        assert resolver.package("npm", odd) is None


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit('WARNING: Retrying (Retry(total=0)) after x\\nERROR: No matching distribution found')",
        "sys.exit('ERROR: No matching distribution found for anything')",  # not even for pip itself
        "sys.exit(3)",
        "import os; os.abort()",
    ],
)
def test_a_registry_in_trouble_says_nothing(tmp_path: Path, body: str) -> None:
    resolver = NetworkResolver(clients=Clients(pip=client(tmp_path, body), npm=client(tmp_path, body)))
    assert resolver.package("pypi", "fake") is None
    assert resolver.package("npm", "fake") is None


def test_a_missing_client_says_nothing(tmp_path: Path) -> None:
    resolver = NetworkResolver(clients=Clients(npm=(str(tmp_path / "none"),)))
    assert resolver.package("npm", "fake") is None
