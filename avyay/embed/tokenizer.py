"""The WordPiece tokenizer of the bundled model: counts, character offsets and ids of a text alone.

[CLS] and [SEP] are left to the model, so that counts add up: for two texts joined by white space, the count of the
whole is the sum of the counts.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from avyay.embed.bundle import Bundle
from avyay.errors import CorruptError, DependencyError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["WordPiece"]

# Characters first looked at for each token wanted; English prose has about 4.5 a token, a Markdown table fewer.
CHARACTERS_PER_TOKEN = 8


class WordPiece:
    """Loads on first use, 30 ms; safe to share between threads."""

    def __init__(self, bundle: Bundle | None = None) -> None:
        self._bundle = bundle or Bundle()
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    def count(self, text: str) -> int:
        """Tokens in the whole of `text`."""
        return len(self._encode(text).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token stands: `text[first:end]`, in order. White space belongs to no token."""
        return [(first, end) for first, end in self._encode(text).offsets]

    def ids(self, text: str, limit: int) -> list[int]:
        """The first `limit` ids of `text`; of a long text only as much is read as is needed."""
        size = limit * CHARACTERS_PER_TOKEN
        while size < len(text):
            encoding = self._encode(text[:size])
            # The cut may fall inside a word, so only words before the last one are certain.
            words = encoding.word_ids
            if len(words) > limit and words[limit - 1] != words[-1]:
                return list(encoding.ids[:limit])
            size *= 4
        return list(self._encode(text).ids[:limit])

    def id(self, token: str) -> int:
        """The id of a vocabulary entry such as "[CLS]"."""
        number = self._load().token_to_id(token)
        if number is None:
            raise CorruptError(f"The tokenizer has no entry {token!r}.", hint="Reinstall avyay.")
        return number

    def _encode(self, text: str) -> Encoding:
        try:
            return self._load().encode(text, add_special_tokens=False)
        except TypeError:
            # Lone surrogates (from broken JSON) have no UTF-8: one replacement for each keeps the offsets right.
            return self._load().encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)

    def _load(self) -> Tokenizer:
        if self._tokenizer is None:
            with self._lock:
                if self._tokenizer is None:
                    self._tokenizer = self._open()
        return self._tokenizer

    def _open(self) -> Tokenizer:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DependencyError(
                "The bundled embedder needs the package tokenizers, which cannot be imported.",
                hint="Install it: python -m pip install tokenizers",
            ) from error
        return Tokenizer.from_file(str(self._bundle.open("tokenizer.json")))
