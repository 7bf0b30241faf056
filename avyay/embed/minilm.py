"""The bundled embedder: all-MiniLM-L6-v2 in 8 bits, on the CPU, without a key, a download or torch.

A run holds one text. Batches would be no faster here (the matrices of one text fill a core) and would waste work on
padding; and because the model scales its activations by the largest in the batch, a text's vector would depend on
its neighbours. So the vector of a text is a function of that text, bit for bit, and parallelism is texts side by side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from avyay.config.environment import refuse_telemetry
from avyay.embed.bundle import BUNDLED, Bundle
from avyay.embed.tokenizer import WordPiece
from avyay.embed.types import EmbedderOptions
from avyay.errors import CorruptError, DependencyError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from avyay.ports import Vectors

__all__ = ["MiniLM", "from_options"]

T = TypeVar("T")

DIMENSIONS = 384
POSITIONS = 256  # what the model reads, [CLS] and [SEP] included
MAX_THREADS = 8


class MiniLM:
    """384 dimensions; reads the first 254 tokens of a text. Loads on first use; safe to share between threads.

    Args:
        threads: Texts embedded at the same time; by default the CPUs this process may use, at most 8.
        directory: Where model.json, model.onnx and tokenizer.json are.

    Every method raises CorruptError when a model file is not what it should be, and DependencyError when onnxruntime
    or tokenizers cannot be imported.
    """

    name = "all-MiniLM-L6-v2"
    dimensions = DIMENSIONS
    max_tokens = POSITIONS - 2

    def __init__(self, *, threads: int | None = None, directory: Path = BUNDLED) -> None:
        if threads is not None and threads < 1:
            raise ValueError("threads must be at least 1")
        self.threads = threads or min(_usable_cpus(), MAX_THREADS)
        self._bundle = Bundle(directory)
        self._tokenizer = WordPiece(self._bundle)
        self._session: InferenceSession | None = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"] = "document") -> Vectors:
        """One row of length 1 per text. Queries and documents are embedded alike: the model was trained that way."""
        rows = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for row, vector in zip(rows, self._each(lambda text: self._run(text).mean(axis=0), texts), strict=True):
            row[:] = vector / np.linalg.norm(vector)
        return rows

    def embed_tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """For each text one row of length 1 per token, in context, for late interaction.

        Row i belongs to `offsets(text)[i]`; there are at most `max_tokens`, and none for a text without tokens.
        """
        return self._each(lambda text: _normalised(self._run(text)[1:-1]), texts)

    def count_tokens(self, text: str) -> int:
        """Tokens in the whole text; up to `max_tokens` of them are read."""
        return self._tokenizer.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token stands: `text[first:end]`, in order."""
        return self._tokenizer.offsets(text)

    def _run(self, text: str) -> Vectors:
        """The last hidden states, [CLS] and [SEP] included."""
        session = self._load()
        ids = [self._tokenizer.id("[CLS]"), *self._tokenizer.ids(text, self.max_tokens), self._tokenizer.id("[SEP]")]
        states: Vectors = session.run(None, {"input_ids": np.array([ids], dtype=np.int64)})[0][0]
        return states

    def _each(self, work: Callable[[str], T], texts: Sequence[str]) -> list[T]:
        if self.threads == 1 or len(texts) < 2:
            return [work(text) for text in texts]
        self._load()
        with ThreadPoolExecutor(min(self.threads, len(texts)), thread_name_prefix="embed") as pool:
            return list(pool.map(work, texts))

    def _load(self) -> InferenceSession:
        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = self._open()
        return self._session

    def _open(self) -> InferenceSession:
        refuse_telemetry()
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError(
                "The bundled embedder needs the package onnxruntime, which cannot be imported here.",
                hint="Install it (python -m pip install onnxruntime), or set rag.embedder.name to ollama or"
                " openai-compatible.",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # threads are texts: no pool that spins, and none to start for one query
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The file holds its fusions already. Higher levels would add SkipLayerNormalization, which is slower unfused.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        path = self._bundle.open("model.onnx")
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes derive from Exception directly
            raise CorruptError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path}: {str(error)[:200]}",
                hint="Update onnxruntime: python -m pip install --upgrade onnxruntime",
            ) from error


def from_options(options: EmbedderOptions) -> MiniLM:
    """The registry's way in; of the options only `threads` applies."""
    return MiniLM(threads=options.threads)


def _normalised(rows: Vectors) -> Vectors:
    normalised: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalised


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
