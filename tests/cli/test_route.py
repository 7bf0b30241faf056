"""`avyay route` and `avyay marga` as a user meets them: real processes, a scripted provider, a real ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from upstream import Reply, Upstream

from avyay.cli import marga, route
from avyay.errors import UsageError

ROOT = str(Path(__file__).resolve().parents[2])
EXAMPLE = """\
providers:
  - name: openai
    endpoint: https://api.openai.com/v1
    circuit_breaker: {failure_threshold: 5, recovery_timeout: 30s, error_rate_threshold: 0.5, window_size: 60s}
  - name: anthropic
    endpoint: https://api.anthropic.com/v1
    priority: 2
  - name: ollama-mac
    endpoint: http://127.0.0.1:1
    kind: ollama
    priority: 3
    circuit_breaker: {failure_threshold: 3, recovery_timeout: 15s}
health_check: {interval: 30s, timeout: 5s}
"""


def avyay(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        cwd=os.environ["HOME"],  # not where this project's own avyay.yaml is
        check=False,
    )


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def openai(upstream: Upstream) -> dict[str, str]:
    return {"OPENAI_API_KEY": "sk-canary-0123456789abcdef", "OPENAI_BASE_URL": f"{upstream.url}/v1"}


def test_answer_streams_to_stdout_and_one_line_to_stderr(upstream: Upstream) -> None:
    upstream.default = Reply("A monad is a monoid.", input=11, output=7)
    done = avyay("route", "What is a monad?", **openai(upstream))
    assert (done.returncode, done.stdout) == (0, "A monad is a monoid.\n")
    (line,) = done.stderr.splitlines()
    for part in ("openai/gpt-6-luna", "medium", "11 tokens in, 7 out", "$0.0000046", " s · dec_"):
        assert part in line
    assert upstream.calls[0].body["stream"] is True
    assert upstream.calls[0].headers["authorization"] == "Bearer sk-canary-0123456789abcdef"


def test_reads_standard_input_and_prints_json(upstream: Upstream) -> None:
    done = avyay("route", "-", "--json", "--model", "gpt-4o", stdin="hello", **openai(upstream))
    data = json.loads(done.stdout)
    assert (data["text"], data["model"], data["provider"]) == ("Hello from upstream.", "gpt-4o", "openai")
    assert data["cost_usd"] == "0.00008"  # 12 x $2.50 and 5 x $10 a million
    assert upstream.calls[0].body["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("kind", ["anthropic", "ollama"])
def test_other_dialects(upstream: Upstream, kind: str) -> None:
    upstream.models = ["qwen3:4b"]
    environment = {
        "anthropic": {"ANTHROPIC_API_KEY": "sk-ant-1", "ANTHROPIC_BASE_URL": upstream.url},
        "ollama": {"OLLAMA_HOST": upstream.url},
    }[kind]
    done = avyay("route", "hi", **environment)
    assert (done.returncode, done.stdout) == (0, "Hello from upstream.\n"), done.stderr
    assert "12 tokens in, 5 out" in done.stderr
    whole = avyay("route", "hi", "--json", **environment)
    assert json.loads(whole.stdout)["tokens"]["output"] == 5


def test_every_call_is_in_the_ledger(upstream: Upstream) -> None:
    upstream.script.extend([Reply("one"), Reply(status=500), Reply(status=500), Reply(status=500)])
    assert avyay("route", "first", **openai(upstream)).returncode == 0
    failed = avyay("route", "second", **openai(upstream))
    assert failed.returncode == 3
    listed = json.loads(avyay("marga", "decisions", "--json").stdout)["decisions"]
    assert [row["status"] for row in listed] == ["error", "ok"]
    assert f"avyay marga explain {listed[0]['id']}" in failed.stderr
    explained = json.loads(avyay("marga", "explain", listed[0]["id"][-12:], "--json").stdout)["decision"]
    assert [attempt["status"] for attempt in explained["detail"]["attempts"]] == [500, 500, 500]
    assert explained["detail"]["reasons"]
    stats = json.loads(avyay("marga", "stats", "--by", "status", "--json").stdout)
    assert {group["group"]: group["calls"] for group in stats["groups"]} == {"ok": 1, "error": 1}
    assert avyay("marga", "explain", "nonsense").returncode == 2
    assert json.loads(avyay("marga", "explain", "--json").stdout)["decision"]["id"] == listed[0]["id"]  # the newest
    assert [
        r["status"] for r in json.loads(avyay("marga", "decisions", "--status", "ok", "--json").stdout)["decisions"]
    ] == ["ok"]
    assert "No such call" in avyay("marga", "decisions", "--status", "aborted").stderr
    assert avyay("marga", "decisions", "--status", "fine").returncode == 2
    for command in (("decisions",), ("stats",), ("explain", listed[0]["id"])):
        assert "canary" not in avyay("marga", *command).stdout


def test_stream_that_breaks_off_is_an_error_and_billed_as_estimated(upstream: Upstream) -> None:
    upstream.default = Reply("one two three four", fault="cut", cut=3)
    done = avyay("route", "hi", **openai(upstream))
    assert done.returncode == 3
    assert done.stdout == "one two\n"
    assert "broke off" in done.stderr
    assert ".." not in done.stderr
    (row,) = json.loads(avyay("marga", "decisions", "--json").stdout)["decisions"]
    assert (row["status"], row["estimated"], row["output"] > 0) == ("truncated", True, True)


def test_a_bad_request_is_not_tried_elsewhere(upstream: Upstream) -> None:
    upstream.default = Reply(status=400, message="max_tokens is too large")
    done = avyay("route", "hi", **openai(upstream))
    assert done.returncode == 2
    assert "max_tokens is too large" in done.stderr
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("word", sorted(route._COMMANDS))
def test_a_commands_name_is_not_sent_as_a_prompt(word: str) -> None:
    if word != "usage":
        assert word in {
            command.name or command.callback.__name__ for command in marga.app.registered_commands if command.callback
        }
    with pytest.raises(UsageError, match="not for a prompt") as raised:
        route._prompt(word)
    assert f" {word} " in (raised.value.hint or "")


def test_the_word_of_a_command_can_be_sent(upstream: Upstream) -> None:
    done = avyay("route", "stats", **openai(upstream))
    assert (done.returncode, upstream.calls) == (2, [])
    assert avyay("route", stdin="stats", **openai(upstream)).returncode == 0


BUDGETED = """\
marga:
  discover: false
  budgets: [{{per: key, daily: 0.5}}]
  providers:
    - {{name: first, kind: openai, endpoint: "{first}/v1", api_key_env: KEY, models: [gpt-4o-mini]}}
    - {{name: second, kind: anthropic, endpoint: "{second}", api_key_env: KEY, priority: 2, models: [claude-haiku-4-5]}}
