"""A completer that says what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator

from avyay.money import Picodollars
from avyay.ports import Completion, CompletionDelta, CompletionReply, Tokens


class Model:
    """A completer that says what it is told to."""

    def __init__(self, text: str | Exception) -> None:
        self.text = text
        self.asked: list[Completion] = []

    async def complete(self, request: Completion) -> CompletionReply:
        self.asked.append(request)
        if isinstance(self.text, Exception):
            raise self.text
        return CompletionReply(self.text, "small", "ollama", "local", Tokens(), Picodollars(0), "d1")

    async def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        raise NotImplementedError
        yield

    def available(self) -> bool:
        return True
