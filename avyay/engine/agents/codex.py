"""Codex CLI: `codex exec --json`. It speaks the Responses dialect only, counts no turns and knows no budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avyay.engine.agents.base import Access, Agent, Invocation, Terminal, Transcript, WorkPlace, failed

__all__ = ["Codex"]

_KEY = "AVYAY_MODEL_KEY"
_ACTIONS = frozenset({"command_execution", "file_change", "mcp_tool_call", "web_search", "custom_tool_call"})


class Codex(Agent):
    """OpenAI's Codex CLI."""

    kind = "codex"
    program = "codex"
    dialect = "responses"

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        argv = [program, "exec", "--json", "--skip-git-repo-check"]
        if not any(argument in ("-s", "--sandbox", "--full-auto") for argument in arguments):
            # Its own sandbox needs rights that containers lack; the worktree and the verification stand in for it.
            argv.append("--dangerously-bypass-approvals-and-sandbox")
        environment = {"CODEX_HOME": f"{place.home}/.codex"}
        if access.url is not None:
            headers = ",".join(f"{json.dumps(k)}={json.dumps(v)}" for k, v in access.headers.items())
            provider = f'name="avyay",base_url={json.dumps(access.url + "/v1")},wire_api="responses"'
            provider += f',env_key="{_KEY}"' if access.key is not None else ""
            provider += f",http_headers={{{headers}}}" if headers else ""
            argv += ["-c", "model_provider=avyay", "-c", f"model_providers.avyay={{{provider}}}"]
            if access.key is not None:
                environment[_KEY] = access.key
        elif access.key is not None:
            environment["OPENAI_API_KEY"] = environment["CODEX_API_KEY"] = access.key
        if access.model is not None or access.routed:
            argv += ["-m", access.model_or_auto]
        return Invocation((*argv, *arguments, "-"), environment, files={".codex/.keep": ""})

    def transcript(self) -> Transcript:
        return _Events()


class _Events(Transcript):
    def event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        item = event.get("item") or {}
        if kind == "item.started" and item.get("type") in _ACTIONS:
            self.went_on()
            self.turns += 1
            self.calls({key: value for key, value in item.items() if key not in ("id", "status")})
        elif kind == "item.completed" and item.get("type") == "agent_message":
            self.went_on()
            self.turns += 1
            self.wants_more = False
            self.said = str(item.get("text", ""))
        elif kind == "item.completed" and item.get("status") == "declined":
            self.denied.append(str(item.get("command") or item.get("type")))
        elif kind == "error":
            self.turned_away(failed(str(event.get("message", ""))))
        elif kind == "turn.failed":
            self.terminal = failed(str((event.get("error") or {}).get("message", "")))
        elif kind == "turn.completed":
            usage = event.get("usage") or {}
            self.tokens = {"input": int(usage.get("input_tokens", 0)), "output": int(usage.get("output_tokens", 0))}
            self.terminal = Terminal("success", self.said)
