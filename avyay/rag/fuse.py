"""Several rankings into one: by ranks (RRF) or by scores (a linear mix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["linear", "reciprocal_rank", "scaled"]

Floats = NDArray[np.float32]


def scaled(scores: Floats) -> Floats:
    """Scores from 0 to 1: the smallest becomes 0 and the largest 1; all alike become 0."""
    if not len(scores):
        return scores
    low, high = float(scores.min()), float(scores.max())
    if high - low < 1e-9:
        return np.zeros_like(scores)
    return (scores - np.float32(low)) / np.float32(high - low)


def linear(signals: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """The weighted sum of scaled signals; a signal without a weight counts nothing."""
    used = [(scaled(scores), weights[name]) for name, scores in signals.items() if weights.get(name)]
    if not used:
        raise ValueError("no signal has a weight")
    total: Floats = sum((scores * np.float32(weight) for scores, weight in used), np.zeros_like(used[0][0]))
    return total


def reciprocal_rank(rankings: Sequence[Sequence[int]], *, size: int, k: int = 60) -> Floats:
    """Reciprocal rank fusion: each ranking, best first, gives 1 / (k + rank) to the rows it names."""
    total = np.zeros(size, dtype=np.float32)
    for ranking in rankings:
        rows = np.asarray(ranking, dtype=np.int64)
        np.add.at(total, rows, (1.0 / (k + np.arange(1, len(rows) + 1))).astype(np.float32))
    return total
