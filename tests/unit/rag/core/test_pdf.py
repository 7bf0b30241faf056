"""PDF runbooks: text by page, and a reason where there is none."""

from __future__ import annotations

import builtins
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.embed.hashing import Hashing
from avyay.rag.documents import Document, read_document
from avyay.rag.parsers import pdf
from avyay.rag.sources.base import Unread, too_large

EMBEDDER = Hashing()


def made(*pages: str, trailer: str = "") -> bytes:
    """A PDF whose pages show these lines, written object by object."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, page in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in page.splitlines())
        content = zlib.compress(f"BT /F1 12 Tf 72 720 Td {shown}ET".encode())
        head = f"<< /Length {len(content)} /Filter /FlateDecode >>\nstream\n"
        objects.append(head.encode() + content + b"\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer}>>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode() + end.encode()


def read(data: bytes) -> Document | Unread | None:
    return read_document("guides/storage-failover.pdf", data, count_tokens=EMBEDDER.count_tokens, max_tokens=254)


def test_each_page_is_a_section() -> None:
    found = read(made("Storage failover\nCall the storage team.", "", "Promote the replica:\npg_ctl promote"))
    assert isinstance(found, Document)
    assert [(chunk.heading, chunk.first_line, chunk.last_line) for chunk in found.chunks] == [
        ("page 1", 1, 2),
        ("page 3", 6, 7),
    ]
    assert found.chunks[1].text == "Promote the replica:\npg_ctl promote"
    assert found.title == "storage failover"
    assert [section.heading for section in found.sections] == ["", "page 1", "page 3"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.4\nnothing", "cannot be read"),
        (b"no PDF at all", "cannot be read"),
        (made("", ""), "without text"),
        (made("secret", trailer="/Encrypt << /Filter /Standard /V 9 >> "), "cannot be read"),
    ],
    ids=["cut off", "something else", "pictures", "encrypted"],
)
def test_what_has_no_text_says_why(data: bytes, reason: str) -> None:
    found = read(data)
    assert isinstance(found, Unread)
    assert reason in found.reason


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pypdf(name: str, *rest: object) -> object:
        if name.startswith("pypdf"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_pypdf)
    found = read(made("text"))
    assert isinstance(found, Unread)
    assert 'pip install "avyay[pdf]"' in found.reason


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_raises(data: st.DataObject) -> None:
    whole = bytearray(made("Storage failover", "Promote the replica"))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    text, why = pdf.extract(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    assert bool(text) != bool(why)


def test_a_pdf_may_be_larger_than_a_text() -> None:
    assert too_large("a.pdf", 40_000_000) is None
    assert too_large("a.md", 40_000_000) == Unread("a.md", "40 MB: larger than any runbook")
    assert too_large("A.PDF", 100_000_000) is not None
