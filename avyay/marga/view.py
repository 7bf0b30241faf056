"""What the judgement sees of a request, whatever dialect it came in: texts by role and a few facts about its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avyay.ports import Completion

__all__ = ["RequestView", "view_completion"]


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request as the scorer and the selection read it.

    Attributes:
        texts: (role, text) in order; roles are system, user, assistant and tool.
        turns: Messages of the conversation, system messages included.
        tools: How many tools are offered.
        tool_loop: The last turn answers a tool call: the model must not change under it.
        signed_thinking: Earlier turns carry reasoning only its issuer can read back.
    """

    texts: tuple[tuple[str, str], ...]
    turns: int = 1
    tools: int = 0
    images: int = 0
    structured: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    stream: bool = False
    reasoning: bool = False
    tool_loop: bool = False
    signed_thinking: bool = False

    @property
    def system_chars(self) -> int:
        return sum(len(text) for role, text in self.texts if role == "system")

    @property
    def chars(self) -> int:
        return sum(len(text) for _, text in self.texts)

    @property
    def last_user(self) -> str:
        """The newest thing the user said."""
        return next((text for role, text in reversed(self.texts) if role == "user"), "")

    def features(self) -> dict[str, Any]:
        """Facts without any text of the request, kept with the decision."""
        return {
            "turns": self.turns,
            "chars": self.chars,
            "system_chars": self.system_chars,
            "last_user_chars": len(self.last_user),
            "tools": self.tools,
            "images": self.images,
            "structured": self.structured,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": self.stream,
            "reasoning": self.reasoning,
            "tool_loop": self.tool_loop,
            "signed_thinking": self.signed_thinking,
        }


def view_completion(request: Completion, *, stream: bool) -> RequestView:
    """The view of a call made through the port."""
    return RequestView(
        texts=tuple((message.role, message.content) for message in request.messages),
        turns=len(request.messages),
        structured=request.json_schema is not None,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        stream=stream,
    )
