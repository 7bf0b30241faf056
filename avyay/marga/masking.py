"""Personal data taken out of a request and put back into its answer, wherever it stands and however it is cut.

Pure; a `Masker` lives as long as one request, and what it remembers goes with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from avyay.marga.pii import KINDS, Match, PiiKind, detect

__all__ = ["AnswerMasker", "Masker", "StreamMasker", "Unmasker", "scan_body"]

# Values that are structure, not language: names, ids, signatures and encoded bytes stay as they are.
_STRUCTURE_KEYS = (
    "type role id model object status format media_type mime_type signature encrypted_content call_id tool_call_id "
    "tool_use_id previous_response_id detail finish_reason stop_reason keep_alive think truncation service_tier "
    "prompt_cache_key effort"
)
_STRUCTURE = frozenset(_STRUCTURE_KEYS.split())
_ENCODED = frozenset({"data", "images", "file_data", "b64_json", "audio"})
_ENCODED_TEXT = re.compile(r"(?:data:[\w/+.-]{1,100};base64,)?[A-Za-z0-9+/=_\s-]{200,}\Z")
_ARGUMENTS = frozenset({"arguments", "partial_json", "input"})
_DIGITS_MATTER = 10**6  # an integer below this is nobody's number
_PLACEHOLDER = re.compile(r"\[(" + "|".join(kind.upper() for kind in KINDS) + r")_(\d{1,6})\]")
_PLACEHOLDER_START = re.compile(r"\[[A-Z_]{0,8}[A-Z](?:_\d{0,6})?\Z|\[\Z")


class Masker:
    """Replaces personal data by placeholders like `[EMAIL_1]`, the same value by the same one, and back again.

    Args:
        kinds: What to mask; the rest stays.
        taken: Texts whose own placeholders must not be handed out again (the whole request).
    """

    def __init__(self, kinds: frozenset[PiiKind], taken: Any = None) -> None:
        self._kinds = kinds
        self._by_value: dict[tuple[PiiKind, str], str] = {}
        self._values: dict[str, str] = {}
        self._next: dict[PiiKind, int] = {}
        self._taken: set[str] = set()
        if taken is not None:
            for text in _strings(taken):
                self._taken.update(match[0] for match in _PLACEHOLDER.finditer(text))

    def __len__(self) -> int:
        """How many different values were masked."""
        return len(self._values)

    def mask(self, text: str) -> str:
        """`text` without the personal data; the same object when there is none."""
        return self.replace(text, detect(text))

    def wanted(self, text: str, match: Match) -> bool:
        """Whether a match is to be masked."""
        return match.kind in self._kinds

    def replace(self, text: str, matches: list[Match], *, bare: Callable[[Match], bool] | None = None) -> str:
        """`text` with the matches of the wanted kinds masked.

        Args:
            bare: Whether a match is a number of JSON text, so that its placeholder needs quotes.
        """
        wanted = [match for match in matches if self.wanted(text, match)]
        if not wanted:
            return text
        parts: list[str] = []
        end = 0
        for match in wanted:
            placeholder = self._placeholder(match.kind, text[match.start : match.end])
            parts += (text[end : match.start], f'"{placeholder}"' if bare and bare(match) else placeholder)
            end = match.end
        parts.append(text[end:])
        return "".join(parts)

    def _placeholder(self, kind: PiiKind, value: str) -> str:
        known = self._by_value.get((kind, value))
        if known is not None:
            return known
        while True:
            number = self._next[kind] = self._next.get(kind, 0) + 1
            placeholder = f"[{kind.upper()}_{number}]"
            if placeholder not in self._taken:
                break
        self._by_value[kind, value] = placeholder
        self._values[placeholder] = value
        return placeholder

    def unmask(self, text: str, *, in_json: bool = False) -> str:
        """`text` with this request's placeholders replaced by what they stand for, escaped if it is JSON text."""
        if not self._values or "[" not in text:
            return text

        def value(match: re.Match[str]) -> str:
            found = self._values.get(match[0], match[0])
            return orjson.dumps(found).decode()[1:-1] if in_json else found

        return _PLACEHOLDER.sub(value, text)

    def mask_body(self, body: Any) -> Any:
        """A request body with every text masked, in every position; the same object when nothing changed."""
        return _walk(body, "", self.mask)

    def unmask_body(self, body: Any) -> Any:
        """An answer's body with every text put back."""
        return _walk(body, "", self.unmask)


class AnswerMasker(Masker):
    """Judges what a model writes: personal data that the request did not hold is masked, and some forbids the answer.

    Args:
        asked: The request: what it holds, its caller knows already.
        block: Kinds with which an answer may not be shown; they are masked as well, in case it has begun.

    Attributes:
        blocked: The kind that forbids the answer, once it was met.
    """

    def __init__(self, mask: frozenset[PiiKind], block: frozenset[PiiKind], asked: Any) -> None:
        super().__init__(mask | block, asked)
        self._block = block
        self._asked = list(_strings(asked))
        self.blocked: PiiKind | None = None

    def wanted(self, text: str, match: Match) -> bool:
        if match.kind not in self._kinds:
            return False
        value = text[match.start : match.end]
        if any(value in known for known in self._asked):
            return False
        if match.kind in self._block:
            self.blocked = match.kind
        return True


