"""What is published is kept in order, bounded, and read once by whoever reads on."""

from __future__ import annotations

import json
import threading
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.db import Migration, Schema, open_database
from avyay.errors import AvyayError, UsageError
from avyay.events.outbox import LARGEST, OUTBOX, Outboxes, append_event
from avyay.events.reader import Cursor, EventReader, matches
from avyay.ports import Event, Events


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def names(reader: EventReader, cursor: Cursor, *globs: str) -> list[str]:
    return [event.name for event in reader.read(cursor, names=globs).events]


def test_published_is_read_in_order(tmp_path: Path, clock: FakeClock) -> None:
    outboxes = Outboxes(tmp_path, clock=clock)
    assert isinstance(outboxes, Events)
    reader = EventReader(tmp_path)
    assert reader.read(Cursor()).events == ()
    for name in ("marga.provider.tripped", "rag.documents.indexed", "marga.provider.recovered"):
        outboxes.publish(Event(name, {"n": 1}))
        clock.advance(1)
    outboxes.flush()
    batch = reader.read(Cursor())
    assert [event.name for event in batch.events] == [
        "marga.provider.tripped",
        "rag.documents.indexed",
        "marga.provider.recovered",
    ]
    assert str(batch.cursor) == "marga-2.rag-1"
    assert str(reader.head()) == str(batch.cursor)
    assert batch.events[0].body()["timestamp"] == "2023-11-14T22:13:20.000Z"
    # Every event's own cursor is where to go on behind it.
    assert names(reader, batch.events[0].cursor) == ["rag.documents.indexed", "marga.provider.recovered"]
    assert names(reader, Cursor(), "rag.*") == ["rag.documents.indexed"]
    assert [event.name for event in reader.latest(1).events] == ["marga.provider.recovered"]
    outboxes.publish(Event("raksha.finding.found"))
    outboxes.close()
    assert names(reader, batch.cursor) == ["raksha.finding.found"]  # an outbox that came later
    reader.close()


def test_an_occasion_is_told_once(tmp_path: Path) -> None:
    outboxes = Outboxes(tmp_path)
    for occasion in ("a", "a", "b"):
        outboxes.publish(Event("marga.budget.neared", once=occasion))
    outboxes.publish(Event("marga.budget.exceeded", once="a"))
    outboxes.close()
    reader = EventReader(tmp_path)
    assert len(reader.read(Cursor()).events) == 3
    reader.close()


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(Event("Marga.x"), id="upper-case"),
        pytest.param(Event("marga"), id="no-noun"),
        pytest.param(Event("../x.y"), id="a-path"),
    ],
)
def test_what_cannot_be_kept_is_counted_and_harms_nobody(tmp_path: Path, event: Event) -> None:
    outboxes = Outboxes(tmp_path)
    outboxes.publish(event)
    assert outboxes.dropped == 1
    outboxes.close()
    outboxes.publish(Event("marga.x.y"))
    assert outboxes.dropped == 2
    assert not (tmp_path.parent / "x").exists()


def test_a_disk_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "marga").write_text("a file where the folder should be")
    outboxes = Outboxes(tmp_path)
    outboxes.prepare("marga")
    outboxes.publish(Event("marga.provider.tripped"))
    assert outboxes.dropped == 1
    outboxes.close()


def test_no_secret_gets_in(tmp_path: Path) -> None:
    outboxes = Outboxes(tmp_path)
    key = "sk-" + "a1b2c3d4e5f6" * 2
    outboxes.publish(Event("marga.provider.tripped", {"why": [f"key {key} refused"], "url": "https://u:pw@host/"}))
    outboxes.close()
    reader = EventReader(tmp_path)
    (event,) = reader.read(Cursor()).events
    reader.close()
    assert key not in str(event.data)
    assert "pw@" not in str(event.data)


def test_published_with_the_change_or_not_at_all(tmp_path: Path, clock: FakeClock) -> None:
    own = Schema("own", (Migration("0001", "CREATE TABLE things (name TEXT)"),))
    database = open_database(tmp_path / "siddhi" / "siddhi.db", own, OUTBOX)
    with suppress(AvyayError), database.transaction():
        append_event(database, Event("siddhi.page.published", {"task": "lost"}), clock.now())
        raise AvyayError("no")
    with database.transaction():
        database.execute("INSERT INTO things VALUES ('kept')")
        append_event(database, Event("siddhi.page.published", {"task": "kept"}), clock.now())
    reader = EventReader(tmp_path)
    assert [event.data for event in reader.read(Cursor()).events] == [{"task": "kept"}]
    assert str(reader.head()) == "siddhi_main-1"
    reader.close()
    database.close()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("x" * 30_000)
DATA = st.dictionaries(
    st.text(st.characters(), max_size=5),
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)),
    max_size=6,
)


@given(DATA)
@settings(max_examples=60, deadline=None)
def test_whatever_is_told_does_not_undo_what_is_done(data: dict[str, Any]) -> None:
    """Too large, no JSON, no text: the transaction goes on, and what fits is told."""
    with TemporaryDirectory() as folder:
        with closing(open_database(Path(folder, "rag", "rag.db"), OUTBOX)) as database, database.transaction():
            append_event(database, Event("rag.documents.indexed", data), 1.0)
        reader = EventReader(Path(folder))
        (event,) = reader.read(Cursor()).events
        reader.close()
        assert len(json.dumps(event.data, ensure_ascii=False)) <= LARGEST


