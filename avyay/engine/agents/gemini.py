"""Gemini CLI: `gemini -p … -o stream-json`. Its dialect is Google's own, so its models do not come by the router."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from avyay.engine.agents.base import Access, Agent, Invocation, Terminal, Transcript, WorkPlace, failed

__all__ = ["GeminiCli"]


class GeminiCli(Agent):
    """Google's Gemini CLI."""

    kind = "gemini"
    program = "gemini"
    dialect = "gemini"
    routable = False
    complains = True

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        argv = [program, "--skip-trust", "--approval-mode", "yolo", "-o", "stream-json"]
        if access.model is not None:
            argv += ["-m", access.model]
        # Without a chosen kind of login another base URL is refused with exit 41.
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "privacy": {"usageStatisticsEnabled": False},
            "general": {"disableAutoUpdate": True},
            "model": {"maxSessionTurns": turns},
        }
        environment = {"GEMINI_TELEMETRY_ENABLED": "false"}
        if access.url is not None:
            environment["GOOGLE_GEMINI_BASE_URL"] = access.url
        if access.key is not None:
            environment["GEMINI_API_KEY"] = access.key
        return Invocation((*argv, *arguments), environment, files={".gemini/settings.json": json.dumps(settings)})

    def transcript(self) -> Transcript:
        return _Events()


_RETRY = re.compile(r"^Attempt \d+ failed(?: with status (\d+))?")
_STATUS = re.compile(r"^\s*(?:status|code): ([45]\d\d)\b")


class _Events(Transcript):
    def __init__(self) -> None:
        super().__init__()
        self._status: int | None = None

    def text(self, line: str) -> None:
        self.complaint(line)

    def complaint(self, line: str) -> None:
        if match := _RETRY.match(line):
            self.turned_away(failed(line[:300], int(match[1]) if match[1] else None))
        elif match := _STATUS.match(line):  # of some errors it says the status only here
            self._status = int(match[1])
            if self.terminal is not None and self.terminal.kind == "error" and self.terminal.status is None:
                self.terminal = replace(self.terminal, status=self._status)

    def event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "tool_use":
            self.went_on()
            self.calls([event.get("tool_name"), event.get("parameters")])
            self.turns += 1
            self.said = ""
        elif kind == "message" and event.get("role") == "assistant":
            self.went_on()
            self.said += str(event.get("content", ""))
        elif kind == "tool_result" and event.get("status") == "error":
            error = event.get("error") or {}
            if "denied" in str(error.get("type", "")) + str(error.get("message", "")).lower():
                self.denied.append(str(event.get("tool_id", "?")))
        elif kind == "result":
            stats = event.get("stats") or {}
            self.tokens = {"input": int(stats.get("input_tokens", 0)), "output": int(stats.get("output_tokens", 0))}
            if event.get("status") == "success":
                self.turns += 1
                self.terminal = Terminal("success", self.said)
            else:
                error = event.get("error") or {}
                message = str(error.get("message") or error)
                limit = (
                    "maxsessionturns" in str(error.get("type", "")).lower() or "max session turns" in message.lower()
                )
                self.terminal = Terminal("capped", message) if limit else self._failed(message)

    def _failed(self, message: str) -> Terminal:
        terminal = failed(message)
        return replace(terminal, status=self._status) if terminal.status is None else terminal
