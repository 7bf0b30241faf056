"""What the serving model can take, as far as translation must know it.

A catalog knows better than we do: `default_target` only fills in what the model's name tells, and every field may be
overridden with `dataclasses.replace`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from avyay.marga.wire.model import Dialect, Effort

__all__ = ["ReasoningStyle", "Target", "default_target"]

ReasoningStyle: TypeAlias = Literal["unknown", "none", "effort", "budget", "adaptive", "think"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes, and what may be said there.

    Attributes:
        dialect: The upstream's wire format.
        model: The upstream's model name, written into the body.
        max_output_tokens: The model's limit. Larger requests are clamped, and where the dialect demands a value
            (Messages) it is the default.
        max_tokens_field: Chat only. `max_tokens` for compatible servers that know no other.
        reasoning: How reasoning is asked for. "unknown" passes an explicit effort and derives none; "none" drops it.
        efforts: The efforts the model takes; None means all.
        sampling: Whether temperature, top_p and top_k are accepted (the newest Messages models refuse them).
        mid_system: Messages only: whether `role: system` is accepted inside `messages`.
        cache: How prompt-cache marks are written: not at all, as `cache_control`, or as `prompt_cache_breakpoint`.
        stream_usage: Chat only: whether `stream_options.include_usage` is understood.
        developer_role: Chat only: whether `role: developer` is understood; else it becomes `system`.
        json_schema: Whether schema-constrained output is understood.
        max_stop: The most stop strings accepted; None means no limit.
        top_k: Chat only: whether a compatible server takes the `top_k` extension.
    """

    dialect: Dialect
    model: str
    max_output_tokens: int | None = None
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    reasoning: ReasoningStyle = "unknown"
    efforts: tuple[Effort, ...] | None = None
    sampling: bool = True
    mid_system: bool = True
    cache: Literal["none", "cache_control", "breakpoint"] = "none"
    stream_usage: bool = True
    developer_role: bool = True
    json_schema: bool = True
    max_stop: int | None = None
    top_k: bool = False


_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2})(?!\d))?")


def _claude_version(model: str) -> tuple[int, int] | None:
    found = _CLAUDE.search(model.lower())
    return (int(found[1]), int(found[2] or 0)) if found else None


def default_target(
    dialect: Dialect, model: str, *, compatible: bool = False, max_output_tokens: int | None = None
) -> Target:
    """A target by the model's name alone.

    Args:
        dialect: The upstream's wire format.
        model: The upstream's model name.
        compatible: For Chat: not OpenAI or Azure itself but a server that speaks their format.
        max_output_tokens: The model's output limit, when known.
    """
    if dialect == "anthropic_messages":
        # Effort replaced budgets with 4.6, budgets and sampling were refused from 4.7 on, system turns came with 4.8.
        version = _claude_version(model)
        known = version is not None
        return Target(
            dialect,
            model,
            max_output_tokens=max_output_tokens,
            reasoning="adaptive" if version is not None and version >= (4, 6) else "budget",
            efforts=("low", "medium", "high", "xhigh", "max"),
            sampling=not known or version < (4, 7),  # type: ignore[operator]
            mid_system=known and version >= (4, 8),  # type: ignore[operator]
            cache="cache_control",
        )
    if dialect in ("ollama_chat", "ollama_generate"):
        return Target(
            dialect,
            model,
            max_output_tokens=max_output_tokens,
            reasoning="think",
            efforts=("low", "medium", "high", "max"),
        )
    if compatible:
        return Target(
            dialect,
            model,
            max_output_tokens=max_output_tokens,
            max_tokens_field="max_tokens",
            developer_role=False,
        )
    name = model.lower().rsplit("/", 1)[-1]
    reasons = re.match(r"(o\d|gpt-(?:[5-9]|\d\d)|codex)", name) is not None and "-chat" not in name
    return Target(
        dialect,
        model,
        max_output_tokens=max_output_tokens,
        reasoning="effort" if reasons else ("none" if name.startswith(("gpt-3", "gpt-4", "chatgpt")) else "unknown"),
        max_stop=4 if dialect == "openai_chat" else 0,
    )
