"""Which nodes are away: told once when one goes and once when it returns, whatever restarts lie between."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avyay.clock import Clock
from avyay.engine.nodes.base import Node
from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.paths import ensure_directory
from avyay.ports import Event, Events

__all__ = ["Presence"]


class Presence:
    """Remembers in a folder who was told of as away: a note for each node.

    Args:
        folder: Where the notes lie; made when the first is needed.
    """

    def __init__(self, folder: Path, events: Events, clock: Clock) -> None:
        self._folder, self._events, self._clock = folder, events, clock
        self._log = get_logger("engine")

    def look(self, nodes: Iterable[Node]) -> None:
        """Tell of nodes that answered when last heard of and are silent now, or the other way round."""
        for node in nodes:
            try:
                self._look(node)
            except (AvyayError, OSError) as error:  # the disk: the next look tells of it
                self._log.warning("node_not_told", node=node.name, reason=str(error))

    def _look(self, node: Node) -> None:
        note = self._folder / node.name
        since, told = _read(note)
        if node.away and not told:
            if since is None:  # when it began, first: after a crash it is told again as the same absence
                since = self._clock.now()
                ensure_directory(self._folder)
                note.write_text(f"{since}")
            self._publish("lost", since, node=node.name, reason=node.away)
            note.write_text(f"{since} told")
        elif not node.away and since is not None:
            if told:
                self._publish("back", since, node=node.name, seconds=round(self._clock.now() - since, 1))
            note.unlink()

    def _publish(self, verb: str, since: float, **data: object) -> None:
        self._log.warning(f"node_{verb}", **data)
        self._events.publish_now(Event(f"engine.node.{verb}", data, once=f"{data['node']}/{since}"))


def _read(note: Path) -> tuple[float | None, bool]:
    """Since when a node is away, and whether that was told."""
    try:
        since, _, told = note.read_text().partition(" ")
        return float(since), bool(told)
    except (OSError, ValueError):
        return None, False
