"""The engine's tools as an agent calls them, over MCP's own in-memory transport."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from avyay.clock import SYSTEM_CLOCK
from avyay.engine.desk import Desk
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.mcp import register
from avyay.engine.queue import Queue

pytestmark = pytest.mark.needs("git")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "parser.py").write_text("class Parser:\n    def parse(self): ...\n")
    (root / "test_parser.py").write_text("from parser import Parser\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture
def call(tmp_path: Path, root: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Field .* has an |.*model_rebuild")  # the SDK's own settings class
        server = FastMCP("test")
    desk = Desk(
        lambda: Queue(tmp_path / "engine.db"),
        lambda: Knowledge(tmp_path / "knowledge.db", lambda text: len(text) // 3 + 1),
        lambda: {"": root},
        SYSTEM_CLOCK,
    )
    register(server, desk)

    def caller(tool: str, **arguments: Any) -> Any:
        async def run() -> Any:
            async with create_connected_server_and_client_session(server._mcp_server) as session:
                return await session.call_tool(tool, arguments)

        return anyio.run(run)

    return caller


def test_tasks_are_added_for_a_person_to_approve(call: Any) -> None:
    added = call(
        "engine_add_task", title="Fix the parser", accept="pytest -q", evidence=["parser.py:1"]
    ).structuredContent
    assert (added["state"], added["reason"]) == ("blocked", "waits for approval")
    name = added["id"]
    call("engine_add_task", title="Release", accept="true", needs=[name], priority=3)
    listed = call("engine_list_tasks").structuredContent
    assert [task["title"] for task in listed["tasks"]] == ["Fix the parser", "Release"]
    assert listed["counts"] == {"blocked": 2}
    assert call("engine_list_tasks", states=["done"]).structuredContent["tasks"] == []
    story = call("engine_show_task", task=name).structuredContent
    assert any("was added" in line for line in story["story"])
    assert "waits for approval" in story["why"][0]


def test_bad_tasks_and_unknown_names_are_errors_with_a_hint(call: Any) -> None:
    for tool, arguments, words in (
        ("engine_add_task", {"title": "x", "accept": "true", "needs": ["nothing"]}, "does not exist"),
        ("engine_show_task", {"task": "nothing"}, "no task 'nothing'"),
        ("engine_file", {"path": "nothing.py"}, "not in the commit"),
        ("engine_map", {"repository": "elsewhere"}, "no repository 'elsewhere'"),
        ("engine_add_task", {"title": "", "accept": "true"}, "at least 1 character"),
    ):
        result = call(tool, **arguments)
        assert result.isError
        assert words in result.content[0].text


def test_the_map_and_a_file(call: Any) -> None:
    found = call("engine_map", query="parse", tokens=200).structuredContent
    assert found["text"].startswith("parser.py\n")
    assert found["tokens"] <= 200
    call("engine_add_task", title="Fix the parser", accept="true", files=["parser.py"])
    card = call("engine_file", path="parser.py").structuredContent
    assert [symbol["name"] for symbol in card["symbols"]] == ["Parser", "Parser.parse"]
    assert card["tests"] == ["test_parser.py"]
    assert card["tasks"][0].endswith("[blocked] Fix the parser")


def test_the_tools_stand_in_the_one_server(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avyay.wiring import open_services

    monkeypatch.chdir(root)
    with open_services(directory=root) as services:
        server = services.mcp_server(["engine"])

        async def run() -> Any:
            async with create_connected_server_and_client_session(server._mcp_server) as session:
                tools = {tool.name: tool for tool in (await session.list_tools()).tools}
                return tools, await session.call_tool("engine_map", {"query": "parse"})

        tools, found = anyio.run(run)
    assert sorted(tools) == ["engine_add_task", "engine_file", "engine_list_tasks", "engine_map", "engine_show_task"]
    assert tools["engine_map"].annotations.readOnlyHint
    assert not tools["engine_add_task"].annotations.readOnlyHint
    assert "class Parser" in found.structuredContent["text"]
