"""What a page about a product that does not exist may not say: users, prices, praise and numbers nobody has given it.

SIDDHI checks the words before it writes a page; RAKSHA's rule checks the page that is to be published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["PAGE_GENERATOR", "unproved_claims"]

PAGE_GENERATOR = "avyay siddhi"
"""The `generator` of such a page, by which it is known."""


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_CLAIMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("an invented price", _any(r"[$€£]\s?\d", r"\b\d+\s?(dollars|euros|usd|eur)\b", r"\bfree (trial|forever)\b")),
    ("invented users", _any(r"\b(trusted|used|loved) by\b", r"\b\d[\d,.]*\+?\s?(users|customers|teams|companies)\b")),
    ("an invented testimonial", _any(r"[“\"][^”\"]{15,}[”\"]\s*[—–-]", r"\btestimonial", r"\b(says|said) (?-i:[A-Z])")),
    ("an unproved number", _any(r"\b\d+(\.\d+)?\s?(%|x faster|times faster)", r"\bsave \d+")),
    ("a superlative", _any(r"\b(best|world'?s|number one|guarantee\w*|award|leading)\b", r"#1\b")),
    (
        "a claim that it exists",
        _any(r"\b(buy now|download now|start using|sign in|available (now|today)|get started)\b"),
    ),
)


def unproved_claims(text: str) -> Iterator[tuple[str, int, int]]:
    """(What, start, end) of every claim in `text` that nothing stands behind."""
    for what, pattern in _CLAIMS:
        for match in pattern.finditer(text):
            yield what, match.start(), match.end()
