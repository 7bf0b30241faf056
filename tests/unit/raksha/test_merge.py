"""Several engines at one place are one finding; secrets leave no trace; fingerprints survive moved lines."""

from __future__ import annotations

from dataclasses import replace

from avyay.raksha.merge import cover, finish, join
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule


def rule(name: str, *, cwe: str = "CWE-78", aliases: tuple[str, ...] = (), engine: str = "semgrep") -> Rule:
    return Rule(name, name, "high", (cwe,), why="w", bad="b", good="g", fix="f", aliases=aliases, engine=engine)


def finding(
    name: str, line: int, engine: str, *, cwe: str = "CWE-78", column: int = 1, end: int | None = None
) -> Finding:
    return Finding(name, "high", "m", "a.py", line, column, end or line, column + 5, (engine,), (cwe,))


RULES = {
    "ours": rule("ours", aliases=("bandit:B602",)),
    "bandit-b602": rule("bandit-b602", aliases=("bandit:B602",), engine="bandit"),
    "other": rule("other", cwe="CWE-1"),
    "alike": rule("alike"),
}


def test_aliases_join_and_keep_our_words() -> None:
    (one,) = join([finding("bandit-b602", 4, "bandit"), finding("ours", 3, "semgrep", end=5)], RULES)
    assert one.rule == "ours"
    assert one.origins == ("semgrep:ours", "bandit:B602")


def test_one_weakness_at_one_line_is_one_finding() -> None:
    (one,) = join([finding("ours", 3, "semgrep"), finding("alike", 3, "semgrep", column=9)], RULES)
    assert one.origins == ("semgrep:alike", "semgrep:ours") or one.origins == ("semgrep:ours", "semgrep:alike")


def test_different_faults_stay_apart() -> None:
    assert len(join([finding("ours", 3, "semgrep"), finding("other", 3, "semgrep", cwe="CWE-1")], RULES)) == 2
    assert len(join([finding("ours", 3, "semgrep"), finding("ours", 9, "semgrep")], RULES)) == 2
    # Two secrets on one line: the same rule at two places.
    assert len(join([finding("ours", 3, "checks"), finding("ours", 3, "checks", column=30)], RULES)) == 2


def test_the_same_match_twice_is_one() -> None:
    assert len(join([finding("ours", 3, "semgrep"), finding("ours", 3, "semgrep")], RULES)) == 1


def test_fingerprints_survive_moved_lines_and_tell_twins_apart() -> None:
    text = "x = 1\nrun(cmd)\nrun(cmd)\n"

    def prints(source: str, lines: list[int]) -> list[str]:
        file = SourceFile("a.py", source.encode(), "python")
        done = finish([finding("ours", line, "semgrep") for line in lines], {"a.py": file})
        return [item.fingerprint for item in done]

    before = prints(text, [2, 3])
    assert len(set(before)) == 2
    assert prints("\n# moved\n" + text.replace("run(cmd)", "    run(cmd)"), [4, 5]) == before
    assert prints(text.replace("cmd", "other"), [2, 3]) != before


def test_secrets_are_covered_everywhere() -> None:
    secret = "hunter2-hunter2-hunter2"
    file = SourceFile("a.py", f"key = '{secret}'\nprint('{secret}', 1)\n".encode(), "python")
    first = replace(finding("ours", 1, "checks"), secrets=(secret,), message=f"leaks {secret}", fix=f"drop {secret}")
    for item in finish([first, finding("other", 2, "semgrep", cwe="CWE-1")], {"a.py": file}):
        assert secret not in repr(item)
    assert cover("pass = 'pass'; password = 'x\\npass'", ["pass"]) == "[secret] = '[secret]'; password = 'x\\n[secret]'"
    weak = replace(
        finding("ours", 1, "checks"), secrets=("secret",), message="`secret_key` is given.", fix="Read the secret."
    )
    (item,) = finish([weak], {"a.py": SourceFile("a.py", b"secret_key: 'secret'\n", "yaml")})
    assert (item.message, item.fix, item.snippet) == (weak.message, weak.fix, "secret_key: '[secret]'")
    assert cover("sk-abcdefghijklmnopqrstuvwx and AKIAIOSFODNN7EXAMPLE", ()) == "[redacted] and [redacted]"