"""


def test_budgets_are_shown_before_anything_was_spent(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "avyay.yaml"
    file.write_text(BUDGETED.format(first=upstream.url, second=upstream.url).replace("per: key", "per: service"))

    def shown() -> list[tuple[str, str]]:
        rows = json.loads(avyay("marga", "budgets", "--json", "--config", str(file)).stdout)["budgets"]
        return [(row["budget"].partition("/")[0], row["cap_usd"]) for row in rows]

    assert shown() == [("service:*", "0.5")]
    assert avyay("route", "hi", "--config", str(file), KEY="sk-1").returncode == 0
    ((name, cap),) = shown()
    assert (name.startswith("service:"), name != "service:*", cap) == (True, True, "0.5")


def test_a_dearer_provider_takes_over_where_the_budget_covers_it(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = Reply(status=500)
    file = tmp_path / "avyay.yaml"
    with Upstream() as second:
        file.write_text(BUDGETED.format(first=upstream.url, second=second.url))
        done = avyay("route", "hi", "--config", str(file), KEY="sk-1")
        assert (done.returncode, done.stdout) == (0, "Hello from upstream.\n"), done.stderr
        file.write_text(file.read_text().replace("0.5", "0.02"))  # covers the first at most
        refused = avyay("route", "hi", "--config", str(file), KEY="sk-1")
    assert refused.returncode != 0
    assert len(second.calls) == 1
    explained = json.loads(avyay("marga", "explain", "--json").stdout)["decision"]["detail"]["attempts"]
    assert "budget_exceeded" in [attempt["outcome"] for attempt in explained]


def test_what_a_refusal_by_the_budget_says(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "avyay.yaml"
    file.write_text(BUDGETED.format(first=upstream.url, second=upstream.url).replace("0.5", "0.001"))
    done = avyay("route", "hi", "--config", str(file), KEY="sk-1")
    assert done.returncode == 5
    assert "The budget key:(none)/day:" in done.stderr
    assert "of $0.001. Wait until" in done.stderr
    named = avyay("route", "hi", "--model", "gpt-nope", "--config", str(file), KEY="sk-1")
    assert named.returncode == 5
    assert "'gpt-nope'" in named.stderr
    groups = json.loads(avyay("marga", "stats", "--json").stdout)["groups"]
    assert [group["group"] for group in groups] == ["nobody"]


def test_expired_key(upstream: Upstream) -> None:
    upstream.default = Reply(status=401, message="Incorrect API key provided: sk-canary-0123456789abcdef")
    done = avyay("route", "hi", **openai(upstream))
    assert done.returncode == 4
    assert "canary" not in done.stderr


@pytest.mark.parametrize("fault", ["refuse", "garbage"])
def test_nonsense_is_an_error(upstream: Upstream, fault: str) -> None:
    upstream.default = Reply(fault=fault)
    done = avyay("route", "hi", **openai(upstream))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_without_a_provider() -> None:
    done = avyay("route", "hi")
    assert (done.returncode, done.stdout) == (4, "")
    for way in ("OPENAI_API_KEY", "Ollama", "avyay.yaml"):
        assert way in done.stderr


def test_a_provider_whose_key_is_not_set_is_named(tmp_path: Path) -> None:
    file = tmp_path / "avyay.yaml"
    file.write_text(
        "marga: {providers: [{name: mine, endpoint: 'http://127.0.0.1:9/v1', api_key_env: MY_KEY, models: [m]}]}\n"
    )
    done = avyay("route", "hi", "--config", str(file))
    assert done.returncode == 4
    assert done.stderr == "avyay: No provider can be used: mine (no key: set MY_KEY).\nSee: avyay marga providers\n"


def test_usage_right_afterwards_is_the_bill(upstream: Upstream) -> None:
    assert avyay("usage").stdout == ""
    upstream.default = Reply("x", input=100, output=50)
    costs = [json.loads(avyay("route", "hi", "--json", **openai(upstream)).stdout)["cost_usd"] for _ in range(3)]
    (row,) = json.loads(avyay("usage", "--json").stdout)["router"]
    assert (row["key"], row["calls"], row["input"], row["output"]) == (None, 3, 300, 150)
    assert Decimal(row["cost_usd"]) == sum(map(Decimal, costs)) > 0
    shown = avyay("usage")
    assert f"${row['cost_usd']}" in shown.stdout
    assert "no key: the command line" in shown.stderr


def test_explain_without_a_provider_shows_models_one_could_have() -> None:
    done = avyay("route", "What is the capital of France?", "--explain", "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 0
    assert data["configured"] is False
    assert [tier["tier"] for tier in data["tiers"]] == ["local", "medium", "premium"]
    assert data["tiers"][0]["estimated_cost_usd"] == "0"
    assert float(data["tiers"][2]["estimated_cost_usd"]) > float(data["tiers"][1]["estimated_cost_usd"]) > 0
    assert "not configured" in avyay("route", "hi", "--explain").stdout


def test_explain_calls_nobody(upstream: Upstream) -> None:
    done = avyay("route", "hi", "--explain", "--json", **openai(upstream))
    assert json.loads(done.stdout)["configured"] is True
    assert upstream.requests == []


def test_harder_prompts_go_to_higher_tiers() -> None:
    prompts = (
        "Translate 'good morning' into French.",
        "Write a short summary of how a TCP handshake works and why it needs three steps. " * 6,
        "Design a distributed lock service: compare trade-offs, prove step by step that at most one client holds the"
        " lock, and implement the algorithm. It must never block, must ensure fairness and must survive partitions.",
    )
    tiers = [json.loads(avyay("route", p, "--explain", "--json").stdout)["tier"] for p in prompts]
    assert tiers == ["local", "medium", "premium"]


def test_a_routers_own_file_loads(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(EXAMPLE)
    done = avyay("marga", "providers", "--json", "--config", str(config), ANTHROPIC_API_KEY="sk-ant-1")
    rows = {row["name"]: row for row in json.loads(done.stdout)["providers"]}
    assert [row["kind"] for row in rows.values()] == ["openai", "anthropic", "ollama"]
    assert rows["openai"]["state"] == "no key: set OPENAI_API_KEY"
    assert rows["anthropic"]["usable"] is True
    explained = avyay("route", "hi", "--explain", "--json", "--config", str(config), ANTHROPIC_API_KEY="sk-ant-1")
    assert json.loads(explained.stdout)["provider"] == "anthropic"


def test_everything_over_a_daemon(upstream: Upstream, tmp_path: Path) -> None:
    from daemon import Daemon

    provider = {"name": "far", "kind": "openai", "endpoint": f"{upstream.url}/v1", "api_key_env": "K"}
    provider["models"] = [{"name": "m", "input_price": 1, "output_price": 2}]  # type: ignore[assignment]
    budgets = [{"daily": 3}]
    with Daemon(tmp_path, {"providers": [provider], "budgets": budgets}, key="secret", K="k") as daemon:
        there = {"AVYAY_MARGA_URL": daemon.url, "MARGA_API_KEY": "secret"}
        streamed = avyay("route", "hi", **there)
        assert (streamed.returncode, streamed.stdout) == (0, "Hello from upstream.\n"), streamed.stderr
        assert "far/m · medium" in streamed.stderr
        assert "$0.000022" in streamed.stderr  # the final cost of a stream, read by its decision
        whole = json.loads(avyay("route", "hi", "--json", **there).stdout)
        assert (whole["cost_usd"], whole["tokens"]["input"]) == ("0.000022", 12)
        assert whole["decision_id"].startswith("dec_")
        (row,) = json.loads(avyay("marga", "providers", "--json", **there).stdout)["providers"]
        assert (row["name"], row["state"]) == ("far", "closed")
        assert avyay("route", "hi", **there | {"MARGA_API_KEY": "wrong"}).returncode == 4
        same_home = {"AVYAY_HOME": str(daemon.database.parents[2])}
        config = str(tmp_path / "marga.yaml")
        (cap,) = json.loads(avyay("marga", "budgets", "--json", "--config", config, **same_home).stdout)["budgets"]
        assert cap["cap_usd"] == "3"
    assert avyay("route", "hi", **there).returncode == 3  # nobody listens there any more


def test_bad_input() -> None:
    assert avyay("route", "").returncode == 2
    assert avyay("route", "hi", "--tier", "gold").returncode == 2
    unknown = avyay("route", "hi", "--model", "no-such-model", OPENAI_API_KEY="sk-1")
    assert unknown.returncode == 2
    assert "no-such-model" in unknown.stderr
    assert avyay("marga", "stats", "--by", "colour").returncode == 2
    assert avyay("marga", "prices", "no-such-model").returncode == 2


def test_a_home_that_cannot_be_written_costs_nothing(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = avyay("route", "hi", AVYAY_HOME=str(tmp_path / "file"), **openai(upstream))
    assert done.returncode == 2
    assert "AVYAY_HOME" in done.stderr
    assert upstream.calls == []


def test_explain_imports_nothing_heavy() -> None:
    code = (
        "import sys; from avyay.cli.app import run; run(['route', 'hi', '--explain', '-q']);"
        "heavy = {'openai', 'anthropic', 'ollama', 'aiohttp', 'lancedb', 'numpy', 'mcp', 'starlette', 'httpx2'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_price_table() -> None:
    data = json.loads(avyay("marga", "prices", "gpt-4o-mini", "--json").stdout)
    row = next(row for row in data["prices"] if row["of"] == "openai" and row["model"] == "gpt-4o-mini")
    assert row["usd_per_million"] == {"input": "0.15", "output": "0.6", "cached": "0.075"}
    assert data["date"]
