"""Loads rules and checks: the packaged ones, folders of semgrep YAML, and the entry points `avyay.checks`."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from avyay.errors import ConfigError
from avyay.ports import Severity
from avyay.raksha.checks import CHECKS
from avyay.raksha.checks.base import Check
from avyay.raksha.repair import Replacement, kind_of, read_replacements
from avyay.raksha.types import Category, Precision, Rule

__all__ = ["RULES_FOLDER", "PatternRules", "checks_digest", "installed_version", "load_checks"]

RULES_FOLDER = Path(__file__).parent / "rules"
ENTRY_POINTS = "avyay.checks"
_SEVERITY_OF_SEMGREP: dict[str, Severity] = {
    "ERROR": "high", "WARNING": "medium", "INFO": "low", "CRITICAL": "critical", "HIGH": "high", "MEDIUM": "medium",
    "LOW": "low", "INVENTORY": "info", "EXPERIMENT": "info",
}  # fmt: skip


def load_checks(*, plugins: bool = True) -> dict[str, Check]:
    """The checks by name, the packaged ones first.

    Raises:
        ConfigError: a plug-in cannot be imported or is no check.
    """
    checks: dict[str, Check] = {}
    for name in CHECKS:
        module: Any = importlib.import_module(f"avyay.raksha.checks.{name}")
        checks[name] = module
    from importlib import metadata

    for entry in metadata.entry_points(group=ENTRY_POINTS) if plugins else ():
        try:
            check = entry.load()
        except Exception as error:
            raise ConfigError(
                f"The check plug-in {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}.",
                hint="Repair or uninstall the package that provides it.",
            ) from error
        if not isinstance(check, Check):
            raise ConfigError(
                f"The check plug-in {entry.name!r} ({entry.value}) is no check.",
                hint="It needs RULES, LANGUAGES, USES_PROJECT and run(file, project).",
            )
        checks[entry.name] = check
    return checks


def checks_digest() -> str:
    """Changes when the checks or anything they are made of may have changed. Imports none of them."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    # Plug-ins come and go with the folders that packages are installed into.
    for entry in sys.path:
        try:
            digest.update(f"{entry}:{Path(entry).stat().st_mtime_ns}".encode())
        except OSError:
            continue
    return digest.hexdigest()


def installed_version(package: str) -> str | None:
    """The version of an installed package, read off its folder's name: a search of all packages costs far more."""
    for entry in sys.path:
        for path in Path(entry).glob(f"{package}-*.dist-info") if entry else ():
            return path.name.removesuffix(".dist-info").rpartition("-")[2]
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass
class PatternRules:
    """Semgrep rules from folders of YAML.

    Attributes:
        folders: The packaged folder first; users' folders may add rules, not replace ours.
    """

    folders: Sequence[Path] = (RULES_FOLDER,)
    _texts: list[tuple[Path, bytes]] | None = field(default=None, repr=False)
    _places: dict[str, Path] = field(default_factory=dict, repr=False)

    @property
    def texts(self) -> list[tuple[Path, bytes]]:
        """The rule files and their bytes."""
        if self._texts is None:
            self._texts = list(_read_folders(self.folders))
        return self._texts

    @cached_property
    def digest(self) -> str:
        """Changes when any rule changes."""
        digest = hashlib.sha256()
        for path, data in self.texts:
            digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()

    @cached_property
    def raw(self) -> dict[str, Mapping[str, Any]]:
        """The rules as semgrep reads them, by id.

        Raises:
            ConfigError: a file is no YAML or no rule file, or two rules share an id.
        """
        rules: dict[str, Mapping[str, Any]] = {}
        for path, data in self.texts:
            for rule in _parse(path, data):
                if rule["id"] in rules:
                    raise ConfigError(f"{path}: the rule id {rule['id']!r} is taken.", hint="Give the rule another id.")
                rules[rule["id"]] = rule
                self._places[rule["id"]] = path
        return rules

    @cached_property
    def packaged(self) -> frozenset[str]:
        """The ids of the rules that come with the package."""
        return frozenset(name for name in self.raw if self._places[name].is_relative_to(RULES_FOLDER))

    @cached_property
    def replacements(self) -> dict[str, tuple[Replacement, ...]]:
        """What `--fix` writes, by rule."""
        return {name: read_replacements((raw.get("metadata") or {}).get("edits")) for name, raw in self.raw.items()}

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """The same rules in our own words."""
        return {name: _describe(raw) for name, raw in self.raw.items()}


