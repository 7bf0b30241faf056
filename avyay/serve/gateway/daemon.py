"""The gateway as a daemon: made from the settings, bound to its port, one process or several."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avyay.config.serve import GatewaySettings
from avyay.errors import ConfigError, PolicyError
from avyay.principal import PrincipalSigner, given_secret, open_secret
from avyay.serve.console.pages import Console
from avyay.serve.console.session import Sessions
from avyay.serve.gateway.app import GatewayApp, Options
from avyay.serve.gateway.auth import Authenticator
from avyay.serve.gateway.door import DoorLimits, door_protocol
from avyay.serve.gateway.keys import KeyBook
from avyay.serve.gateway.limit_stores import LimitMember, LimitOwner, LocalLimiter, RedisLimiter
from avyay.serve.gateway.limits import Limiter, Rule
from avyay.serve.gateway.pages import add_pages
from avyay.serve.gateway.relay import Timeouts, Upstream
from avyay.serve.gateway.routes import valid_scope
from avyay.serve.gateway.settle import TokenSettler
from avyay.serve.gateway.shared_breakers import BreakerMember, BreakerOwner
from avyay.serve.gateway.stream import EventsPage, remotes_of
from avyay.serve.gateway.tokens import make_issuers
from avyay.serve.gateway.usage import UsageJournal, UsageReader, recover
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.run import App, Stopping, is_loopback
from avyay.serve.siblings import Siblings
from avyay.worker_socket import MemberEnd, OwnerEnd

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = [
    "DEFAULT_PORT",
    "build_app",
    "gateway_daemon",
    "gateway_options",
    "make_first_key",
    "open_keys",
    "open_upstream",
    "open_usage",
    "serve_gateway",
]

DEFAULT_PORT = 8080
_PORTS = {"marga": 8081, "rag": 8082, "raksha": 8083, "siddhi": 8084, "engine": 8086}


def serve_gateway(services: Services, how: Launch | None = None) -> int:
    """Run the gateway until it is told to end; returns the exit code.

    Raises:
        UsageError: the port is taken.
        PolicyError: others could reach it, and nobody would have to say who he is.
    """
    return launch(services, gateway_daemon(), how or Launch())


def gateway_daemon() -> Daemon:
    """What `avyay serve gateway` runs."""

    def build(services: Services, site: Site) -> App:
        return build_app(services, owner=site.owner, stopping=site.stopping, siblings=site.siblings)

    return Daemon(
        "gateway",
        "The gateway",
        "console: /, health: /health",
        DEFAULT_PORT,
        check_authentication,
        build,
        owner=_owning,
        protocol=lambda services: door_protocol(door_limits(services.settings.gateway)),
    )


def check_authentication(services: Services, host: str) -> None:
    """Refuse to answer strangers without asking who they are.

    Raises:
        PolicyError: the address is wider than loopback, there is no key and no issuer.
    """
    open_to_all = services.settings.serve.tailscale_serve or not is_loopback(host)
    if not open_to_all or services.settings.gateway.jwt:
        return
    keys = open_keys(services)
    try:
        if keys.any:
            return
    finally:
        keys.close()
    raise PolicyError(
        f"The gateway would answer anyone who reaches {host}, at your cost.",
        hint="Make a key (avyay keys create NAME), configure gateway.jwt, or bind to 127.0.0.1.",
        code="no_authentication",
    )


def make_first_key(services: Services) -> str | None:
    """A key for everything, if there never was one and no issuer is configured; its only showing."""
    if services.settings.gateway.jwt:
        return None
    keys = open_keys(services)
    try:
        return None if keys.any else keys.create("first", scopes=("*", "admin")).secret
    finally:
        keys.close()


def open_keys(services: Services) -> KeyBook:
    """The keys of this home."""
    return KeyBook(services.paths.component("gateway") / "keys.db", services.clock)


def open_usage(services: Services) -> UsageReader:
    """What was counted in this home."""
    return UsageReader(services.paths.component("gateway") / "usage.db", services.clock)


def build_app(
    services: Services,
    *,
    owner: Path | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
) -> GatewayApp:
    """The ASGI application.

    Args:
        owner: The Unix socket of the process that keeps limits and breakers, when this is one of several workers.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    settings = services.settings.gateway
    clock = services.clock
    # What may be refused comes first: nothing is open then.
    options = gateway_options(settings)
    issuers = make_issuers(settings.jwt, services.loaded.environment, clock)
    secret = _secret(services)
    upstreams = dict(_upstreams(services))
    member: MemberEnd | None = None
    limiter: Limiter
    if owner is not None:
        member = MemberEnd(_end_worker)
        limiter = LimitMember(member)
        BreakerMember(member, upstreams)
    else:
        limiter = make_limiter(services)
    keys = open_keys(services)
    journal = UsageJournal(services.paths.component("gateway") / "usage.db", clock)
    usage = open_usage(services)
    pruning: list[asyncio.Task[None]] = []
    siblings = siblings or Siblings()

    async def started() -> None:
        siblings.add(pages)
        if member is not None and owner is not None:
            await member.start(owner)
        else:
            pruning.append(asyncio.ensure_future(_keep_pruning(services)))
        await events.start()

    async def stopped() -> None:
        await events.stop()
        for task in pruning:
            task.cancel()
        await asyncio.gather(*pruning, return_exceptions=True)
        siblings.remove(pages)
        if member is not None:
            await member.stop()
        if isinstance(limiter, RedisLimiter):
            await limiter.close()
        keys.close()
        usage.close()
        services.close()

    authenticator = Authenticator(keys, issuers, limiter, failed_attempts=settings.failed_attempts, clock=clock)
    events = EventsPage(services, authenticator, remotes_of(upstreams.values()), stopping=stopping)
    app = GatewayApp(
        upstreams,
        authenticator,
        limiter,
        journal,
        options,
        settler=TokenSettler(upstreams["marga"], limiter) if any(rule.tokens for rule in settings.limits) else None,
        pages={b"/v1/events": events},
        started=started,
        stopped=stopped,
        watching=owner is None,
        clock=clock,
    )
    console = partial(Console, app, Sessions(secret, keys, clock), clock)
    pages = add_pages(app, usage, clock, siblings=siblings, console=console)
    return app


