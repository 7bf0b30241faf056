"""A cross-encoder that reads query and text together, run by fastembed (the extra `rerank`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avyay.config.environment import refuse_telemetry
from avyay.errors import DependencyError, UsageError

__all__ = ["DEFAULT_MODEL", "CrossEncoder"]

DEFAULT_MODEL = "Xenova/ms-marco-MiniLM-L-6-v2"


class CrossEncoder:
    """Logits of a model that fastembed knows. Its files have to be here: a query is no time to download them.

    Args:
        model: A name that fastembed lists.

    Raises:
        DependencyError: fastembed is not installed, or the model's files are not here.
        UsageError: fastembed does not know the model.
    """

    batch = 4

    def __init__(self, model: str | None = None) -> None:
        self.name = model or DEFAULT_MODEL
        refuse_telemetry()  # fastembed runs on onnxruntime
        try:
            from fastembed.rerank.cross_encoder import TextCrossEncoder
            from loguru import logger
        except ImportError as error:
            raise DependencyError(
                "Reranking with a cross-encoder needs the package fastembed, which is not installed.",
                hint='Install it with: python -m pip install "avyay[rerank]"',
                code="extra_missing",
            ) from error
        logger.disable("fastembed")  # what it logs, the error below says
        known = {str(one["model"]) for one in TextCrossEncoder.list_supported_models()}
        if self.name not in known:
            raise UsageError(
                f"fastembed knows no cross-encoder {self.name!r}.",
                hint=f"Set rag.ranking.rerank.model to one of: {', '.join(sorted(known))}",
            )
        try:
            self._encoder: Any = TextCrossEncoder(self.name, local_files_only=True)
        except Exception as error:  # fastembed raises whatever the hub, the disk or onnxruntime raise
            raise DependencyError(
                f"fastembed cannot load {self.name}: {str(error)[:200]}",
                hint="Download it once (FASTEMBED_CACHE_PATH says where to):"
                " python -c 'from fastembed.rerank.cross_encoder"
                f' import TextCrossEncoder; TextCrossEncoder("{self.name}")\'',
            ) from error

    def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
        return [float(score) for score in self._encoder.rerank(query, list(texts))]
