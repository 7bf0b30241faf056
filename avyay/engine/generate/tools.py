"""Finding a project's own tools and their configuration."""

from __future__ import annotations

import configparser
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from avyay.engine.generate.types import Site

__all__ = ["configured", "ere", "pyproject", "python_tool", "relative"]


def pyproject(root: Path) -> dict[str, object]:
    """The project's pyproject.toml; empty when there is none that can be read."""
    try:
        return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def configured(root: Path, tool: str, files: Sequence[str]) -> bool:
    """Whether a project configures a tool: a file of its own, or a section of pyproject.toml or setup.cfg."""
    if any((root / name).is_file() for name in files):
        return True
    sections = pyproject(root).get("tool")
    if isinstance(sections, dict) and tool in sections:
        return True
    cfg = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        cfg.read(root / "setup.cfg", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return False
    return any(name == tool or name.startswith(f"{tool}-") for name in cfg.sections())


def python_tool(site: Site, name: str) -> list[str] | None:
    """How to run a Python tool: the project's own environment first, then PATH, then the one we run in."""
    for folder in (".venv/bin", "venv/bin"):
        if (program := site.root / folder / name).is_file():
            return [str(program)]
    if (found := shutil.which(name, path=site.path)) is not None:
        return [found]
    return [sys.executable, "-m", name] if find_spec(name) is not None else None


def ere(text: str) -> str:
    """A text as an extended regular expression of grep that finds it, however its words are spaced."""
    return "[[:space:]]+".join(re.sub(r"([][\\.^$*+?(){}|])", r"\\\1", word) for word in text.split())


def relative(root: Path, name: str) -> str:
    """A path that a tool prints, relative to the repository."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    elif path.is_absolute() and path.is_relative_to(root.resolve()):
        path = path.relative_to(root.resolve())
    return path.as_posix()
