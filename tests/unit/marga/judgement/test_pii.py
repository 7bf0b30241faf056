"""Detection of personal data: recall and false positives by kind, on text around the value."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.pii import KINDS, detect, kinds_in, luhn, mod97, verhoeff

AROUND = ("{}", "my {} is here", "value={};", "({})", '{{"field": "{}"}}', "line\n{}\nline", "It is {}.", "‘{}’")


def with_luhn(prefix: str, length: int, rng: random.Random) -> str:
    body = prefix + "".join(rng.choice(string.digits) for _ in range(length - 1 - len(prefix)))
    return next(body + d for d in string.digits if luhn(body + d))


def positives(kind: str, rng: random.Random) -> list[str]:
    """Values of a kind as people write them."""

    def digits(n: int, first: str = string.digits) -> str:
        return rng.choice(first) + "".join(rng.choice(string.digits) for _ in range(n - 1))

    values: list[str] = []
    for _ in range(20):
        if kind == "email":
            name = "".join(rng.choice(string.ascii_lowercase) for _ in range(6))
            values += [f"{name}.x+tag@mail.example.co.uk", f"{name.upper()}_1@example.com", f"{name}@bücher.example"]
        elif kind == "phone":
            values += [
                f"+1 {digits(3, '23456789')} {digits(3, '23456789')} {digits(4)}",
                f"({digits(3, '23456789')}) {digits(3, '23456789')}-{digits(4)}",
                f"+91 {digits(5, '6789')} {digits(5)}",
                f"+49 30 {digits(8)}",
                f"+44{digits(10, '7')}",
            ]
        elif kind == "card":
            visa, amex = with_luhn("4", 16, rng), with_luhn("37", 15, rng)
            values += [visa, " ".join(visa[i : i + 4] for i in range(0, 16, 4)), f"{amex[:4]}-{amex[4:10]}-{amex[10:]}"]
            values += [with_luhn("55", 16, rng), with_luhn("2221", 16, rng), with_luhn("6011", 16, rng)]
        elif kind == "ssn":
            values.append(f"{rng.randint(1, 665):03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}")
        elif kind == "aadhaar":
            body = digits(11, "23456789")
            whole = next(body + d for d in string.digits if verhoeff(body + d))
            values += [" ".join(whole[i : i + 4] for i in (0, 4, 8)), f"Aadhaar {whole}"]
        elif kind == "pan":
            letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(3))
            values.append(
                f"{letters}P{rng.choice(string.ascii_uppercase)}{digits(4)}{rng.choice(string.ascii_uppercase)}"
            )
        elif kind == "ip":
            values += [
                ".".join(str(rng.randint(1, 223)) for _ in range(4)).replace("127.", "128."),
                f"2001:db8:{rng.randint(4096, 65535):x}::{rng.randint(1, 65535):x}",
            ]
        elif kind == "api_key":
            body = "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(44)) + "7"
            values += ["sk-" + "proj-" + body, "sk-" + "ant-api03-" + body, "gh" + "p_" + body[:36] + "1"]
            values += ["AK" + "IA" + "".join(rng.choice("ABCDEFGH234567") for _ in range(15)) + "7"]
            values += [f"api_key={body}", f'"password": "{body[:16]}1"']
        elif kind == "iban":
            values += ["DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19", "FR14 2004 1010 0505 0001 3M02 606"]
    return values


# Text that looks like personal data and is none.
NEGATIVES = (
    "Order 1234567890123456 shipped on 2024-03-15 at 12:34:56.",
    "pip install requests==2.31.0.4 and numpy>=1.26.4",
    "version 10.2.3.4 of the firmware, v1.2.3.4, and 0.0.0.0 or 127.0.0.1",
    "npm i lodash@4.17.21 icon@2x.png user@host",
    "git clone git@github.com:owner/project.git",
    "std::vector<int> a::b Foo::bar 00:11:22",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "The population grew from 1234567890 to 2345678901 in 1990-2020.",
    "timestamp 1700000000 and 1700000000000 ms",
    "ISBN 978-3-16-148410-0; 3.14159265358979; 1,234,567,890",
    "000-12-3456 666-12-3456 900-12-3456 123-00-4567",
    "sk-learn-contrib-packages-are-here and task-oriented-dialogue-systems-survey",
    "GB00NWBK60161331926819 and DE12345678901234567890",
    "ABCDE1234F5 and ABCZE1234F",
    "password: use a long one; token = None; api_key = os.environ['KEY']",
    "4111 1111 1111 1112, 1111 1111 1111 1111",
    "2 + 2 = 4, 10/20/2020, 2020-10-20 10:20:30, 3:45 pm",
    "@app.get('/users') def f(): ... @dataclass",
)


@pytest.mark.parametrize("kind", KINDS)
def test_recall(kind: str) -> None:
    rng = random.Random(7)
    values = positives(kind, rng)
    missed = []
    total = 0
    for value in values:
        for frame in AROUND:
            total += 1
            if kind not in kinds_in(frame.format(value)):
                missed.append(frame.format(value))
    assert len(missed) <= 0.01 * total, missed[:10]


@pytest.mark.parametrize("text", NEGATIVES)
def test_what_only_looks_like_it(text: str) -> None:
    assert [(m.kind, text[m.start : m.end]) for m in detect(text)] == []


def test_checksums_of_published_examples() -> None:
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")
    assert verhoeff("2363")  # 236 has check digit 3
    assert not verhoeff("2364")
    assert mod97("GB82WEST12345698765432")
    assert not mod97("GB82WEST12345698765431")


@given(st.integers(0, 10**15 - 1), st.integers(0, 14), st.integers(1, 9))
def test_checksums_catch_every_single_wrong_digit(number: int, place: int, by: int) -> None:
    body = f"{number:015d}"
    for valid in (luhn, verhoeff):
        whole = next(body + d for d in string.digits if valid(body + d))
        wrong = whole[:place] + str((int(whole[place]) + by) % 10) + whole[place + 1 :]
        assert not valid(wrong)


@given(st.text(max_size=300))
def test_matches_are_in_order_and_inside(text: str) -> None:
    end = 0
    for match in detect(text):
        assert end <= match.start < match.end <= len(text)
        end = match.end


def test_several_numbers_in_one_run() -> None:
    text = "cards: 4111 1111 1111 1111 5500 0055 5555 5559 12/27"
    assert [text[m.start : m.end] for m in detect(text)] == ["4111 1111 1111 1111", "5500 0055 5555 5559"]
