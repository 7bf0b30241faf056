"""Imports run one way: cli, serve -> wiring -> component -> kernel; components never meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "avyay"
COMPONENTS = {"marga", "rag", "raksha", "siddhi", "engine"}
SHELLS = {"cli", "serve", "__main__"}
COMPOSED = {"wiring", "doctor", "quickstart"}  # built from several components


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def edges(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """The avyay modules that import statements name, with their lines."""
    for node in nodes:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"line {node.lineno}: relative import"
            targets = [
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            ]
        for target in targets:
            if target in MODULES:
                yield node.lineno, target


def layer(module: str) -> str:
    top = module.split(".")[1] if "." in module else ""
    if top in SHELLS:
        return "shell"
    return top if top in COMPONENTS else "wiring" if top in COMPOSED else "kernel"


def allowed(source: str, target: str) -> bool:
    if source == "shell":
        return True
    if source == "wiring":
        return target != "shell"
    if source in COMPONENTS:
        return target in (source, "kernel")
    return target == "kernel"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for line, target in edges(ast.walk(tree)):
        edge = f"{name}:{line} ({layer(name)}) -> {target} ({layer(target)})"
        assert allowed(layer(name), layer(target)), edge


def test_no_cycle_between_modules() -> None:
    # Top level only: an import inside a function closes no cycle at load time.
    graph = {
        name: {target for _, target in edges(iter(ast.parse(path.read_text(encoding="utf-8")).body))} - {name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
