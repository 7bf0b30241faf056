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


def test_what_strangers_write_is_no_line_of_its_own() -> None:
    for as_json in (False, True):
        out = io.StringIO()
        log.configure_logging("info", json=as_json, stream=out)
        log.get_logger("gateway").info("request", caller="mallory\n2026-01-01 [error] forged\x1b[2J", status=200)
        (line,) = out.getvalue().splitlines()
        assert "\x1b" not in line
        assert "forged" in line
