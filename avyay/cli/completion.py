"""`avyay completion`: the script that makes a shell complete avyay's commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

app = command_group("Print the completion script of a shell.")


class Shell(StrEnum):
    """The shells that are supported."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command(app)
def completion(run: Run, shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print a completion script.

    \b
    Where to put it:
    bash  avyay completion bash > ~/.local/share/bash-completion/completions/avyay
    zsh   avyay completion zsh > ~/.zfunc/_avyay      (a folder of your fpath)
    fish  avyay completion fish > ~/.config/fish/completions/avyay.fish
    """
    from typer._completion_shared import get_completion_script

    run.out.line(get_completion_script(prog_name="avyay", complete_var="_AVYAY_COMPLETE", shell=shell.value))
