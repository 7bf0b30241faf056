"""From settings to sinks, reader and pump."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.environment import Environment
from avyay.config.events import EventsSettings
from avyay.errors import AvyayError, UsageError
from avyay.events.deliveries import Deliveries
from avyay.events.follow import Follower, Remote
from avyay.events.followed import FollowedStore
from avyay.events.pump import Pump
from avyay.events.reader import EventReader
from avyay.events.sinks import RedisSink, Sink, WebhookSink
from avyay.events.webhooks import read_secrets
from avyay.log import get_logger
from avyay.paths import Paths, ensure_directory

__all__ = ["deliveries_file", "open_follower", "open_home", "open_pump", "open_reader", "open_sinks"]


def deliveries_file(paths: Paths) -> Path:
    """Where deliveries are remembered."""
    return paths.data / "events" / "deliveries.db"


def open_home(paths: Paths) -> str:
    """The id of this home, by which others know it whatever its address; made when first asked for.

    Raises:
        UsageError: it cannot be kept.
    """
    file = ensure_directory(paths.data / "events") / "home"
    if not file.exists():
        made = file.with_name(f"home-{secrets.token_hex(4)}")
        made.write_text(secrets.token_hex(12), encoding="ascii")
        with suppress(FileExistsError):  # another process was quicker
            os.link(made, file)
        made.unlink()
    return file.read_text(encoding="ascii")


def open_reader(paths: Paths, *, own: bool = False) -> EventReader:
    """The merged events of this home; an outbox that cannot be read is logged once.

    Args:
        own: Leave out what was followed from other homes.
    """
    told: set[str] = set()

    def unreadable(name: str, error: AvyayError) -> None:
        if name not in told:
            told.add(name)
            get_logger("events").error("outbox_unreadable", outbox=name, error=error.message)

    return EventReader(paths.data, own=own, unreadable=unreadable)


def open_follower(
    remotes: Sequence[Remote], settings: EventsSettings, paths: Paths, *, told: Callable[[], Collection[str]] = tuple
) -> Follower:
    """What brings the events of other homes here; needs a running loop.

    Args:
        told: Shared queues that this home tells of itself.

    Raises:
        UsageError: this home's id cannot be kept.
    """
    keep = settings.keep * max(1, len(remotes))
    return Follower(
        remotes,
        open_home(paths),
        lambda: FollowedStore(paths.component("gateway") / "followed.db", keep=keep),
        lock=paths.runtime / "events-follow.lock",
        told=told,
    )


def open_sinks(settings: EventsSettings, environment: Environment, *, clock: Clock = SYSTEM_CLOCK) -> list[Sink]:
    """The receivers that are configured.

    Raises:
        UsageError: a variable that holds a secret or an address is not set, or holds none.
        DependencyError: Redis is configured, and its package is not installed.
    """
    sinks: list[Sink] = []
    for hook in settings.webhooks:
        secrets = read_secrets(_variable(environment, hook.secret_env, f"events.webhooks ({hook.name}): secret_env"))
        sinks.append(
            WebhookSink(
                hook.name,
                hook.url,
                secrets,
                names=hook.events,
                timeout=hook.timeout,
                attempts=hook.attempts,
                private=hook.private,
                now=clock.now,
            )
        )
    if settings.redis is not None:
        redis = settings.redis
        url = redis.url or _variable(environment, redis.url_env or "", "events.redis.url_env")
        sinks.append(RedisSink(url, redis.stream, names=redis.events, length=redis.length))
    return sinks


def open_pump(settings: EventsSettings, paths: Paths, environment: Environment, *, clock: Clock = SYSTEM_CLOCK) -> Pump:
    """What a daemon runs; needs a running loop.

    Raises:
        UsageError, DependencyError: as `open_sinks`.
    """
    return Pump(
        open_reader(paths),
        lambda: Deliveries(deliveries_file(paths), clock=clock),
        open_sinks(settings, environment, clock=clock),
        lock=paths.runtime / "events.lock",
        clock=clock,
        keep_for=settings.keep_for,
    )


def _variable(environment: Environment, name: str, setting: str) -> str:
    value = environment.value(name)
    if value is None:
        raise UsageError(f"{setting} names {name}, which is not set.", hint=f"export {name}=…")
    return value
