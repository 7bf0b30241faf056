"""Which files a scan reads: those under its roots that git does not ignore, minus what is no source code."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avyay.errors import AvyayError, UsageError
from avyay.git import GitRepository, find_repository
from avyay.raksha.encoding import MARKS, encoding_of
from avyay.raksha.languages import STRUCTURED, language_of
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Skipped

__all__ = ["LONGEST_LINE", "MAXIMUM_BYTES", "Tree", "collect", "common_root", "matches"]

MAXIMUM_BYTES = 5_000_000
LONGEST_LINE = 50_000  # characters; longer means generated, and no engine reads it in reasonable time
HEAD_BYTES = 8192

_VENDORED = frozenset(
    {
        "node_modules", "bower_components", "vendor", "third_party", "third-party", ".venv", "venv", "site-packages",
        "__pycache__", ".git", ".hg", ".svn", ".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache",
        ".terraform", ".next", ".nuxt", ".yarn", ".eggs",
    }
)  # fmt: skip
_GENERATED = re.compile(
    r"(?:[.-]min\.(?:js|css|mjs)|\.bundle\.js|\.chunk\.js|_pb2(?:_grpc)?\.pyi?|\.pb(?:\.gw)?\.go|\.map)$"
)
_GENERATED_GO = re.compile(rb"(?m)^// Code generated .* DO NOT EDIT\.\r?$")  # the words Go's own tools agree on
_RULES = re.compile(rb"rules:\s*\n\s*-\s+id:\s")
_MEDIA = frozenset(
    {
        "png", "jpg", "jpeg", "gif", "webp", "ico", "bmp", "tif", "tiff", "svg", "pdf", "zip", "gz", "xz", "bz2", "zst",
        "tar", "tgz", "whl", "jar", "war", "so", "dylib", "dll", "exe", "o", "a", "pyc", "pyo", "woff", "woff2",
        "ttf", "eot", "otf", "mp3", "mp4", "mov", "avi", "webm", "wav", "ogg", "onnx", "bin", "dat", "npy", "npz",
        "class", "pkl", "parquet", "db", "sqlite", "sqlite3", "wasm",
    }
)  # fmt: skip


@dataclass
class Tree:
    """What the scan found on disk.

    `names`: every file under the roots. `skipped`: could not be read. `ignored`: left out on purpose, with the reason.
    """

    root: Path
    files: list[SourceFile] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    ignored: list[Skipped] = field(default_factory=list)


def common_root(paths: Sequence[Path]) -> Path:
    """The folder every file name is relative to: the one folder named, else the working folder, else what they share.

    So a file has one name, and its findings one fingerprint, whether it is named alone or with others.

    Raises:
        UsageError: a path does not exist, or there is none.
    """
    if not paths:
        raise UsageError("No path to scan.", hint="Name a file or folder: avyay scan .")
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"There is no file or folder {path}.", hint="Check the path.", code="missing_path")
    real = [path.absolute() for path in paths]
    if len(real) == 1 and real[0].is_dir():
        return real[0].resolve()
    here = Path.cwd()
    resolved = [path.parent.resolve() / path.name for path in real]
    if all(path.is_relative_to(here) for path in resolved) and _one_project(here, resolved):
        return here
    if len(real) == 1:
        return resolved[0].parent
    return Path(os.path.commonpath([path if path.is_dir() else path.parent for path in resolved]))


def _one_project(here: Path, paths: Sequence[Path]) -> bool:
    """Whether the working folder is in the repository of a file that is named alone: its history is asked for names."""
    if len(paths) > 1 or paths[0].parent == here:
        return True
    try:
        around, inside = find_repository(here), find_repository(paths[0].parent)
    except AvyayError:
        return False
    return (around and around.root) == (inside and inside.root)


def collect(paths: Sequence[Path], *, exclude: Sequence[str] = ()) -> Tree:
    """Find and read the files to scan.

    Files named directly are always read; folders are listed through git when they are in a repository (tracked and
    untracked files, not the ignored ones), else walked. Symbolic links are not followed.

    Args:
        exclude: Globs on the name relative to the root; `dir/**` and `dir/` mean everything below.

    Raises:
        UsageError: a path does not exist.
    """
    tree = Tree(common_root(paths))
    seen: set[str] = set()
    for path in paths:
        absolute = path.absolute()
        absolute = absolute.resolve() if absolute.is_dir() else absolute.parent.resolve() / absolute.name
        named = not absolute.is_dir()
        for found in [absolute] if named else _list(absolute, tree):
            name = _name(found, tree.root)
            if name not in seen:
                seen.add(name)
                _take(found, name, tree, exclude, named=named)
    tree.files.sort(key=lambda file: file.name)
    tree.names.sort()
    return tree


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name relative to the root matches one of the globs; a glob without a slash matches in any folder."""
    for glob in globs:
        pattern = glob.removeprefix("./")
        if pattern.endswith("/"):
            pattern += "**"
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*"):
            return True
        anywhere = "/" not in pattern.rstrip("/*")
        if anywhere and (fnmatch.fnmatchcase(name, f"*/{pattern}") or fnmatch.fnmatchcase(name, f"*/{pattern}/*")):
            return True
        if pattern.startswith("**/") and fnmatch.fnmatchcase(name, pattern[3:]):
            return True
    return False


