"""Files that came over the wire, written below a folder: counted, measured, and nowhere else."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from avyay.errors import UsageError
from avyay.git import git_program
from avyay.process import run

__all__ = ["Limits", "clone", "unpack", "write_files"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring; sizes in bytes, unpacked."""

    files: int = 2_000
    file_bytes: int = 5_000_000
    total_bytes: int = 100_000_000


def write_files(files: Iterable[tuple[str, bytes]], folder: Path, limits: Limits) -> int:
    """Write files below `folder`; returns how many.

    A repository's own folder (`.git`) is left out: its configuration could make git run programs.

    Raises:
        UsageError: a name leads out of the folder or cannot be a file's, or a limit is passed.
    """
    count = total = 0
    for name, data in files:
        path = _safe(name)
        if ".git" in path.parts:
            continue
        count += 1
        total += len(data)
        if count > limits.files:
            raise _too_much(f"more than {limits.files:,} files")
        if len(data) > limits.file_bytes or total > limits.total_bytes:
            raise _too_much("too many bytes")
        place = folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        except (OSError, ValueError) as error:
            raise UsageError(f"{name[:200]!r} cannot be a file here.", code="bad_path") from error
    return count


def unpack(data: bytes, folder: Path, limits: Limits) -> int:
    """Write the files of a tar (plain or compressed) or zip archive below `folder`; links and devices are left out.

    Raises:
        UsageError: it is no archive, or as `write_files`.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            return write_files(_from_zip(data, limits), folder, limits)
        return write_files(_from_tar(data, limits), folder, limits)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            "The body is no archive that can be read.", hint="Send a tar, tar.gz or zip.", code="bad_archive"
        ) from error


def clone(url: str, ref: str | None, folder: Path, *, hosts: Mapping[str, None] | Iterable[str]) -> None:
    """Fetch one commit of a repository into `folder`.

    Raises:
        UsageError: the address is not https, its host is not allowed, or git cannot fetch it.
    """
    match = re.fullmatch(r"https://([a-z0-9.-]+(?::\d+)?)/[A-Za-z0-9._~/-]+", url)
    if match is None:
        raise UsageError("Only https addresses without credentials are fetched.", code="bad_git_url")
    if match[1] not in set(hosts):
        raise UsageError(
            f"Repositories of {match[1]} are not fetched here.",
            hint="Allow the host: raksha.git_hosts",
            code="git_host",
        )
    if ref is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}", ref):
        raise UsageError("That is no branch or tag.", code="bad_git_ref")
    options = ["-c", "protocol.allow=never", "-c", "protocol.https.allow=always", "-c", "http.followRedirects=false"]
    options += ["-c", "core.hooksPath=/dev/null", "-c", "core.symlinks=false", "-c", "credential.helper="]
    branch = ["--branch", ref] if ref else []
    command = [git_program(), *options, "clone", "--quiet", "--depth=1", "--no-tags", "--single-branch", *branch]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "GIT_TERMINAL_PROMPT": "0", "HOME": str(folder.parent)}
    done = run([*command, "--", url, str(folder)], timeout=120.0, env=environment)
    if done.timed_out or done.code != 0:
        raise UsageError(f"git cannot fetch {url}.", hint="Check the address and the branch.", code="git_fetch")


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts or len(name) > 1_000
    if bad or not path.parts or any(len(part.encode("utf-8", "replace")) > 255 for part in path.parts):
        raise UsageError(f"{name[:200]!r} is no path inside of the upload.", code="bad_path")
    return path


def _from_zip(data: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if info.is_dir() or is_link:
                continue
            with archive.open(info) as stream:
                # The size that the directory claims may be a lie: read no more than one file may have.
                yield info.filename, _bounded(stream.read(limits.file_bytes + 1), limits)


def _from_tar(data: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    # Streamed ("r|*"): nothing is unpacked beyond what is read, and reading stops at the first limit passed.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|*") as archive:
        skipped = 0
        for member in archive:
            skipped += 1
            if skipped > limits.files * 4:
                raise _too_much("too many entries")
            if not member.isfile():
                continue
            if member.size > limits.file_bytes:
                raise _too_much("too many bytes")
            stream = archive.extractfile(member)
            yield member.name.removeprefix("./"), stream.read() if stream is not None else b""


def _bounded(data: bytes, limits: Limits) -> bytes:
    if len(data) > limits.file_bytes:
        raise _too_much("too many bytes")
    return data


def _too_much(what: str) -> UsageError:
    return UsageError(f"The upload holds {what}.", hint="Scan it in parts, or with the command line.", code="too_large")
