"""What embedders behind HTTP share: batches, checks of what comes back, prefixes, token estimates."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx2
import numpy as np

from avyay import http
from avyay.embed.tokenizer import WordPiece
from avyay.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from avyay.ports import Vectors

__all__ = ["Service"]

# A request stays below 250,000 bytes of text: no tokenizer makes more tokens than bytes, and 300,000 tokens is the
# lowest limit documented for a request.
MAX_BATCH_BYTES = 250_000

# What models were trained to see before a query and before a document, by the start of the model's own name (without
# a namespace). The longest start that fits is used.
_PREFIXES: Mapping[str, tuple[str, str]] = {
    "nomic-embed-text": ("search_query: ", "search_document: "),
    "mxbai-embed-large": ("Represent this sentence for searching relevant passages: ", ""),
    "snowflake-arctic-embed": ("Represent this sentence for searching relevant passages: ", ""),
    "snowflake-arctic-embed2": ("query: ", ""),
    "bge-small-en": ("Represent this sentence for searching relevant passages: ", ""),
    "bge-base-en": ("Represent this sentence for searching relevant passages: ", ""),
    "bge-large-en": ("Represent this sentence for searching relevant passages: ", ""),
    "e5-": ("query: ", "passage: "),
    "multilingual-e5-": ("query: ", "passage: "),
    "embeddinggemma": ("task: search result | query: ", "title: none | text: "),
}


class Service(ABC):
    """An embedder behind an HTTP endpoint. Nothing is contacted until vectors or their size are asked for.

    Args:
        who: What the user knows the service as; named in errors.
        kind: The start of `name`; the model follows.
        dimensions: What the model has; by default learned from its first answer.
        max_tokens: What the model reads of one text.
        timeout: Seconds without a byte before a try counts as failed; there are three tries.
        batch: Texts a request.

    Every method that needs an answer raises UnreachableError (no answer, or a useless one) or AuthError.
    """

    def __init__(
        self,
        *,
        who: str,
        kind: str,
        model: str,
        endpoint: str,
        dimensions: int | None,
        max_tokens: int,
        timeout: float,
        batch: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"{kind}/{model}"
        self.model = model
        self.max_tokens = max_tokens
        self.endpoint = endpoint.rstrip("/")
        self._who = who
        self._requested_dimensions = dimensions
        self._dimensions = dimensions
        self._batch = batch
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._query_prefix, self._document_prefix = _prefixes(model)
        self._tokenizer = WordPiece()
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    @property
    def dimensions(self) -> int:
        """Components of a vector; asks the service once when it was not configured."""
        if self._dimensions is None:
            self.embed(["size"])
        assert self._dimensions is not None
        return self._dimensions

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"] = "document") -> Vectors:
        """One row of length 1 per text, in requests of bounded size."""
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        prefix = self._query_prefix if kind == "query" else self._document_prefix
        rows = []
        for batch in _batches([_sendable(prefix + text) for text in texts], self._batch):
            vectors = self._array(self._vectors(batch), len(batch))
            if self._dimensions is None:
                self._dimensions = vectors.shape[1]
            elif vectors.shape[1] != self._dimensions:
                raise UnreachableError(
                    f"{self._who} answered vectors of {vectors.shape[1]} dimensions for {self.model}; expected are"
                    f" {self._dimensions}.",
                    hint="Check the embedder's model and dimensions; an index needs one size.",
                )
            rows.append(vectors)
        return np.concatenate(rows)

    def embed_tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """Not something these services offer.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self._who} gives no vectors of single tokens.", hint="Late interaction needs the embedder minilm."
        )

    def count_tokens(self, text: str) -> int:
        """An estimate: the count of the bundled WordPiece vocabulary, as the service's own is not at hand."""
        return self._tokenizer.count(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each of the tokens counted stands: `text[first:end]`, in order."""
        return self._tokenizer.offsets(text)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _vectors(self, texts: Sequence[str]) -> Any:
        """One request: the list of vectors as the service wrote it, in the order of `texts`."""

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return http.request_json(
            self._http(),
            "POST",
            self.endpoint + path,
            who=self._who,
            json=dict(body),
            headers=self._headers,
            check=lambda answer: isinstance(answer, dict),
        )

    def _http(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = http.client(read=self._timeout)
            return self._client

    def _array(self, vectors: Any, count: int) -> Vectors:
        """Vectors of length 1, or a clear word on what was wrong with them."""
        try:
            with np.errstate(over="ignore"):  # what overflows is not finite, which is looked for below
                array = np.array(vectors, dtype=np.float32)
                lengths = np.linalg.norm(array, axis=-1, keepdims=True)
        except (TypeError, ValueError) as error:
            raise self._useless("something that is no list of vectors") from error
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise self._useless(f"{len(vectors) if isinstance(vectors, list) else 'no'} vectors for {count} texts")
        if not np.isfinite(lengths).all() or not lengths.all():
            raise self._useless("vectors that are zero or not finite")
        normalised: Vectors = array / lengths
        return normalised

    def _useless(self, what: str) -> UnreachableError:
        return UnreachableError(
            f"{self._who} answered {what} for the model {self.model}.",
            hint=f"Is {self.model} an embedding model, and {self.endpoint} the right address?",
        )


def _sendable(text: str) -> str:
    """Services refuse an empty text, and JSON has no lone surrogates."""
    return text.encode("utf-8", "replace").decode() if text.strip() else "."


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    used = 0
    for text in texts:
        needed = len(text.encode())
        if batch and (len(batch) == size or used + needed > MAX_BATCH_BYTES):
            yield batch
            batch, used = [], 0
        batch.append(text)
        used += needed
    if batch:
        yield batch


def _prefixes(model: str) -> tuple[str, str]:
    own_name = model.lower().rpartition("/")[2]
    fitting = [start for start in _PREFIXES if own_name.startswith(start)]
    return _PREFIXES[max(fitting, key=len)] if fitting else ("", "")
