from __future__ import annotations

import pytest

from avyay.embed.minilm import MiniLM


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    """The bundled model, loaded once: it has no state that a test could change."""
    return MiniLM(threads=2)
