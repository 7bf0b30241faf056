"""What linters find, where the project configures one: ruff. One task for each file and rule."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from typing import Any

from avyay.engine.generate.tools import configured, python_tool, relative
from avyay.engine.generate.types import Found, Need, Site

__all__ = ["Lint"]

_TIMEOUT = 300.0


class Lint:
    """Rules the project has set itself and breaks."""

    def find(self, site: Site) -> Found:
        if not configured(site.root, "ruff", ("ruff.toml", ".ruff.toml")):
            return Found.not_checked("no linter is configured (ruff)")
        tool = python_tool(site, "ruff")
        if tool is None:
            return Found.not_checked("ruff is configured but not installed")
        # Many projects let ruff mend what it finds: nobody has asked for that here, and a checkout would hide the need.
        command = [*tool, "check", "--no-fix", "--output-format", "json", "--exit-zero", "--no-cache", "--quiet", "."]
        done = site.run(command, timeout=_TIMEOUT, cwd=site.root)
        if done.timed_out or done.code != 0:
            return Found.not_checked(f"ruff failed: {done.error_text.strip()[:200]}")
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in json.loads(done.stdout or b"[]"):
            groups[relative(site.root, row["filename"]), row.get("code") or "syntax"].append(row)
        needs = []
        for (path, code), rows in sorted(groups.items()):
            first = rows[0]
            listed = "\n".join(f"{path}:{r['location']['row']}: {code} {r['message']}" for r in rows[:20])
            why = f" See {first['url']}." if first.get("url") else ""
            select = f"--select {code} " if code != "syntax" and code != "invalid-syntax" else ""
            needs.append(
                Need(
                    key=f"{path}:{code}",
                    title=f"{code} in {path}: {first['message']}"[:120],
                    description=f"The project's linter finds this {len(rows)} times in one file.{why}\n\n{listed}",
                    evidence=tuple(f"{path}:{r['location']['row']}" for r in rows[:20]),
                    accept=f"ruff check --no-fix {select}{shlex.quote(path)}",
                    files=(path,),
                    size="small" if len(rows) <= 10 else "medium",
                    weight=0.9 if code in ("syntax", "invalid-syntax") or code.startswith(("F", "S")) else 0.4,
                )
            )
        return Found(tuple(needs))