def _name(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def _list(folder: Path, tree: Tree) -> Iterator[Path]:
    try:
        repository = find_repository(folder)
    except AvyayError as error:  # no git, or a repository git refuses: walk it, and say what that means
        repository = None
        tree.ignored.append(Skipped(_name(folder, tree.root), f"{error.message} .gitignore was not read.", "git"))
    listed = _git_files(folder, repository) if repository is not None else None
    if listed is None:
        yield from _walk(folder, tree)
    else:
        yield from listed


def _git_files(folder: Path, repository: GitRepository) -> list[Path] | None:
    inside = GitRepository(folder)
    done = inside.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".", timeout=120.0)
    if done.code != 0 or done.timed_out:
        return None
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    if not names and any(folder.iterdir()):
        # The folder itself is ignored by the repository around it, but it was asked for: read it all.
        ignored = repository.git("check-ignore", "-q", "--", str(folder)).code == 0
        return None if ignored else []
    # A submodule or nested repository is listed as a folder; it is scanned when it is named itself.
    return [folder / name for name in dict.fromkeys(names)]


def _walk(folder: Path, tree: Tree) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        where = _name(Path(str(error.filename)), tree.root)
        tree.skipped.append(Skipped(where, f"The folder cannot be read: {error.strerror}."))

    for place, folders, files in os.walk(folder, onerror=failed):
        for name in sorted(set(folders) & _VENDORED):
            if name != ".git":
                tree.ignored.append(Skipped(_name(Path(place, name), tree.root), "Vendored or generated folder."))
        folders[:] = sorted(set(folders) - _VENDORED)
        for name in [*folders]:
            if Path(place, name).is_symlink():
                tree.ignored.append(Skipped(_name(Path(place, name), tree.root), "Symbolic link; not followed."))
        yield from (Path(place, name) for name in sorted(files))


def _take(path: Path, name: str, tree: Tree, exclude: Sequence[str], *, named: bool) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return  # listed by git, deleted in the work tree
    except OSError as error:
        tree.skipped.append(Skipped(name, f"Cannot be read: {error.strerror}."))
        return
    if stat.S_ISLNK(status.st_mode) and not named:
        tree.ignored.append(Skipped(name, "Symbolic link; not followed."))
        return
    if stat.S_ISDIR(status.st_mode):
        tree.ignored.append(Skipped(name, "A repository of its own (submodule); scan it by naming it."))
        return
    tree.names.append(name)
    reason = None if named else _not_source(name, exclude)
    if reason is None and not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        reason = "Not a regular file."
    if reason is not None:
        tree.ignored.append(Skipped(name, reason))
        return
    _read(path, name, tree, named=named)


def _not_source(name: str, exclude: Sequence[str]) -> str | None:
    if matches(name, exclude):
        return "Excluded by configuration."
    parts = name.split("/")
    if not _VENDORED.isdisjoint(parts[:-1]):
        return "Vendored or generated folder."
    if _is_test_data(parts[:-1]):
        return "Data of tests; scanned when it is named."
    if _GENERATED.search(parts[-1]):
        return "Minified or generated."
    if parts[-1].rpartition(".")[2].lower() in _MEDIA and "." in parts[-1]:
        return "Binary or media."
    return None


def _is_test_data(folders: Sequence[str]) -> bool:
    """Files that tests read: often bad on purpose, never part of what runs. `testdata` is Go's own word for them."""
    if "testdata" in folders:
        return True
    tests = next((place for place, name in enumerate(folders) if name in ("test", "tests", "__tests__", "spec")), None)
    return tests is not None and not {"fixtures", "test-data", "__fixtures__"}.isdisjoint(folders[tests:])


def _read(path: Path, name: str, tree: Tree, *, named: bool) -> None:
    try:
        # A named symbolic link may point at a pipe or a device: only regular files are opened.
        if not stat.S_ISREG(path.stat().st_mode):
            tree.skipped.append(Skipped(name, "Not a regular file."))
            return
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            language = language_of(name, head)
            if b"\0" in head and not any(head.startswith(mark) for mark, _ in MARKS):
                if language in STRUCTURED:
                    tree.skipped.append(
                        Skipped(
                            name, "Holds NUL bytes (binary, or UTF-16 without a byte-order mark): nothing can read it."
                        )
                    )
                else:
                    tree.ignored.append(Skipped(name, "Binary or media."))
                return
            if size > MAXIMUM_BYTES:
                note = Skipped(name, f"Larger than {MAXIMUM_BYTES // 1_000_000} MB.")
                (tree.skipped if language in STRUCTURED - {"yaml"} else tree.ignored).append(note)
                return
            data = head + stream.read(MAXIMUM_BYTES)
    except OSError as error:
        tree.skipped.append(Skipped(name, f"Cannot be read: {error.strerror}."))
        return
    if language == "go" and not named and _GENERATED_GO.search(head):
        tree.ignored.append(Skipped(name, "Minified or generated."))
        return
    if language == "yaml" and _RULES.match(data) and b"\n---" not in data:
        tree.ignored.append(Skipped(name, "Rules of a scanner: they quote what they look for."))
        return
    problem = _unreadable(data, encoding_of(data, language))
    if problem is not None:
        code = language in STRUCTURED
        (tree.skipped if code else tree.ignored).append(Skipped(name, problem))
        if not problem.startswith("Not "):
            return
    tree.files.append(SourceFile(name, data, language, path=path))


def _unreadable(data: bytes, encoding: str) -> str | None:
    if len(data) > LONGEST_LINE and max(map(len, data.split(b"\n"))) > LONGEST_LINE:
        return f"A line of over {LONGEST_LINE:,} characters: minified or generated. Exclude it if it is not yours."
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        return f"Not {name} (byte {error.start}); read with the odd bytes replaced."
    return None
