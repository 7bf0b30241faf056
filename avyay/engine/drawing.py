"""The dependency graph as an SVG picture: layers from left to right, boxes coloured by state. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from avyay.engine.graph import COLOURS, find_cycle

__all__ = ["Node", "layers", "svg"]

_WIDTH, _HEIGHT = 230, 46
_GAP_X, _GAP_Y = 70, 16
_MARGIN = 24
_SWEEPS = 8
_TITLE = 31  # characters that fit into a box


class Node(NamedTuple):
    """A box."""

    id: str
    title: str
    state: str


def layers(needs: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Tasks in layers, each right of all it needs, ordered so that few lines cross.

    Long edges pass through the layers between by way of placeholders, which begin with a space.

    Raises:
        ValueError: the graph has a cycle.
    """
    if cycle := find_cycle(needs):
        raise ValueError(f"cycle: {' -> '.join(cycle)}")
    rank = _ranks(needs)
    rows: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for task in needs:
        rows[rank[task]].append(task)
    links: list[tuple[str, str]] = []  # between neighbouring layers
    for task, wanted in needs.items():
        for need in wanted:
            chain = [need, *(f" {need}>{task}:{layer}" for layer in range(rank[need] + 1, rank[task])), task]
            for layer, name in enumerate(chain[1:-1], rank[need] + 1):
                rows[layer].append(name)
            links += pairwise(chain)
    _untangle(rows, links)
    return rows


