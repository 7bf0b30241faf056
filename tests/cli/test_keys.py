"""`avyay keys`: what a first key changes is said with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from avyay.cli.app import run as avyay


def test_the_first_key_closes_the_gateway_and_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avyay(["keys", "create", "one"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("avy_")
    assert "from now on the gateway asks every caller for a key" in told.err
    assert avyay(["keys", "create", "two"]) == 0
    assert "from now on" not in capsys.readouterr().err
