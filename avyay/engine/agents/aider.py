"""aider: `aider --message-file`. It prints text, not events: its exit code, its words and git have to do."""

from __future__ import annotations

import json
import re

from avyay.engine.agents.base import Access, Agent, Invocation, Terminal, Transcript, WorkPlace, failed

__all__ = ["Aider"]

_FAILURE = re.compile(r"^litellm\.(\w*(?:Error|Exception))|^The API provider|^Retrying in", re.IGNORECASE)
_TOKENS = re.compile(r"^Tokens: ([\d.,]+)(k?) sent,.*?([\d.,]+)(k?) received")
_COST = re.compile(r"\$([\d.]+) session")
_KINDS = {
    "authenticationerror": 401,
    "permissiondeniederror": 403,
    "notfounderror": 404,
    "badrequesterror": 400,
    "contextwindowexceedederror": 400,
    "ratelimiterror": 429,
    "internalservererror": 500,
    "serviceunavailableerror": 503,
}


class Aider(Agent):
    """aider, the pair programmer."""

    kind = "aider"
    program = "aider"
    dialect = "chat"
    counts_dollars = True
    leaves = (".aider.tags.cache.v*", ".aider.chat.history.md", ".aider.input.history", ".aider.llm.history")

    def invoke(
        self, place: WorkPlace, access: Access, *, program: str, turns: int, arguments: tuple[str, ...] = ()
    ) -> Invocation:
        argv = [program, "--message-file", str(place.prompt), "--yes-always", "--no-show-model-warnings"]
        argv += ["--no-check-update", "--analytics-disable", "--no-gitignore", "--no-pretty", "--no-stream"]
        argv += ["--no-auto-commits", "--no-detect-urls", "--input-history-file", "/dev/null"]
        argv += ["--chat-history-file", f"{place.home}/chat.md", "--no-suggest-shell-commands"]
        # What it says is read line by line: it must not wrap it. What models cost it asks the network for otherwise.
        environment = {"AIDER_CHECK_UPDATE": "false", "COLUMNS": "1000", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        files: dict[str, str] = {}
        if access.url is not None:
            model = f"openai/{access.model_or_auto}"
            environment |= {"OPENAI_API_BASE": f"{access.url}/v1", "OPENAI_API_KEY": access.key or "none"}
            argv += ["--model", model]
            if access.headers:
                # YAML is a superset of JSON.
                extra = {"name": model, "extra_params": {"extra_headers": dict(access.headers)}}
                files[".aider.model.settings.yml"] = json.dumps([extra])
                argv += ["--model-settings-file", f"{place.home}/.aider.model.settings.yml"]
        elif access.model is not None:
            argv += ["--model", access.model]
        return Invocation((*argv, *arguments), environment, files, prompt_on_stdin=False)

    def transcript(self) -> Transcript:
        return _Words()


class _Words(Transcript):
    has_terminal = False

    def text(self, line: str) -> None:
        if match := _TOKENS.match(line):
            self.turns += 1
            self.went_on()
            self.hopeless = None
            self.terminal = Terminal("success", self.said)
            sent, received = (_count(match[number], match[number + 1]) for number in (1, 3))
            self.tokens = {"input": self.tokens["input"] + sent, "output": self.tokens["output"] + received}
            if cost := _COST.search(line):
                self.cost = float(cost[1].rstrip("."))
        elif match := _FAILURE.match(line):
            kind = (match[1] or "").lower()
            if kind:
                self.terminal = failed(line, _KINDS.get(kind))
                self.turned_away(self.terminal)
        elif line:
            self.said = line
            self.interrupted |= line.startswith("^C")  # it ends with exit code 0 then


def _count(number: str, thousands: str) -> int:
    return int(float(number.replace(",", "")) * (1000 if thousands else 1))
