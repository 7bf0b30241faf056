"""`avyay scan` once more: when nothing that an answer depends on has changed, it is printed without being worked out.

A complete scan leaves a record: what it printed, and a hash of everything that could have made it print something else.
That is the content of every file under the roots, rules and code of this package, settings, environment and command
line, the project's commits and manifests, the advisory database, and the day (advisories grow old). The next scan with
the same command line compares; any difference, or any doubt, and it is done as always. Here nothing heavy is imported:
the settings alone would cost several times as much as this answer.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from avyay import __version__
from avyay.config.environment import Environment
from avyay.errors import AvyayError
from avyay.paths import open_paths

if TYPE_CHECKING:
    from avyay.config import Loaded
    from avyay.raksha.files import Tree
    from avyay.raksha.project import Allowed

__all__ = ["Recorder", "replay"]

KEPT = 20  # records of different command lines
# What asks the network, writes files, or compares with something that is in no hash.
REFUSED = re.compile(
    r"--(?:sarif|markdown|json-file|fix|dry-run|triage|online|no-cache|write-baseline|baseline|diff|rules|config|verbose)\b"
    r"|-\w*v"
)
VARIABLES = re.compile(r"AVYAY_|XDG_|GIT_|LC_|(?:NO_COLOR|FORCE_COLOR|TERM|COLUMNS|LINES|HOME|PATH|LANG|PYTHONPATH)$")
_SECONDS = re.compile(r"(?m)^((?:Files analyzed: [\d,.]+ \| Time: )|(?: +\"seconds\": ))[\d.]+")


class Tee(io.TextIOBase):
    """A stream that also keeps what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        self._pieces.append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Nothing: the stream is its owner's to close, and to flush."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


_asked: list[Sequence[str]] = []  # the command line of this process, when its answer may be recorded


def replay(arguments: Sequence[str]) -> int | None:
    """Print the recorded answer and return its exit code; None when there is none or anything has changed."""
    started = time.perf_counter()
    _asked.clear()
    if any(REFUSED.match(argument) for argument in arguments):
        return None
    _asked.append(tuple(arguments))
    try:
        record = json.loads(_record_file(arguments).read_text(encoding="utf-8"))
        if record["inputs"] != _inputs(record):
            return None
        seconds = f"{time.perf_counter() - started:.1f}"
        sys.stdout.write(_SECONDS.sub(rf"\g<1>{seconds}", record["printed"], count=1))
        return int(record["code"])
    except (OSError, ValueError, KeyError, TypeError, AvyayError):
        return None


class Recorder:
    """Records one answer, if it is one that can be: made before the scan, told of its end.

    Args:
        tee: Has what the scan prints.
    """

    def __init__(self, loaded: Loaded, paths: Sequence[Path], exclude: Sequence[str], tee: Tee) -> None:
        settings = loaded.settings.raksha
        self._tee = tee
        self._record: dict[str, Any] | None = None
        doubtful = settings.rules or settings.baseline or loaded.ignored or loaded.unknown_variables
        if not _asked or doubtful or not settings.cache:
            return
        allow = settings.allow
        record: dict[str, Any] = {
            "paths": [str(path) for path in paths],
            "exclude": list(exclude),
            "allowed": [sorted(map(str.lower, names)) for names in (allow.emails, allow.hosts, allow.packages)],
        }
        try:
            record["inputs"] = _inputs(record)
        except (OSError, AvyayError):
            return
        self._record = record

    def finish(self, code: int) -> None:
        """The scan read everything and printed its answer. What cannot be recorded is not."""
        record = self._record
        if record is None:
            return
        try:
            if _inputs(record) != record["inputs"]:
                return  # somebody wrote while we read
            file = _record_file(_asked[0])
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(record | {"printed": self._tee.text, "code": code}), encoding="utf-8")
            temporary.chmod(0o600)
            temporary.replace(file)
            for old in sorted(file.parent.glob("*.json"), key=_modified, reverse=True)[KEPT:]:
                old.unlink(missing_ok=True)
        except (OSError, AvyayError):
            return


def _record_file(arguments: Sequence[str]) -> Path:
    """The record of one command line in one environment."""
    environment = Environment()
    paths = open_paths(environment.value("AVYAY_HOME"))
    seen = sorted((name, value) for name, value in environment.items() if VARIABLES.match(name))
    size = os.get_terminal_size(sys.stdout.fileno()) if sys.stdout.isatty() else None
    text = json.dumps([list(arguments), str(Path.cwd()), seen, size, sys.version, sys.path, __version__])
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return paths.cache / "raksha" / "answers" / f"{name}.json"


def _inputs(record: dict[str, Any]) -> str:
    """A hash of everything the answer was made of."""
    from avyay.raksha.files import collect
    from avyay.raksha.project import Allowed, Project

    tree = collect([Path(path) for path in record["paths"]], exclude=record["exclude"])
    allowed: Allowed = Allowed(*(frozenset(names) for names in record["allowed"]))
    parts = [Project(tree.root, tuple(tree.names), allowed).fingerprint, *_contents(tree), *_surroundings()]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


def _contents(tree: Tree) -> Iterable[str]:
    yield str(tree.root)
    for file in tree.files:
        yield f"{file.name}:{file.digest.hex()}"
    for item in (*tree.skipped, *tree.ignored):
        yield f"{item.path}:{item.reason}"


def _surroundings() -> Iterable[str]:
    """Code and rules, settings files, advisories; by size and time of their last change."""
    paths = open_paths(Environment().value("AVYAY_HOME"))
    yield str(datetime.now(UTC).date())
    yield from (_stamp(place) for place in sys.path)
    here = Path.cwd()
    yield from (_stamp(str(folder / "avyay.yaml")) for folder in (here, *here.parents))
    yield from (_stamp(str(path)) for path in (paths.user_config_file, paths.trust_file))
    advisories = paths.data / "raksha" / "advisories.db"
    yield from (_stamp(f"{advisories}{suffix}") for suffix in ("", "-wal"))
    if named := Environment().value("AVYAY_CONFIG"):
        yield _stamp(named)
    for folder, folders, names in os.walk(Path(__file__).parents[1]):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (_stamp(os.path.join(folder, name)) for name in sorted(names) if name.endswith((".py", ".yaml")))  # noqa: PTH118 - hundreds of them


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except OSError:
        return f"{path}:-"
    return f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
