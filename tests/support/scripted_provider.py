"""A model provider on loopback whose answers stand in the prompt, in the dialects of the coding agents there are.

`[[run: SHELL]]` asks for the client's shell tool, `[[write PATH: TEXT]]` makes a file, with that tool or, for a client
that has none, in prose; `[[say: TEXT]]` ends, `[[loop]]` never does, `[[status N]]` refuses, `[[wait S]]` waits before
every answer.
The step to play is the number of tool results in the conversation, so that any number of agents may talk at once.
"""

from __future__ import annotations

import json
import posixpath
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_DIRECTIVE = re.compile(r"\[\[(run|write|say|loop|status|wait)\b:?\s*(.*?)\]\]", re.DOTALL)

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
        path = self.path.split("?")[0]
        if path.endswith(("/count_tokens", ":countTokens")):
            self._send(200, b'{"input_tokens": 10, "totalTokens": 10}')
            return
        dialect = next((made for end, made in _DIALECTS if path.endswith(end)), _Messages())
        conversation = dialect.conversation(body)
        texts = _texts(conversation)
        script: dict[tuple[str, str], None] = dict.fromkeys(_DIRECTIVE.findall("\n".join(texts)))
        tools = dialect.tools(body)
        # aider has no tools: it takes whole files from prose.
        prose = not tools and any("file listing" in text for text in texts)
        if not (tools or prose) or not script:
            self._reply(dialect, body, text="fine")
            return
        with self.server.lock:
            self.server.requests.append({"path": self.path, "headers": dict(self.headers), "script": list(script)})
        for kind, words in script:
            if kind == "status":
                self._send(int(words), json.dumps(dialect.error(int(words))).encode())
                return
            if kind == "wait":
                self.server.over.wait(float(words))
        done = dialect.results(conversation)
        steps = [_command(kind, words) for kind, words in script if kind in ("run", "write")]
        said = [words for kind, words in script if kind == "say"]
        if prose:
            files = [words.partition(": ") for kind, words in script if kind == "write"]
            blocks = [f"{name}\n```\n{content}\n```\n" for name, _, content in files]
            self._reply(dialect, body, text="\n".join([*blocks, said[0] if said else "done"]))
            return
        if ("loop", "") in script:
            steps += [f"echo {done}"] * (done + 1 - len(steps))
        if done < len(steps):
            self._reply(dialect, body, tool=self._tool(tools, steps[done]))
        else:
            self._reply(dialect, body, text=said[0] if said else "done")

    def _tool(self, tools: set[str], command: str) -> tuple[str, dict[str, Any]]:
        for name in ("Bash", "bash", "run_shell_command"):
            if name in tools:
                return name, {"command": command, "description": "a step"}
        if "exec_command" in tools:
            return "exec_command", {"cmd": command}
        if "shell_command" in tools:
            return "shell_command", {"command": command}
        return "shell", {"command": ["bash", "-c", command]}

    def _reply(self, dialect: _Dialect, body: dict[str, Any], *, text: str = "", tool: _Tool | None = None) -> None:
        streamed = body.get("stream") or self.path.split("?")[0].endswith(":streamGenerateContent")
        kind, answer = dialect.answer(body, text, tool, streamed=bool(streamed))
        self._send(200, answer.encode(), kind)

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _command(kind: str, words: str) -> str:
    if kind == "run":
        return words
    name, _, content = words.partition(": ")
    return f"mkdir -p '{posixpath.dirname(name) or '.'}' && printf '%s\\n' '{content}' > '{name}'"


def _events(events: list[dict[str, Any]], *, named: bool = False) -> str:
    return "".join((f"event: {e['type']}\n" if named else "") + f"data: {json.dumps(e)}\n\n" for e in events)


_STREAM, _WHOLE = "text/event-stream", "application/json"
_Tool = tuple[str, dict[str, Any]]


class _Dialect:
    """How one kind of client asks and is answered."""

    def conversation(self, body: dict[str, Any]) -> list[Any]:
        found: list[Any] = body.get("messages", [])
        return found

    def tools(self, body: dict[str, Any]) -> set[str]:
        return {str(tool.get("name")) for tool in body.get("tools") or ()}

    def results(self, conversation: list[Any]) -> int:
        raise NotImplementedError

    def error(self, status: int) -> dict[str, Any]:
        error = {"type": _ERRORS.get(str(status), "api_error"), "message": "scripted"}
        return {"type": "error", "error": error}

    def answer(self, body: dict[str, Any], text: str, tool: _Tool | None, *, streamed: bool) -> tuple[str, str]:
        raise NotImplementedError


