"""Failing tests, one task for each test file. Runs the configured command: nothing runs when none is configured."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from avyay.engine.generate.types import Found, Need, Site
from avyay.process import Completed

__all__ = ["FailingTests"]

_TIMEOUT = 3600.0
_SHOWN = 1500


@dataclass(frozen=True, slots=True)
class _Failure:
    test: str
    path: str
    line: int
    message: str


class FailingTests:
    """What the project's own tests say."""

    def find(self, site: Site) -> Found:
        command = site.tests
        if not command:
            return Found.not_checked("no test command: set engine.generate.tests")
        if re.search(r"\bpytest\b|\bpy\.test\b", command):
            return self._pytest(site, command)
        if re.match(r"\s*go test\b", command):
            return self._go(site, command)
        return self._any(site, command)

    def _pytest(self, site: Site, command: str) -> Found:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "junit.xml"
            done = _shell(site, f"{command} --junitxml={shlex.quote(str(report))} -o junit_family=xunit1")
            if done.timed_out:
                return Found.not_checked(f"the tests took longer than {_TIMEOUT:.0f} s")
            if done.code == 5:
                return Found()  # there are no tests
            # With 2 and a report, files could not even be imported: failures like others, but not all tests were run.
            if not report.is_file() or done.code not in (0, 1, 2):
                return Found.not_checked(f"pytest ended with {done.code}: {_tail(done.text + done.error_text, 200)}")
            failures = _junit(report)
        return Found(tuple(_needs(site, command, failures)), whole=done.code in (0, 1))

    def _go(self, site: Site, command: str) -> Found:
        done = _shell(site, re.sub(r"go test\b", "go test -json", command, count=1))
        if done.timed_out:
            return Found.not_checked(f"the tests took longer than {_TIMEOUT:.0f} s")
        output: dict[tuple[str, str], list[str]] = defaultdict(list)
        failed = []
        for row in done.text.splitlines():
            try:
                event = json.loads(row)
            except ValueError:
                continue
            key = (str(event.get("Package", "")), str(event.get("Test", "")))
            if event.get("Action") == "output":
                output[key].append(str(event.get("Output", "")))
            elif event.get("Action") == "fail" and key[1]:
                failed.append(key)
        if done.code not in (0, 1) or (done.code == 1 and not failed):
            return Found.not_checked(f"go test ended with {done.code}: {_tail(done.text + done.error_text, 200)}")
        failures = []
        for package, test in failed:
            text = "".join(output[package, test])
            place = re.search(r"(\S+_test\.go):(\d+)", text)
            folder = next((p for p in _folders(site, package)), "")
            path = f"{folder}/{place[1]}".lstrip("/") if place else folder or "."
            failures.append(_Failure(test, path, int(place[2]) if place else 1, text))
        return Found(tuple(_needs(site, command, failures)))

    def _any(self, site: Site, command: str) -> Found:
        """A command of which only the exit code is understood."""
        done = _shell(site, command)
        if done.timed_out:
            return Found.not_checked(f"the tests took longer than {_TIMEOUT:.0f} s")
        if done.code in (126, 127):
            return Found.not_checked(f"the test command could not be run: {_tail(done.error_text, 200)}")
        if done.code == 0:
            return Found()
        text = done.text + done.error_text
        place = re.search(r"([\w./-]+\.\w+):(\d+)", text)
        evidence = f"{place[1]}:{place[2]}" if place and (site.root / place[1]).is_file() else "tests:1"
        need = Need(
            key=command,
            title=f"The tests fail: {command}"[:120],
            description=f"`{command}` ends with {done.code}. Its last words:\n\n{_tail(text, _SHOWN)}",
            evidence=(evidence,),
            accept=command,
            size="medium",
            weight=1.0,
        )
        return Found((need,))


def _needs(site: Site, command: str, failures: Sequence[_Failure]) -> list[Need]:
    by_path: dict[str, list[_Failure]] = defaultdict(list)
    for failure in failures:
        by_path[failure.path].append(failure)
    needs = []
    for path, members in sorted(by_path.items()):
        names = [member.test for member in members]
        quoted = "\n\n".join(f"{m.test}\n{_tail(m.message, _SHOWN // min(len(members), 5))}" for m in members[:5])
        pytest = path.endswith(".py")
        accept = f"{command} {shlex.quote(path)}" if pytest else command
        needs.append(
            Need(
                key=path,
                title=f"{len(names)} failing test{'s' if len(names) > 1 else ''} in {path}: {', '.join(names[:3])}"[
                    :120
                ],
                description="These tests fail. Make the code right; change a test only when it is wrong about what the"
                f" code shall do, and say so.\n\n{quoted}",
                evidence=tuple(dict.fromkeys(f"{m.path}:{m.line}" for m in members[:20])),
                accept=accept,
                files=_tested(site, path),
                size="small" if len(names) <= 2 else "medium" if len(names) <= 10 else "large",
                weight=min(1.0, 0.7 + len(names) / 30),
            )
        )
    return needs


def _tested(site: Site, test: str) -> tuple[str, ...]:
    """The files that a test file is about: what it imports."""
    return tuple(path for path in site.knowledge.imports(site.root, test) if path != test)


def _junit(report: Path) -> list[_Failure]:
    text = report.read_text(encoding="utf-8", errors="replace")
    if "<!ENTITY" in text:
        return []
    found = []
    for case in ElementTree.fromstring(text).iter("testcase"):  # noqa: S314 - entities are refused above
        problem = next((part for part in case if part.tag in ("failure", "error")), None)
        if problem is None:
            continue
        path = (case.get("file") or "").replace("\\", "/")
        if not path:  # an error while collecting names the module alone
            path = f"{(case.get('classname') or case.get('name') or '').replace('.', '/')}.py"
        # The last line of the test's own file in the traceback is where it failed.
        lines = re.findall(rf"^{re.escape(path)}:(\d+):", problem.text or "", re.MULTILINE)
        line = int(lines[-1]) if lines else int(case.get("line") or 0) + 1
        found.append(_Failure(case.get("name") or path, path, line, problem.text or problem.get("message") or ""))
    return found


def _folders(site: Site, package: str) -> list[str]:
    """The folder of a Go package: the longest end of its path that is one."""
    parts = package.split("/")
    ends = ["/".join(parts[start:]) for start in range(len(parts) + 1)]
    return [end for end in ends if end and (site.root / end).is_dir()]


def _shell(site: Site, command: str) -> Completed:
    return site.run(["sh", "-c", command], timeout=_TIMEOUT, cwd=site.root)


def _tail(text: str, length: int) -> str:
    text = text.strip()
    return text if len(text) <= length else f"…{text[-length:]}"
