"""What asking and indexing cost: cold and warm queries, indexing rate, one-file commits, memory; beside their floors.

    python benchmarks/rag.py [--sizes 10000,100000] [--json]

Corpora are synthetic (words by Zipf's law, one document for every 8 chunks) and their vectors random, so that their
making takes seconds; queries run through the real embedder, the real files and the real command. Floors of the same
run: a Python that imports numpy and sqlite3 and ends (cold), one matrix-vector product over the same rows (warm).
Indexing is measured with the bundled embedder. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avyay.embed.registry import open_embedder
from avyay.rag.index import Indexer
from avyay.rag.places import IndexPlaces
from avyay.rag.rerankers.base import RerankPolicy
from avyay.rag.rerankers.late_interaction import LateInteraction
from avyay.rag.searcher import Ranking
from avyay.rag.service import RagService
from avyay.rag.sources import resolve_source
from avyay.rag.stores.lance import LanceStore
from avyay.rag.stores.memory import MemoryStore

QUERIES = (
    "how do I free disk space on a full etcd volume?",
    "KubePodCrashLooping",
    "The API server is burning too much error budget over the last hours.",
    "replica is lagging behind the primary by more than 30 seconds, what should I check first and who must be told?",
)
WARM_ROUNDS = 15
COLD_ROUNDS = 7
SECTIONS = 8
WORDS_A_SECTION = 110


class RandomVectors:
    """Stands in for the bundled embedder while a corpus is made: its name and size, no arithmetic."""

    name = "all-MiniLM-L6-v2"
    dimensions = 384
    max_tokens = 254

    def __init__(self) -> None:
        self._random = np.random.default_rng(3)

    def embed(self, texts: Sequence[str], *, kind: str = "document") -> Any:
        rows = self._random.normal(size=(len(texts), self.dimensions)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def vocabulary(size: int = 30_000) -> list[str]:
    """Pronounceable words, a tenth of them identifiers, the queries' own words among the common ones."""
    random = np.random.default_rng(5)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    words = [word for query in QUERIES for word in query.replace("?", "").replace(".", "").split()]
    while len(words) < size:
        parts = ["".join(random.choice(syllables, size=random.integers(1, 4))) for _ in range(3)]
        words.append("".join(part.title() for part in parts) if len(words) % 10 == 0 else parts[0] + parts[1][:2])
    return words


def write_corpus(folder: Path, chunks: int, *, words: int = WORDS_A_SECTION) -> None:
    """About `chunks` sections in Markdown."""
    random = np.random.default_rng(11)
    names = vocabulary()
    weights = 1 / np.arange(1, len(names) + 1)
    weights /= weights.sum()
    drawn = iter(random.choice(len(names), p=weights, size=chunks * (words + 4)))

    def text(count: int) -> str:
        return " ".join(names[next(drawn)] for _ in range(count))

    for document in range(chunks // SECTIONS):
        place = folder / f"{document % 97:02d}"
        place.mkdir(parents=True, exist_ok=True)
        sections = [f"## {text(3)}\n\n{text(words)}\n" for _ in range(SECTIONS)]
        (place / f"runbook-{document}.md").write_text(f"# Runbook {document}\n\n" + "\n".join(sections))


def commit(folder: Path) -> None:
    people = [f"GIT_{role}_{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    environment = {**os.environ, **dict.fromkeys(people, "bench@example.com")}
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=environment)


def cold(command: list[str], home: Path) -> dict[str, float]:
    """Median wall seconds, CPU seconds and peak MB of fresh processes."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"AVYAY_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    probe = (
        "import resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    rows = []
    for _ in range(COLD_ROUNDS + 1):  # the first one warms caches
        done = subprocess.run(
            [sys.executable, "-c", probe, *command], env=environment, capture_output=True, text=True, check=True
        )
        rows.append([float(cell) for cell in done.stdout.split()])
    wall, cpu, memory = zip(*rows[1:], strict=True)
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "megabytes": max(memory)}


def median_seconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Wall and CPU seconds. On a busy machine only the second says something about the program."""
    work()
    taken = []
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - start, time.process_time() - cpu))
    wall, used = zip(*taken, strict=True)
    return statistics.median(wall), statistics.median(used)


