"""The prefilter may let a file pass in vain; it must never hold back one in which a rule matches."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from avyay.raksha.engines.prefilter import Words, can_match, conditions, scopes_of
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.registry import PatternRules
from avyay.raksha.scan import CodeScanner

ARGS = {
    "patterns": [{"pattern": "request.$A"}, {"metavariable-regex": {"metavariable": "$A", "regex": "^(args|form)$"}}]
}


def met(sources: list[Any], text: str) -> bool:
    rule = {"mode": "taint", "pattern-sources": sources, "pattern-sinks": [{"pattern": "sink($X, ...)"}]}
    file = Words(f"{text}\nsink(x)\n")
    return all(condition.met(file) for condition in conditions(rule))


@pytest.mark.parametrize(
    ("source", "yes", "no"),
    [
        (ARGS, "request.args", "request = args"),
        (ARGS, "request . form['x']", "request.url"),
        (ARGS, "flask.request.args.get('x')", "prequest.args"),
        ({"pattern": "request.get_json(...)"}, "request.get_json()", "x.get_json(request)"),
        ({"pattern": "await request.json()"}, "await request.json()", "await response.json() # request"),
        ({"pattern": "input(...)"}, "input ()", "inputs(1); user_input"),
        ({"pattern": "sys.argv"}, "from sys import argv; argv[1]", "sys.args"),
        ({"pattern": "os.path.join($X)"}, "from os import path; path.join(x)", "path.join(x)"),
        ({"pattern": "@$APP.get(...)\ndef $F(..., $P, ...):\n    ..."}, "@app.get('/')\ndef f(x): ...", "app.get('/')"),
        (
            {"pattern": "def $F(request, ..., $P, ...):\n    ..."},
            "def view(request: X, key): ...",
            "def view(request): ...",
        ),
        ({"pattern": "$REQ.query"}, "r.query", "r.body"),
        ({"pattern": "function ($REQ, $RES) { ... $REQ.body ... }"}, "(a, b) => a.body", "(a, b) => a.query"),
    ],
)
def test_sources(source: dict[str, Any], yes: str, no: str) -> None:
    assert met([source], yes)
    assert not met([source], no)
    assert met([source, {"pattern": "argv"}], "argv"), "any source is enough"
    assert not conditions({"mode": "search", "pattern-sources": [source]})


@pytest.mark.parametrize("source", [{"pattern": "$X"}, {"pattern": "$X + $Y"}, {"pattern-regex": "x"}, "odd", {}, None])
def test_what_is_not_understood_passes(source: Any) -> None:
    assert met([source, {"pattern": "argv"}], "nothing of the kind")


def test_sinks_count_too() -> None:
    rule = {"mode": "taint", "pattern-sources": [{"pattern": "argv"}], "pattern-sinks": [{"pattern": "os.system($X)"}]}
    found = conditions(rule)
    assert all(condition.met(Words("os.system(argv)")) for condition in found)
    assert not all(condition.met(Words("print(argv)")) for condition in found)


def test_a_rule_runs_where_it_can_match(write, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "rules: [{id: t, languages: [python], severity: ERROR, message: m, mode: taint,"
        " pattern-sources: [{pattern: input(...)}], pattern-sinks: [{pattern: run(...)}]}]"
    )
    bad = "run(input())\n"
    root = write({"a.py": bad, "b.py": "run(1)\n", "[id]/a.py": bad, "sub/a.py": "input()\n", "sub/*.py": bad})
    report = CodeScanner([SemgrepEngine(PatternRules((tmp_path / "r.yaml",)))]).scan([root])
    assert [finding.path for finding in report.findings] == ["[id]/a.py", "a.py", "sub/*.py"]
    assert report.complete


RULE = {
    "languages": ["python"],
    "mode": "taint",
    "pattern-sources": [{"pattern": "input(...)"}],
    "pattern-sinks": [{"pattern": "sink($X, ...)"}],
}


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        ("def f():\n    sink(input())\n", True),
        ("def f():\n    sink(1)\ndef g():\n    input()\n", False),
        ("x = input()\ndef f():\n    sink(x)\n", True),
        ("def f():\n    input()\nsink(1)\n", True),
        ("class A:\n    x = input()\n    def f(self):\n        sink(self.x)\n", True),
        ("def f():\n    x = input()\n    def g():\n        sink(x)\n", True),
        ("if x:\n    def f():\n        input()\nelse:\n    def f():\n        sink(1)\n", False),
        ("@sink(\n  1)\ndef f():\n    input()\n", True),
    ],
)
def test_source_and_sink_stand_in_one_function_or_outside_of_all(text: str, possible: bool) -> None:
    needed = conditions(RULE)
    scopes = scopes_of(ast.parse(text), text.split("\n"))
    assert can_match(needed, Words(text), lambda: scopes) is possible
    assert can_match(needed, Words(text), lambda: ()), "a file that Python cannot read has no scopes"


@pytest.mark.parametrize(
    ("formula", "yes", "no"),
    [
        ({"pattern": "app.run(..., debug=True, ...)"}, "app.run(debug=on)", "app.walk(debug=True)"),
        ({"pattern": "$A.debug = True"}, "x . debug = t", "debug = True"),
        ({"pattern": '$A.config["DEBUG"] = True'}, "c.config['DEBUG']=1", "c.config['OTHER']"),
        ({"pattern-either": [{"pattern": "a(...)"}, {"pattern": "b(...)"}]}, "b()", "c()"),
        ({"patterns": [{"pattern": "a(...)"}, {"pattern-inside": "while f(...): ..."}]}, "f(); a()", "a()"),
        ({"pattern-regex": r"chmod\s+777"}, "chmod  777", "chmod 755"),
        (
            {
                "patterns": [
                    {"pattern": "$C.get(...)"},
                    {"metavariable-regex": {"metavariable": "$C", "regex": "^(a|b)$"}},
                ]
            },
            "a.get(x)",
            "c.get(x)",
        ),
    ],
)
def test_search_rules(formula: dict[str, Any], yes: str, no: str) -> None:
    needed = conditions({"languages": ["python"], **formula})
    assert needed
    assert can_match(needed, Words(yes), lambda: ())
    assert not can_match(needed, Words(no), lambda: ())
    assert conditions({"languages": ["dockerfile"], **formula}) == (), "its words may be written in small letters"
