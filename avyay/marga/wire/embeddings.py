"""Embeddings: OpenAI's `/v1/embeddings` passed on, or translated to Ollama's native `/api/embed` and back."""

from __future__ import annotations

import base64
from array import array
from dataclasses import dataclass
from typing import Any

import orjson

from avyay.errors import UnreachableError
from avyay.marga.wire.fields import opt_int, opt_str, required_str
from avyay.marga.wire.model import JsonObject, Usage
from avyay.marga.wire.notes import MalformedError, Note, Notes, UntranslatableError
from avyay.marga.wire.passthrough import edit_body

__all__ = ["EmbeddingExchange", "begin_embeddings"]


@dataclass(frozen=True, slots=True)
class EmbeddingExchange:
    """One embedding request, on its way and back.

    Attributes:
        body: The bytes to send upstream.
        native: Whether it goes to Ollama's own endpoint.
        model: The model asked for upstream.
        base64: Whether the caller wants vectors as base64 of little-endian float32.
        inputs: How many texts are embedded.
        chars: Their characters, for estimates.
        notes: What could not be carried over.
    """

    body: bytes
    native: bool
    model: str
    base64: bool
    inputs: int
    chars: int
    notes: tuple[Note, ...]

    def reply(self, raw: bytes) -> tuple[bytes, Usage | None]:
        """The caller's bytes and what is billed.

        Raises:
            UnreachableError: The answer holds no embeddings.
        """
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise UnreachableError("The provider's answer is not valid JSON.", code="bad_reply") from error
        if not isinstance(body, dict):
            raise UnreachableError("The provider's answer is not a JSON object.", code="bad_reply")
        if not self.native:
            usage = body.get("usage")
            return raw, Usage(input=_count(usage, "prompt_tokens")) if isinstance(usage, dict) else None
        vectors = body.get("embeddings")
        if not isinstance(vectors, list):
            raise UnreachableError("The provider's answer holds no embeddings.", code="bad_reply")
        tokens = _count(body, "prompt_eval_count")
        out = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": self._vector(v)} for i, v in enumerate(vectors)],
            "model": body.get("model") or self.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return orjson.dumps(out), Usage(input=tokens)

    def _vector(self, values: list[float]) -> list[float] | str:
        if not self.base64:
            return values
        packed = array("f", values)
        if packed.itemsize != 4:  # pragma: no cover - no such platform is supported
            raise UnreachableError("This platform has no 32-bit floats.")
        return base64.b64encode(packed.tobytes()).decode("ascii")


def _count(body: JsonObject, key: str) -> int:
    value = body.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _texts(value: Any) -> list[str] | None:
    """The inputs when they are texts; None for token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(v, str) for v in value):
            return value
        if all(isinstance(v, int) for v in value) or all(
            isinstance(v, list) and all(isinstance(t, int) for t in v) for v in value
        ):
            return None
    raise MalformedError("`input` must be a text, a list of texts or token ids.", field="input", code="invalid_type")


def begin_embeddings(raw: bytes, body: JsonObject, model: str, *, native: bool = False) -> EmbeddingExchange:
    """Prepares an embedding request.

    Args:
        raw: The body as received.
        body: The same, parsed.
        model: The upstream's model name.
        native: Send it to Ollama's `/api/embed` instead of an OpenAI-compatible endpoint.

    Raises:
        MalformedError: It is no embedding request.
        UntranslatableError: The native endpoint takes no token ids.
    """
    required_str(body, "model", "")
    if "input" not in body:
        raise MalformedError("`input` is required.", field="input", code="missing_field")
    texts = _texts(body["input"])
    form = opt_str(body, "encoding_format") or "float"
    notes = Notes()
    if native:
        if texts is None:
            raise UntranslatableError("Ollama embeds texts, not token ids.", field="input", hint="Send the texts.")
        native_body: JsonObject = {"model": model, "input": texts}
        size = opt_int(body, "dimensions")
        if size is not None:
            native_body["dimensions"] = size
        if body.get("user"):
            notes.add("user", "dropped", "Ollama has no such setting")
        sent = orjson.dumps(native_body)
    else:
        sent = edit_body(raw, body, {"model": model})
    count = len(texts) if texts is not None else len(body["input"])
    chars = sum(map(len, texts)) if texts is not None else 0
    return EmbeddingExchange(sent, native, model, form == "base64", count, chars, tuple(notes))
