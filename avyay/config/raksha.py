"""The settings of the scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from avyay.config.types import Section, Severity, Workers, project_safe

__all__ = ["AllowSettings", "PathRuleSettings", "RakshaSettings"]


class AllowSettings(Section):
    """What is known to be real, so that the scanner does not take it for invented."""

    emails: tuple[str, ...] = Field((), description="E-mail addresses; `*@example.org` allows a domain.")
    hosts: tuple[str, ...] = Field((), description="Host names; `*.example.org` allows a domain.")
    packages: tuple[str, ...] = Field((), description="Package names, for example of a private registry.")


class PathRuleSettings(Section):
    """What holds for some paths only."""

    match: tuple[str, ...] = Field(description="Globs, relative to the scanned folder.")
    disable: tuple[str, ...] = Field((), description="Rules (ids or globs) that do not count there.")
    severity: dict[str, Severity] = Field({}, description="Other severities there: rule id or glob to severity.")
    reason: str = Field("", description="Why; shown with what was held back.")


class RakshaSettings(Section):
    """RAKṢĀ, the scanner."""

    fail_on: Severity = Field("high", description="Findings at this severity or above make `avyay scan` exit 1.")
    exclude: tuple[str, ...] = Field((), description="Globs of files not to scan.")
    disable: tuple[str, ...] = Field((), description="Rules (ids or globs) that are off.")
    rules: tuple[Path, ...] = Field((), description="More rules: semgrep YAML files, or folders of them.")
    paths: tuple[PathRuleSettings, ...] = Field((), description="Exceptions for parts of the tree.")
    baseline: Path | None = Field(None, description="Findings accepted for now; see `avyay scan --write-baseline`.")
    allow: AllowSettings = AllowSettings()
    dependencies: Literal["auto", "required", "off"] = Field(
        "auto", description="Lock files against known vulnerabilities: auto, when `avyay raksha db update` was run."
    )
    api_key_env: str | None = Field(None, description="Variable that holds the key callers of the daemon must send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    git_hosts: tuple[str, ...] = Field((), description="Hosts of which the daemon fetches repositories.")
    advisories_url: str = Field(
        "https://osv-vulnerabilities.storage.googleapis.com", description="Where `avyay raksha db update` fetches."
    )
    cache: bool = project_safe(True, "Remember results of unchanged files.")
    triage_budget: float = Field(0.5, ge=0, description="Dollars that one `avyay scan --triage` may spend.")
    jobs: int = Field(0, ge=0, description="Processor cores to use; 0: all.")
