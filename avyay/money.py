"""Money as integer picodollars: one token can cost 7.5 nanodollars, and no cent is ever lost to a float.

A picodollar is 1e-12 USD, so $1 is 1_000_000_000_000 and a signed 64-bit column holds about 9.2 million dollars.

Rounding: adding, and multiplying by a number of tokens, is exact. What is written more finely than a picodollar is
refused unless the caller names a rounding; `scale` rounds half to even, or as told. A reservation for a worst case
rounds up (`ROUND_CEILING`), so that it is never below the truth. Floats come in only as literals that YAML or JSON
parsed (0.3 means 0.3), and go out only to be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import (
    ROUND_CEILING,
    ROUND_DOWN,
    ROUND_FLOOR,
    ROUND_HALF_DOWN,
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    ROUND_UP,
    Context,
    Decimal,
    InvalidOperation,
)
from typing import Final, Literal, NewType, TypeAlias

from avyay.errors import UsageError

__all__ = [
    "DOLLAR",
    "MAX_AMOUNT",
    "ROUND_CEILING",
    "ROUND_DOWN",
    "ROUND_FLOOR",
    "ROUND_HALF_EVEN",
    "ROUND_HALF_UP",
    "ZERO",
    "Picodollars",
    "Rounding",
    "format_usd",
    "parse_usd",
    "per_million_tokens",
    "per_token",
    "scale",
    "times",
    "total",
    "usd_decimal",
    "usd_number",
    "usd_string",
]

Picodollars = NewType("Picodollars", int)
"""An amount of money in 1e-12 USD; also a price, in 1e-12 USD per token."""

Rounding: TypeAlias = Literal[
    "ROUND_CEILING", "ROUND_DOWN", "ROUND_FLOOR", "ROUND_HALF_DOWN", "ROUND_HALF_EVEN", "ROUND_HALF_UP", "ROUND_UP"
]
_ROUNDINGS: Final = frozenset(
    (ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP)
)

ZERO: Final = Picodollars(0)
DOLLAR: Final = Picodollars(10**12)
MAX_AMOUNT: Final = Picodollars(2**63 - 1)
"""What fits a 64-bit column, about $9.2 million."""

_DIGITS = 12
# Wide enough that no step before the final rounding loses a digit of any accepted input.
_EXACT = Context(prec=200)
_LONGEST = 100
_WRITTEN = re.compile(
    r"""\s* (?P<sign>[+-]?) \s* (?:\$|USD|US\$)? \s* (?P<inner>[+-]?)
        (?P<number> (?: \d{1,3}(?:[,_]\d{3})+ | \d+ ) (?:\.\d*)? | \.\d+ ) (?P<exponent>[eE][+-]?\d{1,3})?
        \s* (?:USD|\$)? \s*""",
    re.VERBOSE | re.ASCII,
)


def parse_usd(value: str | int | float | Decimal, *, rounding: Rounding | None = None) -> Picodollars:
    """Read an amount of dollars: "$0.30", "1,000.50 USD", "-3", "7.5e-9", 30, Decimal("0.000002"), 0.3.

    Args:
        value: Dollars, not picodollars. A float stands for the shortest decimal that reads back as it, which is what a
            person wrote in YAML or JSON; a computed float has no place here.
        rounding: How to round what is finer than a picodollar; without it such an amount is an error.

    Raises:
        UsageError: Not an amount, too fine, or more than `MAX_AMOUNT`.
    """
    return _to_picodollars(_read(value), 0, value, rounding)


def per_million_tokens(price: str | int | float | Decimal, *, rounding: Rounding | None = None) -> Picodollars:
    """The price of one token from a price in dollars per million: "$0.15" is 150_000. Errors as in `parse_usd`."""
    return _to_picodollars(_read(price), -6, price, rounding)


def per_token(price: str | int | float | Decimal, *, rounding: Rounding | None = None) -> Picodollars:
    """The price of one token from a price in dollars: 1.5e-07 is 150_000. Errors as in `parse_usd`."""
    return parse_usd(price, rounding=rounding)


def times(price: Picodollars, count: int) -> Picodollars:
    """`count` tokens (or calls, or posts) at `price` each, exactly."""
    return _checked(price * count)


def total(amounts: Iterable[Picodollars]) -> Picodollars:
    """The sum, exactly; zero for none.

    Raises:
        UsageError: The sum is beyond `MAX_AMOUNT` and would not fit its column.
    """
    return _checked(sum(amounts))


def scale(amount: Picodollars, factor: Decimal | int, *, rounding: Rounding = "ROUND_HALF_EVEN") -> Picodollars:
    """`amount * factor`, rounded once to whole picodollars: a discount, an overspend factor, a share.

    Raises:
        UsageError: The factor is not finite, or the result is beyond `MAX_AMOUNT`.
    """
    exact = Decimal(factor)
    if not exact.is_finite():
        raise UsageError(f"cannot multiply money by {factor}")
    return _to_picodollars(_EXACT.multiply(Decimal(amount), exact), -_DIGITS, factor, rounding)


def usd_decimal(amount: Picodollars) -> Decimal:
    """Dollars as an exact Decimal without trailing zeros."""
    text = usd_string(amount)
    return Decimal(text)


def usd_string(amount: Picodollars) -> str:
    """Dollars as an exact plain decimal for JSON and files: "0.3", "0.0000075", "-2". Never an exponent."""
    dollars, rest = divmod(abs(amount), DOLLAR)
    fraction = f".{rest:0{_DIGITS}d}".rstrip("0").rstrip(".")
    return f"{'-' if amount < 0 else ''}{dollars}{fraction}"


def usd_number(amount: Picodollars) -> float:
    """Dollars as a JSON number, for readers who want one: the nearest float.

    `parse_usd` reads it back exactly up to $1,000 (15 digits); use `usd_string` where more may be at stake.
    """
    return amount / DOLLAR  # division of integers is correctly rounded in Python, whatever their size


def format_usd(amount: Picodollars, *, places: int | None = None) -> str:
    """Dollars for people: "$0.30", "$1,234.50", "-$0.0000075".

    Args:
        amount: What to show.
        places: Decimals to round to (half to even); without it all that are needed, at least two.
    """
    if places is not None:
        step = 10 ** (_DIGITS - min(places, _DIGITS))
        amount = Picodollars(_round_half_even(amount, step))
    whole, _, fraction = usd_string(Picodollars(abs(amount))).partition(".")
    fraction = fraction.ljust(2 if places is None else places, "0")
    return f"{'-' if amount < 0 else ''}${int(whole):,}{'.' + fraction if fraction else ''}"


def _round_half_even(amount: int, step: int) -> int:
    quotient, rest = divmod(amount, step)
    if 2 * rest > step or (2 * rest == step and quotient % 2):
        quotient += 1
    return quotient * step


def _read(value: str | int | float | Decimal) -> Decimal:
    # bool is an int, and `cap: yes` in YAML is a mistake, not a dollar
    if isinstance(value, bool):
        raise _not_money(value)
    if isinstance(value, int):
        number = Decimal(value)
    elif isinstance(value, Decimal):
        number = value
    elif isinstance(value, float):
        number = Decimal(repr(value))
    else:
        match = _WRITTEN.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST else None
        if match is None or (match["sign"] and match["inner"]):
            raise _not_money(value)
        digits = match["number"].replace(",", "").replace("_", "")
        try:
            number = Decimal(f"{match['sign']}{match['inner']}{digits}{match['exponent'] or ''}")
        except InvalidOperation:
            raise _not_money(value) from None
    if not number.is_finite():
        raise _not_money(value)
    return number


def _to_picodollars(dollars: Decimal, shift: int, written: object, rounding: Rounding | None) -> Picodollars:
    if rounding is not None and rounding not in _ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}")
    if dollars and dollars.adjusted() + shift > 7:
        raise _too_much()
    if len(dollars.as_tuple().digits) > _LONGEST:
        raise _not_money(written)
    exact = dollars.scaleb(_DIGITS + shift, _EXACT)
    if rounding is not None:
        return _checked(int(exact.to_integral_value(rounding)))
    whole = int(exact)
    if whole != exact:
        raise UsageError(
            f"{written} is finer than a picodollar (1e-12 USD)",
            hint="write at most 12 decimals of a dollar (6 for a price per million tokens)",
            code="amount_too_fine",
        )
    return _checked(whole)


def _checked(amount: int) -> Picodollars:
    if abs(amount) > MAX_AMOUNT:
        raise _too_much()
    return Picodollars(amount)


def _too_much() -> UsageError:
    return UsageError(
        "an amount beyond $9.2 million", hint="check the unit: amounts are dollars", code="amount_too_large"
    )


def _not_money(value: object) -> UsageError:
    shown = repr(value)
    return UsageError(
        f"{shown if len(shown) <= 60 else shown[:57] + '...'} is not an amount of money",
        hint='write dollars, such as 0.30, "$0.30" or "1,000 USD"',
        code="not_an_amount",
    )
