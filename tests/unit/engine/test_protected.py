"""Which changes a task may not make."""

from __future__ import annotations

import pytest

from avyay.engine.protected import Change, protected_changes


def kinds(*changes: tuple[str, str], **options: object) -> list[str]:
    found = protected_changes([Change(*change) for change in changes], **options)  # type: ignore[arg-type]
    return [refusal.kind for refusal in found]


TESTS = ["tests/test_a.py", "pkg/a_test.go", "src/x.test.ts", "src/x.spec.tsx", "a/FooTest.java", "spec/user_spec.rb"]
STEERING = ["conftest.py", "tests/conftest.py", "pytest.ini", "sub/.coveragerc", "jest.config.js"]


@pytest.mark.parametrize("path", TESTS)
def test_existing_tests_stay_and_new_ones_are_welcome(path: str) -> None:
    assert kinds(("M", path)) == kinds(("D", path)) == ["tests"]
    assert kinds(("A", path)) == []
    assert kinds(("D", path), allow={"tests"}) == []
    assert kinds(("D", path), allow={path}) == []


@pytest.mark.parametrize("path", STEERING)
def test_what_steers_tests_may_not_even_be_added(path: str) -> None:
    assert kinds(("A", path)) == ["tests"]


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".gitlab-ci.yml", "Jenkinsfile", ".gitmodules"])
def test_ci(path: str) -> None:
    assert kinds(("A", path)) == ["ci"]
    assert kinds(("A", path), allow={"ci"}) == []


@pytest.mark.parametrize("path", ["uv.lock", "web/package-lock.json", "Cargo.lock", "go.sum"])
def test_locks(path: str) -> None:
    assert kinds(("M", path)) == ["locks"]
    assert kinds(("M", path), allow={"locks"}) == []


@pytest.mark.parametrize(
    ("accept", "path", "refused"),
    [
        ("make test", "Makefile", True),
        ("cd x && make test", "Makefile", True),
        ("./scripts/verify --all", "scripts/verify", True),
        ("sh ci/check.sh", "ci/check.sh", True),
        ("python app.py", "app.py", False),  # the program under test is what the task is about
        ("grep -q fixed parser.py", "parser.py", False),
        ("pytest -q", "src/app.py", False),
    ],
)
def test_an_acceptance_command_cannot_be_moved(accept: str, path: str, refused: bool) -> None:
    assert kinds(("M", path), accept=accept) == (["gate"] if refused else [])
    assert kinds(("A", path), accept=accept) == []


def test_more_globs() -> None:
    assert kinds(("M", "deploy/prod.yaml"), more=["deploy/*"]) == ["protected"]


@pytest.mark.parametrize(
    ("path", "before", "after", "refused"),
    [
        ("pyproject.toml", "[project]\nname='a'\n", "[project]\nname='b'\n", False),
        ("pyproject.toml", "[tool.pytest.ini_options]\n", "[tool.pytest.ini_options]\naddopts='-k nothing'\n", True),
        ("pyproject.toml", "", "not [toml", True),
        ("package.json", '{"version": "1"}', '{"version": "2"}', False),
        ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "true"}}', True),
        ("setup.cfg", "[metadata]\nname = a\n", "[metadata]\nname = b\n", False),
        ("setup.cfg", "", "[tool:pytest]\naddopts = -k nothing\n", True),
    ],
)
def test_sections_that_steer_tests(path: str, before: str, after: str, refused: bool) -> None:
    found = kinds(("M", path), read=lambda _path, later: after if later else before)
    assert found == (["gate"] if refused else [])
