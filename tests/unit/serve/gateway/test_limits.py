"""Rate limits: what is let in, what is told, what is put right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.serve.gateway.limits import (
    WINDOW,
    Claim,
    Counters,
    Rule,
    Standing,
    Unit,
    Verdict,
    claims_for,
    estimated,
    limit_headers,
)

START = 1_700_000_040.0  # a window's beginning


def claim(limit: int, amount: int = 1, unit: Unit = "requests", counter: str = "a") -> Claim:
    return Claim(counter, "rule", unit, limit, amount)


def test_a_full_window_refuses_and_says_until_when() -> None:
    counters = Counters()
    assert all(counters.acquire([claim(3)], "", START).refused is None for _ in range(3))
    verdict = counters.acquire([claim(3)], "", START + 1)
    assert verdict.refused is not None
    assert verdict.refused.remaining == 0
    assert counters.acquire([claim(3)], "", START + 1 + verdict.retry_after - 0.01).refused is not None
    assert counters.acquire([claim(3)], "", START + 1 + verdict.retry_after).refused is None


@given(
    steps=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 5)), max_size=60),
    limit=st.integers(5, 12),
)
def test_no_minute_sees_more_than_twice_and_the_wait_is_right(steps: list[tuple[float, int]], limit: int) -> None:
    counters = Counters()
    now, taken = START, []
    for wait, amount in steps:
        now += wait
        verdict = counters.acquire([claim(limit, amount)], "", now)
        if verdict.refused is None:
            taken.append((now, amount))
        else:
            later = now + verdict.retry_after + 1e-6
            assert counters.acquire([claim(limit, amount)], "", later).refused is None
            taken.append((later, amount))
            now = later
        # By windows cut at the clock never more than the limit; across a cut the sliding weight holds it near.
        current = sum(a for at, a in taken if int(at // WINDOW) == int(now // WINDOW))
        assert current <= limit
        assert sum(a for at, a in taken if now - WINDOW < at <= now) < 2 * limit


def test_all_claims_or_none() -> None:
    counters = Counters()
    one, other = claim(10, counter="one"), claim(1, counter="other")
    assert counters.acquire([one, other], "", START).refused is None
    assert counters.acquire([one, other], "", START).refused is not None
    assert [s.remaining for s in counters.acquire([one], "", START).standings] == [8]  # the refusal took nothing


def test_streams_are_held_until_released() -> None:
    counters = Counters()
    rule = claim(2, unit="concurrent")
    first, second = counters.acquire([rule], "1/a", START), counters.acquire([rule], "2/b", START)
    assert (first.lease, second.lease) == ("1/a", "2/b")
    assert counters.acquire([rule], "2/c", START).refused is not None
    counters.release([rule], "1/a")
    assert counters.acquire([rule], "2/c", START).refused is None
    counters.release_all("2/")  # that process is gone
    assert counters.held == 0


def test_tokens_are_put_right() -> None:
    counters = Counters()
    guessed = estimated(claim(1_000, unit="tokens"), 300)
    assert guessed.amount == 100
    counters.acquire([guessed], "", START)
    counters.settle(guessed, 950 - 100, START, START + 5)  # it was far more: a debt
    assert counters.acquire([guessed], "", START + 6).refused is not None
    counters.settle(guessed, -900, START, START + 7)
    assert counters.acquire([guessed], "", START + 8).refused is None
    assert estimated(claim(1_000, unit="tokens"), 10**9).amount == 1_000  # a picture does not wait for ever


def test_what_is_given_back_goes_where_it_was_taken() -> None:
    counters = Counters()
    guessed = claim(100, 80, "tokens")
    counters.acquire([guessed], "", START + 59)
    counters.acquire([claim(100, 10, "tokens")], "", START + WINDOW + 59)
    counters.settle(guessed, -80, START + 59, START + WINDOW + 59)
    assert counters.acquire([claim(100, 90, "tokens")], "", START + WINDOW + 59).refused is None
    counters.settle(guessed, -80, START + 59, START + 10 * WINDOW)  # long gone
    assert counters.acquire([claim(100, 101, "tokens")], "", START + 10 * WINDOW).refused is not None


def test_rules_fit_their_callers() -> None:
    rules = [
        Rule("requests", 10),
        Rule("requests", 5, tier="free"),
        Rule("tokens", 100, endpoint="marga"),
        Rule("concurrent", 2, key="key_1", endpoint="marga:chat"),
    ]
    found = claims_for(rules, key="key_1", tier="free", component="marga", scope="marga:chat")
    assert [one.name for one in found] == [
        "requests",
        "requests-free",
        "tokens-marga",
        "concurrent-marga:chat-key_1",
    ]
    assert len({one.counter for one in found}) == 4
    other = claims_for(rules, key="key_2", tier=None, component="rag", scope="rag:ask")
    assert [one.counter for one in other] == ["requests|key_2"]


@pytest.mark.parametrize("anthropic", [False, True])
def test_headers(anthropic: bool) -> None:
    standings = (
        Standing("requests", "requests", 60, 12, 30.2),
        Standing("tokens-free", "tokens", 1_000, 0, 59.0),
        Standing("concurrent", "concurrent", 4, 3, 1.0),
    )
    verdict = Verdict(standings, standings[1], 12.1)
    headers = dict(limit_headers(verdict, anthropic=anthropic, now=START))
    assert headers[b"ratelimit-policy"] == (
        b'"requests";q=60;w=60, "tokens-free";q=1000;w=60;qu="tokens", "concurrent";q=4;qu="concurrent-requests"'
    )
    assert headers[b"ratelimit"] == b'"requests";r=12;t=31, "tokens-free";r=0;t=59, "concurrent";r=3;t=1'
    assert headers[b"retry-after"] == b"13"
    if anthropic:
        assert headers[b"anthropic-ratelimit-tokens-remaining"] == b"0"
        assert headers[b"anthropic-ratelimit-requests-reset"] == b"2023-11-14T22:14:31Z"
    else:
        assert headers[b"x-ratelimit-limit-requests"] == b"60"
        assert headers[b"x-ratelimit-reset-tokens"] == b"59s"
    assert limit_headers(Verdict(), anthropic=anthropic, now=START) == []