class _Messages(_Dialect):
    """Anthropic Messages: Claude Code."""

    def results(self, conversation: list[Any]) -> int:
        contents = [message["content"] for message in conversation if isinstance(message.get("content"), list)]
        return sum(block.get("type") == "tool_result" for content in contents for block in content)

    def answer(self, body: dict[str, Any], text: str, tool: _Tool | None, *, streamed: bool) -> tuple[str, str]:
        if streamed:
            return _STREAM, _events(_messages(body.get("model"), text, tool), named=True)
        whole = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
        usage = {"input_tokens": 10, "output_tokens": 5}
        return _WHOLE, json.dumps({**whole, "content": [{"type": "text", "text": text}], "usage": usage})


class _Responses(_Dialect):
    """OpenAI Responses: Codex."""

    def conversation(self, body: dict[str, Any]) -> list[Any]:
        found: list[Any] = body.get("input", [])
        return found

    def results(self, conversation: list[Any]) -> int:
        kinds = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
        return sum(item.get("type") in kinds for item in conversation)

    def answer(self, body: dict[str, Any], text: str, tool: _Tool | None, *, streamed: bool) -> tuple[str, str]:
        return _STREAM, _events(_responses(text, tool), named=True)


class _Chat(_Dialect):
    """OpenAI Chat Completions: opencode, aider."""

    def tools(self, body: dict[str, Any]) -> set[str]:
        return {str(tool["function"]["name"]) for tool in body.get("tools") or ()}

    def results(self, conversation: list[Any]) -> int:
        return sum(message.get("role") == "tool" for message in conversation)

    def answer(self, body: dict[str, Any], text: str, tool: _Tool | None, *, streamed: bool) -> tuple[str, str]:
        head = {"id": f"chatcmpl-{uuid.uuid4().hex[:12]}", "created": 0, "model": body.get("model") or "m"}
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if tool is not None:
            function = {"name": tool[0], "arguments": json.dumps(tool[1])}
            message["tool_calls"] = [{"index": 0, "id": f"call_{uuid.uuid4().hex[:12]}", "type": "function"}]
            message["tool_calls"][0]["function"] = function
        stop = "tool_calls" if tool else "stop"
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if not streamed:
            choice = {"index": 0, "message": message, "finish_reason": stop}
            return _WHOLE, json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        chunk = {**head, "object": "chat.completion.chunk"}
        chunks: list[dict[str, Any]] = [
            {**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
            {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": stop}]},
            {**chunk, "choices": [], "usage": usage},
        ]
        return _STREAM, f"{_events(chunks)}data: [DONE]\n\n"


class _Gemini(_Dialect):
    """Gemini's generateContent: Gemini CLI."""

    def conversation(self, body: dict[str, Any]) -> list[Any]:
        found: list[Any] = body.get("contents", [])
        return found

    def tools(self, body: dict[str, Any]) -> set[str]:
        return {str(f["name"]) for tool in body.get("tools") or () for f in tool.get("functionDeclarations", ())}

    def results(self, conversation: list[Any]) -> int:
        return sum("functionResponse" in part for content in conversation for part in content.get("parts", ()))

    def error(self, status: int) -> dict[str, Any]:
        return {"error": {"code": status, "message": "scripted", "status": "INVALID_ARGUMENT"}}

    def answer(self, body: dict[str, Any], text: str, tool: _Tool | None, *, streamed: bool) -> tuple[str, str]:
        part = {"text": text} if tool is None else {"functionCall": {"name": tool[0], "args": tool[1]}}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
        whole = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}
        return (_STREAM, _events([whole])) if streamed else (_WHOLE, json.dumps(whole))


_DIALECTS: tuple[tuple[str, _Dialect], ...] = (
    ("/responses", _Responses()),
    ("/chat/completions", _Chat()),
    (":generateContent", _Gemini()),
    (":streamGenerateContent", _Gemini()),
)


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
        self.over = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
