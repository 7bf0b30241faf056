"""What the judgement sees of a request, whatever dialect it came in: the newest user text and facts about its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avyay.marga.wire import RequestFeatures
from avyay.ports import Completion

__all__ = ["RequestView", "view_completion", "view_features", "view_stored"]


@dataclass(slots=True)
class RequestView:
    """A request as the scorer and the selection read it.

    Attributes:
        last_user: The newest user message; read here and never stored.
        chars: Characters of all text sent, tools included.
        messages: Messages of the conversation, system messages included.
        tools: How many tools are offered.
        tool_loop: The last turn answers a tool call: the model must not change under it.
        signed_thinking: Earlier turns carry reasoning only its issuer can read back.
    """

    last_user: str
    chars: int = 0
    system_chars: int = 0
    messages: int = 1
    tools: int = 0
    images: int = 0
    structured: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    stream: bool = False
    reasoning: bool = False
    tool_loop: bool = False
    signed_thinking: bool = False

    def features(self) -> dict[str, Any]:
        """The facts, without any text of the request; kept with the decision."""
        return {
            "messages": self.messages,
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
    users = [message.content for message in request.messages if message.role == "user"]
    return RequestView(
        last_user=users[-1] if users else "",
        chars=sum(len(message.content) for message in request.messages),
        system_chars=sum(len(message.content) for message in request.messages if message.role == "system"),
        messages=len(request.messages),
        structured=request.json_schema is not None,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        stream=stream,
    )


def view_features(features: RequestFeatures) -> RequestView:
    """The view of a request that came over the wire."""
    return RequestView(
        last_user=features.last_user_text,
        chars=features.prompt_chars,
        system_chars=features.system_chars,
        messages=max(1, features.messages),
        tools=features.tools,
        images=features.images,
        structured=features.json_mode != "none",
        temperature=features.temperature,
        max_tokens=features.max_tokens,
        stream=features.stream,
        reasoning=features.reasoning,
        tool_loop=features.tool_loop,
        signed_thinking=features.signed_thinking,
    )


def view_stored(features: Mapping[str, Any]) -> RequestView:
    """The view of a decision on record. Its text was not kept; what was read of it was."""
    names = (
        *("messages", "chars", "system_chars", "tools", "images", "structured", "temperature", "max_tokens", "stream"),
        *("reasoning", "tool_loop", "signed_thinking"),
    )
    return RequestView("", **{name: features[name] for name in names if name in features})
