"""`--fix`: apply the edits that findings carry, and keep only those that prove themselves.

A changed file must still be read by a parser, the finding must be gone, and nothing new may be found in it; this is
checked by scanning the changed text before anything is written. Edits that fail are tried one by one, then left out.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from avyay.raksha.encoding import MARKS
from avyay.raksha.files import Tree
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Finding, Report

__all__ = ["FixedFile", "Fixes", "apply_edits", "plan_fixes"]

ALONE = 20  # findings of one file tried one by one when all together fail


class TreeScanner(Protocol):
    """What verifies a repair."""

    def scan_tree(self, tree: Tree) -> Report: ...


@dataclass(frozen=True, slots=True)
class FixedFile:
    """A file before and after."""

    file: SourceFile
    text: str
    findings: tuple[Finding, ...]

    @property
    def diff(self) -> str:
        """As `git diff` would show it."""
        lines = difflib.unified_diff(
            self.file.text.splitlines(keepends=True),
            self.text.splitlines(keepends=True),
            f"a/{self.file.name}",
            f"b/{self.file.name}",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def write(self) -> None:
        """Replace the file, whole or not at all, keeping its mode and byte-order mark.

        Raises:
            OSError: it cannot be written, or has changed since it was read.
        """
        path = self.file.path
        if path is None or path.read_bytes() != self.file.data:
            raise OSError(f"{self.file.name} has changed meanwhile")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(_encoded(self.text, self.file))
            Path(temporary).chmod(path.stat().st_mode & 0o7777)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@dataclass(slots=True)
class Fixes:
    """What can be repaired; `refused`: findings whose repair did not prove itself, with the reason."""

    files: list[FixedFile] = field(default_factory=list)
    refused: list[tuple[Finding, str]] = field(default_factory=list)


def plan_fixes(report: Report, files: Mapping[str, SourceFile], scanner: TreeScanner, *, unsafe: bool) -> Fixes:
    """Work out the repairs; nothing is written.

    Args:
        files: The scanned files by name.
        unsafe: Also edits that may change behaviour for callers.
    """
    fixes = Fixes()
    wanted: dict[str, list[Finding]] = {}
    for finding in report.findings:
        file = files.get(finding.path)
        if file is None or not finding.edits or not (unsafe or all(edit.safe for edit in finding.edits)):
            continue
        if not _round_trips(file):
            fixes.refused.append((finding, f"the file is not {file.encoding.removesuffix('-sig').upper()}"))
            continue
        wanted.setdefault(finding.path, []).append(finding)
    # What a baseline or a diff holds back is still there when the changed text is scanned.
    held_back = [item.finding for item in report.suppressed if item.by in ("baseline", "diff")]
    before = {name: _counts([*report.findings, *held_back], name) for name in wanted}
    unread = {item.path for item in report.skipped}

    def attempt(sets: Mapping[str, Sequence[Finding]]) -> dict[str, FixedFile]:
        """The sets of edits that prove themselves, by file."""
        changed: dict[str, FixedFile] = {}
        for name, findings in sets.items():
            text = apply_edits(files[name], [edit for finding in findings for edit in finding.edits])
            if text is not None and text != files[name].text and _can_be_written(text, files[name]):
                changed[name] = FixedFile(files[name], text, tuple(findings))
        after = _scan(changed, report.root, scanner)
        return {
            name: item
            for name, item in changed.items()
            if _proved(before[name], _counts(after.findings, name), item.findings)
            and (name in unread or name not in {skip.path for skip in after.skipped})
        }

    good = attempt(wanted)
    for name, findings in wanted.items():
        if name in good:
            continue
        kept: list[Finding] = []
        for finding in findings[:ALONE]:
            if name in attempt({name: [*kept, finding]}):
                kept.append(finding)
            else:
                fixes.refused.append((finding, "the repair would break the file, miss the fault or add another"))
        if kept:
            good |= attempt({name: kept})
    fixes.files = [good[name] for name in sorted(good)]
    return fixes


def _encoded(text: str, file: SourceFile) -> bytes:
    """The text as the file has it: in its encoding, with its byte-order mark.

    Raises:
        UnicodeEncodeError: the encoding has no such character.
    """
    mark = next((mark for mark, _ in MARKS if file.data.startswith(mark)), b"")
    if file.encoding in ("utf-16", "utf-32"):
        return mark + text.encode(f"{file.encoding}-{'le' if mark[0] == 0xFF else 'be'}")
    return mark + text.encode(file.encoding.removesuffix("-sig"))


def _can_be_written(text: str, file: SourceFile) -> bool:
    try:
        _encoded(text, file)
    except UnicodeEncodeError:
        return False
    return True


def _round_trips(file: SourceFile) -> bool:
    """Whether the file's own text can be written again byte for byte."""
    return _can_be_written(file.text, file) and _encoded(file.text, file) == file.data


def apply_edits(file: SourceFile, edits: Sequence[Edit]) -> str | None:
    """The text after the edits; None when two of them overlap or one lies outside the text."""
    places: list[tuple[int, int, str]] = []
    for edit in dict.fromkeys(edits):
        if not (1 <= edit.line <= len(file.lines) and 1 <= edit.end_line <= len(file.lines)):
            return None
        start, end = file.offset(edit.line, edit.column), file.offset(edit.end_line, edit.end_column)
        if not 0 <= start <= end <= len(file.text):
            return None
        places.append((start, end, edit.text))
    text = file.text
    limit = len(text) + 1
    for start, end, replacement in sorted(places, reverse=True):
        if end > limit:
            return None
        text = text[:start] + replacement + text[end:]
        limit = start
    return text


def _scan(changed: Mapping[str, FixedFile], root: Path, scanner: TreeScanner) -> Report:
    with tempfile.TemporaryDirectory(prefix="avyay-fix-") as folder:
        tree = Tree(root, names=sorted(changed))
        for number, (name, item) in enumerate(sorted(changed.items())):
            place = Path(folder, str(number), Path(name).name)
            place.parent.mkdir()
            data = _encoded(item.text, item.file)
            place.write_bytes(data)
            tree.files.append(SourceFile(name, data, item.file.language, path=place))
        return scanner.scan_tree(tree)


def _counts(findings: Sequence[Finding], name: str) -> Counter[str]:
    return Counter(finding.rule for finding in findings if finding.path == name)


def _proved(before: Counter[str], after: Counter[str], repaired: Sequence[Finding]) -> bool:
    gone = before - Counter(finding.rule for finding in repaired)
    return all(after[rule] <= gone[rule] for rule in after)
