"""Tokens of a text: exact for OpenAI's models (tiktoken, encodings bundled), a labelled estimate for others."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import tiktoken

__all__ = [
    "LearnedRatios",
    "TokenCount",
    "count_tokens",
    "encoding",
    "encoding_name",
    "estimate_size",
    "estimate_tokens",
]

_CL100K = re.compile(r"^(?:gpt-4(?:-|$)|gpt-3\.5|text-embedding-|gpt-35)")
_O200K = re.compile(r"^(?:gpt-|chatgpt|o\d|codex|chat-latest)")
_PATTERNS = {
    "o200k_base": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
}
_SPECIAL = {
    "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    "cl100k_base": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
}
_MOST_MODELS = 2000  # whose ratio is remembered; callers may name models
_LONGEST_RUN = 4096  # characters without a space that BPE is given at once: it is quadratic in them


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A number of tokens and how it was found. `estimate` comes from the text's letters alone."""

    tokens: int
    method: Literal["tiktoken", "estimate", "provider"]

    @property
    def estimated(self) -> bool:
        return self.method == "estimate"


def encoding_name(model: str) -> str | None:
    """The bundled encoding of an OpenAI model, None for the models of others."""
    name = model.lower().rsplit("/", 1)[-1]
    if _CL100K.match(name) and not name.startswith("gpt-4-o"):
        return "cl100k_base"
    return "o200k_base" if _O200K.match(name) else None


@cache
def encoding(name: str) -> tiktoken.Encoding:
    """The bundled encoding `name`; reads no network. About 0.2 s the first time."""
    import tiktoken

    packed = zlib.decompress((files("avyay.marga") / "data" / f"{name}.ranks").read_bytes())
    ranks: dict[bytes, int] = {}
    at = 0
    while at < len(packed):
        end = at + 1 + packed[at]
        ranks[packed[at + 1 : end]] = len(ranks)
        at = end
    return tiktoken.Encoding(name, pat_str=_PATTERNS[name], mergeable_ranks=ranks, special_tokens=_SPECIAL[name])


def count_tokens(text: str, model: str) -> TokenCount:
    """Tokens of a text for a model: exact for OpenAI's, estimated for others."""
    name = encoding_name(model)
    if name is None:
        return TokenCount(estimate_tokens(text), "estimate")
    tokens = encoding(name)
    return TokenCount(sum(len(tokens.encode_ordinary(piece)) for piece in _pieces(text)), "tiktoken")


def _pieces(text: str) -> list[str]:
    """The text in pieces whose runs without white space are bounded; almost always the text itself."""
    if len(text) <= _LONGEST_RUN or not re.search(rf"\S{{{_LONGEST_RUN}}}", text):
        return [text]
    return re.findall(rf"(?s)(?:\S{{1,{_LONGEST_RUN}}}|\s+\S{{0,{_LONGEST_RUN}}})", text)


def estimate_tokens(text: str) -> int:
    """Tokens by the kinds of letters: about 4 ASCII characters to a token, about one for a Chinese one.

    Within some 15 % for prose, more for unusual scripts: good for a choice, not for a bill.
    """
    if text.isascii():
        return (len(text) + 3) // 4
    size = len(text.encode("utf-8", "surrogatepass"))
    others = (size - len(text)) / 2  # a rough count: two bytes beyond the first for the scripts this is about
    plain = max(0.0, len(text) - others)
    return int(plain / 4 + others * 0.9) + 1


def estimate_size(chars: int, sample: str) -> int:
    """Tokens of a text of `chars` characters that is written like `sample`, without reading all of it."""
    if not sample:
        return (chars + 3) // 4
    piece = sample[:2000]
    return int(chars * estimate_tokens(piece) / len(piece)) + 1


class LearnedRatios:
    """Corrects estimates by what providers report: a factor per model, smoothed, 1 until it was seen."""

    def __init__(self, weight: float = 0.05) -> None:
        self._weight = weight
        self._factors: dict[str, float] = {}

    def observe(self, model: str, estimated: int, reported: int) -> None:
        """A request estimated at so many input tokens was billed for so many. Small ones say little."""
        if estimated < 50 or reported <= 0:
            return
        seen = min(4.0, max(0.25, reported / estimated))
        known = self._factors.get(model)
        if known is None and len(self._factors) >= _MOST_MODELS:
            del self._factors[next(iter(self._factors))]  # the oldest
        self._factors[model] = seen if known is None else known + self._weight * (seen - known)

    def apply(self, model: str, estimated: int) -> int:
        """The estimate as this model's tokenizer would count it."""
        return int(estimated * self._factors.get(model, 1.0))
