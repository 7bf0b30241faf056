"""How much to think, in every dialect's words: effort levels, token budgets, adaptive modes and plain switches.

Budgets and efforts are no exact match. The table below is ours, is applied in both directions, and every use of it is
noted.
"""

from __future__ import annotations

from avyay.marga.wire.model import Effort, JsonObject, Reasoning, Request, Role, ToolResult
from avyay.marga.wire.notes import Notes
from avyay.marga.wire.target import Target

__all__ = ["EFFORT_BUDGETS", "anthropic_thinking", "effort_for", "in_tool_loop", "ollama_think"]

# Messages accepts budgets from 1,024 up.
EFFORT_BUDGETS: dict[Effort, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 24576,
    "max": 32000,
}
_ORDER: tuple[Effort, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_MINIMUM_BUDGET = 1024


def effort_of_budget(budget: int) -> Effort:
    """The weakest level whose budget covers `budget`."""
    for effort, tokens in EFFORT_BUDGETS.items():
        if effort != "minimal" and budget <= tokens:
            return effort
    return "max"


def nearest(effort: Effort, allowed: tuple[Effort, ...] | None) -> Effort | None:
    """The allowed level nearest to `effort`, the weaker of two equally near ones; None when nothing is allowed."""
    if allowed is None or effort in allowed:
        return effort
    if not allowed:
        return None
    rank = _ORDER.index(effort)
    return min(allowed, key=lambda e: (abs(_ORDER.index(e) - rank), _ORDER.index(e)))


def effort_for(reasoning: Reasoning, target: Target, field: str, notes: Notes) -> Effort | None:
    """The `reasoning_effort` to ask of an OpenAI target, or None to leave it alone."""
    wanted = reasoning.effort
    derived = False
    if reasoning.mode == "off":
        wanted = "none"
        derived = reasoning.effort != "none"
    elif wanted is None and reasoning.budget_tokens is not None:
        wanted = effort_of_budget(reasoning.budget_tokens)
        derived = True
    if wanted is None:
        return None
    if target.reasoning == "none" or (target.reasoning == "unknown" and derived):
        if wanted != "none":
            notes.add(field, "dropped", "the model is not known to reason")
        return None
    level = nearest(wanted, target.efforts)
    if level is None:
        notes.add(field, "dropped", "the model takes no effort levels")
    elif level != wanted or (derived and level != "none"):
        notes.add(field, "mapped", f"asked as effort {level}")
    return level


def in_tool_loop(request: Request) -> bool:
    """Whether the conversation ends with tool results the model has yet to answer."""
    roles: tuple[Role, ...] = ("system", "developer")
    for message in reversed(request.messages):
        if message.role in roles:
            continue
        return message.role == "user" and any(isinstance(p, ToolResult) for p in message.parts)
    return False


def anthropic_thinking(
    request: Request, target: Target, max_tokens: int, opens_with_thinking: bool, notes: Notes
) -> tuple[JsonObject | None, Effort | None]:
    """The `thinking` object and `output_config.effort` for a Messages target, as far as it may have them."""
    reasoning = request.reasoning
    wanted = reasoning.effort
    if reasoning.mode == "off" or wanted == "none":
        return {"type": "disabled"}, None
    if reasoning.mode is None and wanted is None and reasoning.budget_tokens is None:
        return None, None
    if target.reasoning == "none":
        notes.add("reasoning", "dropped", "the model does not reason")
        return None, None
    forced = request.tool_choice is not None and request.tool_choice.mode in ("required", "tool")
    if forced and request.tools:
        notes.add("reasoning", "dropped", "thinking is not allowed while a tool is forced")
        return None, None
    if target.reasoning == "adaptive":
        thinking: JsonObject = {"type": "adaptive"}
        if reasoning.display:
            thinking["display"] = reasoning.display
        if wanted is None and reasoning.budget_tokens is not None:
            wanted = effort_of_budget(reasoning.budget_tokens)
            notes.add("reasoning", "mapped", f"asked as effort {wanted}")
        level = nearest(wanted, target.efforts) if wanted else None
        if level != wanted:
            notes.add("reasoning", "mapped", f"asked as effort {level}")
        return thinking, level
    if in_tool_loop(request) and not opens_with_thinking:
        notes.add("reasoning", "dropped", "this tool loop began without signed thinking, so it ends without")
        return None, None
    budget = reasoning.budget_tokens
    if budget is None:
        budget = EFFORT_BUDGETS[wanted or "medium"]
        notes.add("reasoning", "mapped", f"asked as a budget of {budget} tokens")
    if budget >= max_tokens:
        # Thinking counts against the limit; half of it is left for the answer.
        budget = max(_MINIMUM_BUDGET, max_tokens // 2)
        notes.add("reasoning", "clamped", "the budget must stay below max_tokens")
    if budget >= max_tokens:
        notes.add("reasoning", "dropped", f"max_tokens leaves no room for the minimum of {_MINIMUM_BUDGET} tokens")
        return None, None
    out: JsonObject = {"type": "enabled", "budget_tokens": max(budget, _MINIMUM_BUDGET)}
    if reasoning.display:
        out["display"] = reasoning.display
    return out, None


def ollama_think(reasoning: Reasoning, target: Target, notes: Notes) -> bool | str | None:
    """Ollama's `think`: a switch, or a level when one was asked for."""
    if reasoning.mode == "off" or reasoning.effort == "none":
        return False
    if target.reasoning == "none":
        if reasoning.mode or reasoning.effort or reasoning.budget_tokens:
            notes.add("reasoning", "dropped", "the model does not reason")
        return None
    wanted = reasoning.effort
    if wanted is None:
        if reasoning.budget_tokens is not None and not reasoning.adaptive:
            notes.add("reasoning", "mapped", "asked as a plain switch")
        return True if reasoning.mode == "on" else None
    level = nearest(wanted, target.efforts)
    if level is None:
        return True
    if level != wanted:
        notes.add("reasoning", "mapped", f"asked as level {level}")
    return level