def make_limiter(services: Services) -> LocalLimiter | RedisLimiter:
    """Where limits are counted: in Redis where the configuration names one, else in this process."""
    settings = services.settings.gateway
    local = LocalLimiter(services.clock)
    if settings.redis_url is None:
        return local
    fallback = local if settings.on_redis_loss == "local" else None
    return RedisLimiter(settings.redis_url, services.clock, fallback=fallback)


async def _keep_pruning(services: Services) -> None:
    while True:
        await asyncio.to_thread(usage_prune, services, services.clock.now() - services.settings.gateway.keep_requests)
        await asyncio.sleep(6 * 3_600)


def usage_prune(services: Services, before: float) -> None:
    """Forget single requests older than a time; in a thread, with a connection of its own."""
    reader = open_usage(services)
    try:
        reader.prune(before)
    finally:
        reader.close()


@asynccontextmanager
async def _owning(services: Services, path: Path) -> AsyncIterator[Callable[[], int]]:
    """Be the owner of several workers: limits and breakers are kept here for all of them."""
    open_secret_once(services)
    limiter = make_limiter(services)
    local = limiter if isinstance(limiter, LocalLimiter) else LocalLimiter(services.clock)
    upstreams = dict(_upstreams(services))
    end = OwnerEnd()
    LimitOwner(end, limiter, local.counters)
    breakers = BreakerOwner(end, upstreams, gateway_options(services.settings.gateway).check_interval)
    await end.serve(path)
    breakers.start()
    pruning = asyncio.ensure_future(_keep_pruning(services))
    try:
        yield lambda: len(end.peers)
    finally:
        pruning.cancel()
        await asyncio.gather(pruning, return_exceptions=True)
        await breakers.stop()
        await end.close()
        path = services.paths.component("gateway") / "usage.db"
        await asyncio.to_thread(recover, path, services.clock.now())  # of a worker that was killed as the last one
        if isinstance(limiter, RedisLimiter):
            await limiter.close()


