"""Dollars: the router's bill of a task ends its agent, and the bill of a day ends dispatching."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Daemon
from engine_site import Site
from outbox import told
from scripted_provider import ScriptedProvider
from upstream import Reply, Upstream

from avyay.engine.types import NewTask
from avyay.errors import UnreachableError
from avyay.events.outbox import Outboxes
from avyay.marga.charges import RemoteBill
from avyay.money import DOLLAR, Picodollars
from avyay.ports import Bill

# An agent that never stops asking: it sends the headers it was given, as real agents are told to.
SPENDER = """
import json, os, sys, urllib.request
headers = dict(line.split(": ", 1) for line in os.environ["AVYAY_MODEL_HEADERS"].splitlines())
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "go on"}]}).encode()
for number in range(int(sys.argv[1])):
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body,
                                     {"content-type": "application/json", **headers})
    print(number, len(urllib.request.urlopen(request, timeout=30).read()), flush=True)
open("out.txt", "w").write("done")
"""
ONE_DOLLAR = {"name": "m", "input_price": "1000000", "output_price": "0"}  # a token is a dollar


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        made.default = Reply(input=1, output=1)
        yield made


@pytest.fixture
def router(tmp_path: Path, upstream: Upstream) -> Iterator[Daemon]:
    provider = {"name": "one", "kind": "openai-compatible", "endpoint": f"{upstream.url}/v1", "models": [ONE_DOLLAR]}
    with Daemon(tmp_path / "router", {"providers": [provider]}) as daemon:
        yield daemon


def spender(tmp_path: Path, **settings: object) -> Site:
    (tmp_path / "spender.py").write_text(SPENDER)
    command = [sys.executable, "-P", str(tmp_path / "spender.py")]
    agents = [{"name": "frugal", "kind": "command", "command": [*command, "2"]},
              {"name": "endless", "kind": "command", "command": [*command, "100000"]}]  # fmt: skip
    return Site(tmp_path, agents=agents, heartbeat=0.2, **settings)


def offers(router: Daemon) -> dict[str, object]:
    return {"models": router.url, "bill": RemoteBill(router.url)}


class TestDollars:
    def test_the_routers_bill_ends_an_agent(self, tmp_path: Path, router: Daemon) -> None:
        site = spender(tmp_path, caps={"dollars": 3})
        site.add("one", agent="endless")
        site.run(**offers(router))
        task = site.task("one")
        assert task.state == "failed"  # its dollars are gone, another attempt would have none
        assert "spent" in task.reason
        bill = RemoteBill(router.url).customer("one", 0.0)
        assert bill.cost >= 3 * DOLLAR
        assert site.data("one", "failed")["picodollars"] >= 3 * DOLLAR
        assert RemoteBill(router.url).service("engine", 0.0) == bill

    def test_what_it_cost_stands_in_the_history(self, tmp_path: Path, router: Daemon) -> None:
        site = spender(tmp_path)
        site.add("one", agent="frugal", accept="test -f out.txt")
        site.run(**offers(router))
        assert site.task("one").state == "done"
        assert RemoteBill(router.url).customer("one", 0.0) == Bill(Picodollars(2 * DOLLAR), 2)
        assert site.data("one", "verifying")["picodollars"] == 2 * DOLLAR

    def test_a_day_that_is_spent_starts_nothing(self, tmp_path: Path, router: Daemon) -> None:
        site = spender(tmp_path, caps={"day": 2})
        site.add("one", agent="frugal", accept="test -f out.txt")
        site.add("two", agent="frugal", accept="test -f out.txt", needs=("one",))
        site.run(**offers(router))
        assert site.task("one").state == "done"
        assert (site.task("two").state, site.task("two").attempt) == ("ready", 0)

    def test_a_day_near_its_cap_is_told_once_and_spent_once(self, tmp_path: Path, router: Daemon) -> None:
        site = spender(tmp_path, caps={"day": 4})
        outboxes = Outboxes(site.paths.data)
        site.add("one", agent="frugal", accept="test -f out.txt")
        for share, events in ((0.6, []), (0.5, ["neared"]), (0.5, ["neared"])):
            site.run(**offers(router), events=outboxes, near=share)
            found = told(site.paths.data / "engine" / "events.db")
            assert [name.removeprefix("engine.budget.") for name, _ in found] == events
        assert (found[0][1]["spent_usd"], found[0][1]["cap_usd"], found[0][1]["used"]) == ("2", "4", 0.5)
        site.commit({"out.txt": ""})
        site.add("two", agent="frugal", accept="test -f out.txt && test -f out.txt")
        for _ in range(2):
            site.run(**offers(router), events=outboxes)
        outboxes.close()
        found = told(site.paths.data / "engine" / "events.db")
        assert [name.removeprefix("engine.budget.") for name, _ in found] == ["neared", "exhausted"]

    def test_a_bill_that_cannot_be_read_starts_nothing(self, tmp_path: Path, router: Daemon) -> None:
        site = spender(tmp_path)
        site.add("one", agent="frugal", accept="test -f out.txt")
        with pytest.raises(UnreachableError, match="The bill cannot be read"):
            site.run(models=router.url, bill=RemoteBill("http://127.0.0.1:9"))
        assert (site.task("one").state, site.task("one").attempt) == ("ready", 0)
        with pytest.raises(UnreachableError):
            RemoteBill("http://127.0.0.1:9").customer("one", 0.0)


@pytest.mark.needs("claude")
def test_claude_through_the_router_is_billed_to_its_task(tmp_path: Path) -> None:
    scripted = ScriptedProvider()
    try:
        provider = {
            "name": "one",
            "kind": "anthropic",
            "endpoint": scripted.url,
            "models": [ONE_DOLLAR],
            "tier": "premium",
        }
        with Daemon(
            tmp_path / "router", {"providers": [{**provider, "api_key_env": "SOME_KEY"}]}, SOME_KEY="sk-x"
        ) as daemon:
            site = Site(tmp_path, agents=[{"name": "claude", "model": "m"}], caps={"dollars": 1_000_000})
            queue = site.open_queue()
            queue.add([NewTask("Task", "[[run: echo hi > out.txt]] [[say: done]]", id="one")])
            queue.close()
            site.run(**offers(daemon))
            assert site.task("one").state == "done", site.task("one").reason
            calls = [call for call in daemon.calls(2) if call["customer"] == "one"]
            assert {(call["service"], call["session"]) for call in calls} == {("engine", "one/1")}
            assert RemoteBill(daemon.url).customer("one", 0.0).cost == sum(call["cost"] for call in calls) > 0
    finally:
        scripted.close()
