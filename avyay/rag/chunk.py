"""Documents cut into chunks along their headings.

A section (second heading level) that fits what the embedder reads is one chunk; a longer one is cut at the next
heading level, and only where no heading helps between paragraphs, then lines, then sentences, with an overlap. Code
and tables are never cut. Cuts are positions in the text, so nothing can be lost or rewritten.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from avyay.rag.parsers import Heading, Outline, parse, split_lines
from avyay.rag.types import Chunk, Section

__all__ = ["chunk_document", "document_name", "document_title", "sections"]

SECTION_LEVEL = 2  # headings above this always begin a chunk of their own
CONTEXT_SHARE = 4  # context may take a quarter of what the embedder reads
INDEX_NAMES = {"readme", "index", "_index", "runbook", "main", "doc", "docs"}
SENTENCE = re.compile(r"(?<=[.!?:;])\s+")
WORD = re.compile(r"\S+\s*")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def chunk_document(
    path: str, text: str, *, count_tokens: Callable[[str], int], max_tokens: int = 256, overlap: int = 50
) -> tuple[Chunk, ...]:
    """Cut a document.

    Args:
        path: Relative path with slashes; its ending chooses the parser, and ids are made from it.
        text: The whole document, decoded.
        count_tokens: Tokens the embedder would read of a text.
        max_tokens: What the embedder reads, context included; only an `oversized` chunk has more.
        overlap: Tokens that neighbours cut from one section share, at most.

    Chunks come in order, and every character that is not white space is in one of them.
    """
    if not text.strip():
        return ()
    outline = parse(path, text)
    title = document_title(path, outline)
    root = _tree(path, text, outline)
    cutter = _Cutter(path, title, text, root.offsets, outline, count_tokens, max_tokens, overlap)
    return tuple(cutter.chunks(root.node))


def sections(path: str, text: str) -> tuple[Section, ...]:
    """Every section of a document, the document itself first, in order."""
    tree = _tree(path, text, parse(path, text))
    return tuple(node.section for node in tree.node.walk())


def document_title(path: str, outline: Outline) -> str:
    """What the document calls itself, else its file name in words (the folder's for README and index pages)."""
    if outline.title:
        return outline.title
    return _words(document_name(path))


def document_name(path: str) -> str:
    """The file name without its ending; the folder's name for README and index pages."""
    pure = PurePosixPath(path)
    return pure.parent.name if pure.stem.lower() in INDEX_NAMES and pure.parent.name else pure.stem


def _words(name: str) -> str:
    """`KubePodCrashLooping` and `kube_pod-crash` as words."""
    return " ".join(re.sub(r"[_\-.]+", " ", CAMEL.sub(" ", name)).split())


# ---------------------------------------------------------------- the tree of headings


@dataclass(slots=True)
class _Node:
    section: Section
    start: int  # character offsets: own text is start..body_end, with subsections start..end
    body_end: int
    end: int
    children: list[_Node] = field(default_factory=list)

    def walk(self) -> Iterator[_Node]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(slots=True)
class _Tree:
    node: _Node
    offsets: list[int]  # offsets[i] is where line i + 1 begins; one more for the end


def _tree(path: str, text: str, outline: Outline) -> _Tree:
    offsets = [0]
    for line in split_lines(text):
        offsets.append(offsets[-1] + len(line))
    lines = max(1, len(offsets) - 1)
    headings = outline.headings
    starts = [offsets[heading.line - 1] for heading in headings]
    ends = [*starts[1:], len(text)]
    root = _Node(_section(path, (), None, None, 1, lines, Counter()), 0, starts[0] if starts else len(text), len(text))
    open_nodes = [root]
    seen: Counter[tuple[str, ...]] = Counter()
    for index, heading in enumerate(headings):
        while open_nodes[-1].section.level >= heading.level:
            open_nodes.pop()
        parent = open_nodes[-1]
        close = next((other for other in range(index + 1, len(headings)) if headings[other].level <= heading.level), -1)
        last = headings[close].line - 1 if close > 0 else lines
        heading_path = (*parent.section.heading_path, heading.text)
        section = _section(path, heading_path, parent.section.id, heading, heading.line, last, seen)
        node = _Node(section, starts[index], ends[index], starts[close] if close > 0 else len(text))
        parent.children.append(node)
        open_nodes.append(node)
    return _Tree(root, offsets)


def _section(
    path: str,
    heading_path: tuple[str, ...],
    parent_id: str | None,
    heading: Heading | None,
    first: int,
    last: int,
    seen: Counter[tuple[str, ...]],
) -> Section:
    """Sections of one name under one parent are told apart by their order."""
    key = (parent_id or "", *heading_path)
    seen[key] += 1
    digest = hashlib.blake2b("\0".join((path, parent_id or "", *heading_path, str(seen[key]))).encode(), digest_size=10)
    text, level = (heading.text, heading.level) if heading else ("", 0)
    return Section(digest.hexdigest(), parent_id, text, level, heading_path, first, max(first, last))


# ---------------------------------------------------------------- cutting


@dataclass(frozen=True, slots=True)
class _Unit:
    """A piece that a cut may stand before and after; `whole` ones are code or tables."""

    start: int
    end: int
    tokens: int
    whole: bool = False


class _Cutter:
    def __init__(
        self,
        path: str,
        title: str,
        text: str,
        offsets: Sequence[int],
        outline: Outline,
        count_tokens: Callable[[str], int],
        max_tokens: int,
        overlap: int,
    ) -> None:
        self.path, self.title, self.text, self.offsets = path, title, text, offsets
        self.count, self.max_tokens, self.overlap = count_tokens, max_tokens, overlap
        self.empty = count_tokens("")  # some embedders count their own begin and end marks
        self.whole = [(offsets[span.first - 1], offsets[span.last]) for span in outline.whole]
        self.headings = [(offsets[heading.line - 1], heading.text) for heading in outline.headings]
        self.metadata_end = offsets[outline.metadata.last] if outline.metadata else 0
        if outline.metadata:
            self.whole.insert(0, (0, self.metadata_end))
        self.parts: Counter[str] = Counter()

    def chunks(self, root: _Node) -> Iterator[Chunk]:
        carried: int | None = None  # where a heading without text of its own began: it goes with what follows
        for node, start, end in self._regions(root):
            begin = start if carried is None else carried
            if not self._says_something(start, end) and node.children and end == node.body_end:
                carried = begin
                continue
            carried = None
            yield from self._cut(node, begin, end)

    def _regions(self, node: _Node) -> Iterator[tuple[_Node, int, int]]:
        """Section texts in order: whole subtrees where they fit, own texts where they do not."""
        if node.section.level >= SECTION_LEVEL and self._fits(node):
            yield node, node.start, node.end
            return
        yield node, node.start, node.body_end
        for child in node.children:
            yield from self._regions(child)

    def _fits(self, node: _Node) -> bool:
        length = node.end - node.start
        if length > self.max_tokens * 40:  # no text of a real language has tokens that long: spare the counting
            return False
        return self._tokens(node.start, node.end) <= self._room(node)

    def _says_something(self, start: int, end: int) -> bool:
        """Whether there is text besides front matter, the heading and comments."""
        rest = self.text[max(start, self.metadata_end) : end]
        if any(at == start for at, _ in self.headings):
            rest = rest.partition("\n")[2].lstrip("=-~^\"'*+#.: \r\n")
        return bool(COMMENT.sub("", rest).strip())

    def _tokens(self, start: int, end: int) -> int:
        return self.count(self.text[start:end]) - self.empty

    def _context(self, node: _Node) -> str:
        """Title in words, file name when it says something else, headings; the outer ones go when it is long."""
        name, title = document_name(self.path), _words(self.title)
        said = _plain(title)
        parts = [title]
        if _plain(name) not in said:
            parts.append(_words(name))
        parts.extend(text for text in node.section.heading_path if _plain(text) != said)
        limit = max(8, self.max_tokens // CONTEXT_SHARE)
        while len(parts) > 1 and self.count(". ".join(parts)) - self.empty > limit:
            del parts[1 if len(parts) > 2 else 0]
        context = ". ".join(parts)
        if self.count(context) - self.empty > limit:
            context = self._shortened(context, limit)
        return context

    def _shortened(self, context: str, limit: int) -> str:
        words = context.split()
        while words and self.count(" ".join(words)) - self.empty > limit:
            words = words[: max(len(words) // 2, 1)] if len(words) > 1 else []
        return " ".join(words)

    def _room(self, node: _Node) -> int:
        return max(1, self.max_tokens - self.count(self._context(node) + "\n"))

    def _cut(self, node: _Node, start: int, end: int) -> Iterator[Chunk]:
        room = self._room(node)
        units = list(self._units(start, end, room))
        index, overlap_start = 0, start
        while index < len(units):
            overlap_tokens = self._tokens(overlap_start, units[index].start)
            if overlap_tokens + units[index].tokens > room:
                overlap_start, overlap_tokens = units[index].start, 0
            last, total = index, overlap_tokens + units[index].tokens
            while last + 1 < len(units) and total + units[last + 1].tokens <= room:
                last += 1
                total += units[last].tokens
            # Counts of pieces add up to the count of the whole for most tokenizers, not for all: ask again.
            while last > index and self._tokens(overlap_start, units[last].end) > room:
                last -= 1
            if (
                last == index
                and overlap_start < units[index].start
                and self._tokens(overlap_start, units[index].end) > room
            ):
                overlap_start = units[index].start
            yield from self._chunk(node, overlap_start, units[index].start, units[last].end, room)
            overlap_start = self._overlap(units, index, last)
            index = last + 1

    def _overlap(self, units: list[_Unit], first: int, last: int) -> int:
        """Where the shared end of a chunk begins: whole units, or the last words of a long one."""
        start, left = units[last].end, self.overlap
        for unit in reversed(units[first : last + 1]):
            if unit.tokens <= left:
                start, left = unit.start, left - unit.tokens
                continue
            if not unit.whole:
                start = self._last_words(unit, start, left)
            break
        return start

    def _last_words(self, unit: _Unit, start: int, left: int) -> int:
        for match in reversed(list(WORD.finditer(self.text, unit.start, unit.end))):
            left -= self._tokens(match.start(), match.end())
            if left < 0:
                break
            start = match.start()
        return start

    def _chunk(self, node: _Node, overlap_start: int, start: int, end: int, room: int) -> Iterator[Chunk]:
        body = self.text[overlap_start:end]
        if not self.text[start:end].strip():
            return
        lead = len(body) - len(body.lstrip("\r\n"))
        overlap_start += lead
        body = body.strip("\r\n").rstrip() if body.strip() else body
        section, part = node.section, self.parts[node.section.id]
        self.parts[section.id] += 1
        context = self._context(node)
        inside = [text for at, text in self.headings if start <= at < end]
        own = [section.heading] if section.heading else []
        chunk = Chunk(
            id=f"{section.id}-{part}",
            section_id=section.id,
            path=self.path,
            title=self.title,
            heading_path=section.heading_path,
            headings=tuple(dict.fromkeys([*own, *(text for text in inside if text not in section.heading_path)])),
            first_line=self._line(overlap_start),
            last_line=self._line(max(overlap_start, overlap_start + len(body) - 1)),
            text=body,
            context=context,
            tokens=0,
            part=part,
            repeated=max(0, start - overlap_start),
            oversized=self.count(body) - self.empty > room,
        )
        yield replace(chunk, tokens=self.count(chunk.embedding_text))

    def _line(self, offset: int) -> int:
        return bisect_right(self.offsets, offset, 0, max(1, len(self.offsets) - 1))

    # ------------------------------------------------------------ units

    def _units(self, start: int, end: int, room: int) -> Iterator[_Unit]:
        position = start
        for first, last in self.whole:
            if last <= position or first >= end:
                continue
            first, last = max(first, position), min(last, end)
            yield from self._prose(position, first, room)
            yield _Unit(first, last, self._tokens(first, last), whole=True)
            position = last
        yield from self._prose(position, end, room)

    def _prose(self, start: int, end: int, room: int) -> Iterator[_Unit]:
        """Paragraphs; of one that is too long its lines, of such a line its sentences, then words, then characters."""
        for first, last in self._split(start, end, re.compile(r"\n[ \t\r]*\n\s*")):
            yield from self._split_until(first, last, room, (re.compile(r"\n"), SENTENCE, re.compile(r"\s+")))

    def _split_until(self, start: int, end: int, room: int, finer: tuple[re.Pattern[str], ...]) -> Iterator[_Unit]:
        tokens = self._tokens(start, end)
        if tokens <= room:
            yield _Unit(start, end, tokens)
        elif finer:
            for first, last in self._split(start, end, finer[0]):
                yield from self._split_until(first, last, room, finer[1:])
        elif end - start > 1:
            middle = (start + end) // 2
            yield from self._split_until(start, middle, room, ())
            yield from self._split_until(middle, end, room, ())
        else:
            yield _Unit(start, end, tokens)

    def _split(self, start: int, end: int, boundary: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        """Pieces with their boundaries at their ends: nothing between them."""
        position = start
        for match in boundary.finditer(self.text, start, end):
            if match.end() > position:
                yield position, match.end()
                position = match.end()
        if position < end:
            yield position, end


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())
