"""What type checkers find, where the project configures one: mypy, TypeScript's tsc. One task for each file."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from dataclasses import dataclass

from avyay.engine.generate.tools import configured, python_tool, relative
from avyay.engine.generate.types import Found, Need, Site

__all__ = ["TypeErrors"]

_TIMEOUT = 900.0
_TSC = re.compile(r"^(.+?)\((\d+),\d+\): error (TS\d+): (.*)$")


@dataclass(frozen=True, slots=True)
class _Error:
    path: str
    line: int
    code: str
    message: str


class TypeErrors:
    """Promises about types that the code breaks."""

    def find(self, site: Site) -> Found:
        found: list[tuple[str, list[_Error]]] = []
        problems = []
        if configured(site.root, "mypy", ("mypy.ini", ".mypy.ini")):
            errors = self._mypy(site)
            if isinstance(errors, str):
                problems.append(errors)
            else:
                found.append(("mypy", errors))
        if (site.root / "tsconfig.json").is_file():
            errors = self._tsc(site)
            if isinstance(errors, str):
                problems.append(errors)
            else:
                found.append(("npx --no-install tsc --noEmit", errors))
        if not found:
            return Found.not_checked("; ".join(problems) or "no type checker is configured (mypy, tsc)")
        needs = [need for command, errors in found for need in _needs(site, command, errors)]
        return Found(tuple(needs), "; ".join(problems), whole=not problems)

    def _mypy(self, site: Site) -> list[_Error] | str:
        tool = python_tool(site, "mypy")
        if tool is None:
            return "mypy is configured but not installed"
        where = [] if _names_files(site) else ["."]
        done = site.run(
            [*tool, "--output", "json", "--no-error-summary", "--cache-dir", "/dev/null", *where],
            timeout=_TIMEOUT,
            cwd=site.root,
        )
        if done.timed_out or done.code not in (0, 1):
            return f"mypy failed: {(done.error_text or done.text).strip()[-200:]}"
        errors = []
        for row in done.text.splitlines():
            try:
                item = json.loads(row)
            except ValueError:
                continue
            if item.get("severity") == "error":
                path = relative(site.root, item["file"])
                errors.append(_Error(path, max(1, int(item["line"])), item.get("code") or "error", item["message"]))
        return errors

    def _tsc(self, site: Site) -> list[_Error] | str:
        program = site.root / "node_modules" / ".bin" / "tsc"
        if not program.is_file():
            return "TypeScript is configured but not installed (npm ci)"
        done = site.run([str(program), "--noEmit", "--pretty", "false"], timeout=_TIMEOUT, cwd=site.root)
        errors = [
            _Error(relative(site.root, match[1]), int(match[2]), match[3], match[4])
            for row in done.text.splitlines()
            if (match := _TSC.match(row))
        ]
        return (
            errors if not done.timed_out and (errors or done.code == 0) else f"tsc failed: {done.text.strip()[-200:]}"
        )


def _names_files(site: Site) -> bool:
    """Whether mypy's configuration says what to check."""
    from avyay.engine.generate.tools import pyproject

    sections = pyproject(site.root).get("tool")
    mypy = sections.get("mypy") if isinstance(sections, dict) else None
    if isinstance(mypy, dict) and any(name in mypy for name in ("files", "packages", "modules")):
        return True
    for name in ("mypy.ini", ".mypy.ini", "setup.cfg"):
        file = site.root / name
        if file.is_file() and re.search(
            r"^(files|packages|modules)\s*=", file.read_text(errors="replace"), re.MULTILINE
        ):
            return True
    return False


def _needs(site: Site, command: str, errors: list[_Error]) -> list[Need]:
    by_path: dict[str, list[_Error]] = defaultdict(list)
    for error in errors:
        by_path[error.path].append(error)
    needs = []
    for path, members in sorted(by_path.items()):
        listed = "\n".join(f"{e.path}:{e.line}: {e.message} [{e.code}]" for e in members[:30])
        count = len(members)
        accept = f"{command} {shlex.quote(path)}" if command == "mypy" else command
        tests = site.tests_for([path])
        needs.append(
            Need(
                key=path,
                title=f"{count} type error{'s' if count > 1 else ''} in {path}: {members[0].message}"[:120],
                description="The type checker that this project configures finds these. Mend the types or the code; do"
                f" not silence the checker.\n\n{listed}",
                evidence=tuple(dict.fromkeys(f"{e.path}:{e.line}" for e in members[:20])),
                accept=f"{accept} && {tests}" if tests else accept,
                files=(path,),
                size="small" if count <= 5 else "medium" if count <= 25 else "large",
                weight=min(1.0, 0.4 + count / 50),
            )
        )
    return needs
