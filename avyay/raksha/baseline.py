"""The baseline: findings somebody has accepted for now, so that only new ones count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avyay.errors import UsageError
from avyay.raksha.types import Finding, Suppressed

__all__ = ["Baseline", "read_baseline", "write_baseline"]

VERSION = 1


@dataclass(slots=True)
class Baseline:
    """Fingerprints of accepted findings; `stale` after `split`: those that were not found again."""

    fingerprints: frozenset[str]
    path: Path | None = None
    stale: frozenset[str] = field(default_factory=frozenset)

    def split(self, findings: Sequence[Finding]) -> tuple[list[Finding], list[Suppressed]]:
        """What is new, and what was accepted."""
        new = [finding for finding in findings if finding.fingerprint not in self.fingerprints]
        known = [finding for finding in findings if finding.fingerprint in self.fingerprints]
        self.stale = self.fingerprints - {finding.fingerprint for finding in known}
        why = f"in {self.path.name}" if self.path is not None else ""
        return new, [Suppressed(finding, "baseline", why) for finding in known]


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        UsageError: it is missing, unreadable or no baseline.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["raksha_baseline"] != VERSION:
            raise ValueError(f"version {document['raksha_baseline']}")
        prints = frozenset(str(item["fingerprint"]) for item in document["findings"])
    except OSError as error:
        raise UsageError(
            f"Cannot read the baseline {path}: {error.strerror}.",
            hint=f"Write one with: avyay scan --write-baseline {path}",
            code="no_baseline",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no baseline of avyay.", hint=f"Write a new one with: avyay scan --write-baseline {path}"
        ) from error
    return Baseline(prints, path)


def write_baseline(path: Path, findings: Sequence[Finding]) -> None:
    """Write the findings as accepted. Neither code nor secrets are written, so that the file can be committed.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = [
        {"fingerprint": f.fingerprint, "rule": f.rule, "path": f.path, "line": f.line}
        for f in sorted(findings, key=lambda f: (f.path, f.line, f.rule, f.fingerprint))
    ]
    text = json.dumps({"raksha_baseline": VERSION, "findings": rows}, indent=1, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"Cannot write the baseline {path}: {error.strerror}.", hint="Name a file in a folder you can write to."
        ) from error
