"""Shared by all tests: an empty home, a clean environment, and no way out to the network."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Nothing of the developer's own machine may reach a test: keys, endpoints, settings, proxies.
_PREFIXES = ("AVYAY_", "OPENAI_", "ANTHROPIC_", "AZURE_", "OLLAMA_", "OTEL_", "GIT_", "SEMGREP_")
_NAMES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "xdg_config_home", "xdg_data_home", "xdg_state_home"}

# No test asserts on time, and a busy machine takes its own.
settings.register_profile("avyay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("avyay")


def pytest_configure(config: pytest.Config) -> None:
    # In the background a shell has its programs ignore an interrupt, and theirs would too: tests send them some.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name.lower() in _NAMES:
            del os.environ[name]
    # What was installed beside this Python counts as there, whether or not its environment is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["GIT_CONFIG_GLOBAL"] = os.devnull
    os.environ["GIT_CONFIG_NOSYSTEM"] = "1"
    for role in ("AUTHOR", "COMMITTER"):
        os.environ[f"GIT_{role}_NAME"] = "Test"
        os.environ[f"GIT_{role}_EMAIL"] = "test@example.com"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            missing = [tool for tool in mark.args if shutil.which(tool) is None]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


@pytest.fixture(autouse=True)
def _no_outside_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback and Unix sockets: a test that calls out fails instead of hanging."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            assert host in ("127.0.0.1", "::1", "localhost") or host.startswith("127."), f"network access to {host}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A test that sets up logging does so for itself alone."""
    yield
    if (log := sys.modules.get("avyay.log")) is not None:
        log._pending = None  # type: ignore[attr-defined]
    if (structlog := sys.modules.get("structlog")) is not None:
        structlog.reset_defaults()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty AVYAY_HOME (and HOME), fresh for each test."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AVYAY_HOME", str(folder / "avyay"))
    monkeypatch.setenv("HOME", str(folder))
    return folder
