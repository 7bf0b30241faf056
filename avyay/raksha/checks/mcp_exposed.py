# ruff: noqa: E501 - long patterns read better whole
"""MCP servers whose tools run commands, open to the whole network."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Edit, Finding, Project, Rule, SourceFile

RULE = Rule(
    id="mcp-shell-on-all-addresses",
    title="MCP server with a command tool listens on every address",
    severity="high",
    security_severity=9.0,
    cwe=("CWE-306", "CWE-78"),
    owasp=("A01:2021", "A05:2021"),
    precision="high",
    category="architecture",
    languages=("python", "javascript", "typescript", "go"),
    why="Whoever reaches the port runs commands on this machine; MCP asks for no password unless the server adds one.",
    bad='mcp = FastMCP("ops", host="0.0.0.0")\n\n\n@mcp.tool()\ndef run(command: str) -> str:\n    return subprocess.getoutput(command)',
    good='mcp = FastMCP("ops", host="127.0.0.1")\n\n\n@mcp.tool()\ndef uptime() -> str:\n    return subprocess.run(["uptime"], capture_output=True, text=True, check=True).stdout',
    repair="unsafe",
    fix="Bind to 127.0.0.1 (or use stdio), require a token for anything else, and offer named actions instead of a shell.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = False

SERVER = re.compile(r"FastMCP|McpServer|mcp\.server|modelcontextprotocol|mcp-go|NewMCPServer|\bMCPServer\b")
RUNS = re.compile(
    r"subprocess\.|os\.system\(|os\.popen\(|create_subprocess|child_process|execSync\(|\bexec\(|spawn\(|exec\.Command|\beval\("
)
OPEN = re.compile(r"[\"'`](?:0\.0\.0\.0|::)(?::\d+)?[\"'`]|(?:ListenAndServe|\.Start)\(\s*[\"'`]:\d+")
GUARDED = re.compile(
    r"(?i)auth_?(?:server|provider|settings)|BearerAuth|token_verifier|requireAuth|verify_?token|authMiddleware|APIKeyHeader"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    text = file.text
    if (
        file.is_test
        or not file.mentions("mcp")
        or not SERVER.search(text)
        or not RUNS.search(text)
        or GUARDED.search(text)
    ):
        return
    for match in OPEN.finditer(text):
        yield file.finding(RULE, match.start(), match.end(), edits=_to_this_machine(file, match))
        return


def _to_this_machine(file: SourceFile, match: re.Match[str]) -> tuple[Edit, ...]:
    address = match.group().find("0.0.0.0")  # noqa: S104 - looked for, not bound to
    if address < 0:
        return ()
    start = match.start() + address
    return (Edit(*file.position(start), *file.position(start + len("0.0.0.0")), "127.0.0.1"),)  # noqa: S104
