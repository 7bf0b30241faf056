"""opencode: `opencode run --format json`, against any provider that speaks Chat Completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avyay.engine.agents.base import Access, Agent, Invocation, Terminal, Transcript, WorkPlace, failed

__all__ = ["OpenCode"]


class OpenCode(Agent):
    """opencode, by its makers' own name in lower case."""

    kind = "opencode"
    program = "opencode"
    dialect = "chat"
    counts_dollars = True

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        argv = [program, "run", "--format", "json", "--auto"]
        settings: dict[str, Any] = {
            "$schema": "https://opencode.ai/config.json",
            "autoupdate": False,
            "share": "disabled",
        }
        environment = {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_CONFIG": f"{place.home}/opencode.json"}
        if access.url is not None:
            model = access.model_or_auto
            options: dict[str, Any] = {"baseURL": f"{access.url}/v1", "apiKey": access.key or "none"}
            if access.headers:
                options["headers"] = dict(access.headers)
            settings |= {
                "model": f"avyay/{model}",
                "small_model": f"avyay/{model}",
                "provider": {
                    "avyay": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": "Avyay",
                        "options": options,
                        "models": {model: {"name": model, "limit": {"context": 128_000, "output": 16_000}}},
                    }
                },
            }
            environment["OPENCODE_DISABLE_MODELS_FETCH"] = "1"
            argv += ["-m", f"avyay/{model}"]
        elif access.model is not None:
            argv += ["-m", access.model]
        return Invocation((*argv, *arguments), environment, files={"opencode.json": json.dumps(settings, indent=1)})

    def transcript(self) -> Transcript:
        return _Events()


class _Events(Transcript):
    def event(self, event: Mapping[str, Any]) -> None:
        kind, part = event.get("type"), event.get("part") or {}
        if kind == "step_start":
            self.went_on()
            self.turns += 1
            self.wants_more = False
        elif kind == "tool_use":
            self.calls([part.get("tool"), (part.get("state") or {}).get("input")])
            state = part.get("state") or {}
            if state.get("status") == "error" and "permission" in str(state.get("error", "")).lower():
                self.denied.append(str(part.get("tool", "?")))
        elif kind == "text":
            self.said = str(part.get("text", ""))
        elif kind == "step_finish":
            tokens = part.get("tokens") or {}
            self.tokens["input"] += int(tokens.get("input", 0))
            self.tokens["output"] += int(tokens.get("output", 0))
            self.cost = (self.cost or 0.0) + float(part.get("cost") or 0.0)
            if part.get("reason") not in ("tool-calls", "tool_calls"):
                self.terminal = Terminal("success", self.said)
        elif kind == "error":
            error = event.get("error") or {}
            data = error.get("data") or {}
            message = str(data.get("message") or error.get("message") or error.get("name") or "error")
            self.terminal = failed(message, data.get("statusCode"))