def open_secret_once(services: Services) -> None:
    """Make the secret and the databases before several workers would race to."""
    _secret(services)
    open_keys(services).close()
    open_usage(services).close()


def _secret(services: Services) -> bytes:
    variable = services.settings.serve.principal_secret_env
    if variable is None:
        return open_secret(services.paths)
    value = services.loaded.environment.value(variable)
    if value is None:
        raise ConfigError(
            f"serve.principal_secret_env names {variable}, which is not set.", hint=f"export {variable}=..."
        )
    return given_secret(value)


def _upstreams(services: Services) -> Iterator[tuple[str, Upstream]]:
    for name in _PORTS:
        yield name, open_upstream(services, name)


def open_upstream(services: Services, name: str) -> Upstream:
    """A component as the gateway reaches it.

    Raises:
        ConfigError: a variable that is named for it is not set.
    """
    one = getattr(services.settings.gateway.upstreams, name)
    key = _of_environment(services, name, one.api_key_env)
    secret = _of_environment(services, name, one.principal_key_env)
    # A component with a key of its own shares our secret only where that is said: else it would refuse our word.
    signer = PrincipalSigner(_secret(services), services.clock) if key is None else None
    if secret is not None:
        signer = PrincipalSigner(given_secret(secret), services.clock)
    url = one.url or f"http://127.0.0.1:{_PORTS[name]}"
    timeouts = Timeouts(one.connect, one.first_byte, one.idle)
    return Upstream(name, url, key=key, signer=signer, timeouts=timeouts, clock=services.clock)


def _of_environment(services: Services, name: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    if (value := services.loaded.environment.value(variable)) is None:
        raise ConfigError(
            f"gateway.upstreams.{name} names {variable}, which is not set.", hint=f"export {variable}=..."
        )
    return value


def gateway_options(settings: GatewaySettings) -> Options:
    """What a request meets.

    Raises:
        ConfigError: a limit or an origin is none.
    """
    return Options(
        rules=tuple(_rules(settings)),
        proxies=settings.proxies,
        origins=frozenset(_origin(origin) for origin in settings.cors_origins),
        max_body=settings.max_body,
        max_push_body=settings.max_push_body,
        failed_attempts=settings.failed_attempts,
        body_timeout=settings.body_timeout,
        send_timeout=settings.send_timeout,
        keep_requests=settings.keep_requests,
    )


def _rules(settings: GatewaySettings) -> Iterator[Rule]:
    for number, one in enumerate(settings.limits, 1):
        amounts: Mapping[str, int | None] = {
            "requests": one.requests,
            "tokens": one.tokens,
            "concurrent": one.concurrent,
        }
        if one.endpoint is not None and not valid_scope(one.endpoint):
            raise ConfigError(f"gateway.limits: {one.endpoint!r} is no endpoint.", hint="For example: marga:embeddings")
        if not any(amounts.values()):
            raise ConfigError(f"The limit {number} limits nothing.", hint="Name requests, tokens or concurrent.")
        for unit, amount in amounts.items():
            if amount is not None:
                yield Rule(unit, amount, one.key, one.tier, one.endpoint)  # type: ignore[arg-type]


def _origin(text: str) -> bytes:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}":
        raise ConfigError(f"gateway.cors_origins: {text!r} is no origin.", hint="Write https://app.example.com.")
    return text.encode()


def door_limits(settings: GatewaySettings) -> DoorLimits:
    return DoorLimits(
        settings.max_head,
        settings.head_timeout,
        settings.max_connections,
        settings.body_timeout,
        settings.send_timeout,
    )


def _end_worker() -> None:
    """The owner is gone: a worker alone would keep the port and count limits by nobody."""
    os.kill(os.getpid(), signal.SIGTERM)
