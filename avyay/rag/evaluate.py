"""How good a search is: recall, reciprocal rank and nDCG of documents and of sections, with intervals.

A query names the documents that answer it (`gold_docs`: alternatives, any is right) and may name sections. Results
are read best first; of one document, and of one section, only the first counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avyay.errors import UsageError, why_unreadable

__all__ = [
    "METRICS",
    "EvalQuery",
    "EvalResult",
    "Interval",
    "Level",
    "Row",
    "compare",
    "evaluate",
    "judge",
    "load_queries",
    "macro",
]

Level = Literal["doc", "section"]
METRICS = ("recall@1", "recall@5", "MRR@10", "nDCG@10")
DEPTH = 10
HEADINGS_READ = 3
DRAWS = 2_000
SEED = 20_240_613


@dataclass(frozen=True, slots=True)
class EvalQuery:
    """A query and what answers it. `sections` are (path, accepted headings); `levels` say what it counts for."""

    qid: str
    text: str
    variant: str
    documents: frozenset[str]
    sections: tuple[tuple[str, frozenset[str]], ...]
    levels: frozenset[str]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One result of a search: a document and the headings of the sections in it."""

    path: str
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval, by percentile bootstrap over queries."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """The metrics of one group of queries; "macro" is the mean of the groups."""

    level: Level
    group: str
    queries: int
    metrics: Mapping[str, Interval]


Scores = dict[tuple[Level, str], dict[str, tuple[float, ...]]]


def load_queries(path: Path) -> list[EvalQuery]:
    """Read queries from JSON lines: `qid`, `query`, `gold_docs`, and optionally `gold_sections`, `variant`, `levels`.

    Raises:
        UsageError: the file cannot be read, or a line is not a query.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read the queries in {path}: {why_unreadable(error)}.",
            hint='They are JSON lines: {"qid": "1", "query": "etcd is slow", "gold_docs": ["alerts/etcd.md"]}',
        ) from error
    return [_query(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def judge(query: EvalQuery, results: Sequence[EvalResult]) -> dict[Level, tuple[float, ...]]:
    """The metrics of one query, in the order of METRICS, for each level it counts for."""
    judged: dict[Level, tuple[float, ...]] = {}
    if "doc" in query.levels:
        paths = list(dict.fromkeys(result.path for result in results))
        ranks = [rank for rank, path in enumerate(paths[:DEPTH], 1) if path in query.documents]
        judged["doc"] = _metrics(ranks, len(query.documents))
    if "section" in query.levels:
        judged["section"] = _metrics(_section_ranks(query, results), len(query.sections))
    return judged


def evaluate(queries: Sequence[EvalQuery], results: Mapping[str, Sequence[EvalResult]]) -> list[Row]:
    """Every group and level, then the macro means. A query without results counts as an empty answer."""
    return _rows(_scores(queries, results))


def compare(
    queries: Sequence[EvalQuery],
    before: Mapping[str, Sequence[EvalResult]],
    after: Mapping[str, Sequence[EvalResult]],
) -> list[Row]:
    """What `after` gains over `before`, query by query."""
    old, new = _scores(queries, before), _scores(queries, after)
    return _rows(
        {
            group: {
                qid: tuple(b - a for a, b in zip(old[group][qid], values, strict=True)) for qid, values in rows.items()
            }
            for group, rows in new.items()
        }
    )


def macro(rows: Iterable[Row], level: Level, metric: str = "nDCG@10") -> Interval:
    """The macro mean of a metric; a mean of nothing is 0."""
    found = (row.metrics[metric] for row in rows if row.level == level and row.group == "macro")
    return next(found, Interval(0.0, 0.0, 0.0))


def normal_heading(heading: str) -> str:
    """A heading as it is compared: letters and digits only."""
    return re.sub(r"[^a-z0-9]+", "", heading.lower())


def _scores(queries: Sequence[EvalQuery], results: Mapping[str, Sequence[EvalResult]]) -> Scores:
    scores: Scores = {}
    for query in queries:
        for level, values in judge(query, results.get(query.qid, ())).items():
            scores.setdefault((level, query.variant), {})[query.qid] = values
    return scores


def _rows(scores: Scores) -> list[Row]:
    rows: list[Row] = []
    for level in ("doc", "section"):
        groups = {group: list(values.values()) for (of, group), values in scores.items() if of == level}
        tables = [np.array(values, dtype=np.float64) for values in groups.values()]
        named = [*zip(groups, ([table] for table in tables), strict=True)]
        if tables:
            named.append(("macro", tables))
        for group, members in named:
            intervals = {metric: _bootstrap(members, column) for column, metric in enumerate(METRICS)}
            rows.append(Row(level, group, sum(map(len, members)), intervals))
    return rows


def _bootstrap(groups: Sequence[NDArray[np.float64]], column: int) -> Interval:
    """The mean of group means; queries are drawn within their groups."""
    random = np.random.default_rng(SEED)
    draws = np.zeros(DRAWS)
    for group in groups:
        values = group[:, column]
        draws += values[random.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(draws / len(groups), [2.5, 97.5])
    return Interval(float(np.mean([group[:, column].mean() for group in groups])), float(low), float(high))


def _metrics(ranks: Sequence[int], right: int) -> tuple[float, ...]:
    first = ranks[0] if ranks else None
    gained = sum(1 / math.log2(rank + 1) for rank in ranks)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(right, DEPTH) + 1))
    return (
        float(first == 1),
        float(first is not None and first <= 5),
        1 / first if first else 0.0,
        gained / ideal if ideal else 0.0,
    )


def _section_ranks(query: EvalQuery, results: Sequence[EvalResult]) -> list[int]:
    seen = list(dict.fromkeys((one.path, tuple(map(normal_heading, one.headings[:HEADINGS_READ]))) for one in results))
    ranks: list[int] = []
    found: set[int] = set()
    for rank, (path, headings) in enumerate(seen[:DEPTH], 1):
        for index, (right, accepted) in enumerate(query.sections):
            if path == right and not accepted.isdisjoint(headings):
                if index not in found:
                    found.add(index)
                    ranks.append(rank)
                break
    return ranks


def _query(line: str, where: str) -> EvalQuery:
    try:
        data: dict[str, Any] = json.loads(line)
        sections = data.get("gold_sections") or []
        documents = frozenset(data.get("gold_docs") or [section["path"] for section in sections])
        return EvalQuery(
            qid=str(data["qid"]),
            text=str(data["query"]),
            variant=str(data.get("variant") or "all"),
            documents=documents,
            sections=tuple(
                (one["path"], frozenset(map(normal_heading, one.get("accept") or [one["heading"]]))) for one in sections
            ),
            levels=frozenset(data.get("levels") or (["doc", "section"] if sections else ["doc"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{where} is not a query: {error!r}.",
            hint='A line looks like {"qid": "1", "query": "disk is full", "gold_docs": ["runbooks/disk.md"]}',
        ) from error
