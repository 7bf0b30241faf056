"""What a command prints: results to stdout, everything else to stderr; text for people, JSON for programs."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from avyay.ports import Progress

__all__ = ["SCHEMA_VERSION", "Output"]

SCHEMA_VERSION = 1
PROGRESS_DELAY = 0.5  # seconds before a bar appears: short work shows none


def _no_progress(done: int, total: int | None, what: str) -> None:
    return None


class Output:
    """Where a command's words go.

    Args:
        json: Results are one JSON document, with `schema_version` first.
        quiet: Only results and errors.
        verbose: 0, or how many times `-v` was given.
        color: None decides by terminal and NO_COLOR.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbose: int = 0,
        color: bool | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._color = color
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> TextIO:
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO:
        return self._stderr or sys.stderr

    def print_to(self, stream: TextIO) -> None:
        """Print results to another stream from now on."""
        self._stdout = stream

    def console(self, *, stderr: bool = False) -> Console:
        """A rich console for tables; honours NO_COLOR, pipes and --no-color."""
        from rich.console import Console

        stream = self.stderr if stderr else self.stdout
        width = None if stream.isatty() else 120
        return Console(file=stream, no_color=True if self._color is False else None, highlight=False, width=width)

    def result(self, data: Mapping[str, Any], text: Callable[[], None] | str | None = None) -> None:
        """Print a result: `data` as JSON when asked for, else `text` (a string, or a function that prints)."""
        if self.json:
            document = {"schema_version": SCHEMA_VERSION, **data}
            self.line(json_module.dumps(document, ensure_ascii=False, indent=2, default=str))
        elif callable(text):
            text()
        elif text is not None:
            self.line(text)

    def line(self, text: str = "") -> None:
        """One line of result."""
        self.stdout.write(f"{text}\n")

    def write(self, text: str) -> None:
        """A piece of result without a line end, shown at once (streams)."""
        self.stdout.write(text)
        self.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
        """Rows as a table on stdout; without any, one line on stderr: an empty grid tells nobody anything."""
        if not rows:
            self.note(f"{title}: nothing to list." if title else "Nothing to list.")
            return
        from rich import box
        from rich.table import Table

        table = Table(*columns, title=title, title_justify="left", box=box.SQUARE, header_style="bold")
        for row in rows:
            table.add_row(*(cell if hasattr(cell, "__rich_console__") else str(cell) for cell in row))
        self.console().print(table)

    def note(self, text: str) -> None:
        """Something worth knowing that is not the result."""
        if not self.quiet:
            self.stderr.write(f"{text}\n")

    def detail(self, text: str) -> None:
        """Something only `-v` shows."""
        if self.verbose and not self.quiet:
            self.stderr.write(f"{text}\n")

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[], None]]:
        """A spinner on stderr while somebody else works for over a second; nothing off a terminal.

        Yields what takes it away: call that before anything is printed.
        """
        if self.quiet or not self.stderr.isatty():
            yield lambda: None
            return
        import threading

        shown = ExitStack()
        timer = threading.Timer(
            PROGRESS_DELAY, lambda: shown.enter_context(self.console(stderr=True).status(what, spinner="line"))
        )
        timer.daemon = True

        def done() -> None:
            timer.cancel()
            timer.join()  # it may be about to show
            shown.close()

        timer.start()
        try:
            yield done
        finally:
            done()

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A bar with rate and ETA on stderr, for work that takes over a second; nothing off a terminal."""
        if self.quiet or not self.stderr.isatty():
            yield _no_progress
            return
        import time

        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console(stderr=True),
            transient=True,
        )
        task = bar.add_task(title, total=None, rate="")
        started = time.monotonic()
        shown = False

        def step(done: int, total: int | None, what: str) -> None:
            nonlocal shown
            elapsed = time.monotonic() - started
            if not shown and elapsed > PROGRESS_DELAY:
                bar.start()
                shown = True
            rate = f"{done / elapsed:.0f}/s" if elapsed > 0 else ""
            bar.update(task, completed=done, total=total, description=what, rate=rate)

        try:
            yield step
        finally:
            if shown:
                bar.stop()
