"""What the package says it offers is what it offers."""

import avyay.marga.wire as wire


def test_all_is_sorted_and_complete():
    assert wire.__all__ == sorted(wire.__all__)
    assert all(hasattr(wire, name) for name in wire.__all__)
