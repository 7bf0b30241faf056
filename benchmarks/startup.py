"""What a command costs before it does anything, as a multiple of `python -c pass` in the same run.

Whole processes, CPU seconds from the operating system, runs interleaved so that a machine that speeds up
or slows down does so for all of them. Compiled bytecode is used, as after an install.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

RUNS = int(os.environ.get("BENCH_RUNS", "9"))
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "avyay --help": ["-m", "avyay", "--help"],
    "avyay --version": ["-m", "avyay", "--version"],
    "avyay scna (a typo)": ["-m", "avyay", "scna"],
    "avyay route --help": ["-m", "avyay", "route", "--help"],
    "avyay config show": ["-m", "avyay", "config", "show"],
    "avyay route --explain": ["-m", "avyay", "route", "--explain", "What is 2 + 2?"],
}


def cpu_seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """User and system time of one Python process."""
    sink = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, sink, n) for n in range(3)],
    )
    os.close(sink)
    _, _, usage = os.wait4(pid, 0)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"AVYAY_HOME": home, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for run in range(RUNS + 1):
            for name, arguments in COMMANDS.items():
                taken = cpu_seconds(arguments, environment)
                if run:  # the first run fills the bytecode and page caches
                    times[name].append(taken)
    floor = statistics.median(times["python -c pass"])
    print(f"{'command':<24}{'CPU ms':>8}{'x python':>10}   median of {RUNS}")
    for name, taken in times.items():
        print(f"{name:<24}{statistics.median(taken) * 1000:>8.1f}{statistics.median(taken) / floor:>10.1f}")


if __name__ == "__main__":
    main()
