"""The scanner against bare semgrep and bandit, one after the other: a cold file, a tree, the same tree again.

    python benchmarks/scan.py [FOLDER]      # by default 150 files of this repository's own dependencies

Everything is measured as a user starts it, a process each; the three are taken in turn within each round, so that a
busy machine is busy for all. Prints seconds of wall clock and of processor time, and ratios, which travel better.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "avyay" / "raksha" / "rules"
PACKAGES = ("starlette", "typer", "httpx2", "click", "uvicorn", "stamina", "structlog", "fastapi", "rich")


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock, and of processor time in all processes started."""

    wall: float
    cpu: float


def measure(command: list[str], *, home: Path, cwd: Path) -> Cost:
    """Run a command once."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AVYAY_HOME": str(home),
        "SEMGREP_SETTINGS_FILE": str(home / "semgrep.yml"),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=900)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def sample_tree(folder: Path, count: int) -> int:
    """Copy the first `count` Python files of some installed packages; returns their bytes."""
    site = Path(sysconfig.get_path("purelib"))
    files = [path for name in PACKAGES for path in sorted((site / name).rglob("*.py")) if path.stat().st_size]
    size = 0
    for path in files[:count]:
        target = folder / path.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        size += path.stat().st_size
    return size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="What to scan instead.")
    parser.add_argument("--files", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scan-bench-") as place:
        tree = options.folder or Path(place, "tree")
        if options.folder is None:
            sample_tree(tree, options.files)
        single = max(tree.rglob("*.py"), key=lambda path: path.stat().st_size)
        rows = _rounds(tree, single, Path(place), options.rounds)
        if options.json:
            print(json.dumps({name: [cost.__dict__ for cost in costs] for name, costs in rows.items()}, indent=1))
            return
        files = sum(1 for _ in tree.rglob("*.py"))
        _print(rows, files)


def _rounds(tree: Path, single: Path, place: Path, rounds: int) -> dict[str, list[Cost]]:
    avyay = [sys.executable, "-P", "-m", "avyay", "scan"]
    beside = Path(sys.executable).parent
    semgrep = [str(beside / "semgrep"), "scan", "--quiet", "--json", "--metrics=off", "--disable-version-check"]
    semgrep += ["--no-git-ignore", "--config", str(_rules_file(place))]
    bandit = [str(beside / "bandit"), "--quiet", "--format", "json", "--recursive"]
    has_rules = any(RULES.rglob("*.yaml"))
    rows: dict[str, list[Cost]] = {}

    def take(name: str, command: list[str], home: Path) -> None:
        rows.setdefault(name, []).append(measure(command, home=home, cwd=place))

    for number in range(rounds):
        home = place / f"home-{number}"
        home.mkdir()
        take("avyay: one file, cold", [*avyay, str(single)], home)
        if has_rules:
            take("semgrep scan: one file", [*semgrep, str(single)], home)
        take("bandit: one file", [*bandit, str(single)], home)
        take("avyay: the tree", [*avyay, str(tree)], home)
        take("avyay: the tree, unchanged", [*avyay, str(tree)], home)
        if has_rules:
            take("semgrep scan: the tree", [*semgrep, str(tree)], home)
        take("bandit: the tree", [*bandit, str(tree)], home)
    return rows


def _rules_file(place: Path) -> Path:
    """The same rules without their prose, as the bare command takes them."""
    sys.path.insert(0, str(ROOT))
    from avyay.raksha.registry import PatternRules

    rules = [{key: value for key, value in raw.items() if key != "metadata"} for raw in PatternRules().raw.values()]
    file = place / "rules.json"
    file.write_text(json.dumps({"rules": rules}))
    return file


def _print(rows: dict[str, list[Cost]], files: int) -> None:
    rounds = len(rows["bandit: the tree"])
    print(f"{files} files, {os.cpu_count()} cores, Python {sys.version.split()[0]}; medians of {rounds}")
    middle = {
        name: Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))
        for name, costs in rows.items()
    }
    for name, cost in middle.items():
        print(f"  {name:30} {cost.wall:7.2f} s   {cost.cpu:7.2f} s processor")
    ours, again = middle["avyay: the tree"], middle["avyay: the tree, unchanged"]
    bare = [cost for name, cost in middle.items() if name in ("semgrep scan: the tree", "bandit: the tree")]
    print(f"  tree / (semgrep + bandit)      {ours.wall / sum(cost.wall for cost in bare):7.2f}")
    print(f"  unchanged / first              {again.wall / ours.wall:7.3f}   {again.cpu / ours.cpu:7.3f} processor")
    if theirs := middle.get("semgrep scan: one file"):
        print(f"  file / semgrep scan            {middle['avyay: one file, cold'].wall / theirs.wall:7.2f}")


if __name__ == "__main__":
    main()
