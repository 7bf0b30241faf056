"""Vectors in a LanceDB table: a folder, or `s3://` with credentials from the environment.

LanceDB takes two seconds to import, so this module is imported only by what writes vectors, never by a search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import lancedb
import numpy as np
import pyarrow as pa

from avyay.errors import CorruptError, DependencyError, UnreachableError
from avyay.log import redact
from avyay.retries import retry_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.ports import Vectors

__all__ = ["LanceStore"]

T = TypeVar("T")
IN_LIST = 1_000  # keys in one filter
FRAGMENTS = 20  # more small files than this are merged


class LanceStore:
    """A `VectorStore` in LanceDB.

    Args:
        uri: A folder, or an object store such as `s3://bucket/prefix`.
        embedder: Name of the embedder: each has a table of its own, so their vectors cannot be mixed up.
        dimensions: Length of its vectors.
        options: Passed to the object store, such as `endpoint` and `region`.

    Raises:
        DependencyError: the folder cannot be written. UnreachableError: the object store does not answer.
        CorruptError: what stands there is no table of ours.
    """

    def __init__(self, uri: str, *, embedder: str, dimensions: int, options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.dimensions = dimensions
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', embedder)}-{dimensions}"
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
            ]
        )
        with self._errors():
            database = lancedb.connect(uri, storage_options=dict(options) if options else None)
            self._table = database.create_table(name, schema=self._schema, exist_ok=True)
            found = self._table.schema.field("vector").type if "vector" in self._table.schema.names else None
        if found != self._schema.field("vector").type:
            raise CorruptError(
                f"The vector table {name} in {redact(uri)} was not made by avyay.",
                hint="Move it away and run: avyay rag reconcile",
            )

    def get(self, keys: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        wanted = list(dict.fromkeys(keys))
        for first in range(0, len(wanted), IN_LIST):
            rows = self._read(partial(_only, wanted[first : first + IN_LIST]))
            found.update(zip(*_columns(rows, self.dimensions), strict=True))
        return found

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        if not len(keys):
            return
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        rows = np.ascontiguousarray(vectors[list(first.values())], dtype=np.float32)
        if rows.shape != (len(first), self.dimensions):
            raise ValueError(f"expected {len(first)} vectors of {self.dimensions} dimensions, got {rows.shape}")
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self.dimensions)
        data = pa.Table.from_arrays([pa.array(list(first)), column], schema=self._schema)
        self._retried(lambda: self._table.merge_insert("key").when_not_matched_insert_all().execute(data))
        self._tidy()

    def keys(self) -> set[str]:
        return set(self._read(lambda query: query.select(["key"])).column("key").to_pylist())

    def retain(self, keys: set[str]) -> int:
        gone = sorted(self.keys() - keys)
        for first in range(0, len(gone), IN_LIST):
            self._retried(partial(self._table.delete, _in_list(gone[first : first + IN_LIST])))
        return len(gone)

    def search(self, vector: NDArray[np.float32], limit: int) -> list[tuple[str, float]]:
        with self._errors():
            query: Any = self._table.search(vector, vector_column_name="vector")
            rows = query.distance_type("cosine").select(["key", "_distance"]).limit(limit).to_list()
        return [(row["key"], 1.0 - float(row["_distance"])) for row in rows]

    def _read(self, shape: Callable[[Any], Any]) -> Any:
        def read() -> Any:
            self._table.checkout_latest()  # type: ignore[no-untyped-call]
            return shape(self._table.search()).to_arrow()

        return self._retried(read)

    def _tidy(self) -> None:
        """Merge small fragments. Another writer at work makes this fail; the next one will do."""
        try:
            if len(self._table.list_versions()) > FRAGMENTS:
                self._table.optimize()
        except (RuntimeError, OSError, ValueError):
            return

    def _retried(self, work: Callable[[], T]) -> T:
        """Commits of two writers conflict now and then; LanceDB says so and means: again."""
        with self._errors():
            for attempt in retry_context(on=_is_conflict, attempts=6, timeout=60.0, wait_initial=0.05, wait_max=2.0):
                with attempt:
                    return work()
        raise AssertionError("unreachable")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> DependencyError | CorruptError:
        said = redact(str(error)).partition("\n")[0][:300]
        where = redact(self.uri)
        if "No space left" in said or "StorageFull" in said:
            return DependencyError(
                f"The disk is full: no vectors were written to {where}.",
                hint="Free some space and try again.",
                code="disk_full",
            )
        if "://" in self.uri:
            return UnreachableError(
                f"The vector store {where} does not answer: {said}",
                hint="Check the address and the credentials in the environment (AWS_ACCESS_KEY_ID, ...).",
            )
        if "ermission denied" in said or "ead-only file system" in said:
            return DependencyError(
                f"The vector store {where} cannot be written.", hint="Make it yours, or set AVYAY_HOME."
            )
        return CorruptError(
            f"The vector store {where} cannot be used: {said}",
            hint="Its content can be made again: move the folder away and run avyay rag reconcile",
        )


def _in_list(keys: Sequence[str]) -> str:
    return "key IN (" + ",".join(f"'{key}'" for key in keys) + ")"


def _only(keys: Sequence[str], query: Any) -> Any:
    return query.where(_in_list(keys)).limit(len(keys) * 2)


def _columns(rows: Any, dimensions: int) -> tuple[list[str], NDArray[np.float32]]:
    flat = rows.column("vector").combine_chunks()
    values = flat.flatten().to_numpy(zero_copy_only=False) if rows.num_rows else np.empty(0, np.float32)
    return rows.column("key").to_pylist(), values.reshape(-1, dimensions)


def _is_conflict(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and ("conflict" in text or "retry" in text)
