"""The settings of the build engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from avyay.config.types import Name, Seconds, Section, Usd, Workers

__all__ = [
    "EngineAgentSettings",
    "EngineCapSettings",
    "EngineGenerateSettings",
    "EngineMergeSettings",
    "EngineNodeSettings",
    "EngineSettings",
    "EngineVerifySettings",
]

AgentKind = Literal["claude", "codex", "opencode", "gemini", "aider", "command"]


class EngineAgentSettings(Section):
    """A coding agent that tasks can be given to."""

    name: Name = Field(description="How tasks and nodes name it.")
    kind: AgentKind | None = Field(None, description="Which program it is; by default the one it is named after.")
    program: str | None = Field(None, description="Path of the program; by default looked for on PATH.")
    model: str | None = Field(None, description="The model asked for; by default the router decides.")
    arguments: tuple[str, ...] = Field((), description="More arguments for the program.")
    command: tuple[str, ...] = Field(
        (), description="For kind command: what to run; {prompt} is the file with the task, {work} the working folder."
    )
    endpoint: str | None = Field(None, description="Base URL of the models; by default the router, `engine.models`.")
    api_key_env: str | None = Field(None, description="Environment variable with the key for that URL.")
    environment: tuple[str, ...] = Field((), description="Environment variables it may see besides the usual few.")

    @model_validator(mode="after")
    def _complete(self) -> EngineAgentSettings:
        kinds = ("claude", "codex", "opencode", "gemini", "aider", "command")
        if self.kind is None and self.name not in kinds:
            raise ValueError(f"say its kind, one of {', '.join(kinds)}")
        if (self.kind or self.name) == "command" and not self.command:
            raise ValueError("an agent of kind command needs a command")
        return self


class EngineNodeSettings(Section):
    """A machine that works on tasks."""

    name: Name = Field(description="How the history names it.")
    kind: Literal["local", "ssh", "tailnet"] = Field("local", description="How it is reached.")
    slots: int = Field(1, ge=1, le=256, description="Tasks it works on at a time.")
    agents: tuple[str, ...] = Field((), description="Names of its agents; by default all that are found on it.")
    offers: tuple[str, ...] = Field((), description="More that tasks can require, such as gpu or model:qwen.")
    host: str | None = Field(None, description="For ssh: the host as ssh knows it; for tailnet: the machine's name.")
    folder: str = Field(".avyay-engine", description="Where it works, on another machine.")
    drain: bool = Field(False, description="Give it no new tasks.")
    busy_load: float = Field(
        1.5, ge=0, description="On another machine: load for each core above which it is not idle; 0: never mind."
    )


class EngineCapSettings(Section):
    """What a task may use up, and all tasks in a day."""

    dollars: Usd = Field("5", description="US dollars for one task, all attempts together.")
    day: Usd = Field("50", description="US dollars a day (UTC) for all tasks.")
    wall: Seconds = Field(3600.0, description="Longest attempt.")
    day_wall: Seconds = Field(0.0, description="Agent time a day (UTC) for all tasks; 0: no limit.")
    turns: int = Field(200, ge=1, description="Answers of the model in one attempt.")
    stall: Seconds = Field(900.0, description="An attempt that shows nothing for so long has made no progress.")


class EngineVerifySettings(Section):
    """How a result is judged."""

    accept: str = Field("", description="The acceptance command of tasks that name none.")
    setup: str = Field("", description="A command run before it in the clean checkout.")
    timeout: Seconds = Field(1800.0, description="Longest acceptance run.")
    environment: tuple[str, ...] = Field((), description="Environment variables it may see besides the usual few.")
    scan: Literal["auto", "required", "off"] = Field(
        "auto", description="Scan what changed: auto lets pass what could not be checked, required does not."
    )
    fail_on: Literal["critical", "high", "medium", "low", "info"] = Field(
        "high", description="New findings that refuse."
    )
    review: bool = Field(False, description="Let a strong model go through the architecture checklist.")
    checklist: tuple[str, ...] = Field((), description="Questions of the review; by default the built-in ones.")
    protect: tuple[str, ...] = Field((), description="More globs of files that no task may change unless it says so.")


class EngineMergeSettings(Section):
    """What happens to a verified result."""

    mode: Literal["merge", "pull_request", "branch"] = Field(
        "merge",
        description="merge: fast-forward the branch; pull_request: push and open one with gh; branch: leave it.",
    )
    branch: str | None = Field(
        None, description="The branch that takes the results; by default the repository's default branch."
    )
    remote: str = Field("origin", description="Where pull requests go.")
    approval: bool = Field(False, description="A person approves every merge.")


class EngineGenerateSettings(Section):
    """Where new tasks come from when the queue runs low."""

    low_water: int = Field(0, ge=0, description="Generate when fewer tasks are open than this; 0: never.")
    sources: tuple[str, ...] = Field((), description="Kinds of evidence to look for; by default all that apply.")
    limit: int = Field(10, ge=1, le=1000, description="Most tasks added at a time.")
    tests: str = Field("", description="The command whose failures become tasks.")
    approval: bool = Field(True, description="A person approves generated tasks before they are worked on.")


class EngineSettings(Section):
    """The build engine: agents, nodes, caps, verification, merging."""

    queue_url: str | None = Field(None, description="postgresql://… for a shared queue; by default a SQLite file.")
    repository: Path | None = Field(None, description="The repository worked on; by default the one around the folder.")
    repositories: dict[str, Path] = Field({}, description="More repositories, by the name that tasks give.")
    agents: tuple[EngineAgentSettings, ...] = Field((), description="By default those found on PATH.")
    nodes: tuple[EngineNodeSettings, ...] = Field((), description="By default this machine with one slot.")
    models: str | None = Field(
        None, description="Base URL of the router for agents; by default `marga.url`, else the agents' own providers."
    )
    caps: EngineCapSettings = EngineCapSettings()
    verify: EngineVerifySettings = EngineVerifySettings()
    merge: EngineMergeSettings = EngineMergeSettings()
    generate: EngineGenerateSettings = EngineGenerateSettings()
    tick: Seconds = Field(30.0, gt=0, description="The loop looks at everything so often, and when something happens.")
    heartbeat: Seconds = Field(20.0, gt=0, description="Between two signs of life of an attempt.")
    lease_timeout: Seconds = Field(60.0, gt=0, description="Silence after which a task is given to somebody else.")
    api_key_env: str | None = Field(None, description="Environment variable with the key the daemon's callers send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    context_tokens: int = Field(4000, ge=0, description="Tokens of an agent's prompt for the map of relevant files.")
    runbooks: int = Field(3, ge=0, le=20, description="Passages of the runbooks in an agent's prompt.")

    @field_validator("agents", "nodes")
    @classmethod
    def _unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two of them are called {name!r}: names must differ")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> EngineSettings:
        if self.lease_timeout < 2 * self.heartbeat:
            raise ValueError("lease_timeout must be at least two heartbeats")
        return self
