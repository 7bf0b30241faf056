"""One scan with real engines; and with engines that break."""

from __future__ import annotations

import string
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from avyay.errors import ConfigError
from avyay.raksha.engines import bandit as bandit_engine
from avyay.raksha.engines import semgrep as semgrep_engine
from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.checks import ChecksEngine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.registry import PatternRules, load_checks
from avyay.raksha.scan import CodeScanner
from avyay.raksha.types import Report, Rule, verdict

BAD = "import yaml\n\n\ndef f(cmd):\n    'é'; yaml.load(cmd)\n"
BAD_YAML = "import requests\n\n\ndef f(u):\n    return requests.get(u, verify=False)\n"
RULE = Rule("demo-check", "A demo", "low", ("CWE-1",), why="w", bad="b", good="g", fix="f")


def found(report: Report) -> list[tuple[str, str, int]]:
    return [(finding.rule, finding.path, finding.line) for finding in report.findings]


def program(folder: Path, body: str) -> str:
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_engines_join_at_one_place(scanner: CodeScanner, write) -> None:
    root = write({"a.py": BAD, "b.ts": "const x: string = eval(y)\n", "Dockerfile": "FROM x\nRUN chmod 777 /x\n"})
    steps: list[tuple[int, int | None]] = []
    report = scanner.scan([root], progress=lambda done, total, what: steps.append((done, total)))
    assert found(report) == [("demo-eval", "b.ts", 1), ("demo-shell", "a.py", 5), ("demo-world", "Dockerfile", 2)]
    shell = report.findings[1]
    assert shell.origins == ("semgrep:demo-shell", "bandit:B506")
    assert shell.column == 10, "characters, not bytes"
    assert shell.message == "A shell runs cmd."
    assert shell.snippet == "    'é'; yaml.load(cmd)"
    assert steps[-1][0] == steps[-1][1]
    assert verdict(report, "high") == "findings"


def test_clean_and_empty(scanner: CodeScanner, write) -> None:
    report = scanner.scan([write({"a.py": "x = 1\n", "b.js": "f(1)\n"})])
    assert not report.findings
    assert report.skipped == ()
    assert verdict(report, "low") == "clean"
    assert scanner.scan([write({}) / "a.py"]).files == 1


def test_newer_python_is_read_by_another_engine(scanner: CodeScanner, write) -> None:
    report = scanner.scan([write({"a.py": "type X[T] = list[T]\n" + BAD})])
    assert found(report) == [("demo-shell", "a.py", 6)]
    assert report.complete


def test_what_nobody_can_read_is_never_clean(scanner: CodeScanner, write) -> None:
    report = scanner.scan([write({"a.py": "def (:\n  subprocess.run(a, shell=\n", "b.js": "function ( { eval( \n"})])
    assert {item.path for item in report.skipped} == {"a.py", "b.js"}
    assert verdict(report, "low") == "unchecked"


def test_text_that_came_over_the_wire(engines: Sequence[object], write) -> None:
    from avyay.raksha.project import Project
    from avyay.raksha.source import SourceFile

    file = SourceFile("x/b.ts", b"eval(y)\n", "typescript")
    semgrep = engines[0]
    outcome = semgrep.run([file], Project(Path("/")), step=lambda n: None, cancel=threading.Event())  # type: ignore[attr-defined]
    assert [f.path for f in outcome.results["x/b.ts"].findings] == ["x/b.ts"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('garbage')", "no usable answer"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("print('[]')", "no usable answer"),
        ("raise SystemExit('boom')", "exit code 1: boom"),
    ],
)
def test_a_broken_semgrep_leaves_the_others_standing(
    pattern_rules: PatternRules, write, tmp_path: Path, body: str, message: str
) -> None:
    broken = SemgrepEngine(pattern_rules, program=program(tmp_path, body))
    report = CodeScanner([broken, BanditEngine()]).scan([write({"a.py": BAD})])
    assert found(report) == [("bandit-b506", "a.py", 5)]
    assert [item.engine for item in report.skipped] == ["semgrep"]
    assert message in report.skipped[0].reason
    assert verdict(report, "critical") == "unchecked"


