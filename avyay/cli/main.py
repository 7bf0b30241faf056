"""The entry point: answers `--help` and `--version` from a table before anything is imported, then loads one verb.

Only this module turns an error into a process exit.
"""

import os
import sys

# name: (module, help). Order is the order of the help page; a module is imported when its verb is used.
VERBS: dict[str, tuple[str, str]] = {
    "route": ("avyay.cli.route", "Send a prompt to the cheapest model that can do it."),
    "ask": ("avyay.cli.ask", "Ask your runbooks; answers cite file, lines and commit."),
    "scan": ("avyay.cli.scan", "Scan code for the faults people and coding agents make."),
    "siddhi": ("avyay.cli.siddhi", "Find what people would sign up for, under a hard budget."),
    "serve": ("avyay.cli.serve", "Run a component as a daemon."),
    "engine": ("avyay.cli.engine", "Give tasks to coding agents; verify and merge what they do."),
}
HOUSE: dict[str, tuple[str, str]] = {
    "marga": ("avyay.cli.marga", "The router: providers, decisions, prices, statistics."),
    "rag": ("avyay.cli.rag", "Runbook indexes: index, sources, search."),
    "raksha": ("avyay.cli.raksha", "The scanner's rules."),
    "keys": ("avyay.cli.keys", "The gateway's API keys: create, list, revoke, rotate."),
    "usage": ("avyay.cli.usage", "Who used what: requests, tokens, cost, reconciled."),
    "mcp": ("avyay.cli.mcp", "Serve tools to coding agents over MCP."),
    "events": ("avyay.cli.events", "What happened, webhook deliveries, dead letters."),
    "tailnet": ("avyay.cli.tailnet", "Daemons of the other machines of your tailnet."),
    "config": ("avyay.cli.config", "Show settings with their origin; check them; print the schema."),
    "trust": ("avyay.cli.trust", "Let this project's avyay.yaml set everything."),
    "init": ("avyay.cli.init", "Write a commented avyay.yaml."),
    "doctor": ("avyay.cli.doctor", "Check every prerequisite and say how to fix it."),
    "quickstart": ("avyay.cli.quickstart", "Index, ask, route and scan a repository, offline."),
    "completion": ("avyay.cli.completion", "Print the completion script of a shell."),
}
COMMANDS = VERBS | HOUSE

HEADER = """\
Usage: avyay [OPTIONS] COMMAND [ARGS]...

  Route LLM calls, ask your runbooks, scan AI-written code.
"""
OPTIONS = """\
Options:
  --version    Show the version and exit.
  -h, --help   Show this message and exit.

  Every command also takes --config FILE, --quiet, -v and --no-color, and
  --json where it prints results. Start here: avyay quickstart .
"""


def help_text() -> str:
    """The page behind `avyay --help`."""
    width = max(map(len, COMMANDS)) + 2

    def rows(table: dict[str, tuple[str, str]]) -> str:
        return "".join(f"  {name.ljust(width)}{text}\n" for name, (_, text) in table.items())

    return f"{HEADER}\nCommands:\n{rows(VERBS)}\nHouse-keeping:\n{rows(HOUSE)}\n{OPTIONS}"


def help_page(words: list[str]) -> str | None:
    """The page behind `avyay WORDS --help`, from the generated file; None sends the question on to typer."""
    name = "\f" + " ".join(["avyay", *words]) + "\n"
    try:
        # os.path: importing pathlib would cost half of what this page costs
        file_name = os.path.join(os.path.dirname(__file__), "help_pages.txt")  # noqa: PTH118, PTH120
        with open(file_name, encoding="utf-8") as file:  # noqa: PTH123
            pages = file.read()
    except OSError:
        return None
    start = pages.find(name)
    if start < 0:
        return None
    start += len(name)
    end = pages.find("\f", start)
    return pages[start : end if end >= 0 else None]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        _open_streams()
        code = _answer(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\navyay: interrupted.\n")
        code = 130
    except OSError as error:  # of the static pages only: commands answer for themselves
        code = _unwritten(error)
    try:
        if not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        code = _unwritten(error, said=code == 3) or code
    sys.exit(code)


def _answer(arguments: list[str]) -> int:
    if "_AVYAY_COMPLETE" not in os.environ:
        if not arguments or (arguments[0] in ("-h", "--help", "help") and len(arguments) == 1):
            sys.stdout.write(help_text())
            return 0
        if arguments[0] == "help":
            arguments = [*arguments[1:], "--help"]
        if arguments[0] in ("--version", "-V"):
            from avyay import __version__

            sys.stdout.write(f"avyay {__version__}\n")
            return 0
        if arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help"):
            return _unknown(arguments)
        if arguments[-1] in ("-h", "--help") and (page := help_page(arguments[:-1])):
            sys.stdout.write(page)
            return 0
        if arguments[0] == "scan":
            from avyay.cli.replay import replay

            if (code := replay(arguments[1:])) is not None:
                return code
    from avyay.cli.app import run

    return run(arguments)


def _open_streams() -> None:
    """Give a closed standard stream somewhere to go.

    Else the first file opened would get its number, and whatever a child prints would end in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and hasattr(stream := getattr(sys, name), "reconfigure"):
            # A table's lines in Latin-1, a file name that is no text: better marks than no answer.
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower() == "utf-8" else "replace")


def _unwritten(error: OSError, *, said: bool = False) -> int:
    """Standard output takes nothing more: its reader has gone (no error), or its disk is full.

    Args:
        said: The command has told of it: what it could not write is still in the buffer, and fails again.
    """
    # The interpreter flushes once more when it ends, and would say so again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return 0
    if said:
        return 3
    sys.stderr.write(
        f"avyay: cannot write to standard output: {error.strerror}.\nFree some space, or send it elsewhere.\n"
    )
    return 3


def raksha() -> None:
    """The `raksha` command: `raksha scan` is `avyay scan`, the rest is `avyay raksha`."""
    arguments = sys.argv[1:]
    main(arguments if arguments[:1] in (["scan"], ["--version"]) else ["raksha", *arguments])


def _unknown(arguments: list[str]) -> int:
    """A typo costs nothing: no typer, no configuration, no socket."""
    import difflib

    name = arguments[0]
    options = name.startswith("-")
    known, cutoff = (("--help", "--version"), 0.7) if options else ((*COMMANDS, "help"), 0.6)
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if name == "version":
        close = ["--version"]
    verb = next((word for word in arguments if word in COMMANDS), None)
    hint = f"Did you mean: avyay {close[0]}" if close else "See: avyay --help"
    if options and verb is not None:
        hint = f"Options come after the command: avyay {verb} {name}"
    sys.stderr.write(f"avyay: there is no {'option' if options else 'command'} {name!r}.\n{hint}\n")
    return 2
