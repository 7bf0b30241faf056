"""Every prerequisite, its state, and the way to mend it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from avyay.errors import AvyayError
from avyay.git import GIT_HINT, git_version
from avyay.paths import is_writable
from avyay.tailnet import read_tailnet, tailscale_installed
from avyay.wiring import Services

__all__ = ["Check", "examine"]

State = Literal["ok", "optional", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One prerequisite. `optional` is absent but only narrows what works; `missing` must be mended."""

    name: str
    state: State
    detail: str
    fix: str = ""


def examine(services: Services) -> tuple[Check, ...]:
    """Look at everything avyay builds on. Touches no network but a local Ollama's port."""
    checks: tuple[Callable[[Services], Check], ...] = (
        _python,
        _home,
        _configuration,
        _sqlite,
        _git,
        _embedder,
        _semgrep,
        _bandit,
        _providers,
        _tailscale,
    )
    return tuple(_careful(check, services) for check in checks)


def _careful(check: Callable[[Services], Check], services: Services) -> Check:
    """A look that itself fails is one more thing to mend, not the end of the examination."""
    try:
        return check(services)
    except AvyayError as error:
        return Check(check.__name__.lstrip("_"), "missing", error.message, error.hint or "")


def _python(_: Services) -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _home(services: Services) -> Check:
    folders = {services.paths.config, services.paths.data, services.paths.cache, services.paths.state}
    if blocked := sorted(str(folder) for folder in folders if not is_writable(folder)):
        return Check("home", "missing", f"not writable: {blocked[0]}", "Set AVYAY_HOME to a folder you can write to.")
    free = shutil.disk_usage(_existing(services)).free
    if free < 200_000_000:
        return Check("home", "missing", f"{free // 1_000_000} MB free", "Free some disk space, or move AVYAY_HOME.")
    return Check("home", "ok", f"{services.paths.data} ({free // 1_000_000_000} GB free)")


def _existing(services: Services) -> str:
    folder = services.paths.data
    while not folder.exists():
        folder = folder.parent
    return str(folder)


def _configuration(services: Services) -> Check:
    loaded = services.loaded
    if loaded.ignored:
        return Check(
            "configuration",
            "optional",
            f"{loaded.project_file} is not trusted: {len(loaded.ignored)} settings ignored",
            "Read the file, then run: avyay trust",
        )
    files = [str(f) for f in (loaded.project_file, loaded.paths.user_config_file) if f is not None and f.is_file()]
    return Check("configuration", "ok", ", ".join(files) or "defaults (avyay init writes a commented file)")


def _sqlite(_: Services) -> Check:
    with sqlite3.connect(":memory:") as connection:
        try:
            connection.execute("create virtual table probe using fts5(text)")
        except sqlite3.OperationalError:
            return Check(
                "sqlite",
                "missing",
                f"{sqlite3.sqlite_version} without full-text search",
                "Use a Python whose SQLite has FTS5 (python.org, Debian and Homebrew builds do).",
            )
        finally:
            connection.rollback()
    connection.close()
    return Check("sqlite", "ok", f"{sqlite3.sqlite_version} with FTS5")


def _git(_: Services) -> Check:
    try:
        return Check("git", "ok", git_version())
    except AvyayError as error:
        return Check("git", "missing", error.message, error.hint or GIT_HINT)


def _embedder(services: Services) -> Check:
    try:
        embedder = services.embedder
        embedder.embed(["ready?"], kind="query")
    except AvyayError as error:
        return Check("embedder", "missing", error.message, error.hint or "")
    return Check("embedder", "ok", f"{embedder.name}, {embedder.dimensions} dimensions")


def _semgrep(_: Services) -> Check:
    try:
        version = importlib.metadata.version("semgrep")
    except importlib.metadata.PackageNotFoundError:
        return Check("semgrep", "missing", "not installed", "pip install 'semgrep==1.182.0'")
    return Check("semgrep", "ok", version)


def _bandit(_: Services) -> Check:
    try:
        version = importlib.metadata.version("bandit")
    except importlib.metadata.PackageNotFoundError:
        return Check("bandit", "missing", "not installed", "pip install 'bandit>=1.9'")
    return Check("bandit", "ok", f"{version}, reads syntax up to Python {sys.version_info[0]}.{sys.version_info[1]}")


def _providers(services: Services) -> Check:
    if services.settings.marga.url is not None:
        return Check("providers", "ok", f"through the router at {services.settings.marga.url}")
    router = services.router
    if usable := router.usable():
        return Check("providers", "ok", ", ".join(f"{each.name} ({each.kind})" for each in usable))
    problems = "; ".join(f"{each.name}: {each.problem}" for each in router.providers.values())
    return Check(
        "providers",
        "optional",
        problems or "none: retrieval, scans and routing decisions work, generated answers do not",
        "Set OPENAI_API_KEY or ANTHROPIC_API_KEY, start Ollama, or list one in avyay.yaml (avyay init).",
    )


def _tailscale(_: Services) -> Check:
    if not tailscale_installed():
        return Check(
            "tailscale", "optional", "not installed: daemons stay on this machine", "https://tailscale.com/download"
        )
    try:
        tailnet = read_tailnet()
    except AvyayError as error:
        return Check("tailscale", "optional", error.message, error.hint or "")
    if not tailnet.running or tailnet.this is None:
        return Check("tailscale", "optional", f"state {tailnet.state}", "tailscale up")
    return Check("tailscale", "ok", f"{tailnet.this.name} {tailnet.this.address}, {len(tailnet.peers)} peers")
