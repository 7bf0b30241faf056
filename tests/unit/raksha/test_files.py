"""A scan reads what is the project's own, and says what it left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from avyay.errors import UsageError
from avyay.raksha.files import LONGEST_LINE, MAXIMUM_BYTES, Tree, collect, common_root, matches
from avyay.raksha.languages import language_of


def names(tree: Tree) -> list[str]:
    return [file.name for file in tree.files]


def reasons(items: object) -> dict[str, str]:
    return {item.path: item.reason for item in items}  # type: ignore[attr-defined]


def test_without_git_the_tree_is_walked(write) -> None:
    root = write({"a.py": "x", "sub/b.js": "y", "node_modules/m/i.js": "z", ".env": "K=v", "logo.png": b"\x89PNG"})
    tree = collect([root])
    assert names(tree) == [".env", "a.py", "sub/b.js"]
    assert "node_modules" in reasons(tree.ignored)
    assert reasons(tree.ignored)["logo.png"] == "Binary or media."
    assert not tree.skipped


@pytest.mark.needs("git")
def test_git_says_what_is_ignored(write) -> None:
    root = write({".gitignore": "out/\n", "a.py": "x", "out/b.py": "y", "new.py": "z", "vendor/v.py": "v"})
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "a.py", "vendor"], cwd=root, check=True)
    tree = collect([root])
    assert names(tree) == [".gitignore", "a.py", "new.py"]
    assert names(collect([root / "out"])) == ["b.py"], "an ignored folder is read when it is named"
    assert names(collect([root / "vendor" / "v.py"])) == ["v.py"], "a named file is always read"
    (root / "a.py").unlink()
    assert names(collect([root])) == [".gitignore", "new.py"], "deleted, but still in the index"


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        collect([tmp_path / "nope"])
    with pytest.raises(UsageError, match="No path"):
        collect([])


def test_unreadable_is_skipped_not_ignored(write) -> None:
    root = write({"a.py": "x", "locked.py": "y", "shut/c.py": "z"})
    (root / "locked.py").chmod(0)
    (root / "shut").chmod(0)
    try:
        tree = collect([root])
        if os.geteuid() != 0:  # root reads everything
            assert set(reasons(tree.skipped)) == {"locked.py", "shut"}
            assert names(tree) == ["a.py"]
    finally:
        (root / "shut").chmod(0o700)


def test_links_are_not_followed(write) -> None:
    root = write({"a.py": "x"})
    (root / "loop").symlink_to(root)
    (root / "dangling.py").symlink_to(root / "nowhere")
    (root / "outside.py").symlink_to("/etc/passwd")
    tree = collect([root])
    assert names(tree) == ["a.py"]
    assert set(reasons(tree.ignored)) == {"loop", "dangling.py", "outside.py"}


def test_pipe_does_not_hang(write) -> None:
    root = write({"a.py": "x"})
    os.mkfifo(root / "pipe.py")
    assert reasons(collect([root]).ignored) == {"pipe.py": "Not a regular file."}
    (root / "link.py").symlink_to(root / "pipe.py")
    assert "link.py" in reasons(collect([root / "link.py"]).skipped)


def test_large_minified_binary_and_odd_text(write) -> None:
    root = write(
        {
            "long.js": "x" * (LONGEST_LINE + 1),
            "app.min.js": "x" * (LONGEST_LINE + 1),
            "big.py": b"#\n" * (MAXIMUM_BYTES // 2 + 1),
            "big.log": b"#\n" * (MAXIMUM_BYTES // 2 + 1),
            "data": b"a\0b",
            "latin.py": "# é\n".encode("latin-1"),
            "nul.py": b"x = 1\0\n",
        }
    )
    tree = collect([root])
    assert names(tree) == ["latin.py"]
    assert set(reasons(tree.skipped)) == {"long.js", "big.py", "latin.py", "nul.py"}
    assert set(reasons(tree.ignored)) == {"app.min.js", "big.log", "data"}


def test_exclude_and_several_roots(write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"a.py": "1", "docs/b.py": "2", "x/docs/c.py": "3", "x/d_gen.py": "4"})
    assert names(collect([root], exclude=["docs/", "*_gen.py"])) == ["a.py"]
    assert names(collect([root], exclude=["x/**"])) == ["a.py", "docs/b.py"]
    monkeypatch.chdir(root)
    assert names(collect([Path("a.py"), Path("docs"), Path("a.py")])) == ["a.py", "docs/b.py"]
    assert common_root([Path("a.py")]) == root
    assert common_root([root / "docs", root / "x"]) == root


def test_data_of_tests_is_scanned_only_when_it_is_named(write) -> None:
    root = write({"a.py": "1", "tests/t.py": "2", "tests/unit/fixtures/x/bad.py": "3", "pkg/testdata/b.go": "4"})
    write({"fixtures/c.py": "5"})
    tree = collect([root])
    assert names(tree) == ["a.py", "fixtures/c.py", "tests/t.py"]
    assert names(collect([root / "tests" / "unit" / "fixtures"])) == ["x/bad.py"]
    assert names(collect([root / "tests" / "unit" / "fixtures" / "x" / "bad.py"])) == ["bad.py"]


def test_rules_of_scanners_are_no_findings(write) -> None:
    rule = "rules:\n  - id: x\n    pattern: eval($X)\n"
    root = write(
        {"r.yaml": rule, "two.yaml": rule + "---\nkind: Pod\n", "role.yaml": "kind: Role\nrules:\n  - id: x\n"}
    )
    assert names(collect([root])) == ["role.yaml", "two.yaml"]


def test_matches() -> None:
    assert matches("a/b/c.py", ["b"])
    assert matches("a/b.py", ["./a/*.py"])
    assert matches("b.py", ["**/b.py"])
    assert not matches("ab.py", ["b.py"])


def test_language() -> None:
    for name, language in {
        "a.py": "python", "Dockerfile": "dockerfile", "api.Dockerfile": "dockerfile", "Dockerfile.dev": "dockerfile",
        "x.tsx": "typescript", "m.tf": "terraform", "README": "text", "a.unknown": "text", "Dockerfile.md": "text",
    }.items():  # fmt: skip
        assert language_of(name) == language, name
    assert language_of("tool", b"#!/usr/bin/env python3\n") == "python"
    assert language_of("tool", b"#!/bin/sh -e\n") == "bash"
