"""A model provider on loopback whose answers stand in the prompt: Anthropic Messages and OpenAI Responses, streamed.

`[[run: SHELL]]` asks for the client's shell tool, `[[say: TEXT]]` ends, `[[loop]]` never does, `[[status N]]` refuses.
The step to play is the number of tool results in the conversation, so that any number of agents may talk at once.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_DIRECTIVE = re.compile(r"\[\[(run|say|loop|status)\b:?\s*(.*?)\]\]", re.DOTALL)

_ERRORS = {"400": "invalid_request_error", "401": "authentication_error", "429": "rate_limit_error"}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _texts(item)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedProvider

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(200, b"", "text/plain")

    def do_GET(self) -> None:
        self._send(200, b'{"data": [], "models": []}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))) or b"{}")
        if self.path.split("?")[0].endswith("/count_tokens"):
            self._send(200, b'{"input_tokens": 10}')
            return
        responses = self.path.split("?")[0].endswith("/responses")
        conversation = body.get("input" if responses else "messages", [])
        script: dict[tuple[str, str], None] = dict.fromkeys(_DIRECTIVE.findall("\n".join(_texts(conversation))))
        tools = {tool.get("name"): tool for tool in body.get("tools", [])}
        if not tools or not script:
            self._answer(responses, body, text="fine")
            return
        with self.server.lock:
            self.server.requests.append({"path": self.path, "headers": dict(self.headers), "script": list(script)})
        for kind, words in script:
            if kind == "status":
                error = {"type": _ERRORS.get(words, "api_error"), "message": "scripted"}
                self._send(int(words), json.dumps({"type": "error", "error": error}).encode())
                return
        kinds = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
        done = sum(item.get("type") in kinds for item in conversation) if responses else _results(conversation)
        steps = [words for kind, words in script if kind == "run"]
        if ("loop", "") in script:
            steps += [f"echo {done}"] * (done + 1 - len(steps))
        if done < len(steps):
            self._answer(responses, body, tool=self._tool(tools, steps[done]))
        else:
            said = [words for kind, words in script if kind == "say"]
            self._answer(responses, body, text=said[0] if said else "done")

    def _tool(self, tools: dict[str, Any], command: str) -> tuple[str, dict[str, Any]]:
        if "Bash" in tools:
            return "Bash", {"command": command, "description": "a step"}
        if "exec_command" in tools:
            return "exec_command", {"cmd": command}
        if "shell_command" in tools:
            return "shell_command", {"command": command}
        return "shell", {"command": ["bash", "-c", command]}

    def _answer(
        self, responses: bool, body: dict[str, Any], *, text: str = "", tool: tuple[str, dict[str, Any]] | None = None
    ) -> None:
        events = _responses(text, tool) if responses else _messages(body.get("model"), text, tool)
        if not responses and not body.get("stream"):
            content = [{"type": "text", "text": text}]
            usage = {"input_tokens": 10, "output_tokens": 5}
            answer = {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": content,
                "usage": usage,
            }
            self._send(200, json.dumps({**answer, "stop_reason": "end_turn"}).encode())
            return
        stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self._send(200, stream.encode(), "text/event-stream")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _results(messages: list[dict[str, Any]]) -> int:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return sum(block.get("type") == "tool_result" for content in contents for block in content)


def _messages(model: Any, text: str, tool: tuple[str, dict[str, Any]] | None) -> list[dict[str, Any]]:
    usage = {"input_tokens": 10, "output_tokens": 5}
    if tool is None:
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta: dict[str, Any] = {"type": "text_delta", "text": text}
    else:
        block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:20]}", "name": tool[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(tool[1])}
    message = {"id": f"msg_{uuid.uuid4().hex[:20]}", "type": "message", "role": "assistant", "model": model or "m"}
    stop = "tool_use" if tool else "end_turn"
    return [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


def _responses(text: str, tool: tuple[str, dict[str, Any]] | None) -> list[dict[str, Any]]:
    name = uuid.uuid4().hex[:16]
    if tool is None:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item: dict[str, Any] = {"type": "message", "id": name, "role": "assistant", "content": content}
    else:
        item = {"type": "function_call", "id": name, "call_id": f"call_{name}", "name": tool[0]}
        item["arguments"] = json.dumps(tool[1])
    item["status"] = "completed"
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, **details}
    response = {"id": f"resp_{name}", "object": "response", "created_at": 0, "model": "m", "output": []}
    whole = {**response, "status": "completed", "output": [item], "usage": usage}
    return [
        {"type": "response.created", "response": {**response, "status": "in_progress"}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]


class ScriptedProvider(ThreadingHTTPServer):
    """Listens on a free port from its making on; `requests` are those of agents that follow a script."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
