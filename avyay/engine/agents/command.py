"""Any command as an agent: it finds the task in a file, edits the working folder, its exit code says how it went."""

from __future__ import annotations

from avyay.engine.agents.base import Access, Agent, Invocation, Transcript, WorkPlace
from avyay.errors import ConfigError

__all__ = ["Command"]


class Command(Agent):
    """A command of the user's own; `{prompt}` and `{work}` in it are paths, `{model}` the model."""

    kind = "command"
    program = ""
    dialect = None

    def __init__(self, command: tuple[str, ...] = ()) -> None:
        self._command = command

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        if not self._command:
            raise ConfigError("An agent of kind command has no command.", hint="Set engine.agents[].command.")
        names = {"{prompt}": str(place.prompt), "{work}": str(place.work), "{model}": access.model_or_auto}
        argv = []
        for word in (*self._command, *arguments):
            for name, value in names.items():
                word = word.replace(name, value)
            argv.append(word)
        environment = {"AVYAY_PROMPT": str(place.prompt), "AVYAY_WORK": str(place.work)}
        if access.url is not None:
            environment |= {"OPENAI_BASE_URL": f"{access.url}/v1", "ANTHROPIC_BASE_URL": access.url}
            environment["AVYAY_MODEL_HEADERS"] = "\n".join(f"{k}: {v}" for k, v in access.headers.items())
        if access.key is not None:
            environment |= {"OPENAI_API_KEY": access.key, "ANTHROPIC_API_KEY": access.key}
        return Invocation(tuple(argv), environment)

    def transcript(self) -> Transcript:
        return _Lines()


class _Lines(Transcript):
    has_terminal = False

    def feed(self, line: str) -> None:
        if line.strip():
            self.said = line.strip()
