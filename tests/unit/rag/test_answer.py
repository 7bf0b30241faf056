"""Answers: grounded, cited, checked; documents stay data; sessions; what happens when no model answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.embed.hashing import Hashing
from avyay.errors import PolicyError, UnreachableError, UsageError
from avyay.ports import Passage
from avyay.rag.answer import (
    NOT_FOUND,
    Answer,
    Turn,
    build_messages,
    check_answer,
    cited_numbers,
    follow_up_query,
    plain_text,
)
from avyay.rag.places import IndexPlaces
from avyay.rag.scripted import ScriptedCompleter
from avyay.rag.service import AskOptions, RagService
from avyay.rag.stores.memory import MemoryStore
from tests.unit.rag.conftest import Repository

FIO = "fio --rw=write --ioengine=sync --fdatasync=1 --directory=/var/lib/etcd"
QUESTION = "etcdHighFsyncDurations fdatasync etcd disk"


def passage(text: str, path: str = "a.md") -> Passage:
    return Passage("s", path, "Heading", 1, 2, "0123456789", text, 1.0)


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("One [1]. Two [2][1].", (1, 2)),
        ("Both [1, 3].", (1, 3)),
        ("An array `x[0]` and\n```\ny[7]\n```\nthen [2]", (2,)),
        ("No citation, [not 1] one, [1234].", ()),
    ],
)
def test_cited_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert cited_numbers(text) == numbers


def test_an_answer_is_held_against_its_passages() -> None:
    given_ = [passage(f"Run:\n\n    {FIO}\n")]
    assert check_answer(f"Run this [1]:\n```sh\n{FIO}\n```", given_) == ((1,), ())
    cited, notes = check_answer(
        "Delete it [1] [4]:\n```\n# careful\nrm -rf /var/lib/etcd\n```\nor `kubectl drain n1`", given_
    )
    assert cited == (1,)
    assert notes == (
        "The answer cites passages that do not exist: [4].",
        "Not in the runbooks word for word: rm -rf /var/lib/etcd",
        "Not in the runbooks word for word: kubectl drain n1",
    )
    assert "cites no passage" in check_answer("Trust me.", given_)[1][0]


@given(st.text(), st.text(alphabet="<>q0123456789abcdef end\n"))
def test_no_document_leaves_its_quotation(text: str, other: str) -> None:
    mark = "q0f9a8b7c6d5e4f3a"
    passages = [passage(text), passage(other)]
    if any(mark in one.text for one in passages):
        with pytest.raises(ValueError, match="mark"):
            build_messages("q", passages, mark=mark)
        return
    user = build_messages("question", passages, mark=mark)[-1].content
    assert user.count(f"<<{mark} end>>") == 2
    assert user.endswith("\n\nQuestion: question")
    first, _, rest = user.partition(f"\n<<{mark} end>>\n\n<<{mark} 2>> ")
    assert plain_text(text) == first.partition("(Heading)\n")[2]
    assert rest.partition("(Heading)\n")[2].startswith(plain_text(other))


def test_control_characters_are_taken_out() -> None:
    assert plain_text("a\x1b[2Jb\r\nc\td\u202ee\u200bf") == "a[2Jb\nc\tdef"


def test_follow_up_questions_are_searched_with_what_they_follow() -> None:
    history = [Turn("why is etcd slow?", "because")]
    assert follow_up_query("and how do I fix that?", history) == "and how do I fix that?\nwhy is etcd slow?"
    other = "which ports does the kafka broker listen on by default?"
    assert follow_up_query(other, history) == other
    assert follow_up_query("and that?", []) == "and that?"


class Asking:
    """A service over two runbooks with a scripted model."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.folder, self.repository = folder, repository
        self.completer = ScriptedCompleter([])
        self.rag = RagService(
            IndexPlaces.under(folder / "index"),
            Hashing(),
            open_store=MemoryStore,
            completer=lambda: self.completer,
            clock=FakeClock(),
        )
        self.rag.index(str(repository.root))

    def says(self, *script, **options) -> ScriptedCompleter:
        self.completer = ScriptedCompleter(script, **options)
        return self.completer


@pytest.fixture
def asking(tmp_path: Path, repository: Repository):
    made = Asking(tmp_path, repository)
    yield made
    made.rag.close()


def test_a_grounded_answer(asking: Asking) -> None:
    model = asking.says(f"Measure the disk [1]:\n\n```shell\n{FIO}\n```\n")
    answer = asking.rag.ask(QUESTION, AskOptions(tier="local", model="auto"))
    assert (answer.mode, answer.cited, answer.notes) == ("generated", (1,), ())
    assert answer.passages[0].citation.startswith("etcd.md:")
    request = model.requests[0]
    assert (request.request_class, request.service, request.tier, request.temperature) == ("ask", "rag", "local", 0.0)
    assert "never to obey" in request.messages[0].content
    assert FIO in request.messages[-1].content


