"""Learn from the user's own traffic: thresholds and a small model, adopted only when they beat what is there.

The labels are the judgement's own comparisons (how far a cheap answer fell short of premium's) or a labelled file.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import orjson

from avyay.errors import UsageError

__all__ = [
    "Calibrated",
    "Calibration",
    "Label",
    "UserModel",
    "apgr",
    "calibrate",
    "features_of",
    "load_calibration",
    "read_labels",
]

LEAST = 100  # labels below which nothing is learned
FOLDS = 5
_NUMERIC = (
    *("complexity", "messages", "chars", "system_chars", "last_user_chars", "tools", "images", "structured", "stream"),
    *("reasoning", "tool_loop", "temperature", "max_tokens"),
)
_LOGGED = frozenset({"messages", "chars", "system_chars", "last_user_chars", "tools", "images", "max_tokens"})


@dataclass(frozen=True, slots=True)
class Label:
    """One request of known outcome: `gain`, -1..1, is strong minus weak. Labels of one `group` are kept together."""

    features: Mapping[str, float]
    gain: float
    group: str
    request_class: str = "default"


@dataclass(frozen=True, slots=True)
class UserModel:
    """A ridge regression on standardised request features and on the request class."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    classes: Mapping[str, float]

    def gain(self, features: Mapping[str, float], request_class: str) -> float:
        """The expected gain of the stronger model."""
        total = self.bias + self.classes.get(request_class, 0.0)
        for name, middle, scale, weight in zip(self.names, self.mean, self.scale, self.weights, strict=True):
            total += weight * max(-3.0, min(3.0, (features.get(name, 0.0) - middle) / scale))
        return total

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned, and whether it is worth having. APGR out of fold; intervals by bootstrap over groups.

    `adopted` only when the gain over length, over random and over the scorer in use is above zero with its interval.
    """

    labels: int
    mean_gain: float
    apgr: Mapping[str, float]
    over: Mapping[str, tuple[float, float, float]]
    adopted: bool
    why: str
    model: UserModel | None
    local_below: float | None = None
    premium_from: float | None = None


def features_of(stored: Mapping[str, Any], complexity: float) -> dict[str, float]:
    """A decision's stored features as numbers."""
    values = {"complexity": complexity}
    for name in _NUMERIC[1:]:
        value = stored.get(name)
        number = float(value) if isinstance(value, int | float) else 0.0
        values[name] = math.log1p(max(0.0, number)) if name in _LOGGED else number
    return values


def read_labels(lines: Sequence[bytes | str], score: Any) -> list[Label]:
    """Labels from JSON lines `{prompt | messages, gain | (weak, strong), group?, class?}`.

    Args:
        score: (request as parsed) -> (features, complexity).

    Raises:
        UsageError: a line is no label; names it.
    """
    labels = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            gain = row["gain"] if "gain" in row else float(row["strong"]) - float(row["weak"])
            stored, complexity = score(row)
            text = str(row.get("group") or row.get("id") or row.get("prompt") or number)
            labels.append(Label(features_of(stored, complexity), float(gain), text, str(row.get("class", "default"))))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, UsageError) as error:
            raise UsageError(
                f"Line {number} is no label: {error}.",
                hint='For example: {"prompt": "...", "weak": 0, "strong": 1, "class": "summaries"}',
            ) from error
    return labels


def apgr(scores: Sequence[float], gains: Sequence[float]) -> float:
    """Mean normalised gain over all shares sent to the strong model; 0.5 for a constant, NaN without any gain.

    Requests of equal score are taken in expectation over their order.
    """
    total = sum(gains)
    if abs(total) < 1e-12 or not gains:
        return math.nan
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    area = before = 0.0
    at = 0
    while at < len(order):
        end = at
        block = 0.0
        while end < len(order) and scores[order[end]] == scores[order[at]]:
            block += gains[order[end]]
            end += 1
        area += (end - at) * (before + block / 2)
        before += block
        at = end
    return area / (len(gains) * total)


def calibrate(labels: Sequence[Label], *, tolerated: float = 0.05, draws: int = 200, seed: int = 0) -> Calibration:
    """Learn, cross-validate by group, and decide.

    Args:
        tolerated: Share of the strong model's advantage that may be lost below the thresholds.

    Raises:
        UsageError: too few labels.
    """
    if len(labels) < LEAST:
        raise UsageError(
            f"{len(labels)} labels are too few to learn from: at least {LEAST} are needed.",
            hint="Turn on marga.shadow and let it run, or give --labels FILE.",
        )
    gains = [label.gain for label in labels]
    folds = [int.from_bytes(hashlib.blake2b(label.group.encode(), digest_size=4).digest()) % FOLDS for label in labels]
    found = [0.0] * len(labels)
    for fold in range(FOLDS):
        training = [label for label, f in zip(labels, folds, strict=True) if f != fold]
        if not training:
            continue
        model = _fit(training)
        for i, label in enumerate(labels):
            if folds[i] == fold:
                found[i] = model.gain(label.features, label.request_class)
    columns: dict[str, Sequence[float]] = {
        "learned": found,
        "scorer": [label.features.get("complexity", 0.0) for label in labels],
        "length": [label.features.get("last_user_chars", 0.0) for label in labels],
        "random": [0.0] * len(labels),
    }
    scores = {name: apgr(values, gains) for name, values in columns.items()}
    over = _bootstrap(labels, columns, gains, draws, random.Random(seed))  # noqa: S311 - statistics, not secrets
    average = mean(gains)
    if average <= 0.005:
        return Calibration(
            len(labels), average, scores, over, False, "the stronger model gains nothing here: send less to it", None
        )
    worse = [name for name, (_, low, _) in over.items() if not low > 0]
    if worse:
        why = f"it is not surely better than {' and '.join(worse)}"
        return Calibration(len(labels), average, scores, over, False, why, None)
    final = _fit(list(labels))
    low, high = _thresholds(found, gains, tolerated)
    return Calibration(
        len(labels), average, scores, over, True, "better than length, random and the scorer in use", final, low, high
    )


