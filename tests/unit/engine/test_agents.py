"""How agents are started: command lines, environment, files. That the real programs take them: test_real_agents.py."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import pytest
from engine_site import Site

from avyay.config.engine import EngineAgentSettings
from avyay.engine.agents.base import Access, Invocation, WorkPlace
from avyay.engine.agents.registry import KINDS, installed_agents, make_agent
from avyay.engine.nodes.local import clean_environment
from avyay.engine.prompt import build_prompt, last_failure
from avyay.engine.types import Entry, NewTask
from avyay.ports import Passage

PLACE = WorkPlace(PurePosixPath("/a/tree"), PurePosixPath("/a/home"), PurePosixPath("/a/prompt.md"))
HEADERS = {"x-avyay-service": "engine", "x-avyay-customer": "t-1"}
ROUTED = Access("http://127.0.0.1:8081", "sk-1", HEADERS, routed=True)


def invoke(kind: str, access: Access = ROUTED, *arguments: str) -> Invocation:
    agent = make_agent(
        EngineAgentSettings(name=kind, command=("run", "{prompt}", "{work}") if kind == "command" else ())
    )
    return agent.invoke(PLACE, access, program=f"/bin/{kind}", turns=7, arguments=arguments)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_key_is_in_no_command_line(kind: str) -> None:
    """Command lines can be read by every user of the machine."""
    assert "sk-1" not in " ".join(invoke(kind).argv)


@pytest.mark.parametrize("kind", ["claude", "codex", "opencode", "aider", "command"])
def test_url_key_and_headers_reach_the_agent(kind: str) -> None:
    made = invoke(kind)
    everything = json.dumps([made.argv, dict(made.environment), dict(made.files)])
    for wanted in ("http://127.0.0.1:8081", "sk-1", "x-avyay-customer", "t-1"):
        assert wanted in everything, wanted


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_prompt_is_never_an_argument(kind: str) -> None:
    """It may be long, and it is nobody else's business."""
    made = invoke(kind)
    assert made.prompt_on_stdin or "/a/prompt.md" in made.argv


def test_configured_arguments_replace_what_the_driver_would_allow() -> None:
    assert "--allowedTools" not in invoke("claude", ROUTED, "--permission-mode", "plan").argv
    assert "--dangerously-bypass-approvals-and-sandbox" not in invoke("codex", ROUTED, "-s", "workspace-write").argv


def test_without_a_router_agents_count_dollars_themselves() -> None:
    made = invoke("claude", Access(key="k", budget="2.5"))
    assert made.argv[made.argv.index("--max-budget-usd") + 1] == "2.5"
    assert "ANTHROPIC_BASE_URL" not in made.environment


def test_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    mine = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "ANTHROPIC_API_KEY": "x", "SSH_AUTH_SOCK": "x", "WANTED": "y"}
    seen = clean_environment(mine, tmp_path, "WANTED")
    assert seen["PATH"] == "/bin"
    assert seen["WANTED"] == "y"
    assert seen["HOME"] == str(tmp_path)
    assert not {"AWS_SECRET_ACCESS_KEY", "ANTHROPIC_API_KEY", "SSH_AUTH_SOCK"} & set(seen)


def test_an_agent_sees_neither_our_home_nor_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    site = Site(tmp_path)
    site.add("one", "env > env.txt", "pwd >> env.txt")
    site.run()
    seen = (site.repository / "env.txt").read_text()
    assert "hush" not in seen
    assert re.search(r"/attempts/one/\d+/home\n", seen)
    assert re.search(r"/attempts/one/\d+/tree$", seen.rstrip())


def test_only_what_is_installed_is_offered(tmp_path: Path) -> None:
    (tmp_path / "codex").write_text("#!/bin/sh\n")
    (tmp_path / "codex").chmod(0o755)
    assert list(installed_agents((), path=str(tmp_path))) == ["codex"]
    mine = EngineAgentSettings(name="mine", kind="claude", program=str(tmp_path / "codex"))
    assert installed_agents([mine], path="")["mine"].program == str(tmp_path / "codex")


def test_the_prompt_says_what_counts(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add("one", evidence=("parser.py:7",), files=("parser.py",), allow=frozenset({"locks"}))
    prompt = build_prompt(
        site.task("one"),
        accept="make test",
        turns=20,
        wall=600,
        dollars="5",
        rules=("AGENTS.md", "Use tabs."),
        context="parser.py: parse()",
        runbooks=[Passage("s", "runbook.md", "Parsing", 1, 9, "a" * 40, "Restart it.", 1.0)],
        failure=("`make test` failed (exit 2)", "E: boom"),
    )
    for wanted in (
        "parser.py:7",
        "`make test`",
        "E: boom",
        "Use tabs.",
        "parse()",
        "runbook.md:1-9@aaaaaaa",
        "20 turns",
    ):
        assert wanted in prompt, wanted
    assert "existing tests, CI configuration are refused" in prompt


def test_what_failed_before_a_retry_by_hand_is_forgotten() -> None:
    failed = Entry(1, "t", 0.0, "failed", "verifying", "ready", None, 1, "refused: x; again in 3 s", {"log": "red"})
    assert last_failure([failed]) == ("refused: x; again in 3 s", "red")
    assert last_failure([failed, Entry(2, "t", 0.0, "retried", "dead", "ready", None, None)]) == ("", "")


def test_a_named_agent_is_a_required_capability() -> None:
    assert NewTask("t", agent="codex", requires=frozenset({"os:linux"})).requires == {"os:linux", "agent:codex"}
