"""Picodollars: what is read, added and shown is exact."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay import money
from avyay.errors import UsageError
from avyay.money import (
    DOLLAR,
    MAX_AMOUNT,
    Picodollars,
    format_usd,
    parse_usd,
    per_million_tokens,
    per_token,
    scale,
    times,
    total,
    usd_decimal,
    usd_number,
    usd_string,
)

amounts = st.integers(-MAX_AMOUNT, MAX_AMOUNT).map(Picodollars)
everyday = st.integers(-1000 * DOLLAR, 1000 * DOLLAR).map(Picodollars)


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("$0.30", 300_000_000_000),
        ("0.3", 300_000_000_000),
        (".5", DOLLAR // 2),
        ("2.", 2 * DOLLAR),
        ("1,000.50 USD", 1_000_500_000_000_000),
        ("US$ 12", 12 * DOLLAR),
        ("USD 12", 12 * DOLLAR),
        ("-$3", -3 * DOLLAR),
        ("$-3", -3 * DOLLAR),
        ("1_000_000", 1_000_000 * DOLLAR),
        ("7.5e-9", 7_500),
        (30, 30 * DOLLAR),
        (0.3, 300_000_000_000),
        (1e-12, 1),
        (Decimal("0.000000000001"), 1),
        (0, 0),
        ("-0", 0),
        ("0e999", 0),
    ],
)
def test_reading(written: str | float | Decimal, amount: int) -> None:
    assert parse_usd(written) == amount


@pytest.mark.parametrize(
    "written",
    ["", "$", "free", "1,00", "12,34.5", "1e", "--1", "-$-1", "nan", "inf", "1 2", "0x10", "٣", "1" * 200, True,
     float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN"), None, [1]],
)  # fmt: skip
def test_what_is_no_amount(written: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_usd(written)  # type: ignore[arg-type]
    assert caught.value.code == "not_an_amount"
    assert caught.value.hint


@pytest.mark.parametrize("written", ["9223372.1", "1e300", "1e999", 10**30, Decimal("1e400000"), 1e308, "-9.3e6"])
def test_what_fits_no_column(written: str | float) -> None:
    with pytest.raises(UsageError) as caught:
        parse_usd(written)
    assert caught.value.code == "amount_too_large"


@pytest.mark.parametrize("written", ["0.0000000000001", "1e-13", 1e-13, "1e-999", Decimal("1e-400000")])
def test_what_is_too_fine_needs_a_rounding(written: str | float) -> None:
    with pytest.raises(UsageError) as caught:
        parse_usd(written)
    assert caught.value.code == "amount_too_fine"
    assert parse_usd(written, rounding="ROUND_CEILING") == 1
    assert parse_usd(written, rounding="ROUND_HALF_EVEN") == 0


def test_an_unknown_rounding_is_a_bug() -> None:
    with pytest.raises(ValueError, match="rounding"):
        parse_usd("1", rounding="UP")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("price", "picodollars"), [("$0.15", 150_000), (2.5, 2_500_000), ("0.0075", 7_500), ("0.000001", 1), (0, 0)]
)
def test_a_price_per_million_tokens(price: str | float, picodollars: int) -> None:
    assert per_million_tokens(price) == picodollars


def test_a_price_per_token_as_price_files_write_it() -> None:
    assert per_token(json.loads("1.5e-07")) == per_million_tokens("0.15")
    with pytest.raises(UsageError, match="finer"):
        per_million_tokens("0.0000001")


def test_a_bill() -> None:
    price_in, price_out = per_million_tokens("0.15"), per_million_tokens("0.60")
    assert format_usd(total([times(price_in, 1_234), times(price_out, 567)])) == "$0.0005253"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "$0.00"), (300_000_000_000, "$0.30"), (1, "$0.000000000001"), (-7_500_000, "-$0.0000075"),
     (1_234_500_000_000_000, "$1,234.50"), (DOLLAR, "$1.00")],
)  # fmt: skip
def test_showing(amount: int, shown: str) -> None:
    assert format_usd(Picodollars(amount)) == shown


@pytest.mark.parametrize(
    ("amount", "places", "shown"),
    [("0.125", 2, "$0.12"), ("0.135", 2, "$0.14"), ("0.995", 2, "$1.00"), ("1.5", 0, "$2"), ("2.5", 0, "$2"),
     ("-0.126", 2, "-$0.13"), ("-0.004", 2, "$0.00"), ("1", 4, "$1.0000"), ("1", 15, "$1.000000000000000")],
)  # fmt: skip
def test_showing_rounded(amount: str, places: int, shown: str) -> None:
    assert format_usd(parse_usd(amount), places=places) == shown


@given(amounts)
def test_what_is_written_reads_back(amount: Picodollars) -> None:
    assert parse_usd(usd_string(amount)) == amount
    assert parse_usd(usd_decimal(amount)) == amount
    assert parse_usd(format_usd(amount)) == amount
    assert "e" not in usd_string(amount).lower()


@given(everyday)
def test_a_json_number_reads_back(amount: Picodollars) -> None:
    assert parse_usd(json.loads(json.dumps(usd_number(amount)))) == amount


@given(st.decimals(-9000, 9000, places=6), st.integers(0, 10_000))
def test_tokens_times_price_is_exact(price: Decimal, tokens: int) -> None:
    assert usd_decimal(times(per_million_tokens(price), tokens)) * 1_000_000 == price * tokens


@given(st.lists(everyday, max_size=50))
def test_sums_do_not_depend_on_the_order(parts: list[Picodollars]) -> None:
    assert total(parts) == total(reversed(parts)) == sum(parts)


@given(everyday, st.decimals(0, 1000, places=5))
def test_scaling_rounds_once(amount: Picodollars, factor: Decimal) -> None:
    exact = Decimal(amount) * factor
    assert abs(scale(amount, factor) - exact) <= Decimal("0.5")
    assert 0 <= scale(amount, factor, rounding="ROUND_CEILING") - exact < 1
    assert 0 <= exact - scale(amount, factor, rounding="ROUND_FLOOR") < 1


def test_scaling_refuses_nonsense() -> None:
    for factor in (Decimal("nan"), Decimal("inf")):
        with pytest.raises(UsageError):
            scale(DOLLAR, factor)
    with pytest.raises(UsageError, match="million"):
        scale(MAX_AMOUNT, 2)
    with pytest.raises(UsageError, match="million"):
        times(DOLLAR, 10**9)
    with pytest.raises(UsageError, match="million"):
        total([MAX_AMOUNT, Picodollars(1)])


@given(st.text(max_size=30))
def test_any_text_is_an_amount_or_a_usage_error(text: str) -> None:
    try:
        amount = parse_usd(text)
    except UsageError:
        return
    assert abs(amount) <= MAX_AMOUNT


@given(st.floats())
def test_any_float_is_an_amount_or_a_usage_error(number: float) -> None:
    try:
        amount = parse_usd(number)
    except UsageError:
        return
    assert usd_number(amount) == number


def test_the_public_names() -> None:
    assert all(hasattr(money, name) for name in money.__all__)
