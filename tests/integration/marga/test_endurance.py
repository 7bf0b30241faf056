"""The daemon's memory over 200,000 requests, a fifth of them streams that are left in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.soak
def test_the_memory_stays_where_it_was() -> None:
    benchmark = Path(__file__).parents[3] / "benchmarks" / "gateway.py"
    command = [sys.executable, "-P", str(benchmark), "--soak", "200000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
