"""The tools as an agent calls them, over MCP's own in-memory transport."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from avyay.raksha.mcp import register
from avyay.raksha.scan import CodeScanner

CALL = "import subprocess\nsubprocess.run(a, shell=True)\n"


@pytest.fixture
def call(scanner: CodeScanner, write) -> Any:
    root = write({"a.py": CALL, "ok.py": "x = 1\n"})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Field .* has an |.*model_rebuild")  # the SDK's own settings class
        server = FastMCP("test")
    register(server, scanner, root=root)

    def caller(tool: str, **arguments: Any) -> Any:
        async def run() -> Any:
            async with create_connected_server_and_client_session(server._mcp_server) as session:
                return await session.call_tool(tool, arguments)

        return anyio.run(run)

    return caller


def test_scan_paths(call: Any) -> None:
    result = call("scan_paths", paths=["."]).structuredContent
    assert (result["verdict"], result["files"]) == ("findings", 2)
    assert [(f["rule"], f["path"], f["line"]) for f in result["findings"]] == [("demo-shell", "a.py", 2)]
    assert result["instructions"].startswith("FAIL: 1 findings")
    assert call("scan_paths", paths=["ok.py"]).structuredContent["verdict"] == "clean"
    assert call("scan_paths", paths=["."], fail_on="critical").structuredContent["verdict"] == "clean"


@pytest.mark.parametrize("path", ["..", "/etc", "a/../../x", "nope.py"])
def test_only_this_project(call: Any, path: str) -> None:
    result = call("scan_paths", paths=[path])
    assert result.isError
    assert "outside" in result.content[0].text or "no file or folder" in result.content[0].text


@pytest.mark.needs("git")
def test_scan_diff(call: Any, tmp_path: Path) -> None:
    root = tmp_path / "project"
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    assert call("scan_diff").structuredContent["verdict"] == "clean"
    (root / "new.py").write_text(CALL)
    assert [f["path"] for f in call("scan_diff").structuredContent["findings"]] == ["new.py"]
    assert call("scan_diff", base="nope").isError


def test_explain_rule(call: Any) -> None:
    assert "Pass a list." in call("explain_rule", id="demo-shell").structuredContent["page"]
    assert call("explain_rule", id="nope").isError
