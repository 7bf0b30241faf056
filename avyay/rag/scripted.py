"""A `Completer` that says what it was told to say: for tests, and for trying `ask` without a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from avyay.errors import AvyayError
from avyay.money import Picodollars
from avyay.ports import Completion, CompletionDelta, CompletionReply, Tokens

__all__ = ["ScriptedCompleter"]

Script = str | AvyayError | Callable[[Completion], str]


class ScriptedCompleter:
    """Answers each request with the next line of its script, word by word; the last line repeats.

    An error in the script is raised; `fail_after` raises it only after so many words. `requests` keeps what was asked.
    """

    def __init__(self, script: Sequence[Script], *, fail_after: int = 0) -> None:
        self._script = list(script)
        self._fail_after = fail_after
        self.requests: list[Completion] = []

    def available(self) -> bool:
        return bool(self._script)

    async def complete(self, request: Completion) -> CompletionReply:
        text = self._next(request)
        if isinstance(text, AvyayError):
            raise text
        return _reply(request, text)

    async def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        text = self._next(request)
        if isinstance(text, AvyayError):
            for number in range(self._fail_after):
                yield CompletionDelta(f"word{number} ")
            raise text
        for word in text.splitlines(keepends=True):
            yield CompletionDelta(word)
        yield CompletionDelta("", _reply(request, text))

    def _next(self, request: Completion) -> str | AvyayError:
        line = self._script[min(len(self.requests), len(self._script) - 1)]
        self.requests.append(request)
        return line(request) if callable(line) else line


def _reply(request: Completion, text: str) -> CompletionReply:
    words = sum(len(message.content.split()) for message in request.messages)
    tokens = Tokens(input=words, output=len(text.split()), estimated=True)
    return CompletionReply(text, "scripted", "scripted", request.tier or "local", tokens, Picodollars(0), "scripted")