def _read_folders(folders: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"There is no rules folder {folder}.", hint="Check raksha.rules in avyay.yaml.")
        paths = [folder] if folder.is_file() else sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
        for path in paths:
            try:
                yield path, path.read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"Cannot read the rule file {path}: {error.strerror}.", hint="Check its permissions."
                ) from error


def _parse(path: Path, data: bytes) -> Iterator[Mapping[str, Any]]:
    import yaml

    try:
        document = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(data).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ConfigError(
            f"{where}: broken YAML: {getattr(error, 'problem', error)}.", hint="Check the indentation and the quotes."
        ) from error
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list) or not rules:
        raise ConfigError(f"{path}: no `rules:` list.", hint="A rule file is semgrep YAML: rules: [{id: ..., ...}]")
    for rule in rules:
        languages = rule.get("languages") if isinstance(rule, dict) else None
        if not isinstance(rule, dict) or not isinstance(rule.get("id"), str) or not isinstance(languages, list):
            raise ConfigError(f"{path}: a rule without `id` or `languages`.", hint="See the semgrep rule syntax.")
        yield rule


def _describe(raw: Mapping[str, Any]) -> Rule:
    meta = raw.get("metadata") if isinstance(raw.get("metadata"), dict) else {}
    assert isinstance(meta, dict)
    severity = str(meta.get("severity", "")).lower()
    message = " ".join(str(raw.get("message", "")).split())
    precision = str(meta.get("precision", meta.get("confidence", "medium"))).lower()
    category = str(meta.get("category", "pattern")).lower()
    score = meta.get("security-severity")
    try:
        replacements = read_replacements(meta.get("edits"))
    except ValueError as error:
        raise ConfigError(f"The rule {raw['id']} is broken: {error}.", hint="Repair the rule.") from error
    repair = kind_of(replacements)
    if "fix" in raw and repair == "none":
        repair = "safe" if meta.get("fix-safety") == "safe" else "unsafe"
    return Rule(
        id=raw["id"],
        title=str(meta.get("title") or message or raw["id"]),
        severity=severity  # type: ignore[arg-type]
        if severity in get_args(Severity)
        else _SEVERITY_OF_SEMGREP.get(str(raw.get("severity", "")).upper(), "medium"),
        cwe=_numbers(meta.get("cwe")),
        owasp=_texts(meta.get("owasp")),
        why=str(meta.get("why") or message).strip(),
        bad=str(meta.get("bad", "")).rstrip(),
        good=str(meta.get("good", "")).rstrip(),
        fix=str(meta.get("fix", "")).strip(),
        precision=precision if precision in get_args(Precision) else "medium",  # type: ignore[arg-type]
        category=category if category in get_args(Category) else "pattern",  # type: ignore[arg-type]
        languages=tuple(str(language) for language in raw["languages"]),
        aliases=_texts(meta.get("aliases")),
        security_severity=float(score) if isinstance(score, int | float | str) and str(score).strip() else None,
        engine="semgrep",
        repair=repair,
        tests=meta.get("tests") is not False,
    )


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else (str(value),)


def _numbers(value: Any) -> tuple[str, ...]:
    """`CWE-89: Improper ...` and `89` both mean `CWE-89`."""
    found = []
    for text in _texts(value):
        word = text.split(":")[0].strip().upper()
        found.append(word if word.startswith("CWE-") else f"CWE-{word}")
    return tuple(found)
