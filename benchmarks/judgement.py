"""How fast the judgement judges: scoring, detection and masking of personal data. Prints one line each."""

from __future__ import annotations

import random
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from avyay.marga.complexity import score
from avyay.marga.masking import Masker, scan_body
from avyay.marga.pii import KINDS, detect
from avyay.marga.view import RequestView

PROSE = (
    "The deploy at 10:42 failed with exit code 137 on node ip-10-0-3-7; see https://ci.example.com/build/8841 for the"
    " log. Please summarise what happened, in three bullet points, and say who should look at it (v2.14.3, PR 1290).\n"
)
DATA = "Contact ada@example.com or +1 (415) 555-0123; card 4111 1111 1111 1111, IBAN DE89370400440532013000, 8.8.8.8.\n"


def per_kilobyte(text: str, work: Callable[[str], object]) -> float:
    """Milliseconds of CPU for 1,000 characters, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(20):
            work(text)
        best = min(best, (time.process_time() - start) / 20)
    return best * 1e6 / len(text)


def main() -> None:
    rng = random.Random(1)
    digits = "".join(rng.choice(string.digits + "  -") for _ in range(20_000))
    body = {"messages": [{"role": "user", "content": PROSE * 40}, {"role": "tool", "content": DATA * 40}]}
    size = len(PROSE * 40) + len(DATA * 40)
    for name, text in (("prose", PROSE * 80), ("dense personal data", DATA * 80), ("digits only", digits)):
        print(f"detect, {name}: {per_kilobyte(text, detect):.3f} ms CPU a kB")
    masker = Masker(frozenset(KINDS))
    print(f"mask a body: {per_kilobyte('x' * size, lambda _: masker.mask_body(body)):.3f} ms CPU a kB")
    print(f"scan a body: {per_kilobyte('x' * size, lambda _: scan_body(body)):.3f} ms CPU a kB")
    view = RequestView(PROSE * 2)
    score(view)
    start = time.process_time()
    for _ in range(2000):
        score(view)
    print(f"complexity of {len(view.last_user)} characters: {(time.process_time() - start) / 2:.3f} ms CPU")


if __name__ == "__main__":
    main()
