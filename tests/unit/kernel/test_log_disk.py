"""A log whose disk is full loses lines, not the work."""

from __future__ import annotations

import errno
import io

from avyay import log


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_drops_lines() -> None:
    log.configure_logging("info", json=True, stream=Full())
    log.get_logger("marga").error("call_not_recorded", decision="dec_1")
