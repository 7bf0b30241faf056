"""What the bundled embedder costs: cold start, queries, chunks a second, memory; and ratios to a floor in the same run.

    python benchmarks/embedder.py [--seconds 5]

The floor of throughput is bare matrix multiplication: numpy doing in float32, on one core, the products that one chunk
needs. A ratio above 1 means that the whole 8-bit model runs faster than the float32 arithmetic alone would. The floor
of the cold start is a Python that imports numpy and ends. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

WORDS = (
    "restart the ingress controller when the alert KubePodCrashLooping fires and check kubelet_volume_stats_used_bytes "
    "on node worker-3 , then drain it with kubectl and compare the error budget of the last 30 minutes . "
)
QUERIES = (
    "how do I free disk space on a full etcd volume?",
    "KubePodCrashLooping",
    "The API server is burning too much error budget over the last hours.",
    "replica is lagging behind the primary by more than 30 seconds",
)
COLD = "from avyay.embed.registry import open_embedder; open_embedder().embed(['why is the disk full?'], kind='query')"
# [CLS] and [SEP] included; multiply-adds of one 256-token chunk: six blocks of projections and two products of scores
TOKENS, WIDTH, BLOCKS = 256, 384, 6


def children_cpu(program: str, runs: int = 5) -> float:
    """CPU seconds of the best of some fresh interpreters, from their exit status."""
    best = float("inf")
    # One BLAS thread: starting numpy's pool costs 0.1 CPU s that the embedder has no use for.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    for _ in range(runs + 1):  # the first writes bytecode and warms the page cache
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second over at least `seconds`."""
    work()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        done += work()
    return done / elapsed


def arithmetic_rate(seconds: float) -> float:
    """Chunks a second if the float32 matrix products were all there is to do."""
    import numpy as np

    random = np.random.default_rng(0)
    state = random.random((TOKENS, WIDTH), dtype=np.float32)
    wide = random.random((TOKENS, 4 * WIDTH), dtype=np.float32)
    square = random.random((WIDTH, 4 * WIDTH), dtype=np.float32)  # query, key, value and output side by side
    up = random.random((WIDTH, 4 * WIDTH), dtype=np.float32)
    down = random.random((4 * WIDTH, WIDTH), dtype=np.float32)
    scores = random.random((TOKENS, TOKENS), dtype=np.float32)

    def chunk() -> int:
        for _ in range(BLOCKS):
            _ = state @ square, state @ up, wide @ down, state @ state.T, scores @ state
        return 1

    return rate(chunk, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the bundled embedder.")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    seconds = parser.parse_args().seconds
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported: the floor is one core

    figures: dict[str, float] = {}
    figures["cold_query_cpu_s"] = children_cpu(COLD)
    figures["import_numpy_cpu_s"] = children_cpu("import numpy")
    figures["cold_ratio_to_numpy"] = figures["cold_query_cpu_s"] / figures["import_numpy_cpu_s"]

    from avyay.embed.minilm import MiniLM

    one = MiniLM(threads=1)
    text = WORDS * 20
    chunks = [f"{number} " + text[: one.offsets(text)[one.max_tokens - 2][1]] for number in range(16)]
    assert {one.count_tokens(chunk) for chunk in chunks} <= {one.max_tokens, one.max_tokens + 1}

    def queries() -> int:
        for query in QUERIES:
            one.embed([query], kind="query")
        return len(QUERIES)

    figures["query_ms"] = 1000 / rate(queries, seconds)
    figures["resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["chunks_per_s_1_thread"] = rate(lambda: len(one.embed(chunks)), seconds)
    floor = arithmetic_rate(min(seconds, 3))
    figures["float32_products_per_s"] = floor
    figures["ratio_to_float32_products"] = figures["chunks_per_s_1_thread"] / floor
    for threads in sorted({2, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)}):
        several = MiniLM(threads=threads)
        figures[f"chunks_per_s_{threads}_threads"] = rate(lambda several=several: len(several.embed(chunks)), seconds)
    figures["token_vectors_per_s_1_thread"] = rate(lambda: sum(map(len, one.embed_tokens(chunks))), seconds)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
