"""Runs the Python checks; one that raises spoils one file's result, not the scan."""

from __future__ import annotations

import hashlib
import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from avyay import __version__
from avyay.log import get_logger
from avyay.raksha.checks.base import Check
from avyay.raksha.engines.base import Outcome, Step
from avyay.raksha.project import Project
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Rule

__all__ = ["ChecksEngine"]


class ChecksEngine:
    """The engine behind `avyay.raksha.checks` and the entry points `avyay.checks`.

    Args:
        checks: By name, or a function that loads them when the first file has to be looked at.
        digest: Stands for their code; by default it is read from the modules.
    """

    name = "checks"
    version = __version__

    def __init__(
        self,
        checks: Mapping[str, Check] | Callable[[], Mapping[str, Check]],
        *,
        digest: Callable[[], str] | None = None,
    ) -> None:
        self._given = checks
        self._digest = digest

    @cached_property
    def _checks(self) -> dict[str, Check]:
        return dict(self._given() if callable(self._given) else self._given)

    def rules(self) -> Sequence[Rule]:
        return [rule for check in self._checks.values() for rule in check.RULES]

    def digest(self) -> str:
        return self._code

    def key(self, project: Project) -> str:
        if project.online:
            return ""  # the world may change between two scans
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"{python}:{self._code}:{project.fingerprint}"

    @cached_property
    def _code(self) -> str:
        if self._digest is not None:
            return self._digest()
        digest = hashlib.sha256(__version__.encode())
        for name, check in sorted(self._checks.items()):
            digest.update(name.encode())
            try:
                digest.update(inspect.getsource(check).encode())  # type: ignore[arg-type]
            except (OSError, TypeError):
                digest.update(repr(check.RULES).encode())
        return digest.hexdigest()

    def reads(self, file: SourceFile) -> bool:
        return True  # there are checks for any text

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        outcome = Outcome()
        for file in files:
            if cancel.is_set():
                break
            self._run_file(file, project, outcome)
            step(1)
        return outcome

    def _run_file(self, file: SourceFile, project: Project, outcome: Outcome) -> None:
        result = outcome.of(file.name)
        # A check for this very language reads its structure, if tolerantly: enough unless a parser objects.
        result.parsed = any(file.language in check.LANGUAGES for check in self._checks.values())
        if file.language == "python":
            result.sure = not file.syntax_problem
            if not result.sure:
                python = f"{sys.version_info.major}.{sys.version_info.minor}"
                result.problem = f"Not read by Python {python}: {file.syntax_problem}."
        elif file.language == "yaml":
            result.sure = file.is_yaml
        for name, check in self._checks.items():
            if check.LANGUAGES and file.language not in check.LANGUAGES:
                continue
            try:
                result.findings.extend(check.run(file, project))
            except Exception as error:  # noqa: BLE001 - one check's bug must not hide what the others see
                get_logger("raksha").warning("check_failed", check=name, file=file.name, error=repr(error))
                result.failed = f"The check {name} failed: {type(error).__name__}."
