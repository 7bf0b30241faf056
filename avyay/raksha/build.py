"""From settings to a scanner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.environment import Environment
from avyay.config.raksha import RakshaSettings
from avyay.paths import Paths
from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.base import Engine
from avyay.raksha.engines.checks import ChecksEngine
from avyay.raksha.engines.sca import ScaEngine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.project import Allowed
from avyay.raksha.registry import RULES_FOLDER, PatternRules, checks_digest, load_checks
from avyay.raksha.resolve import NetworkResolver
from avyay.raksha.scan import CodeScanner, PathRule

__all__ = ["advisories_file", "build_scanner"]


def build_scanner(
    settings: RakshaSettings,
    paths: Paths,
    environment: Environment,
    *,
    base: Path,
    exclude: Sequence[str] = (),
    rules: Sequence[Path] = (),
    cache: bool = True,
    online: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> CodeScanner:
    """The scanner that the settings describe.

    Args:
        base: What relative paths in the settings are relative to.
        exclude, rules: Besides those of the settings.
        online: Checks may ask the network.

    Raises:
        ConfigError: a rule folder or a plug-in cannot be used.
    """
    jobs = settings.jobs or os.cpu_count() or 1
    folders = (RULES_FOLDER, *(base / path for path in settings.rules), *rules)
    engines: tuple[Engine, ...] = (
        ChecksEngine(load_checks, digest=checks_digest),
        SemgrepEngine(PatternRules(folders), jobs=jobs),
        BanditEngine(),
        ScaEngine(advisories_file(paths), required=settings.dependencies == "required", clock=clock),
    )
    if settings.dependencies == "off":
        engines = engines[:-1]
    allow = settings.allow
    resolver = NetworkResolver(paths.cache / "raksha" / "lookups.db", clock=clock) if online else None
    return CodeScanner(
        engines,
        exclude=(*settings.exclude, *exclude),
        disable=settings.disable,
        path_rules=[
            PathRule(item.match, item.disable, tuple(item.severity.items()), item.reason) for item in settings.paths
        ],
        allowed=Allowed(_lower(allow.emails), _lower(allow.hosts), _lower(allow.packages)),
        resolver=resolver,
        cache=paths.cache / "raksha" / "results.db" if cache and settings.cache else None,
        clock=clock,
    )


def advisories_file(paths: Paths) -> Path:
    """Where the local advisory database lies."""
    return paths.data / "raksha" / "advisories.db"


def _lower(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names)
