"""Rate-limit headers in every dialect met. The values are written from the providers' documentation."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.resilience.rate_headers import RateLimit, read_rate_limits, read_retry_after, seconds_until

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0", 0),
        (" 2.5 ", 2.5),
        ("-3", 0),
        (str(int(NOW) + 90), 90),
        (f"{NOW + 1.5:.1f}", 1.5),
        (str(int(NOW * 1000) + 4000), 4),
        (str(int(NOW) - 90), 0),
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("12ms", 0.012),
        ("250us", 0.00025),
        ("1d", 86400),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60),
        ("Saturday, 21-Nov-26 12:01:00 GMT", 60),
        ("Sat Nov 21 12:01:00 2026", 60),
        ("2026-11-21T12:00:05Z", 5),
        ("2026-11-21T13:00:05.250+01:00", 5.25),
        ("2026-11-21T11:00:00Z", 0),
    ],
)
def test_reading_when(text: str, seconds: float) -> None:
    assert seconds_until(text, NOW) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "1x", "6m0", "Sat, 99 Nov 2026 12:01:00 GMT", "9" * 100, "٣"]
)
def test_what_cannot_be_read_is_not_guessed(text: str) -> None:
    if text == "٣":  # a digit to Python as well
        assert seconds_until(text, NOW) == 3
    else:
        assert seconds_until(text, NOW) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:07 GMT"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"retry-after": "soon", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "42.5"}, 42.5),  # Reddit
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW) + 60)}, 60),  # GitHub
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": str(int(NOW) + 15)}, 15),  # X
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "60"}, None),  # not used up: no reason to wait
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            360,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "3",
                "anthropic-ratelimit-requests-reset": "2026-11-21T12:05:00Z",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-11-21T12:00:30Z",
            },
            30,
        ),
        ({"ratelimit": '"default";r=0;t=11'}, 11),
        ({"ratelimit": "limit=10, remaining=0, reset=12"}, 12),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "13"}, 13),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    found = read_retry_after(headers, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


def test_the_limits_of_each_dialect() -> None:
    openai = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-tokens": "8ms",
    }
    assert read_rate_limits(openai, NOW) == (
        RateLimit("requests", 5000, 4999, 0.012),
        RateLimit("tokens", 160000, 159976, 0.008),
    )
    assert read_rate_limits({"ratelimit": '"burst";r=1;t=2, "day";r=0;t=900'}, NOW) == (
        RateLimit("requests", None, 1, 2),
        RateLimit("requests", None, 0, 900),
    )
    assert read_rate_limits({"ratelimit-limit": "10, 10;w=60"}, NOW) == (RateLimit("requests", 10, None, None),)
    assert read_rate_limits({"content-type": "application/json"}, NOW) == ()


@given(st.text(max_size=80))
def test_no_header_value_breaks_it(text: str) -> None:
    names = (
        "retry-after",
        "retry-after-ms",
        "ratelimit",
        "x-ratelimit-reset",
        "x-ratelimit-remaining",
        "ratelimit-limit",
    )
    for headers in ({name: text} for name in names):
        seconds = read_retry_after(headers, NOW)
        assert seconds is None or seconds >= 0
        read_rate_limits(headers, NOW)