def test_what_is_too_large_is_cut_and_says_so(tmp_path: Path) -> None:
    data = {"detail": "x" * LARGEST, "n": 3, "paths": ["a"] * 90_000, "big": 2**70, "bad": "a\udcff"}
    outboxes = Outboxes(tmp_path / "other")
    outboxes.publish(Event("rag.documents.indexed", data))
    outboxes.close()
    assert outboxes.dropped == 0
    with closing(open_database(tmp_path / "rag" / "rag.db", OUTBOX)) as database, database.transaction():
        append_event(database, Event("rag.documents.indexed", data), 1.0)
        append_event(database, Event("rag.documents.indexed", {"path": "a\udcff.md"}), 1.0)
        with pytest.raises(ValueError, match="no name"):
            append_event(database, Event("../x.y", {}), 1.0)
    reader = EventReader(tmp_path)
    first, second = (event.data for event in reader.read(Cursor()).events)
    reader.close()
    assert first == {"cut": True, "detail": "x" * 500, "n": 3, "bad": "a\\udcff"}
    assert second == {"path": "a\\udcff.md"}


def test_bounded_and_a_reader_that_was_away_learns_what_it_missed(tmp_path: Path) -> None:
    outboxes = Outboxes(tmp_path, keep=100)
    for _ in range(70):
        outboxes.publish(Event("rag.documents.indexed"))
    outboxes.flush()
    reader = EventReader(tmp_path)
    seen = reader.read(Cursor(), limit=10).cursor
    for _ in range(230):
        outboxes.publish(Event("rag.documents.indexed"))
    outboxes.close()
    batch = reader.read(seen, limit=1000)
    assert 100 <= len(batch.events) < 165  # pruned every 64 events
    assert batch.missed == {"rag": 300 - len(batch.events) - 10}
    assert reader.read(batch.cursor).missed == {}
    reader.close()


def test_old_events_go(tmp_path: Path, clock: FakeClock) -> None:
    outboxes = Outboxes(tmp_path, clock=clock, keep_for=3600)
    for _ in range(10):
        outboxes.publish(Event("rag.documents.indexed", {"old": True}))
    clock.advance(4000)
    for _ in range(60):
        outboxes.publish(Event("rag.documents.indexed"))
    outboxes.close()
    reader = EventReader(tmp_path)
    assert not any(event.data for event in reader.read(Cursor()).events)
    reader.close()


def test_a_file_made_anew_is_read_from_its_start(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    for round_ in range(2):
        outboxes = Outboxes(tmp_path)
        for _ in range(3 - round_):
            outboxes.publish(Event("rag.documents.indexed", {"round": round_}))
        outboxes.close()
        if round_ == 0:
            cursor = reader.read(Cursor()).cursor
            for file in (tmp_path / "rag").iterdir():
                file.unlink()
    assert [event.data["round"] for event in reader.read(cursor).events] == [1, 1]
    reader.close()


def test_a_damaged_outbox_does_not_hide_the_others(tmp_path: Path) -> None:
    outboxes = Outboxes(tmp_path)
    outboxes.publish(Event("rag.documents.indexed"))
    outboxes.close()
    (tmp_path / "marga").mkdir()
    (tmp_path / "marga" / "events.db").write_bytes(b"no database at all, whatever it is called" * 100)
    told: list[str] = []
    reader = EventReader(tmp_path, unreadable=lambda name, error: told.append(name))
    assert names(reader, Cursor()) == ["rag.documents.indexed"]
    assert told == ["marga"]
    reader.close()


NO_CURSORS = ["x", "rag", "rag-", "rag-x", "rag-1;marga-2", "Rag-1", "rag-" + "9" * 30, "\n", "rag--1"]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_no_cursor(text: str) -> None:
    with pytest.raises(UsageError):
        Cursor.parse(text)


@given(st.dictionaries(st.from_regex(r"[a-z0-9_]{1,20}", fullmatch=True), st.integers(0, 10**15), max_size=8))
def test_cursors_survive_the_wire(positions: dict[str, int]) -> None:
    assert Cursor.parse(str(Cursor(positions))).positions == positions


@given(
    pages=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    published=st.lists(st.tuples(st.sampled_from(["marga", "rag", "siddhi"]), st.integers(-3, 3)), max_size=40),
)
@settings(max_examples=20, deadline=None)
def test_reading_on_meets_every_event_once(
    pages: list[int], published: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the sizes of the pages, and however the clock jumps."""
    folder, clock = tmp_path_factory.mktemp("events"), FakeClock()
    outboxes, reader, cursor = Outboxes(folder, clock=clock), EventReader(folder), Cursor()
    for number, (component, jump) in enumerate(published):
        clock.jump(jump)
        outboxes.publish(Event(f"{component}.thing.happened", {"n": number}))
    outboxes.close()
    met: list[int] = []
    sizes = iter(pages)
    while (batch := reader.read(cursor, next(sizes, 3))).events:
        for event in batch.events:
            met.append(event.data["n"])
            # Going on from any single event neither repeats it nor leaves one out.
            rest = {later.data["n"] for later in reader.read(event.cursor, 1000).events}
            assert rest == set(range(len(published))) - set(met)
        cursor = batch.cursor
    reader.close()
    assert sorted(met) == list(range(len(published)))


def test_many_writers_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        outboxes = Outboxes(tmp_path)
        for one in range(50):
            outboxes.publish(Event("marga.thing.happened", {"who": number, "n": one}))
        outboxes.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = EventReader(tmp_path)
    events = reader.read(Cursor(), 1000).events
    reader.close()
    for number in range(4):
        assert [event.data["n"] for event in events if event.data["who"] == number] == list(range(50))


def test_globs() -> None:
    assert matches("a.b.c", ())
    assert matches("a.b.c", ("x", "a.*"))
    assert not matches("a.b.c", ("b.*",))
