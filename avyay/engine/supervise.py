"""The dispatcher's end of a keeper: starts a program under one, reads its output as it comes, ends the whole tree."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from avyay.engine import keeper
from avyay.engine.agents.outcome import EndedBy, Ending
from avyay.engine.nodes.base import Control

__all__ = ["Run", "supervise"]

_LONGEST_LINE = 8_000_000
_LOOK = 0.25  # seconds between two looks at the clock while a program is silent


@dataclass(frozen=True, slots=True)
class Run:
    """How a supervised program ended, and how many processes it left that had to be ended."""

    ending: Ending
    seconds: float
    killed: int


def supervise(
    argv: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    folder: Path,
    mark: str,
    control: Control,
    wall: float,
    stall: float = float("inf"),
    stdin: Path | None = None,
    line: Callable[[str], tuple[EndedBy, str] | None] = lambda _: None,
    error_line: Callable[[str], tuple[EndedBy, str] | None] = lambda _: None,
) -> Run:
    """Run a program to its end, with everything it starts.

    Args:
        folder: Where its log (`output.log`, `errors.log`) and the keeper's files go; processes found working in it are
            taken for the program's own.
        mark: Put into the environment of all it starts.
        wall, stall: Seconds it may run, and may be silent.
        line, error_line: Called with each line of its output and of its standard error; return why the program must
            end, or None.
    """
    spec, result = folder / "spec.json", folder / "result.json"
    result.unlink(missing_ok=True)
    content = {
        "argv": list(argv),
        "cwd": str(cwd),
        "env": dict(environment),
        "mark": mark,
        "folder": str(folder),
        "result": str(result),
        "stdin": str(stdin) if stdin is not None else None,
        "wall": wall if wall != float("inf") else None,
        "ps": keeper.uses_ps(),
    }
    with os.fdopen(os.open(spec, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    started = time.monotonic()
    with (folder / "errors.log").open("ab") as errors, (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        orders = process.stdin.fileno()

        def order() -> None:
            word = b"stop\n" if control.reason[0] == "cancel" else b"kill\n"
            with suppress(OSError, ValueError):
                os.write(orders, word)

        control.on_stop(order)
        try:
            complaints = (folder / "errors.log").open("rb")
            complaints.seek(0, os.SEEK_END)

            rest = b""

            def look(*, last: bool = False) -> None:
                """Once in a while: what the program complains of, and whether its keeper is still there."""
                nonlocal rest
                *lines, rest = (rest + complaints.read()).split(b"\n")
                for text in lines:
                    if (verdict := error_line(text.decode("utf-8", "replace"))) is not None and not last:
                        control.stop(*verdict)
                rest = rest if len(rest) <= _LONGEST_LINE else b""
                if process.poll() is not None:
                    keeper.end_marked(mark, str(folder))

            with complaints:
                _read(process, log, control, line, stall, look)
                look(last=True)
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        except BaseException:
            process.stdin.close()  # the keeper takes that for our end, and ends the program
            process.wait(timeout=30)
            raise
        finally:
            control.on_stop(lambda: None)
            with suppress(OSError):
                process.stdin.close()
            process.stdout.close()
    return _result(result, mark, folder, control, time.monotonic() - started)


def _read(
    process: subprocess.Popen[bytes],
    log: IO[bytes],
    control: Control,
    line: Callable[[str], tuple[EndedBy, str] | None],
    stall: float,
    look: Callable[[], None],
) -> None:
    """Read until the program and all that hold its output are gone."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    rest = b""
    heard = looked = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            ready = selector.select(_LOOK)
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                look()
            if not ready:
                if time.monotonic() - heard > stall and not control.stopped:
                    control.stop("stall", f"showed nothing for {stall:.0f} s")
                continue
            read = os.read(output, 65_536)
            if not read:
                break
            heard = time.monotonic()
            log.write(read)
            log.flush()
            *whole, rest = (rest + read).split(b"\n")
            for text in whole:
                if (verdict := line(text.decode("utf-8", "replace"))) is not None:
                    control.stop(*verdict)
            if len(rest) > _LONGEST_LINE:
                rest = b""
    if rest:
        line(rest.decode("utf-8", "replace"))


def _result(path: Path, mark: str, folder: Path, control: Control, seconds: float) -> Run:
    by = cast(EndedBy | None, control.reason[0] or None)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # The keeper itself was killed: we sweep up after it.
        killed, left = keeper.end_marked(mark, str(folder))
        detail = f"its keeper was killed; {killed} processes ended, {len(left)} left"
        return Run(Ending(None, None, by or "abandoned", control.reason[1] or detail), seconds, killed)
    detail = control.reason[1]
    if by is None and told["ended_by"] is not None:
        by, detail = told["ended_by"], told.get("error", "")
    elif told["ended_by"] is None:
        by, detail = None, ""  # it ended by itself before our order reached it
    return Run(Ending(told["code"], told["signal"], by, detail), told["seconds"], told["killed"])