def test_an_engine_that_hangs_is_stopped(pattern_rules: PatternRules, write, tmp_path: Path) -> None:
    slow = SemgrepEngine(pattern_rules, program=program(tmp_path, "import time; time.sleep(60)"), timeout=0.0)
    report = CodeScanner([slow]).scan([write({"a.py": BAD})])
    assert "took too long" in report.skipped[0].reason


@pytest.mark.parametrize("body", ["print('{}')", "import os; os.abort()", "raise SystemExit(3)"])
def test_a_broken_bandit_leaves_the_others_standing(pattern_rules: PatternRules, write, body: str) -> None:
    broken = BanditEngine(command=[sys.executable, "-c", body])
    report = CodeScanner([SemgrepEngine(pattern_rules), broken]).scan([write({"a.py": BAD})])
    assert found(report) == [("demo-shell", "a.py", 5)]
    assert [item.engine for item in report.skipped] == ["bandit"]


def test_missing_engines_say_how_to_get_them(
    pattern_rules: PatternRules, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semgrep_engine, "installed_version", lambda name: None)
    monkeypatch.setattr(bandit_engine, "installed_version", lambda name: None)
    report = CodeScanner([SemgrepEngine(pattern_rules), BanditEngine()]).scan([write({"a.py": BAD})])
    assert {item.engine for item in report.skipped} == {"semgrep", "bandit"}
    assert all("pip install" in item.reason for item in report.skipped)


def test_a_broken_pattern_is_a_configuration_error(write, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "rules: [{id: x, languages: [python], severity: ERROR, message: m, pattern: 'foo((('}]"
    )
    with pytest.raises(ConfigError, match="rule x is broken"):
        CodeScanner([SemgrepEngine(PatternRules((tmp_path,)))]).scan([write({"a.py": "x = 1\n"})])


def test_a_check_that_raises_spoils_one_file(write) -> None:
    def run(file: object, project: object) -> list[object]:
        if file.name == "bad.py":  # type: ignore[attr-defined]
            raise RuntimeError("oops")
        return [file.finding(RULE, 0, 1)]  # type: ignore[attr-defined]

    check = ModuleType("demo")
    vars(check).update(RULES=(RULE,), LANGUAGES=frozenset({"python"}), USES_PROJECT=False, run=run)
    report = CodeScanner([ChecksEngine({"demo": check})]).scan([write({"bad.py": "x\n", "good.py": "x\n"})])  # type: ignore[dict-item]
    assert found(report) == [("demo-check", "good.py", 1)]
    assert [(item.path, item.reason) for item in report.skipped] == [("bad.py", "The check demo failed: RuntimeError.")]


def test_the_semgrep_command_is_the_fallback(pattern_rules: PatternRules, write, tmp_path: Path) -> None:
    # A stand-in that answers as `semgrep scan --json` does: ids prefixed by folders, errors with `type` and `path`.
    root = write({"b.ts": "eval(y)\n"})
    body = (
        "import json, sys\n"
        "place = sys.argv[-1]\n"
        "assert '--metrics=off' in sys.argv and '--disable-version-check' in sys.argv\n"
        "match = {'check_id': 'tmp.x.demo-eval', 'path': place, 'start': {'line': 1, 'col': 1},"
        " 'end': {'line': 1, 'col': 8}, 'extra': {'message': 'Code is evaluated.'}}\n"
        "print(json.dumps({'results': [match], 'errors': []}))"
    )
    engine = SemgrepEngine(pattern_rules, core=False, program=program(tmp_path, body))
    assert found(CodeScanner([engine]).scan([root])) == [("demo-eval", "b.ts", 1)]


def test_the_real_semgrep_command_finds_the_same(write) -> None:
    root = write({"a.py": BAD_YAML, "b.js": "eval(location.hash)\n"})
    core, command = (CodeScanner([SemgrepEngine(PatternRules(), core=core)]).scan([root]) for core in (True, False))
    assert found(core)
    assert found(core) == found(command)
    assert core.complete
    assert command.complete


