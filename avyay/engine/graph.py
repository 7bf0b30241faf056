"""The dependency graph: cycles, order, pictures. Pure functions over `{task: what it needs}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["COLOURS", "ancestors", "find_cycle", "mermaid", "topological_order", "tree_lines"]

COLOURS: Mapping[str, str] = {
    "done": "#b7e4c7", "ready": "#dbeafe", "blocked": "#e5e7eb", "running": "#fde68a", "leased": "#fde68a",
    "verifying": "#fde68a", "merging": "#fde68a", "failed": "#fecaca", "dead": "#fecaca", "cancelled": "#e5e7eb",
}  # fmt: skip
"""The colour of each state in pictures."""


def find_cycle(needs: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A cycle as a list that begins and ends with the same task, or None."""
    state: dict[str, int] = {}  # 1 on the path, 2 finished
    for root in needs:
        if state.get(root):
            continue
        path: list[str] = [root]
        state[root] = 1
        stack = [iter(needs.get(root, ()))]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                state[path.pop()] = 2
            elif state.get(following) == 1:
                return [*path[path.index(following) :], following]
            elif not state.get(following):
                state[following] = 1
                path.append(following)
                stack.append(iter(needs.get(following, ())))
    return None


def topological_order(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Every task after all it needs; ties in the order given.

    Raises:
        ValueError: the graph has a cycle.
    """
    if cycle := find_cycle(needs):
        raise ValueError(f"cycle: {' -> '.join(cycle)}")
    order: dict[str, None] = {}
    for root in needs:
        stack = [root]
        while stack:
            task = stack[-1]
            if task in order:
                stack.pop()
            elif missing := [need for need in needs.get(task, ()) if need not in order]:
                stack.extend(reversed(missing))
            else:
                order[task] = None
                stack.pop()
    return list(order)


def ancestors(needs: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """All that each task waits for, directly or not.

    Raises:
        ValueError: the graph has a cycle.
    """
    found: dict[str, frozenset[str]] = {}
    for task in topological_order(needs):
        direct = tuple(needs.get(task, ()))
        found[task] = frozenset(direct).union(*(found.get(need, frozenset()) for need in direct))
    return found


def mermaid(
    tasks: Sequence[tuple[str, str, str]],
    needs: Mapping[str, Iterable[str]],
    overlaps: Sequence[tuple[str, str, Sequence[str]]] = (),
) -> str:
    """A Mermaid flowchart of (id, title, state) rows; pairs that touch the same files are joined by dots."""
    names = {task: f"n{index}" for index, (task, _, _) in enumerate(tasks)}
    lines = ["flowchart LR"]
    for task, title, state in tasks:
        label = f"{task}: {title}".replace('"', "'").replace("\n", " ")[:60]
        lines.append(f'  {names[task]}["{label}"]:::{state}')
    for task, _, _ in tasks:
        lines += [f"  {names[need]} --> {names[task]}" for need in needs.get(task, ()) if need in names]
    lines += [f"  {names[one]} -.- {names[two]}" for one, two, _ in overlaps if one in names and two in names]
    lines += [f"  classDef {state} fill:{colour},color:#111" for state, colour in COLOURS.items()]
    return "\n".join(lines)


def tree_lines(tasks: Sequence[tuple[str, str, str]], needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The graph as indented text: what comes first stands left, a task that has several needs stands under each."""
    titles = {task: (title, state) for task, title, state in tasks}
    followers: dict[str, list[str]] = {}
    for task, _, _ in tasks:
        for need in needs.get(task, ()):
            followers.setdefault(need, []).append(task)
    lines: list[str] = []
    drawn: set[str] = set()

    def draw(task: str, depth: int) -> None:
        title, state = titles[task]
        again = " (above)" if task in drawn and followers.get(task) else ""
        lines.append(f"{'  ' * depth}{task} [{state}] {title}{again}")
        if task not in drawn:
            drawn.add(task)
            for follower in followers.get(task, ()):
                draw(follower, depth + 1)

    for task, _, _ in tasks:
        if not any(need in titles for need in needs.get(task, ())):
            draw(task, 0)
    return lines
