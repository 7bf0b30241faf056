"""How each MCP client wants to be told about a server: the file, and what to put into it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from avyay.errors import UsageError

__all__ = ["CLIENTS", "Snippet", "client_snippet"]

# Where each client looks, and how it writes servers down; from their documentation, read in November 2026.
CLIENTS = ("claude-code", "cursor", "codex", "vscode", "openclaw")
NAME = "avyay"


@dataclass(frozen=True, slots=True)
class Snippet:
    """What to add to `file`; `command` does the same from a shell, where the client has one."""

    client: str
    file: str
    text: str
    command: str | None = None


def client_snippet(client: str, command: Sequence[str], *, url: str | None = None) -> Snippet:
    """The configuration for a client.

    Args:
        command: What starts the server over stdio.
        url: A running streamable HTTP server to use instead.

    Raises:
        UsageError: the client is unknown.
    """
    program, *arguments = command
    local = {"command": program, "args": arguments}
    shell = shlex.join(command)
    match client:
        case "claude-code":
            entry = {"type": "http", "url": url} if url else {"type": "stdio", **local}
            how = f"--transport http {NAME} {url}" if url else f"{NAME} -- {shell}"
            return Snippet(client, ".mcp.json", _json({"mcpServers": {NAME: entry}}), f"claude mcp add {how}")
        case "cursor":
            return Snippet(client, ".cursor/mcp.json", _json({"mcpServers": {NAME: {"url": url} if url else local}}))
        case "codex":
            # A TOML basic string and a JSON string are written alike.
            lines = (
                [f"url = {json.dumps(url)}"]
                if url
                else [f"command = {json.dumps(program)}", f"args = {json.dumps(arguments)}"]
            )
            how = f"{NAME} --url {url}" if url else f"{NAME} -- {shell}"
            text = "\n".join([f"[mcp_servers.{NAME}]", *lines])
            return Snippet(client, "~/.codex/config.toml", text, f"codex mcp add {how}")
        case "vscode":
            entry = {"type": "http", "url": url} if url else {"type": "stdio", **local}
            return Snippet(client, ".vscode/mcp.json", _json({"servers": {NAME: entry}}))
        case "openclaw":
            entry = {"url": url, "transport": "streamable-http"} if url else local
            return Snippet(
                client,
                "~/.openclaw/openclaw.json",
                _json({"mcp": {"servers": {NAME: entry}}}),
                f"openclaw mcp set {NAME} '{json.dumps(entry)}'",
            )
    raise UsageError(f"There is no snippet for {client!r}.", hint=f"Clients are: {', '.join(CLIENTS)}.")


def _json(data: object) -> str:
    return json.dumps(data, indent=2)
