"""Fixture files of the rules, labelled cases, and one run of every engine over all of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.base import Engine
from avyay.raksha.engines.checks import ChecksEngine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.languages import language_of
from avyay.raksha.merge import join
from avyay.raksha.project import PackageFacts, Project
from avyay.raksha.registry import PatternRules, load_checks
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule

FIXTURES = Path(__file__).parents[3] / "fixtures" / "raksha"
BROKEN = "<>"  # stands in fixtures where a text would look like a real credential to other tools; dropped when read


@dataclass(frozen=True)
class Sample:
    """A file that is, or is not, an example of a rule or category."""

    subject: str
    label: str
    title: str
    case: bool
    file: SourceFile


def fixture_samples() -> Iterator[Sample]:
    for path in sorted(FIXTURES.glob("*/*")):
        if path.parent.name == "cases" or path.name.split(".")[0] not in ("bad", "good"):
            continue
        label = re.split(r"[.-]", path.name)[0]
        inner = next((line[7:].strip() for line in path.read_text().splitlines()[:1] if line.startswith("# path:")), "")
        rest = path.name.split(".", 1)[1]
        inner = inner or (rest if rest == "requirements.txt" else "")
        name = inner or ("Dockerfile" if path.suffix == ".dockerfile" else f"file{path.suffix}")
        yield _sample(path.parent.name, label, path.name, False, name, path.read_text())


def case_samples() -> Iterator[Sample]:
    """Sections `=== bad py what it shows` of the case files, one file for each category."""
    for path in sorted((FIXTURES / "cases").glob("*.txt")):
        for part in re.split(r"^=== ", path.read_text(), flags=re.MULTILINE)[1:]:
            head, _, body = part.partition("\n")
            label, suffix, title = head.split(" ", 2)
            yield _sample(path.stem, label, f"{suffix} {title}", True, f"case.{suffix}", body)


_numbers = iter(range(100_000))


def _sample(subject: str, label: str, title: str, case: bool, name: str, text: str) -> Sample:
    data = text.replace(BROKEN, "").encode()
    full = f"app{next(_numbers)}/{name}"
    return Sample(subject, label, title, case, SourceFile(full, data, language_of(full, data[:100])))


def _on_disk(sample: Sample, root: Path) -> Sample:
    """The same sample as a file: bandit reads no other."""
    path = root / sample.file.name
    path.parent.mkdir(parents=True)
    path.write_bytes(sample.file.data)
    return replace(sample, file=SourceFile(sample.file.name, sample.file.data, sample.file.language, path=path))


@dataclass(frozen=True)
class Scanned:
    """Every sample with what was found in it."""

    samples: tuple[Sample, ...]
    findings: dict[str, list[Finding]]
    rules: dict[str, Rule]

    def of(self, sample: Sample) -> list[Finding]:
        return self.findings.get(sample.file.name, [])


@pytest.fixture(scope="session")
def engines() -> list[Engine]:
    return [ChecksEngine(load_checks(plugins=False)), SemgrepEngine(PatternRules()), BanditEngine()]


class Registry:
    """What the network would say: everything exists but what says that it was never registered."""

    def host_exists(self, host: str) -> bool | None:
        return "never-registered" not in host

    def package(self, ecosystem: str, name: str) -> PackageFacts | None:
        if "brand-new" in name:
            return PackageFacts(True, datetime.now(UTC).date(), 1)
        return PackageFacts("never-registered" not in name, date(2011, 2, 14), 100)


def _projects(samples: tuple[Sample, ...], root: Path) -> Iterator[tuple[Project, list[SourceFile]]]:
    """The samples by project: those whose fixtures come with manifests, or ask the network, have one of their own."""
    plain: list[SourceFile] = []
    for sample in samples:
        folder = FIXTURES / sample.subject
        manifests = [path for name in ("pyproject.toml", "package.json", "go.mod") if (path := folder / name).exists()]
        asks = sample.subject in ("unknown-package", "new-package", "unresolvable-host")
        if sample.case or not (manifests or asks):
            plain.append(sample.file)
            continue
        for path in manifests:
            (root / sample.file.name).parent.joinpath(path.name).write_text(path.read_text())
        prefix = sample.file.name.split("/")[0]
        names = tuple(f"{prefix}/{path.name}" for path in manifests)
        yield Project(root, names, resolver=Registry() if asks else None), [sample.file]
    yield Project(root), plain


@pytest.fixture(scope="session")
def scanned(engines: list[Engine], tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    """One run of each engine over all fixtures and cases together."""
    root = tmp_path_factory.mktemp("project")
    samples = tuple(_on_disk(sample, root) for sample in (*fixture_samples(), *case_samples()))
    rules = {rule.id: rule for engine in engines for rule in engine.rules()}
    found: list[Finding] = []
    for project, files in _projects(samples, root):
        for engine in engines:
            read = [file for file in files if engine.reads(file) and (engine.name == "checks" or not project.files)]
            if not read:
                continue
            outcome = engine.run(read, project, step=lambda _: None, cancel=threading.Event())
            assert not outcome.skipped
            for name, result in outcome.results.items():
                assert not result.failed, f"{name}: {result.failed}"
                found.extend(result.findings)
    by_file: dict[str, list[Finding]] = {}
    for finding in join(found, rules):
        by_file.setdefault(finding.path, []).append(finding)
    return Scanned(samples, by_file, rules)
