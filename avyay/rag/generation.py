"""The files of one generation: the inverted index and the vectors, row by row, mapped into memory by searches.

A generation never changes once it is written, and is visible only when the catalog says so. Everything in it can be
made again from the catalog and the vector store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avyay.errors import CorruptError, DependencyError
from avyay.rag.lexical.postings import Postings
from avyay.rag.pipeline import terms_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.ports import Vectors

__all__ = ["Generation", "empty_generation", "load_generation", "next_generation", "remove_generations"]

BLOCK = 8_192  # rows copied at once
TERMS = "terms"  # the file that says what made the terms


@dataclass(frozen=True, slots=True)
class Generation:
    """Row r is the chunk `uids[r]` of the document `document_ids[postings.documents[r]]`, with the vector `vectors[r]`.

    `vectors` is None when their file is missing or damaged: searches then go by keywords alone. `outdated` says that
    another version of avyay made the terms: those of a query may be others.
    """

    postings: Postings
    uids: NDArray[np.int64]
    document_ids: NDArray[np.int64]
    vectors: NDArray[np.float32] | None
    outdated: bool = False

    def __len__(self) -> int:
        return len(self.uids)

    def rows_of(self, uids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.intp]:
        """The row of each chunk, -1 for one that is not here. Rows are in the order of their uids."""
        wanted = np.asarray(uids, dtype=np.int64)
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.intp)
        at = np.searchsorted(self.uids, wanted)
        here = np.minimum(at, len(self) - 1)
        return np.where(self.uids[here] == wanted, here, -1)


def empty_generation(dimensions: int) -> Generation:
    """No chunks at all."""
    nothing = np.empty(0, dtype=np.int64)
    return Generation(
        Postings.build((), np.empty(0, np.int32)), nothing, nothing, np.empty((0, dimensions), np.float32)
    )


def load_generation(folder: Path, *, dimensions: int) -> Generation:
    """Map the files of a generation.

    Raises:
        CorruptError: they are missing or do not fit together.
    """
    try:
        mapped = Postings.load(folder)
        # Plain views of the maps: every slice of a np.memmap would be one again, at several times the cost.
        postings = Postings(*(np.asarray(getattr(mapped, item.name)) for item in fields(mapped)))
        uids = np.asarray(np.load(folder / "uids.npy", mmap_mode="r"))
        document_ids = np.asarray(np.load(folder / "document_ids.npy", mmap_mode="r"))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder) from error
    if not len(postings.documents) == len(postings.lengths) == len(uids):
        raise _damaged(folder)
    vectors = None
    try:
        vectors = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r"))
    except (OSError, ValueError):
        pass
    if vectors is not None and (vectors.shape != (len(uids), dimensions) or vectors.dtype != np.float32):
        vectors = None
    return Generation(postings, uids, document_ids, vectors, _made_by(folder) != terms_id())


def next_generation(
    folder: Path,
    old: Generation,
    keep: NDArray[np.bool_],
    new: Postings,
    uids: Sequence[int],
    document_ids: Sequence[int],
    vectors: Vectors,
) -> None:
    """Write the generation made of the rows of `old` where `keep` is true, then the new ones.

    Args:
        document_ids: The document of each new row.

    Raises:
        DependencyError: it cannot be written; what was written is removed.
    """
    kept_ids = old.document_ids[old.postings.documents[keep]] if len(old) else np.empty(0, np.int64)
    all_ids = np.concatenate([kept_ids, np.asarray(document_ids, dtype=np.int64)])
    distinct, numbers = np.unique(all_ids, return_inverse=True)
    try:
        folder.mkdir(parents=True)
        old.postings.merged(keep, new, numbers.astype(np.int32)).save(folder)
        np.save(folder / "uids.npy", np.concatenate([old.uids[keep], np.asarray(uids, dtype=np.int64)]))
        np.save(folder / "document_ids.npy", distinct)
        (folder / TERMS).write_text("" if old.outdated else terms_id())
        _write_vectors(folder / "vectors.npy", old, keep, vectors)
        for path in (*folder.iterdir(), folder):
            _flush(path)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DependencyError(
            f"Cannot write the index under {folder.parent}: {error.strerror or error}.",
            hint="Free some space, or fix the permissions, and try again.",
            code="index_not_writable",
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_generations(parent: Path, keep: set[str]) -> None:
    """Delete all generations but these; processes that map one keep it until they let go."""
    if parent.is_dir():
        for folder in parent.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def _write_vectors(path: Path, old: Generation, keep: NDArray[np.bool_], vectors: Vectors) -> None:
    rows = np.flatnonzero(keep)
    if len(rows) and old.vectors is None:
        raise DependencyError(f"The vectors beside {path.parent} are gone.", hint="Run: avyay rag reconcile")
    kind = {"descr": "<f4", "fortran_order": False, "shape": (len(rows) + len(vectors), vectors.shape[1])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, kind)
        # Runs of rows that stay go from file to file as they are.
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else ():
            assert old.vectors is not None
            for first in range(int(run[0]), int(run[-1]) + 1, BLOCK):
                some = old.vectors[first : min(first + BLOCK, int(run[-1]) + 1)]
                file.write(np.ascontiguousarray(some, dtype="<f4").data)
        file.write(np.ascontiguousarray(vectors, dtype="<f4").data)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made_by(folder: Path) -> str:
    try:
        return (folder / TERMS).read_text(errors="replace")
    except OSError:
        return ""


def _damaged(folder: Path) -> CorruptError:
    return CorruptError(
        f"The index files in {folder} are damaged, or of another version of avyay.",
        hint="Make them again: avyay rag reconcile",
    )
