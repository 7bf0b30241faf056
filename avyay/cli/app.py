"""The typer application: a group that imports a verb's module when it is named, and the one place errors end in."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from avyay.cli.main import COMMANDS
from avyay.errors import AvyayError, ExitCode

__all__ = ["CommandGroup", "LazyGroup", "application", "command_group", "run"]

WHOLE = 1000  # characters: no sentence about a command is that long


class CommandGroup(TyperGroup):
    """A group whose page tells what each command does in a whole sentence, not in the part of it that fits a line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        commands = {name: command for name in names if (command := self.get_command(ctx, name)) is not None}
        rows = [(name, command.get_short_help_str(WHOLE)) for name, command in commands.items() if not command.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class LazyGroup(TyperGroup):
    """A group whose commands are names until one is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command


def application() -> typer.Typer:
    """The whole command line, for completion, documentation and tests."""
    app = typer.Typer(
        name="avyay",
        cls=LazyGroup,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root() -> None:
        """Route LLM calls, ask your runbooks, scan AI-written code."""

    return app


def command_group(help_text: str) -> typer.Typer:
    """The `app` of a verb's module."""
    return typer.Typer(
        cls=CommandGroup,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code and never raises."""
    try:
        if "_AVYAY_COMPLETE" in os.environ:
            from typer._completion_classes import completion_init

            completion_init()  # typer knows its shells only after this
        result = typer.main.get_command(application())(
            args=arguments, prog_name="avyay", standalone_mode=False, complete_var="_AVYAY_COMPLETE"
        )
        if not sys.stdout.closed:  # a server on stdin and stdout closes them when its client goes
            sys.stdout.flush()
        if result == ExitCode.INTERRUPTED:  # typer makes an exit code of Ctrl-C, and says nothing
            raise KeyboardInterrupt
        return int(result) if isinstance(result, int) else ExitCode.OK
    except AvyayError as error:
        _say(error.message, error.hint)
        return error.exit_code
    except TyperException as error:
        message = error.format_message().replace(": Value error, ", ": ")  # pydantic's words, nobody else's
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{message}\n")
        else:
            context = getattr(error, "ctx", None)
            verb = next((f"avyay {word}" for word in arguments[:1] if word in COMMANDS), "avyay")
            path = context.command_path if context is not None else verb
            _say(message, f"See: {path} --help")
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\navyay: interrupted.\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`avyay … | head`): not an error, but the interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        return _refused(error)
    except Exception as error:  # noqa: BLE001 - the outermost border: a bug ends in one sentence and exit 70
        return _internal(error)


def _say(message: str, hint: str | None) -> None:
    from avyay.log import redact  # a message may quote what was written where only a variable's name belongs

    sys.stderr.write(redact(f"avyay: {message}\n"))
    if hint:
        sys.stderr.write(redact(f"{hint}\n"))


REFUSALS = {
    errno.ENOSPC: "Free some space and try again.",
    errno.EDQUOT: "Free some space and try again.",
    errno.EROFS: "Set AVYAY_HOME to a folder you can write to, for example AVYAY_HOME=/tmp/avyay.",
    errno.EACCES: "Fix the permissions, or run it as the owner.",
    errno.EPERM: "Fix the permissions, or run it as the owner.",
    errno.EMFILE: "Raise the limit on open files: ulimit -n 4096",
    errno.ENFILE: "Close other programs: the machine has no more open files to give.",
}


def _refused(error: OSError) -> int:
    """What the machine refused is no bug: say what and what to do about it."""
    hint = REFUSALS.get(error.errno or 0)
    if hint is None:
        return _internal(error)
    what = f"{error.filename}: " if isinstance(error.filename, str) else ""
    _say(f"{what}{error.strerror}.", hint)
    return ExitCode.DEPENDENCY


def _internal(error: Exception) -> int:
    from avyay.config.environment import Environment
    from avyay.log import redact

    if Environment().value("AVYAY_DEBUG"):
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    _say(
        f"internal error: {type(error).__name__}: {redact(str(error))[:300]}",
        "This is a bug in avyay. Run it again with AVYAY_DEBUG=1 and report what it prints.",
    )
    return ExitCode.INTERNAL
