"""A reranker behind HTTP: the form of Cohere's API (also Jina, vLLM, llama.cpp, OpenVINO), or that of TEI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from avyay import http
from avyay.errors import UnreachableError

__all__ = ["EndpointReranker", "Style"]

Style = Literal["cohere", "tei"]


class EndpointReranker:
    """One request for all texts; none is repeated, because the time is short.

    Args:
        url: The whole address, such as http://127.0.0.1:8080/rerank.
        style: `cohere` sends `documents` and reads `results[].relevance_score`; `tei` sends `texts` and reads
            `[].score`.
        key: Sent as a bearer token.
    """

    batch = 1_000

    def __init__(self, url: str, *, model: str | None = None, style: Style = "cohere", key: str | None = None) -> None:
        self.url = url
        self.name = model or "the rerank endpoint"
        self._model, self._style = model, style
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
        """Raises UnreachableError (no answer in time, or a useless one) or AuthError."""
        body: dict[str, Any] = {"query": query}
        body |= {"texts": list(texts), "truncate": True} if self._style == "tei" else {"documents": list(texts)}
        if self._model is not None and self._style != "tei":
            body["model"] = self._model
        with http.client(read=seconds, connect=min(5.0, seconds)) as client:
            found = http.request_json(
                client, "POST", self.url, who="The reranker", json=body, headers=self._headers, attempts=1
            )
        return self._scores(found, len(texts))

    def _scores(self, found: Any, count: int) -> list[float]:
        rows = found.get("results") if isinstance(found, dict) else found
        try:
            scores = {int(row["index"]): float(row.get("relevance_score", row.get("score"))) for row in rows or ()}
            return [scores[place] for place in range(count)]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            host = urlsplit(self.url).netloc.rpartition("@")[2]
            raise UnreachableError(
                f"The reranker at {host} did not answer with a score for each text.",
                hint="Check rag.ranking.rerank.url and rag.ranking.rerank.style (cohere or tei).",
            ) from error
