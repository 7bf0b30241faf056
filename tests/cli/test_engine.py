"""`avyay engine` as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository around the current folder."""
    folder = make_repository(tmp_path_factory.mktemp("project"))
    monkeypatch.chdir(folder)
    return folder


def make_repository(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for command in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def avyay(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", "engine", *arguments],
        env=dict(os.environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_add_show_why_graph_cancel_retry() -> None:
    assert avyay("add", "Fix the parser", "--id", "parser", "--evidence", "parser.py:7").stdout == "parser\n"
    assert avyay("add", "Release", "--id", "release", "--needs", "parser").returncode == 0
    listed = json.loads(avyay("list", "--json").stdout)
    assert [(task["id"], task["state"]) for task in listed["tasks"]] == [("parser", "ready"), ("release", "blocked")]
    assert "waits for parser" in avyay("show", "release").stdout
    assert "parser is ready" in avyay("why", "release").stdout
    assert avyay("graph").stdout == "parser [ready] Fix the parser\n  release [blocked] Release\n"
    assert "n0 --> n1" in avyay("graph", "--mermaid").stdout
    assert avyay("cancel", "parser", "--reason", "not needed").returncode == 0
    assert "needs parser, which is cancelled" in avyay("why", "release").stdout
    assert "ready" in avyay("retry", "parser").stderr
    assert "cancelled: not needed" in avyay("show", "parser").stdout
    assert len(json.loads(avyay("log", "--json").stdout)["history"]) == 6


def test_a_json_queue_comes_in_and_goes_out(tmp_path: Path) -> None:
    old = {
        "tasks": [
            {"id": "1", "name": "Old", "status": "completed"},
            {"id": "2", "name": "Write it", "prompt": "Do.", "depends_on": ["1"], "status": "in_progress"},
            {"id": 3, "name": "Test it", "dependencies": ["2"], "priority": 4},
        ]
    }
    file = tmp_path / "queue.json"
    file.write_text(json.dumps(old))
    assert avyay("import", str(file)).stdout == "2 tasks added\n"
    exported = avyay("export").stdout
    tasks = json.loads(exported)["tasks"]
    assert [(task["id"], task["state"], task["needs"]) for task in tasks] == [
        ("2", "ready", []),
        ("3", "blocked", ["2"]),
    ]
    again = avyay("import", str(file))
    assert again.returncode == 2
    assert "There is a task '2' already" in again.stderr


def test_mistakes() -> None:
    for arguments, words in [
        (("show", "nothing"), "There is no task 'nothing'"),
        (("list", "--state", "redy"), "There is no state 'redy'"),
        (("add", "  "), "no title"),
        (("add", "x", "--needs", "zzz"), "does not exist"),
        (("import", "nowhere.json"), "Cannot read"),
        (("retry", "nothing"), "There is no task"),
    ]:
        done = avyay(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
    broken = avyay("import", "-", stdin='[{"title": "x", "needs": 3}]')
    assert broken.returncode == 2
    assert "needs must be a list" in broken.stderr
    assert json.loads(avyay("list", "--json").stdout)["tasks"] == []


def test_nodes_are_listed_drained_and_resumed() -> None:
    (local,) = json.loads(avyay("nodes", "--json").stdout)["nodes"]
    assert local["node"] == "local"
    assert f"node:{local['node']}" in local["offers"]
    assert avyay("nodes", "drain", "local").stdout == "local is drained.\n"
    assert json.loads(avyay("nodes", "list", "--json").stdout)["nodes"][0]["state"] == "drained"
    assert avyay("nodes", "resume", "local").returncode == 0
    assert json.loads(avyay("nodes", "--json").stdout)["nodes"][0]["state"] == "idle"
    assert "There is no node 'laptop'" in avyay("nodes", "drain", "laptop").stderr
    assert avyay("nodes", "fly").returncode == 2


def test_a_drained_node_gets_no_tasks(tmp_path: Path) -> None:
    config = tmp_path / "avyay.yaml"
    agent = "{name: writer, kind: command, command: [sh, -c, 'echo x > x.txt']}"
    config.write_text(f"engine:\n  agents: [{agent}]\n")
    assert avyay("add", "Write", "--accept", "true").returncode == 0
    avyay("nodes", "drain", "local", "--config", str(config))
    planned = avyay("run", "--dry-run", "--json", "--config", str(config))
    assert json.loads(planned.stdout)["would_start"] == []
    avyay("nodes", "resume", "local", "--config", str(config))
    planned = avyay("run", "--dry-run", "--json", "--config", str(config))
    assert [row["node"] for row in json.loads(planned.stdout)["would_start"]] == ["local"]


def test_the_graph_as_a_picture_with_overlaps(tmp_path: Path) -> None:
    for name, files in (("a", "src/*.py"), ("b", "src/app.py"), ("c", "docs/")):
        assert avyay("add", f"Task {name}", "--id", name, "--files", files).returncode == 0
    assert "a and b do not run side by side" in avyay("graph").stdout
    picture = tmp_path / "tasks.svg"
    assert avyay("graph", "--format", "svg", "-o", str(picture)).returncode == 0
    assert picture.read_text().startswith("<svg ")
    assert "both touch" in picture.read_text()
    assert "-.-" in avyay("graph", "--format", "mermaid").stdout
    data = json.loads(avyay("graph", "--json").stdout)
    assert [overlap["tasks"] for overlap in data["overlaps"]] == [["a", "b"]]
    assert avyay("graph", "--mermaid", "--format", "svg").returncode == 2
    assert avyay("graph", "-o", str(tmp_path / "no" / "such")).returncode == 2


def test_planning_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    done = avyay("plan", "Add accounts")
    assert done.returncode == 4
    assert "No model is configured" in done.stderr


def test_generate_and_map(tmp_path: Path) -> None:
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        (tmp_path / "app.py").write_text("def serve():\n    pass  # TODO close the socket\n")
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    dry = json.loads(avyay("generate", str(tmp_path), "-s", "todo", "--dry-run", "--json").stdout)
    assert [task["evidence"] for task in dry["tasks"]] == [["app.py:2"]]
    assert (dry["dry_run"], dry["added"]) == (True, [])
    assert "1 task added" in avyay("generate", str(tmp_path), "-s", "todo").stdout
    assert "0 tasks added, 0 closed, 1 known already" in avyay("generate", str(tmp_path), "-s", "todo").stdout
    assert avyay("generate", str(tmp_path), "-s", "nonsense").returncode == 2
    nothing = avyay("generate", str(tmp_path), "-s", "coverage")
    assert nothing.returncode == 3
    assert "no coverage report" in nothing.stderr
    assert "def serve()" in avyay("map", "-r", str(tmp_path), "--query", "serve").stdout
    card = json.loads(avyay("map", str(tmp_path / "app.py"), "-r", str(tmp_path), "--json").stdout)
    assert card["symbols"][0]["name"] == "serve"
    assert card["tasks"][0]["state"] == "blocked"


def test_a_dry_run_says_what_it_would_do_and_why_not(tmp_path: Path) -> None:
    """In a clone whose default branch is not main, from its first command on."""
    repository = tmp_path / "clone"
    repository.mkdir()
    (repository / "parser.py").write_text("def parse_all(): ...\n")
    for command in (["init", "-q", "-b", "trunk"], ["add", "-A"], ["commit", "-qm", "Begin"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    agents = [{"name": "codex", "program": "/bin/true"}]
    config = tmp_path / "avyay.yaml"
    config.write_text(json.dumps({"engine": {"repository": str(repository), "agents": agents}}))
    there = ("--config", str(config))
    assert "There is nothing to do" in avyay("run", "--dry-run", *there).stdout
    checks = {row["what"]: row for row in json.loads(avyay("doctor", "--json", *there).stdout)["checks"]}
    assert "trunk at" in checks["repository default"]["detail"]
    (repository / "parser.py").write_text("def parse_all(): pass\n")
    checks = {row["what"]: row for row in json.loads(avyay("doctor", "--json", *there).stdout)["checks"]}
    mine = checks["repository default"]
    assert (mine["ok"], mine["note"], "uncommitted work in 1 file" in mine["detail"]) == (True, True, True)
    assert checks["dollars"]["note"]
    assert "Nothing counts what codex spends" in checks["dollars"]["detail"]
    warned = avyay("add", "Make `parse_all` quick", "--id", "quick", *there)
    assert "no acceptance command" in warned.stderr
    planned = avyay("run", "--dry-run", *there)
    assert (
        "quick  Make `parse_all` quick  -> codex on local; it is taken to touch parser.py; it will fail"
        in planned.stdout
    )
    assert "Nothing counts what codex spends" in planned.stderr
    assert avyay("cancel", "quick").returncode == 0
    assert avyay("add", "Later", "--id", "later", "--requires", "gpu", "--accept", "true", *there).stderr == ""
    held = avyay("run", "--dry-run", *there).stdout
    assert (
        held
        == "Nothing can be started now (1 cancelled, 1 ready): avyay engine why TASK tells what a task waits for.\n"
    )
    assert "when a node that offers gpu is free" in avyay("why", "later").stdout


def configure(project: Path, **engine: object) -> tuple[str, str]:
    """Settings that need no trust."""
    config = project.parent / f"{project.name}.yaml"
    config.write_text(json.dumps({"engine": {"verify": {"scan": "off", "accept": "true"}, **engine}}))
    return "--config", str(config)


def script(*lines: str) -> dict[str, object]:
    return {"name": "script", "kind": "command", "command": ["sh", "-c", "\n".join(lines)]}


def test_a_task_stays_in_its_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = configure(project, agents=[script("echo x > x.txt")])
    assert avyay("add", "Mine", "--id", "mine").returncode == 0
    monkeypatch.chdir(make_repository(tmp_path / "other"))
    assert avyay("add", "Yours", "--id", "yours").returncode == 0
    planned = json.loads(avyay("run", "--dry-run", "--json", *here).stdout)["would_start"]
    assert [row["task"] for row in planned] == ["yours"]
    assert f"avyay engine run in {project} starts it" in avyay("why", "mine").stdout
    listed = avyay("list").stdout
    assert "Repository" in listed
    assert project.name in listed
    added = avyay("add", "Back", "--id", "back", "--repository", str(project))
    assert (added.returncode, json.loads(avyay("show", "back", "--json").stdout)["repository"]) == (0, str(project))
    unknown = avyay("add", "x", "--repository", "nope")
    assert (unknown.returncode, "There is no repository 'nope'" in unknown.stderr) == (2, True)
    monkeypatch.chdir(tmp_path)
    nowhere = avyay("add", "x")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "is in no git repository" in nowhere.stderr


def test_a_run_tells_what_happens_and_what_came_of_it(project: Path) -> None:
    here = configure(project, agents=[script("mktemp ./x-XXXXXX")])
    avyay("add", "Write", "--id", "good", *here)
    avyay("add", "Cheat", "--id", "bad", "--accept", "false", "--attempts", "1", *here)
    done = avyay("run", "--once", *here)
    assert done.returncode == 1
    assert "good  done  merged as" in done.stdout
    assert "bad  dead  refused: `false` failed" in done.stdout
    for words in (
        "good began to run (script on local)",
        "good was handed to verification (1 file changed)",
        "good was done (merged as",
        "bad failed: refused: `false` failed",
    ):
        assert words in done.stderr
    (last,) = avyay("log", "-n", "1").stdout.splitlines()
    assert re.match(r" *\d+  \d{4}-\d\d-\d\d [\d:]{8}Z  bad  failed +verifying -> dead", last)


def test_an_agent_without_a_key(project: Path, tmp_path: Path) -> None:
    """Before and after: what it lacks, that the task was given back, and that it need not wait once it is mended."""
    program = tmp_path / "claude"
    told = {"type": "result", "subtype": "success", "is_error": True, "num_turns": 1, "result": "401 Not logged in"}
    program.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\nexit 1\n")
    program.chmod(0o755)
    bare = configure(project, agents=[{"name": "codex"}], nodes=[{"name": "here", "agents": ["codex"]}])
    checks = {row["what"]: row for row in json.loads(avyay("doctor", "--json", *bare).stdout)["checks"]}
    if shutil.which("codex"):
        assert not checks["models"]["ok"]
        assert (
            "codex reaches no model, for it does not see your login: set OPENAI_API_KEY" in checks["models"]["detail"]
        )
    here = configure(project, agents=[{"name": "claude", "program": str(program)}])
    avyay("add", "Write", "--id", "one", *here)
    done = avyay("run", "--once", "--json", *here)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert (result["ended"], [row["task"] for row in result["given_back"]]) == ([], ["one"])
    assert "sooner: avyay engine retry one" in avyay("why", "one").stdout
    assert "one is ready" in avyay("retry", "one").stderr
    again = avyay("retry", "one")
    assert (again.returncode, "nothing to retry" in again.stderr) == (2, True)


def test_a_router_that_is_away(project: Path) -> None:
    with socket.socket() as taken:  # nobody listens on it
        taken.bind(("127.0.0.1", 0))
        here = configure(project, agents=[script("true")], models=f"http://127.0.0.1:{taken.getsockname()[1]}")
        avyay("add", "Write", "--id", "one", *here)
        done = avyay("run", "--once", *here)
        assert (done.returncode, done.stdout) == (3, "")
        assert "The bill cannot be read" in done.stderr
        assert "avyay serve marga" in done.stderr
        checked = avyay("doctor", "--json", *here)
        assert checked.returncode == 1
        today = next(row for row in json.loads(checked.stdout)["checks"] if row["what"] == "today")
        assert (today["ok"], "The bill cannot be read" in today["detail"]) == (False, True)
        assert "The bill cannot be read" in avyay("run", "--dry-run", *here).stderr


def test_a_day_that_is_used_up(project: Path) -> None:
    here = configure(project, agents=[script("sleep 0.2")], caps={"day_wall": 0.1})
    avyay("add", "Write", "--id", "one", "--attempts", "1", *here)
    assert avyay("run", "--once", *here).returncode == 1
    avyay("add", "Write", "--id", "two", *here)
    done = avyay("run", "--once", *here)
    assert (done.returncode, done.stdout) == (5, "No task ended.\n")
    assert "No more is begun today: agents have worked" in done.stderr


def test_several_at_once(project: Path) -> None:
    for name in ("a", "b", "c"):
        avyay("add", name, "--id", name, "--approval")
    approved = avyay("approve", "a", "b")
    assert approved.stderr == "a is ready.\nb is ready.\n"
    story = avyay("show", "a").stdout
    assert story.count("was approved by") == 1
    assert avyay("cancel", "a", "c").stderr == "Cancelled a.\nCancelled c.\n"
    assert avyay("retry", "a", "c").stderr == "a is ready.\nc is blocked.\n"


def test_commands_are_listed_in_the_order_of_their_use() -> None:
    listed = avyay("--help").stdout.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.strip()][:5] == ["add", "run", "list", "show", "why"]
    assert "..." not in "".join(listed)
