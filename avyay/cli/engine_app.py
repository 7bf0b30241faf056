"""The group that all of `avyay engine` registers on."""

from __future__ import annotations

from avyay.cli.app import command_group

app = command_group("The build engine: tasks, agents, verification, merging, code, nodes.")
