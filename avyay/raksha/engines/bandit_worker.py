"""The process bandit runs in: file names on stdin, findings on stdout, both JSON.

A process of its own, because bandit is pure Python and would take turns with our own checks, and because a file that
makes it crash or hang must not take the scan along. Its own configuration files (`.bandit`, `[tool.bandit]`) are not
read: the scanned code would choose what is found in it.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def main() -> None:
    """Read `{"files": [...], "tests": [...]}`, write `{"results": [...], "skipped": [[file, reason], ...]}`."""
    request = json.load(sys.stdin)
    logging.disable(logging.CRITICAL)
    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager

    manager = BanditManager(
        BanditConfig(), "file", quiet=True, profile={"include": request["tests"], "exclude": []}, ignore_nosec=True
    )
    manager.files_list = list(request["files"])
    manager.run_tests()
    json.dump({"results": [_result(issue) for issue in manager.results], "skipped": manager.get_skipped()}, sys.stdout)


def _result(issue: Any) -> dict[str, Any]:
    return {
        "file": issue.fname,
        "test": issue.test_id,
        "severity": issue.severity,
        "confidence": issue.confidence,
        "text": issue.text,
        "line": issue.lineno,
        "column": issue.col_offset,
        "end_column": issue.end_col_offset,
        "last_line": max(issue.linerange) if issue.linerange else issue.lineno,
    }


if __name__ == "__main__":
    main()
