"""Agents by name: what the settings call for, and what is installed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from avyay.config.engine import EngineAgentSettings
from avyay.engine.agents.base import Agent

__all__ = ["KINDS", "Installed", "installed_agents", "make_agent"]

KINDS: Mapping[str, str] = {
    "claude": "avyay.engine.agents.claude:ClaudeCode",
    "codex": "avyay.engine.agents.codex:Codex",
    "opencode": "avyay.engine.agents.opencode:OpenCode",
    "gemini": "avyay.engine.agents.gemini:GeminiCli",
    "aider": "avyay.engine.agents.aider:Aider",
    "command": "avyay.engine.agents.command:Command",
}


@dataclass(frozen=True, slots=True)
class Installed:
    """An agent that can be started here: its driver, its program, its settings."""

    name: str
    agent: Agent
    program: str
    settings: EngineAgentSettings


def make_agent(settings: EngineAgentSettings) -> Agent:
    """The driver of a configured agent."""
    kind = settings.kind or settings.name
    module, _, name = KINDS[kind].partition(":")
    made = getattr(import_module(module), name)
    agent: Agent = made(settings.command) if kind == "command" else made()
    return agent


def installed_agents(configured: Sequence[EngineAgentSettings], *, path: str | None = None) -> dict[str, Installed]:
    """The agents whose program is there; without settings, every kind that is found on PATH."""
    found: dict[str, Installed] = {}
    wanted = configured or [EngineAgentSettings(name=kind) for kind in KINDS if kind != "command"]
    for settings in wanted:
        agent = make_agent(settings)
        name = settings.program or (settings.command[0] if settings.command else agent.program)
        if (program := shutil.which(name, path=path)) is not None:
            found[settings.name] = Installed(settings.name, agent, program, settings)
    return found
