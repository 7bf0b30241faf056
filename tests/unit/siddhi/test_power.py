"""What the money can tell apart: exact figures, and the refusal of tests that decide nothing."""

from __future__ import annotations

import json

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.errors import UsageError
from avyay.siddhi.decide import Rules
from avyay.siddhi.power import CannotDecideError, assess, expensive, require_decidable
from avyay.siddhi.stdio import converse


def test_thirty_dollars_at_fifty_cents() -> None:
    found = assess(Rules(cap=30, bar=0.03, gain=300), 0.5, rate=0.06)
    assert found.clicks == 60
    assert found.fixed == pytest.approx(0.29, abs=0.005)
    assert found.detectable is not None
    assert found.detectable > 0.1
    assert found.decides
    assert require_decidable(found) is found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.floats(0.01, 0.2), st.floats(1.2, 4.0))
def test_one_look_is_scipys_exact_test(clicks: int, bar: float, times: float) -> None:
    rate = bar * times
    found = assess(Rules(cap=clicks * 1.0, bar=bar, gain=300), 1.0, rate=rate)
    needed = scipy.stats.binom.isf(0.05, clicks, bar) + 1
    assert found.fixed == pytest.approx(scipy.stats.binom.sf(needed - 1, clicks, rate), abs=1e-9)
    assert found.strict <= 1


def test_looking_often_costs_power_but_holds_the_level() -> None:
    rules = Rules(cap=100, bar=0.05, gain=300)
    found = assess(rules, 0.5)
    assert 0 < found.strict < found.fixed
    at_the_bar = assess(rules, 0.5, rate=0.0500001)
    assert at_the_bar.strict <= 0.05


def test_overspend_halves_the_clicks() -> None:
    assert assess(Rules(cap=30, bar=0.05, gain=300, overspend=2.0), 0.5).clicks == 30


@pytest.mark.parametrize("mode, price", [("value", 31.0), ("strict", 12.0)])
def test_a_test_that_cannot_decide_is_refused(mode: str, price: float) -> None:
    found = assess(Rules(cap=30, bar=0.05, gain=300), price, mode=mode)  # type: ignore[arg-type]
    assert not found.decides
    with pytest.raises(CannotDecideError, match="cannot decide") as refused:
        require_decidable(found)
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    "price, bar, rate, cap", [(0, 0.05, 0.1, 30), (1, 0.1, 0.05, 30), (1, 0, 0.1, 30), (1, 0.05, 0.1, 0)]
)
def test_numbers_out_of_range(price: float, bar: float, rate: float, cap: float) -> None:
    with pytest.raises(UsageError):
        assess(Rules(cap=cap, bar=bar, gain=300), price, rate=rate)


def test_the_warning_about_expensive_clicks() -> None:
    rules = Rules(cap=30, bar=0.05, gain=300)
    assert expensive(rules, 0.6) is None
    assert "0.6 sign-ups" in str(expensive(rules, 2.5))
    start = {"type": "start", "cap_usd": 30, "bar": 0.05, "gain_usd": 300, "overspend": 1.0, "prior": None}
    offers = [{"type": "offer", "id": f"h{i}", "segment": "s", "cpc_usd": 2.5} for i in range(3)]
    said: list[str] = []
    assert len(list(converse([json.dumps(line) for line in (start, *offers)], warn=said.append))) == 3
    assert len(said) == 1
