"""Which projects' avyay.yaml may set everything: like `direnv allow`, by path and content.

A project's file comes with the repository, perhaps from a stranger. Until `avyay trust` it may set only keys that
can do no harm (`x-project-safe` in the schema); an edit asks for trust again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from avyay.errors import ConfigError
from avyay.paths import Paths, ensure_directory

__all__ = ["is_trusted", "revoke_trust", "trust"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _records(paths: Paths) -> dict[str, str]:
    try:
        records = json.loads(paths.trust_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing is trusted: the safe reading of a missing or broken file
    return records if isinstance(records, dict) else {}


def is_trusted(path: Path, paths: Paths) -> bool:
    """Whether the file at `path` was trusted with exactly its present content."""
    records = _records(paths)
    return bool(records) and records.get(str(path.resolve())) == _digest(path)


def trust(path: Path, paths: Paths) -> None:
    """Trust the file at `path` as it stands now.

    Raises:
        ConfigError: there is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", hint="Run this where your avyay.yaml is, or name it.")
    _write(_records(paths) | {str(path.resolve()): _digest(path)}, paths)


def revoke_trust(path: Path, paths: Paths) -> bool:
    """Forget that `path` was trusted; says whether it was."""
    records = _records(paths)
    known = records.pop(str(path.resolve()), None) is not None
    if known:
        _write(records, paths)
    return known


def _write(records: dict[str, str], paths: Paths) -> None:
    ensure_directory(paths.state)
    temporary = paths.trust_file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    temporary.replace(paths.trust_file)