def corpus(root: Path, chunks: int) -> Iterator[tuple[str, float, str]]:
    """Cold and warm queries and a one-file commit over a corpus of so many chunks."""
    home, docs = root / f"home-{chunks}", root / f"docs-{chunks}"
    write_corpus(docs, chunks)
    commit(docs)
    places = IndexPlaces.under(home / "data" / "rag")
    store = MemoryStore()
    made = Indexer(places, RandomVectors(), lambda: store)  # type: ignore[arg-type]
    start = time.perf_counter()
    report = made.sync([resolve_source(str(docs), name="docs")])[0]
    yield f"{chunks:>7}: index, embedding aside", report.chunks / (time.perf_counter() - start), "chunks/s"

    floor = cold([sys.executable, "-c", "import numpy, sqlite3"], home)
    ask = cold([sys.executable, "-m", "avyay", "ask", QUERIES[0], "--no-model"], home)
    yield f"{chunks:>7}: cold ask, wall", ask["wall"], "s"
    yield f"{chunks:>7}: cold ask, CPU", ask["cpu"], "s"
    yield f"{chunks:>7}: cold ask, CPU / importing numpy and sqlite3", ask["cpu"] / floor["cpu"], "x"
    yield f"{chunks:>7}: cold ask, peak memory", ask["megabytes"], "MB"

    rag = RagService(places, open_embedder(), open_store=lambda: store)
    warm = [median_seconds(lambda query=query: rag.retrieve(query), WARM_ROUNDS) for query in QUERIES]  # type: ignore[misc]
    vectors = np.ascontiguousarray(np.load(next(places.generations.iterdir()) / "vectors.npy"))
    product = median_seconds(lambda: vectors @ vectors[0], WARM_ROUNDS)
    yield f"{chunks:>7}: warm query, p50 wall", statistics.median(wall for wall, _ in warm) * 1e3, "ms"
    yield f"{chunks:>7}: warm query, p50 CPU", statistics.median(used for _, used in warm) * 1e3, "ms"
    yield f"{chunks:>7}: warm query, CPU of the slowest of {len(QUERIES)}", max(used for _, used in warm) * 1e3, "ms"
    ratio = statistics.median(used for _, used in warm) / product[1]
    yield f"{chunks:>7}: warm query / one matrix-vector product, CPU", ratio, "x"
    rag.close()

    changed = docs / "00" / "runbook-0.md"
    changed.write_text(changed.read_text() + "\n## Addendum\n\nCall the storage team.\n")
    commit(docs)
    command = [sys.executable, "-m", "avyay", "rag", "index", "--quiet"]
    start, cpu = time.perf_counter(), time.process_time()
    one = Indexer(places, open_embedder(), lambda: store).sync([resolve_source(str(docs), name="docs")])[0]
    yield f"{chunks:>7}: one-file commit, in a running process, wall", time.perf_counter() - start, "s"
    yield f"{chunks:>7}: one-file commit, in a running process, CPU", time.process_time() - cpu, "s"
    assert (len(one.changed), one.unchanged) == (1, chunks // SECTIONS - 1)
    changed.write_text(changed.read_text() + "\nAnd the network team.\n")
    commit(docs)
    environment = {**os.environ, "AVYAY_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield f"{chunks:>7}: one-file commit, avyay rag index, wall", time.perf_counter() - start, "s"
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    yield f"{chunks:>7}: one-file commit, avyay rag index, CPU", used, "s"


def indexing(root: Path) -> Iterator[tuple[str, float, str]]:
    """The whole of indexing with the bundled embedder and LanceDB."""
    docs = root / "real"
    write_corpus(docs, 400)
    commit(docs)
    places = IndexPlaces.under(root / "real-index")
    embedder = open_embedder()
    embedder.embed(["warm"])

    def store() -> LanceStore:
        return LanceStore(places.vectors, embedder=embedder.name, dimensions=embedder.dimensions)

    start = time.perf_counter()
    report = Indexer(places, embedder, store).sync([resolve_source(str(docs))])[0]
    yield "indexing with the bundled embedder", report.chunks / (time.perf_counter() - start), "chunks/s"
    yield "  chunks of on average", float(np.mean(_tokens(places))), "tokens"
    yield from reranking(places)


def reranking(places: IndexPlaces) -> Iterator[tuple[str, float, str]]:
    """What late interaction on the first 20 adds to a query."""
    embedder = open_embedder()
    policy = RerankPolicy(lambda: LateInteraction(embedder), seconds=60)  # type: ignore[arg-type]
    used = {}
    for name, ranking in (("plain", Ranking()), ("reranked", Ranking(rerank=policy))):
        rag = RagService(places, embedder, open_store=MemoryStore, ranking=ranking)
        used[name] = median_seconds(lambda rag=rag: rag.retrieve(QUERIES[0], limit=20), 5)[1]  # type: ignore[misc]
        rag.close()
    yield "warm query with late interaction on 20, CPU", used["reranked"] * 1e3, "ms"
    yield "  of the query without", used["reranked"] / used["plain"], "x"


def _tokens(places: IndexPlaces) -> list[int]:
    import sqlite3

    with sqlite3.connect(places.database) as database:
        return [row[0] for row in database.execute("SELECT tokens FROM chunks")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="avyay-bench-"))
    rows: list[tuple[str, float, str]] = []
    try:
        for source in (indexing(root), *(corpus(root, int(size)) for size in arguments.sizes.split(","))):
            for row in source:
                rows.append(row)
                if not arguments.json:
                    print(f"{row[0]:<62}{row[1]:>10.2f} {row[2]}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("peak memory of this process, which also made the corpora", peak, "MB"))
    if arguments.json:
        print(json.dumps([{"what": what, "value": round(value, 4), "unit": unit} for what, value, unit in rows]))


if __name__ == "__main__":
    main()
