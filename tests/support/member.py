"""A daemon in small: says that it lives, ends on SIGTERM, dies when told to. `member.py FOLDER NAME [--tether FD]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from avyay.serve.tether import tether

folder, name = Path(sys.argv[1]), sys.argv[2]
tether(int(sys.argv[sys.argv.index("--tether") + 1]))


def end(number: int, frame: object) -> None:
    (folder / f"{name}.ended").write_text(str(time.monotonic()))
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
# avyay: ignore[path-traversal-python] the folder and the name are the test's own
with (folder / f"{name}.lives").open("a") as lives:
    lives.write(f"{os.getpid()}\n")
if (folder / f"{name}.refuses").exists():
    sys.exit(2)
if (folder / f"{name}.dies").exists():
    sys.exit(70)
while True:
    time.sleep(0.05)
