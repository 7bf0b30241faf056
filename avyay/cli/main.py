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
    "config": ("avyay.cli.config", "Show settings with their origin; print the schema."),
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
    arguments = sys.argv[1:] if arguments is None else arguments
    completing = "_AVYAY_COMPLETE" in os.environ
    if not completing:
        if not arguments or (arguments[0] in ("-h", "--help", "help") and len(arguments) == 1):
            sys.stdout.write(help_text())
            sys.exit(0)
        if arguments[0] in ("--version", "-V"):
            from avyay import __version__

            sys.stdout.write(f"avyay {__version__}\n")
            sys.exit(0)
        if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            sys.exit(_unknown(arguments[0]))
        if arguments[-1] in ("-h", "--help") and (page := help_page(arguments[:-1])):
            sys.stdout.write(page)
            sys.exit(0)
        if arguments[0] == "scan":
            from avyay.cli.replay import replay

            if (code := replay(arguments[1:])) is not None:
                sys.exit(code)
    from avyay.cli.app import run

    sys.exit(run(arguments))


def raksha() -> None:
    """The `raksha` command: `raksha scan` is `avyay scan`, the rest is `avyay raksha`."""
    arguments = sys.argv[1:]
    main(arguments if arguments[:1] in (["scan"], ["--version"]) else ["raksha", *arguments])


def _unknown(name: str) -> int:
    """A typo costs nothing: no typer, no configuration, no socket."""
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean: avyay {close[0]}" if close else "See: avyay --help"
    sys.stderr.write(f"avyay: there is no command {name!r}.\n{hint}\n")
    return 2