def test_interrupting_stops_the_engines(pattern_rules: PatternRules, write, tmp_path: Path) -> None:
    slow = SemgrepEngine(pattern_rules, program=program(tmp_path, "import time; time.sleep(60)"))

    class Interrupted(SimpleNamespace):
        name, version = "x", "1"

        def rules(self) -> list[Rule]:
            return []

        def reads(self, file: object) -> bool:
            return True

        def run(self, *args: object, **kw: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CodeScanner([slow, Interrupted()]).scan([write({"a.py": BAD})])  # type: ignore[list-item]


def test_yaml_that_one_parser_refuses_is_read_by_another(write) -> None:
    semgrep = SemgrepEngine(PatternRules())
    root = write(
        {"languages.yml": "cs: čeština\ncu: ѩзыкъ словѣньскъ\ncv: чӑваш чӗлхи\n", "broken.yml": "a: [1\nb: {\n"}
    )
    assert {item.path for item in CodeScanner([semgrep]).scan([root]).skipped} == {"languages.yml", "broken.yml"}
    report = CodeScanner([ChecksEngine(load_checks(plugins=False)), semgrep]).scan([root])
    assert [item.path for item in report.skipped] == ["broken.yml"]


def test_a_setting_that_only_production_must_not_have_is_fine_in_tests(write) -> None:
    text = "import requests\nrequests.get('https://a.example', verify=False)\n"
    excused = text.rstrip() + "  # avyay: ignore[tls-verification-off-python] no longer needed\n"
    root = write(
        {"client.py": text, "tests/a.py": text, "tests/b.py": excused, "tests/c.py": "import yaml\nyaml.load(1)\n"}
    )
    engines = [ChecksEngine(load_checks(plugins=False)), SemgrepEngine(PatternRules()), BanditEngine()]
    report = CodeScanner(engines).scan([root])
    assert found(report) == [
        ("tls-verification-off-python", "client.py", 2),
        ("bandit-b506", "tests/c.py", 2),
    ]


def test_hidden_characters_in_data_of_tests_are_what_is_tested(write) -> None:
    root = write({"tests/urls.json": '{"input": "\u202e"}\n', "tests/a.py": "x = '\u202e'\n", "b.json": '["\u202e"]\n'})
    report = CodeScanner([SemgrepEngine(PatternRules())]).scan([root])
    assert {path for _, path, _ in found(report)} == {"tests/a.py", "b.json"}


def test_what_imports_are_provided_by(write) -> None:
    root = write(
        {
            "setup.py": "from setuptools import setup\nsetup(name='x', install_requires=['httpx'])\n",
            "requirements.txt": "httpx\n",
            "invented.py": "import setuptols\n",
            "package.json": '{"dependencies": {"react-markdown": "1"}}',
            "package-lock.json": '{"packages": {"node_modules/unist-util-visit": {"version": "5.0.0"},'
            ' "node_modules/@types/mdast": {}}}',
            "src/a.ts": "import { visit } from 'unist-util-visit';\nimport type { Root } from 'mdast';\n",
            "src/b.ts": "import x from 'unist-util-vizit';\n",
            "tool/main.go": 'package main\nimport "github.com/prometheus/prometheus/pkg/rulefmt"\n',
            "service/go.mod": "module example.com/service\n",
            "service/main.go": 'package main\nimport "github.com/prometheus/prometheus/pkg/rulefmt"\n',
        }
    )
    report = CodeScanner([ChecksEngine(load_checks(plugins=False))]).scan([root])
    assert sorted(found(report)) == [
        ("unknown-import", "invented.py", 1),
        ("unknown-import", "service/main.go", 2),
        ("unknown-import", "src/b.ts", 1),
    ]


def test_a_token_that_was_issued_is_no_test_data(write) -> None:
    body = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5"
    number, digits = zlib.crc32(body.encode()), ""
    alphabet = string.digits + string.ascii_uppercase + string.ascii_lowercase
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = alphabet[digit] + digits
    issued, invented = f"ghp_{body}{digits}", f"ghp_{body}zzzzzz"
    root = write({"tests/a.py": f'TOKEN = "{issued}"\n', "tests/b.py": f'TOKEN = "{invented}"\n'})
    report = CodeScanner([ChecksEngine(load_checks(plugins=False))]).scan([root])
    assert found(report) == [("hardcoded-credential", "tests/a.py", 1)]
    assert issued not in repr(report.findings[0].snippet) + report.findings[0].message