def _ranks(needs: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """The longest way to each task from one that needs nothing."""
    wanted = {task: [need for need in of_it if need in needs] for task, of_it in needs.items()}
    followers: dict[str, list[str]] = {task: [] for task in needs}
    for task, of_it in wanted.items():
        for need in of_it:
            followers[need].append(task)
    missing = {task: len(of_it) for task, of_it in wanted.items()}
    rank = dict.fromkeys(needs, 0)
    free = [task for task, count in missing.items() if not count]
    while free:
        task = free.pop()
        for follower in followers[task]:
            rank[follower] = max(rank[follower], rank[task] + 1)
            missing[follower] -= 1
            if not missing[follower]:
                free.append(follower)
    return rank


def _untangle(rows: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    """Barycentre sweeps: each task moves to the middle of its neighbours in the layer beside it."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for one, two in links:
        before.setdefault(two, []).append(one)
        after.setdefault(one, []).append(two)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for index in range(1, len(rows)) if forward else range(len(rows) - 2, -1, -1):
            beside = rows[index - 1] if forward else rows[index + 1]
            place = {name: number for number, name in enumerate(beside)}
            own = {name: number for number, name in enumerate(rows[index])}

            def middle(name: str, place: dict[str, int] = place, own: dict[str, int] = own) -> float:
                found = [place[other] for other in neighbours.get(name, ()) if other in place]  # noqa: B023
                return sum(found) / len(found) if found else float(own[name])

            rows[index].sort(key=middle)


def svg(
    tasks: Sequence[Node], needs: Mapping[str, Iterable[str]], overlaps: Sequence[tuple[str, str, Sequence[str]]] = ()
) -> str:
    """A self-contained picture.

    Args:
        overlaps: Pairs of tasks that touch the same files, which are named: dashed lines.

    Raises:
        ValueError: the graph has a cycle.
    """
    nodes = {task.id: task for task in tasks}
    known = {task.id: [need for need in needs.get(task.id, ()) if need in nodes] for task in tasks}
    rows = layers(known)
    tallest = max((len(row) for row in rows), default=0)
    height = 2 * _MARGIN + max(tallest * (_HEIGHT + _GAP_Y) - _GAP_Y, 0)
    width = 2 * _MARGIN + max(len(rows) * (_WIDTH + _GAP_X) - _GAP_X, 0)
    at: dict[str, tuple[float, float]] = {}
    for column, row in enumerate(rows):
        top = (height - (len(row) * (_HEIGHT + _GAP_Y) - _GAP_Y)) / 2
        for line, name in enumerate(row):
            at[name] = (_MARGIN + column * (_WIDTH + _GAP_X), top + line * (_HEIGHT + _GAP_Y))
    legend = sorted({task.state for task in tasks})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 300):.0f} {height + 30:.0f}"'
        f' width="{max(width, 300):.0f}" height="{height + 30:.0f}" role="img" aria-label="Task graph"'
        ' font-family="system-ui, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for task, wanted in known.items():
        parts += [_edge(need, task, at) for need in wanted]
    for one, two, files in overlaps:
        if one in at and two in at:
            parts.append(_overlap(at[one], at[two], files))
    parts += [_box(nodes[name], at[name]) for row in rows for name in row if not name.startswith(" ")]
    for number, state in enumerate(legend):
        x = _MARGIN + number * 95
        parts.append(
            f'<rect x="{x}" y="{height + 6:.0f}" width="12" height="12" rx="3" fill="{COLOURS.get(state, "#fff")}"'
            f' stroke="#475569"/><text x="{x + 17}" y="{height + 16:.0f}" font-size="11" fill="#334155">'
            f"{escape(state)}</text>"
        )
    return "\n".join([*parts, "</svg>"])


def _edge(need: str, task: str, at: Mapping[str, tuple[float, float]]) -> str:
    """A curve from box to box, through the placeholders that keep it clear of other boxes."""
    way = sorted((name for name in at if name.startswith(f" {need}>{task}:")), key=lambda name: at[name][0])
    x, y = at[need][0] + _WIDTH, at[need][1] + _HEIGHT / 2
    path = [f"M{x:.0f} {y:.0f}"]
    for name in [*way, task]:
        left, middle = at[name][0], at[name][1] + _HEIGHT / 2
        bend = (left - x) / 2
        path.append(f"C{x + bend:.0f} {y:.0f} {left - bend:.0f} {middle:.0f} {left:.0f} {middle:.0f}")
        x, y = left, middle
        if name != task:
            x += _WIDTH
            path.append(f"L{x:.0f} {y:.0f}")
    return f'<path d="{" ".join(path)}" fill="none" stroke="#64748b" stroke-width="1.4" marker-end="url(#tip)"/>'


def _overlap(one: tuple[float, float], two: tuple[float, float], files: Sequence[str]) -> str:
    (x1, y1), (x2, y2) = sorted((one, two), key=lambda place: place[1])
    side = max(x1, x2) + _WIDTH + 18
    more = "" if len(files) <= 5 else f" and {len(files) - 5} more"
    shared = escape(", ".join(files[:5]))
    return (
        f'<path d="M{x1 + _WIDTH:.0f} {y1 + _HEIGHT / 2:.0f} Q{side:.0f} {(y1 + y2 + _HEIGHT) / 2:.0f}'
        f' {x2 + _WIDTH:.0f} {y2 + _HEIGHT / 2:.0f}" fill="none" stroke="#b45309" stroke-dasharray="4 3"'
        f' stroke-width="1.3"><title>Not side by side, both touch: {shared}{more}</title></path>'
    )


def _box(node: Node, place: tuple[float, float]) -> str:
    x, y = place
    title = node.title if len(node.title) <= _TITLE else f"{node.title[: _TITLE - 1]}…"
    name = node.id if len(node.id) <= 22 else f"{node.id[:21]}…"
    return (
        f"<g><title>{escape(f'{node.id} [{node.state}] {node.title}')}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" stroke="#475569"'
        f' fill="{COLOURS.get(node.state, "#ffffff")}"/>'
        f'<text x="{x + 9:.0f}" y="{y + 18:.0f}" font-size="11" font-weight="600" fill="#0f172a">{escape(name)}</text>'
        f'<text x="{x + _WIDTH - 9:.0f}" y="{y + 18:.0f}" font-size="10" fill="#334155" text-anchor="end">'
        f"{escape(node.state)}</text>"
        f'<text x="{x + 9:.0f}" y="{y + 35:.0f}" font-size="12" fill="#0f172a">{escape(title)}</text></g>'
    )
