"""Semgrep: the engine proper (`semgrep-core`) when its version is the one we know, else the `semgrep` command.

`semgrep scan` spends most of its time in its front end (rule validation, targeting, output); the bundled engine takes a
list of files and rules and is about fifteen times as fast for one file, with the same findings. Its command line is
private to semgrep, so it is used only with the version below.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from avyay import __version__
from avyay.config.environment import Environment
from avyay.errors import ConfigError, DependencyError, UnreachableError
from avyay.process import Completed, run
from avyay.raksha.engines.base import FileResult, Outcome, Step
from avyay.raksha.engines.prefilter import Condition, Words, can_match, conditions, scopes_of
from avyay.raksha.engines.readable import readable
from avyay.raksha.languages import STRUCTURED, UNSUPPORTED
from avyay.raksha.project import Project
from avyay.raksha.registry import PatternRules, installed_version
from avyay.raksha.repair import Replacement, edits_of
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Finding, Rule, Skipped

__all__ = ["CORE_VERSION", "HINT", "SemgrepEngine"]

CORE_VERSION = "1.182.0"
HINT = f"Install it with: pip install semgrep=={CORE_VERSION}"
# A nursery of 32 MB for each core: with the default of 2 MB the cores of the engine spend most of their time waiting
# for one another's collections (20 s of processor time instead of 5 on 51,000 lines with two cores).
GARBAGE_COLLECTION = "s=4M,o=200"
RULE_SECONDS = 10.0  # for one rule on one file
GENERIC = ("regex", "generic")
KNOWN = STRUCTURED | UNSUPPORTED | {"json", "bash", "html", "text"}
_ALIASES = {
    "py": "python", "python2": "python", "python3": "python", "js": "javascript", "ts": "typescript", "golang": "go",
    "docker": "dockerfile", "tf": "terraform", "hcl": "terraform", "sh": "bash", "none": "regex",
}  # fmt: skip


@dataclass
class _Plan:
    """What one run of the engine is given; `wanted`: names of files with the analyzers that read them."""

    rules: list[Mapping[str, Any]] = field(default_factory=list)
    wanted: set[tuple[str, str]] = field(default_factory=set)


def _probe(language: str) -> dict[str, Any]:
    """A rule that has the engine parse every file of a language and matches nothing."""
    formula: dict[str, Any] = {"pattern": '"there is no such text in any program"'}
    if language == "dockerfile":
        formula = {"patterns": [{"pattern": "FROM $X"}, {"pattern-not": "FROM $X"}]}
    return {"id": f"probe-{language}", "languages": [language], "severity": "INFO", "message": "-", **formula}


class SemgrepEngine:
    """Runs the pattern rules of the languages present.

    Args:
        rules: What to look for.
        jobs: Processor cores to use.
        timeout: Seconds for one run; more files get more.
        core: Use the bundled engine directly; False forces the `semgrep` command.
        program: Another engine binary or command, for tests.
    """

    name = "semgrep"

    def __init__(
        self,
        rules: PatternRules,
        *,
        jobs: int = 2,
        timeout: float = 300.0,
        core: bool = True,
        program: str | None = None,
    ) -> None:
        self._rules = rules
        self._jobs = jobs
        self._timeout = timeout
        self._core = core
        self._program = program
        self._seen: dict[str, tuple[SourceFile, Words]] = {}
        self._parts: dict[str, tuple[Words, ...]] = {}

    @cached_property
    def version(self) -> str:
        return installed_version("semgrep") or "missing"

    @cached_property
    def _languages(self) -> frozenset[str]:
        return frozenset(_language(item) for raw in self._rules.raw.values() for item in raw["languages"])

    def rules(self) -> Sequence[Rule]:
        return list(self._rules.rules.values())

    def digest(self) -> str:
        return self._rules.digest

    def key(self, project: Project) -> str:
        return f"{self.version}:{self._rules.digest}:{__version__}"

    def reads(self, file: SourceFile) -> bool:
        # Which languages have rules is known only after parsing them all: too dear for files that are in the cache.
        return file.language in KNOWN

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="avyay-semgrep-") as folder:
            places = dict(_places(files, Path(folder)))
            present = {file.language for file in files} | set(GENERIC)
            rules = [raw for raw in self._rules.raw.values() if present & {_language(x) for x in raw["languages"]}]
            if not rules:
                return Outcome({file.name: FileResult(parsed=False) for file in files})
            binary = self._binary()
            rules_file = Path(folder, "rules.json")
            if binary is not None:
                plan = self._plan(rules, files)
                rules_file.write_text(json.dumps({"rules": plan.rules}))
                document = self._run_core(binary, rules_file, places, plan.wanted, Path(folder), cancel)
            else:
                # Its front end takes no decimal numbers in metadata, and needs none of the prose.
                bare = [{key: value for key, value in rule.items() if key != "metadata"} for rule in rules]
                rules_file.write_text(json.dumps({"rules": bare}))
                document = self._run_command(rules_file, places, Path(folder), cancel)
            outcome = self._read(document, places)
        self._seen.clear()
        self._parts.clear()
        step(len(files))
        return outcome

    def _plan(self, rules: Sequence[Mapping[str, Any]], files: Sequence[SourceFile]) -> _Plan:
        """The rules without their prose, each limited to the files it can match in, and what to read those files as.

        A file nobody else parses is read in any case, by a rule that matches nothing: that it can be read is a result.
        """
        plan = _Plan()
        probed = [
            file for file in files if file.language in self._languages and file.language in STRUCTURED - {"python"}
        ]
        for language in sorted({file.language for file in probed}):
            plan.rules.append(_probe(language))
        plan.wanted.update((file.name, file.language) for file in probed)
        for rule in rules:
            lean = {key: value for key, value in rule.items() if key != "metadata"}
            languages = {_language(name) for name in rule["languages"]}
            mine = [file for file in files if file.language in languages or not languages.isdisjoint(GENERIC)]
            possible = mine
            if needed := self._conditions[rule["id"]]:
                possible = [file for file in mine if can_match(needed, self._words(file), partial(self._scopes, file))]
            if not possible:
                continue
            plan.rules.append(lean)
            for file in possible:
                kinds = languages.intersection((*GENERIC, file.language))
                plan.wanted.update((file.name, kind) for kind in kinds)
            if len(possible) < len(mine) and "include" not in (rule.get("paths") or {}):
                names = [f"/{glob.escape(_as_text(file.name))}" for file in possible]
                lean["paths"] = {**(rule.get("paths") or {}), "include": names}
        return plan

    @cached_property
    def _conditions(self) -> dict[str, tuple[Condition, ...]]:
        # A user's rule is given to the engine in any case: a broken one has to be told of.
        return {name: conditions(raw) if name in self._rules.packaged else () for name, raw in self._rules.raw.items()}

    def _words(self, file: SourceFile) -> Words:
        if file.name not in self._seen or self._seen[file.name][0] is not file:
            self._seen[file.name] = (file, Words(file.text))
        return self._seen[file.name][1]

    def _scopes(self, file: SourceFile) -> tuple[Words, ...]:
        if file.name not in self._parts:
            # A lone carriage return ends a line for Python, not for us.
            tree = file.parse()[0] if "\r" not in file.text.replace("\r\n", "") else None
            self._parts[file.name] = scopes_of(tree, file.lines) if tree is not None else ()
        return self._parts[file.name]

    def confirm(self, files: Sequence[SourceFile], *, cancel: threading.Event) -> dict[str, str]:
        binary = self._binary()
        if binary is None:
            return {}  # the command has no way to say so
        with tempfile.TemporaryDirectory(prefix="avyay-semgrep-") as folder:
            places = dict(_places(files, Path(folder)))
            rules_file = Path(folder, "rules.json")
            languages = sorted({file.language for file in files})
            rules_file.write_text(json.dumps({"rules": [_probe(language) for language in languages]}))
            wanted = {(file.name, file.language) for file in files}
            document = self._run_core(binary, rules_file, places, wanted, Path(folder), cancel)
            outcome = Outcome()
            for error in document["errors"]:
                self._take_error(error, places, outcome)
            return {name: result.problem or result.failed for name, result in outcome.results.items()}

    def _binary(self) -> str | None:
        """The bundled engine, if it is there and is the one whose command line we know."""
        if self._program is not None:
            return self._program if self._core else None
        if self.version == "missing":
            raise DependencyError("semgrep is not installed.", hint=HINT, code="no_semgrep")
        if not self._core or self.version != CORE_VERSION:
            return None
        spec = importlib.util.find_spec("semgrep")
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            path = Path(folder, "bin", "semgrep-core")
            if os.access(path, os.X_OK):
                return str(path)
        return None

    def _run_core(
        self,
        binary: str,
        rules_file: Path,
        places: Mapping[str, SourceFile],
        wanted: Set[tuple[str, str]],
        folder: Path,
        cancel: threading.Event,
    ) -> dict[str, Any]:
        targets = [
            [
                "CodeTarget",
                {
                    "path": {"fpath": place, "ppath": f"/{_as_text(file.name)}"},
                    "analyzer": analyzer,
                    "products": ["sast"],
                },
            ]
            for place, file in places.items()
            for analyzer in (file.language, *GENERIC)
            if (file.name, analyzer) in wanted
        ]
        if not targets:
            return {"results": [], "errors": []}
        targets_file = folder / "targets.json"
        targets_file.write_text(json.dumps(["Targets", targets]))
        command = [
            binary, "-json_nodots", "-rules", str(rules_file), "-targets", str(targets_file), "-j", str(self._jobs),
            "-timeout", str(RULE_SECONDS), "-timeout_threshold", "3", "-max_memory", "0", "-filter_irrelevant_rules",
        ]  # fmt: skip
        return self._answer(
            run(command, timeout=self._limit(places), cancel=cancel, cwd=folder, env=_environment(folder)), cancel
        )

    def _run_command(
        self, rules_file: Path, places: Mapping[str, SourceFile], folder: Path, cancel: threading.Event
    ) -> dict[str, Any]:
        command = [
            *self._command(), "scan", "--json", "--config", str(rules_file), "--metrics=off", "--disable-version-check",
            "--no-git-ignore", "--disable-nosem", "--max-target-bytes=0", "--scan-unknown-extensions", "--quiet",
            "--jobs", str(self._jobs), "--timeout", str(int(RULE_SECONDS)), *places,
        ]  # fmt: skip
        env = _environment(folder) | {"SEMGREP_SEND_METRICS": "off", "SEMGREP_ENABLE_VERSION_CHECK": "0"}
        done = run(command, timeout=self._limit(places), cancel=cancel, cwd=folder, env=env)
        document = self._answer(done, cancel)
        for result in document.get("results", ()):
            # The command prefixes rule ids with the folders of the rule file.
            result["check_id"] = str(result.get("check_id", "")).rsplit(".", 1)[-1]
        return document

    def _command(self) -> list[str]:
        if self._program is not None:
            return [self._program]
        beside = Path(sys.executable).with_name("semgrep")
        found = str(beside) if beside.is_file() else shutil.which("semgrep")
        if found is None:
            raise DependencyError("The program 'semgrep' is not on PATH.", hint=HINT, code="no_semgrep")
        return [found]

    def _limit(self, places: Mapping[str, SourceFile]) -> float:
        return self._timeout + len(places) * 0.5

    def _answer(self, done: Completed, cancel: threading.Event) -> dict[str, Any]:
        if done.timed_out:
            if cancel.is_set():
                raise UnreachableError("semgrep was stopped.", hint="Scan again.")
            raise UnreachableError(
                "semgrep took too long and was stopped.", hint="Scan fewer files, or exclude large ones."
            )
        text = done.stdout.lstrip(b".\n\r ")
        try:
            document = json.loads(text)
            fatal = [error for error in document["errors"] if _kind(error) == "Fatal error"]
            document["results"]
        except (ValueError, TypeError, KeyError):
            last = done.error_text.strip().splitlines()[-1:] or ["no message"]
            how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
            raise UnreachableError(
                f"semgrep gave no usable answer ({how}: {last[0][:200]}).", hint=f"Scan again; if it stays so: {HINT}"
            ) from None
        if fatal:
            raise UnreachableError(f"semgrep failed: {str(fatal[0].get('message'))[:200]}", hint=HINT)
        return document  # type: ignore[no-any-return]

    def _read(self, document: Mapping[str, Any], places: Mapping[str, SourceFile]) -> Outcome:
        outcome = Outcome()
        for file in places.values():
            # Without a structural rule for its language nobody read the file's structure.
            outcome.results[file.name] = FileResult(parsed=file.language in self._languages)
        for error in document["errors"]:
            self._take_error(error, places, outcome)
        for match in document["results"]:
            found = places.get(match["path"])
            rule = self._rules.rules.get(match["check_id"])
            if found is not None and rule is not None:
                outcome.of(found.name).findings.append(self._finding(match, found, rule))
        return outcome

    def _finding(self, match: Mapping[str, Any], file: SourceFile, rule: Rule) -> Finding:
        meta = self._rules.raw[rule.id].get("metadata") or {}
        return _finding(match, file, rule, meta, self._rules.replacements[rule.id])

    def _take_error(self, error: Mapping[str, Any], places: Mapping[str, SourceFile], outcome: Outcome) -> None:
        kind, message = _kind(error), str(error.get("message", "")).strip()
        location = error.get("location") or {}
        file = places.get(str(location.get("path") or error.get("path") or ""))
        rule = error.get("rule_id")
        if file is None:
            if rule or "rule" in kind.lower():
                raise ConfigError(
                    f"The rule {rule or '?'} is broken: {message.splitlines()[0]}", hint="Repair the rule."
                )
            outcome.skipped.append(Skipped("", f"{kind}: {message[:200]}", self.name))
            return
        result = outcome.of(file.name)
        line = (location.get("start") or {}).get("line")
        where = f" at line {line}" if line else ""
        if kind in (
            "Timeout",
            "OutOfMemory",
            "Out of memory",
            "StackOverflow",
            "Stack overflow",
            "TimeoutDuringInterfile",
        ):
            result.failed = f"{kind} in the rule {rule}." if rule else f"{kind}."
        else:
            result.parsed = False
            result.problem = f"Not wholly read: {kind}{where}."


def _environment(folder: Path) -> dict[str, str]:
    """What an engine may see of the environment: no keys, no proxies; settings and logs go to the temporary folder."""
    kept = {
        name: value for name, value in Environment().items() if name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    }
    return kept | {
        "SEMGREP_SETTINGS_FILE": str(folder / "settings.yml"),
        "SEMGREP_LOG_FILE": str(folder / "semgrep.log"),
        "OCAMLRUNPARAM": GARBAGE_COLLECTION,
        "SEMGREP_VERSION_CACHE_PATH": str(folder / "version"),
    }


def _kind(error: Mapping[str, Any]) -> str:
    kind = error.get("error_type", error.get("type", ""))
    return str(kind[0] if isinstance(kind, list) and kind else kind)


def _language(name: str) -> str:
    lower = str(name).lower()
    return _ALIASES.get(lower, lower)


def _places(files: Sequence[SourceFile], folder: Path) -> Iterator[tuple[str, SourceFile]]:
    """Where the engine finds each file: on disk, or in a temporary folder for text that came over the wire.

    What its parser would refuse for its form alone is there in another.
    """
    for number, file in enumerate(files):
        data = readable(file)
        if file.path is not None and data is None and _is_text(str(file.path)):
            yield str(file.path), file
            continue
        place = folder / str(number) / _as_text(Path(file.name).name)
        place.parent.mkdir()
        place.write_bytes(file.data if data is None else data)
        yield str(place), file


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8: the engine's own names are."""
    return name.isprintable() or _as_text(name) == name


def _as_text(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _finding(
    match: Mapping[str, Any], file: SourceFile, rule: Rule, meta: Mapping[str, Any], replacements: Sequence[Replacement]
) -> Finding:
    extra = match["extra"]
    line, column = _place(match["start"], file)
    end_line, end_column = _place(match["end"], file)
    edits = edits_of(replacements, file, (line, column, end_line, end_column))
    if isinstance(text := extra.get("fix"), str):
        safe = str(meta.get("fix-safety", "unsafe")) == "safe"
        edits = (Edit(line, column, end_line, end_column, text, safe=safe),)
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        message=" ".join(str(extra.get("message") or rule.title).split()),
        path=file.name,
        line=line,
        column=column,
        end_line=end_line,
        end_column=end_column,
        origins=("semgrep",),
        cwe=rule.cwe,
        fix=rule.fix or None,
        edits=edits,
    )


def _place(position: Mapping[str, Any], file: SourceFile) -> tuple[int, int]:
    """Semgrep counts columns in bytes."""
    line, column = int(position["line"]), int(position["col"])
    text = file.line(line)
    if not text.isascii():
        column = len(text.encode()[: column - 1].decode("utf-8", "replace")) + 1
    return line, column
