"""Events come out the same however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.wire import framing
from avyay.marga.wire.framing import FrameTooLargeError, LineDecoder, SseDecoder

SOURCE = (
    b": a comment\n\n"
    b'event: one\r\ndata: {"a":"\xc3\xa9"}\r\n\r\n'
    b"data:no space\n\n"
    b"id: 7\nretry: 10\ndata: first\ndata: second\n\n"
    b"event: only a name\n\n"
    b"data: old\rdata: mac\r\r"
    b"data: the end without its blank line"
)
EVENTS = [
    ("one", '{"a":"é"}'.encode()),
    ("", b"no space"),
    ("", b"first\nsecond"),
    ("only a name", b""),
    ("", b"old\nmac"),
    ("", b"the end without its blank line"),
]


@given(st.lists(st.integers(0, len(SOURCE)), max_size=12))
def test_sse_survives_any_cut(cuts):
    edges = [0, *sorted(cuts), len(SOURCE)]
    decoder = SseDecoder()
    seen = [e for a, b in pairwise(edges) for e in decoder.feed(SOURCE[a:b])]
    assert seen + decoder.flush() == EVENTS


LINES = '{"a":1}\n\n{"b":"é"}\r\n{"c":3}'.encode()


@given(st.lists(st.integers(0, len(LINES)), max_size=8))
def test_lines_survive_any_cut(cuts):
    edges = [0, *sorted(cuts), len(LINES)]
    decoder = LineDecoder()
    seen = [e for a, b in pairwise(edges) for e in decoder.feed(LINES[a:b])]
    assert [s.strip() for s in seen + decoder.flush()] == [b'{"a":1}', '{"b":"é"}'.encode(), b'{"c":3}']


@pytest.mark.parametrize("decoder", [LineDecoder, SseDecoder])
def test_an_event_without_end_is_given_up(decoder, monkeypatch):
    monkeypatch.setattr(framing, "_LIMIT", 100)
    one = decoder()
    one.feed(b"data: ")
    with pytest.raises(FrameTooLargeError):
        one.feed(b"x" * 101)