def scan_body(body: Any) -> frozenset[PiiKind]:
    """The kinds of personal data anywhere in a request or an answer: all roles, tool arguments and results included."""
    found: set[PiiKind] = set()

    def look(text: str) -> str:
        found.update(match.kind for match in detect(text))
        return text

    _walk(body, "", look)
    return frozenset(found)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _walk(value: Any, key: str, change: Callable[[str], str], *, free: bool = False) -> Any:
    """`value` with every text changed. Unknown positions count as text: what is not known must not leak.

    Args:
        free: Inside tool arguments, where keys are the caller's own and numbers may be anybody's.
    """
    if isinstance(value, str):
        if not free and key in _STRUCTURE:
            return value
        if key in _ENCODED and not free and _ENCODED_TEXT.match(value):
            return value
        if key in _ARGUMENTS and value[:1] in "{[":
            return _json_text(value, change)
        return change(value)
    if isinstance(value, dict):
        inside = free or key in _ARGUMENTS
        changed = False
        out: dict[Any, Any] = {}
        for name, inner in value.items():
            new_name = change(name) if inside and isinstance(name, str) else name
            if isinstance(inner, int) and not isinstance(inner, bool) and inside:
                new: Any = _number(inner, str(name), change)
            else:
                new = _walk(inner, str(name), change, free=inside)
            changed = changed or new is not inner or new_name is not name
            out[new_name] = new
        return out if changed else value
    if isinstance(value, list):
        items = [
            _number(v, key, change)
            if free and isinstance(v, int) and not isinstance(v, bool)
            else _walk(v, key, change, free=free)
            for v in value
        ]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _number(value: int, key: str, change: Callable[[str], str]) -> Any:
    """A number in tool arguments, read with its key as the word before it."""
    if abs(value) < _DIGITS_MATTER:
        return value
    lead = f"{key.replace('_', ' ')}: "
    written = f"{lead}{value}"
    changed = change(written)
    return value if changed == written else changed[len(lead) :] if changed.startswith(lead) else changed


def _json_text(text: str, change: Callable[[str], str]) -> str:
    """A JSON document inside a string: read it, so that neither escapes nor bare numbers hide anything."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return change(text)
    changed = _walk(document, "arguments", change, free=True)
    return text if changed is document else orjson.dumps(changed).decode()


# ---------------------------------------------------------------- streams


class Unmasker:
    """Puts back what streams by in pieces.

    Args:
        in_json: The pieces are JSON text (arguments of a tool call): values are escaped for it.
    """

    def __init__(self, masker: Masker, *, in_json: bool = False) -> None:
        self._masker = masker
        self._in_json = in_json
        self._buffer = ""

    def feed(self, piece: str) -> str:
        """The text that is complete after this piece; may be empty."""
        self._buffer += piece
        match = _PLACEHOLDER_START.search(self._buffer, max(0, len(self._buffer) - 20))
        cut = match.start() if match else len(self._buffer)
        done, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return self._masker.unmask(done, in_json=self._in_json)

    def end(self) -> str:
        """What was still held back."""
        rest, self._buffer = self._buffer, ""
        return self._masker.unmask(rest, in_json=self._in_json)


_CONTEXT = 80  # characters of what was already shown that the next match may look back on
_MOST_KEY = 16_384  # length of a private key; one that does not end by then is none
# Where a text is settled: no number, key or address goes on across a line's end with a word behind it, nor across a
# space between plain words.
_SETTLED = re.compile(r"\n(?=[^\S\n]{0,20}[^\W\d]{2})|(?<=[a-z,.;]) (?=[a-z]{2,16} [a-z]{2,16}[ ,.;])")
_KEY_END = re.compile(r"-----END [A-Z ]{0,40}-----")


class StreamMasker:
    """Masks what streams by in pieces exactly as if it had arrived whole.

    What could still become part of a match is held back until that is clear, in prose about two words.

    Args:
        in_json: The pieces are JSON text (arguments of a tool call): a number that is masked becomes a string.
    """

    def __init__(self, masker: Masker, *, in_json: bool = False) -> None:
        self._masker = masker
        self._in_json = in_json
        self._shown = ""
        self._buffer = ""

    def feed(self, piece: str) -> str:
        """The text that is safe to show after this piece; may be empty."""
        self._buffer += piece
        cut = _settled(self._buffer)
        return self._release(cut) if cut else ""

    def end(self) -> str:
        """What was still held back."""
        return self._release(len(self._buffer))

    def _release(self, cut: int) -> str:
        lead = len(self._shown)
        whole = self._shown + self._buffer
        matches = []
        for match in detect(whole):
            if match.end <= lead:
                continue
            if match.start < lead + cut < match.end:
                cut = max(0, match.start - lead)
            if match.start < lead + cut:
                matches.append(Match(match.kind, max(lead, match.start) - lead, match.end - lead))
        done, self._buffer = self._buffer[:cut], self._buffer[cut:]

        def bare(match: Match) -> bool:
            return whole[: lead + match.start].rstrip()[-1:] in (":", ",", "[")

        self._shown = (self._shown + done)[-_CONTEXT:]
        return self._masker.replace(done, matches, bare=bare if self._in_json else None)


def _settled(buffer: str) -> int:
    """Where the part begins that may still change."""
    limit = len(buffer)
    start = buffer.rfind("-----BEGIN")
    if start >= 0 and limit - start < _MOST_KEY and not _KEY_END.search(buffer, start):
        limit = start
    cut = 0
    for match in _SETTLED.finditer(buffer, 0, limit):
        cut = match.end()
    return cut
