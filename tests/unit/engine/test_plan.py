"""Plans that a model proposes: checked, sent back once, refused; never queued unread."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from scripted_model import Model

from avyay.engine.exchange import read_tasks
from avyay.engine.generate.plan import SCHEMA, BadPlanError, plan, read_plan
from avyay.errors import UnreachableError
from avyay.ports import Completion, CompletionReply


def row(key: str, **values: Any) -> dict[str, Any]:
    return {
        "key": key, "title": f"Do {key}", "description": "", "accept": "true", "files": [], "needs": [],
        "size": "small", **values,
    }  # fmt: skip


def text(*rows: dict[str, Any]) -> str:
    return json.dumps({"tasks": list(rows)})


class Sequel(Model):
    """Says one thing after the other."""

    def __init__(self, *texts: str) -> None:
        super().__init__(texts[0])
        self.texts = list(texts)

    async def complete(self, request: Completion) -> CompletionReply:
        self.text = self.texts.pop(0)
        return await super().complete(request)


def test_a_plan_becomes_tasks() -> None:
    model = Model(text(row("schema", files=["db/*.py"]), row("api", needs=["schema", "schema"], size="large")))
    first, second = asyncio.run(plan(model, "Add accounts", "db/x.py", prefix="p1"))
    assert (first.id, first.files, first.accept) == ("p1-schema", ("db/*.py",), "true")
    assert (second.needs, second.size) == (("p1-schema",), "large")
    (asked,) = model.asked
    assert asked.json_schema == SCHEMA
    assert "Add accounts" in asked.messages[1].content
    assert "db/x.py" in asked.messages[1].content


def test_fenced_answers_are_read() -> None:
    assert read_plan(f"Here you are:\n```json\n{text(row('a'))}\n```\nGood luck!")[0].id == "p-a"


@pytest.mark.parametrize(
    "answer, words",
    [
        ("I cannot", "not JSON"),
        ("[]", "not JSON"),
        (text(), "1 to 40"),
        (text(row("a", needs=["b"]), row("b", needs=["a"])), "wait for each other: a -> b -> a"),
        (text(row("a", needs=["a"])), "wait for each other"),
        (text(row("a", needs=["z"])), "needs 'z', which does not exist"),
        (text(row("a"), row("a")), "used twice"),
        (text(row("a b")), "must match"),
        (text(row("a", size="huge")), "one of small"),
        (text(row("a", files="x")), "list of texts"),
        (text(row("a", title=" ")), "too short"),
        (text(row("a", colour="red")), "unknown field 'colour'"),
        (json.dumps({"tasks": ["a"]}), "not an object"),
    ],
)
def test_what_is_no_plan_is_refused(answer: str, words: str) -> None:
    with pytest.raises(BadPlanError, match=words):
        read_plan(answer)


def test_a_bad_plan_is_sent_back_once_with_what_is_wrong() -> None:
    model = Sequel(text(row("a", needs=["z"])), text(row("a")))
    assert len(asyncio.run(plan(model, "x", ""))) == 1
    assert "needs 'z', which does not exist" in model.asked[1].messages[-1].content
    stubborn = Model("no")
    with pytest.raises(BadPlanError, match="no usable plan"):
        asyncio.run(plan(stubborn, "x", ""))
    assert len(stubborn.asked) == 2


def test_a_model_that_is_away() -> None:
    with pytest.raises(UnreachableError):
        asyncio.run(plan(Model(UnreachableError("all are down")), "x", ""))


def test_a_plan_printed_as_json_can_be_imported() -> None:
    from dataclasses import asdict

    tasks = read_plan(text(row("a"), row("b", needs=["a"])))
    data = [{**asdict(task), "requires": [], "allow": []} for task in tasks]
    assert read_tasks(json.dumps({"schema_version": 1, "tasks": data, "queued": False})) == tasks