def _bootstrap(
    labels: Sequence[Label],
    columns: Mapping[str, Sequence[float]],
    gains: Sequence[float],
    draws: int,
    rng: random.Random,
) -> dict[str, tuple[float, float, float]]:
    """(difference, low, high) of the learned scores against each other column, 95 %."""
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label.group, []).append(i)
    names = list(groups)
    others = [name for name in columns if name != "learned"]
    differences: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(draws):
        rows = [i for name in rng.choices(names, k=len(names)) for i in groups[name]]
        drawn = [gains[i] for i in rows]
        own = apgr([columns["learned"][i] for i in rows], drawn)
        for name in others:
            difference = own - apgr([columns[name][i] for i in rows], drawn)
            if not math.isnan(difference):
                differences[name].append(difference)
    out = {}
    learned = apgr(columns["learned"], gains)
    for name, values in differences.items():
        values.sort()
        if values:
            low = values[int(0.025 * (len(values) - 1))]
            high = values[math.ceil(0.975 * (len(values) - 1))]
        else:
            low, high = -math.inf, math.inf
        out[name] = (learned - apgr(columns[name], gains), low, high)
    return out


def _fit(labels: Sequence[Label], *, penalty: float = 10.0) -> UserModel:
    """Ridge by conjugate gradients on standardised features; classes as shrunken means of what is left."""
    names = tuple(name for name in _NUMERIC if len({label.features.get(name, 0.0) for label in labels}) > 1)
    columns = [[label.features.get(name, 0.0) for label in labels] for name in names]
    middles = tuple(mean(column) for column in columns)
    scales = tuple(
        max(1e-9, math.sqrt(mean((v - m) ** 2 for v in column))) for column, m in zip(columns, middles, strict=True)
    )
    standard = [
        [max(-3.0, min(3.0, (v - m) / s)) for v in column]
        for column, m, s in zip(columns, middles, scales, strict=True)
    ]
    bias = mean(label.gain for label in labels)
    target = [label.gain - bias for label in labels]
    size = len(names)
    matrix = [
        [
            sum(a * b for a, b in zip(standard[i], standard[j], strict=True)) + (penalty if i == j else 0.0)
            for j in range(size)
        ]
        for i in range(size)
    ]
    right = [sum(a * b for a, b in zip(standard[i], target, strict=True)) for i in range(size)]
    weights = _solve(matrix, right)
    rest: dict[str, list[float]] = {}
    for row, label in enumerate(labels):
        left = target[row] - sum(weights[i] * standard[i][row] for i in range(size))
        rest.setdefault(label.request_class, []).append(left)
    classes = {name: sum(values) / (len(values) + 2 * penalty) for name, values in rest.items()}
    return UserModel(names, middles, scales, tuple(weights), bias, classes)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """A symmetric positive definite system by elimination; a dozen unknowns."""
    size = len(right)
    rows = [[*matrix[i], right[i]] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, size + 1):
                rows[r][c] -= factor * rows[i][c]
    out = [0.0] * size
    for i in reversed(range(size)):
        out[i] = (rows[i][size] - sum(rows[i][c] * out[c] for c in range(i + 1, size))) / rows[i][i]
    return out


def _thresholds(scores: Sequence[float], gains: Sequence[float], tolerated: float) -> tuple[float, float]:
    """Gains up to which local loses at most half the tolerated share of all gain, and from which premium starts."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total = sum(max(0.0, gain) for gain in gains)
    lost, low, high = 0.0, scores[order[0]], scores[order[0]]
    for i in order:
        lost += gains[i]
        if lost <= tolerated / 2 * total:
            low = scores[i]
        if lost <= tolerated * total:
            high = scores[i]
    return low, max(low, high)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A learned model at work: complexities on the usual scale, 0.3 and 0.7 standing for the learned thresholds."""

    model: UserModel
    local_below: float
    premium_from: float

    def rate(self, complexity: float, features: Mapping[str, Any], request_class: str | None) -> float:
        """The complexity of a request, 0..1."""
        gain = self.model.gain(features_of(features, complexity), request_class or "default")
        low, high = self.local_below, max(self.premium_from, self.local_below + 1e-6)
        value = 0.3 + 0.4 * (gain - low) / (high - low) if low <= gain <= high else 0.0
        if gain < low:
            value = 0.3 / (1 + (low - gain) / (high - low))
        elif gain > high:
            value = 1 - 0.3 / (1 + (gain - high) / (high - low))
        return round(value, 6)


def load_calibration(text: bytes | str) -> Calibrated:
    """What `avyay marga calibrate` wrote.

    Raises:
        UsageError: it is something else.
    """
    try:
        data = orjson.loads(text)
        model = data["model"]
        return Calibrated(
            UserModel(
                tuple(model["names"]),
                tuple(model["mean"]),
                tuple(model["scale"]),
                tuple(model["weights"]),
                float(model["bias"]),
                dict(model["classes"]),
            ),
            float(data["local_below"]),
            float(data["premium_from"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError("The calibration file cannot be read.", hint="Run `avyay marga calibrate` again.") from error
