"""While a model takes its time: a spinner on a terminal, nothing anywhere else."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from upstream import Reply, Upstream

from avyay.cli.output import Output

ROOT = str(Path(__file__).resolve().parents[2])
WORDS = "Waiting for an answer"


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """The end that is looked at, and the one that is written to."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as end:
        yield master, end
    os.close(master)


def read_until(master: int, words: str) -> str:
    seen = b""
    while words.encode() not in seen:
        assert select.select([master], [], [], 60)[0], seen
        seen += os.read(master, 65_536)
    return seen.decode()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_it_is_shown_and_taken_away_before_anything_is_printed(terminal: tuple[int, TextIO]) -> None:
    master, end = terminal
    out = Output(stderr=end)
    with out.waiting(WORDS) as answered:
        read_until(master, WORDS)
        answered()
        end.write("printed\n")
        end.flush()
        after = read_until(master, "printed")
    assert WORDS not in after[after.rindex("\x1b[2K") :], "its line was erased"


def test_short_work_shows_none(terminal: tuple[int, TextIO]) -> None:
    master, end = terminal
    with Output(stderr=end).waiting(WORDS):
        pass
    end.write("printed\n")
    end.flush()
    assert read_until(master, "printed\r\n") == "printed\r\n"


def test_nothing_off_a_terminal_and_nothing_where_it_is_to_be_quiet(terminal: tuple[int, TextIO]) -> None:
    master, end = terminal
    pipe = io.StringIO()
    for out in (Output(stderr=pipe), Output(stderr=end, quiet=True)):
        with out.waiting(WORDS) as answered:
            answered()
    end.write("printed\n")
    end.flush()
    assert (pipe.getvalue(), WORDS in read_until(master, "printed")) == ("", False)


def test_route_shows_it_and_can_be_interrupted(terminal: tuple[int, TextIO], home: Path) -> None:
    master, end = terminal
    with Upstream() as upstream:
        upstream.default = Reply(fault="hang")
        keys = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"{upstream.url}/v1", "PYTHONPATH": ROOT}
        process = subprocess.Popen(
            [sys.executable, "-m", "avyay", "route", "hi"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=end,
            env={**os.environ, **keys},
            cwd=home,
        )
        try:
            read_until(master, WORDS)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stdout is not None
            assert process.stdout.read() == b""
            assert "interrupted" in read_until(master, "interrupted")
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
