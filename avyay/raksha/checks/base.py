"""The seam between the scanner and its Python checks.

A check is one module in this package (or behind the entry point `avyay.checks`) with

    RULES: tuple[Rule, ...]           what it can find
    LANGUAGES: frozenset[str]         the languages it reads; empty: every text file
    USES_PROJECT: bool                whether `run` reads anything of `project` (its results are cached accordingly)
    def run(file, project): ...       yields findings, best made by `file.finding(RULE, node_or_offset, ...)`

A check opens no files, starts no program and asks the network only through `project.resolver`. It may raise: the scan
then reports that this file could not be checked by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from avyay.raksha.project import Project
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Finding, Rule

__all__ = ["Check", "Edit", "Finding", "Project", "Rule", "SourceFile"]


@runtime_checkable
class Check(Protocol):
    """What the scanner needs of a check; modules satisfy it."""

    @property
    def RULES(self) -> tuple[Rule, ...]: ...  # noqa: N802 - a module constant

    @property
    def LANGUAGES(self) -> frozenset[str]: ...  # noqa: N802

    @property
    def USES_PROJECT(self) -> bool: ...  # noqa: N802

    def run(self, file: SourceFile, project: Project) -> Iterable[Finding]: ...
