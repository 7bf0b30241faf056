"""What was published into one file."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def told(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of every event, in order; nothing when there is no outbox."""
    if not path.is_file():
        return []
    with closing(sqlite3.connect(path)) as database:
        try:
            rows = database.execute("SELECT name, data FROM outbox ORDER BY number").fetchall()
        except sqlite3.OperationalError:
            return []
    return [(name, json.loads(data)) for name, data in rows]
