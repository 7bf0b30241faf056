"""The map as text: files in order of rank, each with the symbols that fit the token budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from avyay.engine.knowledge.types import MapEntry, Symbol

__all__ = ["fit", "render"]

_SMALLEST = 5  # tokens: no line is shorter


def render(entries: Sequence[MapEntry]) -> str:
    """A line for each file, indented below it one for each symbol."""
    lines: list[str] = []
    for entry in entries:
        lines.append(entry.path)
        lines += [_line(symbol) for symbol in sorted(entry.symbols, key=lambda s: s.line)]
    return "\n".join(lines)


def _line(symbol: Symbol) -> str:
    indent = "  " * (symbol.scope.count(".") + 1 if symbol.scope else 0)
    return f"  {symbol.line:>5}: {indent}{symbol.signature}"


def fit(
    files: Sequence[tuple[str, float]],
    symbols: Mapping[str, Sequence[tuple[Symbol, float]]],
    tokens: int,
    count: Callable[[str], int],
) -> tuple[MapEntry, ...]:
    """As many of the best files and symbols as the budget holds.

    Args:
        files: (path, score), best first.
        symbols: The symbols of each file with their scores.
        count: Tokens of a text.
    """
    candidates: list[tuple[float, int, str, Symbol | None]] = []
    for place, (path, score) in enumerate(files):
        candidates.append((score, place, path, None))
        candidates += [(value, place, path, symbol) for symbol, value in symbols.get(path, ())]
    candidates.sort(key=lambda item: (-item[0], item[1], item[3] is not None, item[3].line if item[3] else 0))
    chosen: dict[str, list[Symbol]] = {}
    left = tokens
    spent: dict[str, int] = {}
    most = tokens // 2 if len(files) > 1 else tokens  # one large file must not be the whole map
    for _, _, path, found in candidates:
        price = 0
        if path not in chosen:
            price += count(path) + 1
        if found is not None:
            price += count(_line(found)) + 1
        if left < _SMALLEST:
            break
        if price > left or spent.get(path, 0) + price > most:
            continue
        left -= price
        spent[path] = spent.get(path, 0) + price
        members = chosen.setdefault(path, [])
        if found is not None:
            members.append(found)
    return tuple(MapEntry(path, score, tuple(chosen[path])) for path, score in files if path in chosen)