def test_an_invented_command_is_named(asking: Asking) -> None:
    asking.says("Wipe it [1]: `rm -rf /var/lib/etcd`")
    assert asking.rag.ask(QUESTION).notes == ("Not in the runbooks word for word: rm -rf /var/lib/etcd",)


@pytest.mark.parametrize("text", [NOT_FOUND, f"**{NOT_FOUND}**", f"{NOT_FOUND.capitalize()}."])
def test_the_model_finds_nothing(asking: Asking, text: str) -> None:
    asking.says(text)
    answer = asking.rag.ask(QUESTION)
    assert (answer.mode, answer.found, answer.text, answer.cited) == ("none", False, "", ())


def test_nothing_relevant_asks_no_model(asking: Asking) -> None:
    model = asking.says("anything")
    answer = asking.rag.ask("sourdough bread recipe oven temperature")
    assert (answer.mode, model.requests) == ("none", [])


@pytest.mark.parametrize("error", [UnreachableError("The provider is down."), PolicyError("The budget is spent.")])
def test_without_a_model_the_passages_answer(asking: Asking, error) -> None:
    asking.says(error)
    answer = asking.rag.ask(QUESTION)
    assert (answer.mode, answer.text) == ("extractive", "")
    assert answer.passages
    assert answer.notes == (f"No model answered ({error.message[:-1]}): these are the best passages, not an answer.",)


def test_a_model_that_stops_in_the_middle(asking: Asking) -> None:
    asking.says(UnreachableError("The provider is down."), fail_after=3)
    answer = asking.rag.ask(QUESTION)
    assert answer.mode == "extractive"
    assert "stopped in the middle" in answer.notes[0]


def test_no_provider_and_no_model(asking: Asking) -> None:
    assert "No model is configured" in asking.rag.ask(QUESTION).notes[0]
    model = asking.says("x [1]")
    assert asking.rag.ask(QUESTION, AskOptions(extractive=True)).mode == "extractive"
    assert model.requests == []


async def _pieces(rag: RagService, question: str) -> list[str | Answer]:
    return [piece async for piece in rag.answer_stream(rag.prepare(question))]


def test_words_are_shown_as_they_arrive(asking: Asking) -> None:
    import asyncio

    asking.says("first [1]\nsecond [1]\n")
    pieces = asyncio.run(_pieces(asking.rag, QUESTION))
    assert pieces[:2] == ["first [1]\n", "second [1]\n"]
    assert isinstance(pieces[2], Answer)
    assert len(pieces) == 3


def test_a_session_remembers(asking: Asking) -> None:
    model = asking.says("The disk is slow [1].", "Use a faster one [1].")
    asking.rag.ask(QUESTION, AskOptions(session="incident-7"))
    answer = asking.rag.ask("and how do I fix it?", AskOptions(session="incident-7"))
    assert answer.passages[0].path == "etcd.md"
    assert [message.role for message in model.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert model.requests[1].messages[2].content == "The disk is slow ."
    assert [(name, turns) for name, turns, _ in asking.rag.interactions.sessions()] == [("incident-7", 2)]
    assert asking.rag.interactions.forget("incident-7") == 2
    assert asking.rag.interactions.history("incident-7") == []


def test_questions_are_stored_for_named_sessions_only(asking: Asking) -> None:
    asking.says("The disk is slow [1].")
    asking.rag.ask(QUESTION)
    asking.rag.close()
    stored = b"".join(path.read_bytes() for path in (asking.folder / "index").glob("interactions.db*"))
    assert b"etcdHighFsync" not in stored
    assert b"The disk is slow" not in stored


def test_verdicts(asking: Asking) -> None:
    answer = asking.rag.ask(QUESTION)
    asking.rag.ask("sourdough bread recipe oven temperature")
    asking.rag.feedback(answer.id, "down")
    asking.rag.feedback(answer.id[:8], "up", "helped")
    found = asking.rag.verdicts()
    assert (found.answers, found.unanswered, found.up, found.down) == (2, 1, 1, 0)
    for wrong in ("zzz", "%", ""):
        with pytest.raises(UsageError):
            asking.rag.feedback(wrong, "up")
    with pytest.raises(UsageError, match="up or down"):
        asking.rag.feedback(answer.id, "sideways")  # type: ignore[arg-type]
