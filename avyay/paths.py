"""Where avyay keeps things: the only module that knows directories.

`AVYAY_HOME` moves all of it under one folder; otherwise the platform's own places are used
(XDG on Linux, ~/Library on macOS).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from avyay.errors import UsageError

__all__ = ["Paths", "ensure_directory", "is_writable", "open_paths"]


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one installation. Nothing is created until asked for.

    config: the user's avyay.yaml. data: databases and indexes, worth backing up. cache: may be deleted at any time.
    state: logs, trust records. runtime: sockets and locks of running processes.
    """

    config: Path
    data: Path
    cache: Path
    state: Path
    runtime: Path

    @property
    def user_config_file(self) -> Path:
        return self.config / "avyay.yaml"

    @property
    def trust_file(self) -> Path:
        return self.state / "trust.json"

    def component(self, name: str) -> Path:
        """The data folder a component owns, created when missing.

        Raises:
            UsageError: it cannot be created or written.
        """
        return ensure_directory(self.data / name)


def ensure_directory(path: Path) -> Path:
    """Create `path` (mode 0700) if needed and check that it can be written.

    Raises:
        UsageError: with the reason and the remedy.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot create the folder {path}: {error.strerror or error}.",
            hint="Set AVYAY_HOME to a folder you can write to, for example AVYAY_HOME=/tmp/avyay.",
            code="home_not_writable",
        ) from error
    if not is_writable(path):
        raise UsageError(
            f"The folder {path} cannot be written.",
            hint="Fix its permissions, or set AVYAY_HOME to a folder you can write to.",
            code="home_not_writable",
        )
    return path


def is_writable(path: Path) -> bool:
    """Whether a file can really be made in `path` (or in its nearest existing parent); leaves nothing behind."""
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def open_paths(home: str | None) -> Paths:
    """The directories for `AVYAY_HOME=home`, or the platform's own when it is None or empty."""
    if home:
        root = Path(home).expanduser().absolute()
        return Paths(root / "config", root / "data", root / "cache", root / "state", root / "run")
    from platformdirs import PlatformDirs

    dirs = PlatformDirs("avyay", appauthor=False)
    return Paths(
        config=dirs.user_config_path,
        data=dirs.user_data_path,
        cache=dirs.user_cache_path,
        state=dirs.user_state_path,
        runtime=dirs.user_state_path / "run",
    )
