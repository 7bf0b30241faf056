"""Claude Code: `claude -p` with events as JSON lines.

Its exit code is 0 for SIGINT and its `subtype` is "success" for a request the provider refused for good: what counts
is the last event, and in it `is_error`. A refused key it tries for minutes (`api_retry` events).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avyay.engine.agents.base import Access, Agent, Invocation, Terminal, Transcript, WorkPlace, failed

__all__ = ["ClaudeCode"]

_TOOLS = "Bash Write Edit NotebookEdit Read Glob Grep"


class ClaudeCode(Agent):
    """Anthropic's Claude Code."""

    kind = "claude"
    program = "claude"
    dialect = "anthropic"
    counts_dollars = True

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        argv = [program, "-p", "--output-format", "stream-json", "--verbose", "--max-turns", str(turns)]
        # The worktree is the agent's own, so it may edit and run there; whoever wants less says so in the arguments.
        if not any(argument.startswith(("--permission-mode", "--dangerously")) for argument in arguments):
            argv += ["--permission-mode", "acceptEdits", "--allowedTools", _TOOLS]
        if access.model is not None or access.routed:
            argv += ["--model", access.model_or_auto]
        if access.budget is not None:
            argv += ["--max-budget-usd", access.budget]
        environment = {
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "CLAUDE_CONFIG_DIR": f"{place.home}/.claude",
        }
        if access.url is not None:
            environment["ANTHROPIC_BASE_URL"] = access.url
        if access.key is not None:
            environment["ANTHROPIC_API_KEY"] = access.key
        if access.headers:
            environment["ANTHROPIC_CUSTOM_HEADERS"] = "\n".join(f"{k}: {v}" for k, v in access.headers.items())
        return Invocation((*argv, *arguments), environment)

    def transcript(self) -> Transcript:
        return _Events()


class _Events(Transcript):
    def __init__(self) -> None:
        super().__init__()
        self._message: str | None = None

    def event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "assistant":
            self._assistant(event["message"])
        elif kind == "system" and event.get("subtype") == "api_retry":
            self.turned_away(failed(str(event.get("error", "")), event.get("error_status")))
        elif kind == "result":
            self._result(event)

    def _assistant(self, message: Mapping[str, Any]) -> None:
        self.went_on()
        if message.get("id") != self._message:  # each block of an answer is an event of its own
            self._message = message.get("id")
            self.turns += 1
            self.wants_more = False
        for block in message.get("content", ()):
            if block.get("type") == "tool_use":
                self.calls([block.get("name"), block.get("input")])
            elif block.get("type") == "text":
                self.said = str(block["text"])

    def _result(self, event: Mapping[str, Any]) -> None:
        cost = event.get("total_cost_usd")
        self.cost = float(cost) if isinstance(cost, int | float) else None
        usage = event.get("usage") or {}
        self.tokens = {"input": int(usage.get("input_tokens", 0)), "output": int(usage.get("output_tokens", 0))}
        self.denied = [str(denial.get("tool_name", "?")) for denial in event.get("permission_denials") or ()]
        subtype = str(event.get("subtype", ""))
        message = str(event.get("result") or "; ".join(map(str, event.get("errors") or ())) or subtype)
        self.said = message
        if subtype.startswith("error_max"):
            self.terminal = Terminal("capped", message)
        elif event.get("is_error") or subtype != "success":
            self.terminal = failed(message, event.get("api_error_status"))
        else:
            self.terminal = Terminal("success", message)
