"""From settings to a dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.engine import EngineAgentSettings, EngineNodeSettings, EngineSettings
from avyay.config.environment import Environment
from avyay.engine.agents.base import Access
from avyay.engine.agents.registry import make_agent
from avyay.engine.attempt import Limits, Place, Surroundings
from avyay.engine.attempts import Attempts
from avyay.engine.contracts import ContextSource, Generator, TaskQueue
from avyay.engine.day import DayCaps
from avyay.engine.loop import Dispatcher, Pace, Refill
from avyay.engine.merge import MergeQueue
from avyay.engine.nodes.base import Caps, Node, NodeParts
from avyay.engine.repositories import copy_name, names_of, repositories_of
from avyay.engine.review import Reviewer
from avyay.engine.types import REPOSITORY, Task
from avyay.engine.verify import Verifier
from avyay.engine.worktree import Workshop
from avyay.errors import AvyayError, ConfigError, UsageError
from avyay.log import get_logger
from avyay.money import Picodollars, parse_usd
from avyay.paths import Paths, ensure_directory
from avyay.ports import BillReader, Completer, Events, Retriever, Scanner

__all__ = ["NODE_KINDS", "Offers", "build_dispatcher", "build_nodes", "lacking", "spending"]

NODE_KINDS: Mapping[str, str] = {
    "local": "avyay.engine.nodes.local",
    "ssh": "avyay.engine.nodes.ssh",
    "tailnet": "avyay.engine.nodes.tailnet",
}
"""The module of each kind of node; its `make_node(settings, parts)` makes one."""

log = get_logger("engine")

_OWN_KEYS = {"claude": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}


@dataclass(frozen=True, slots=True)
class Offers:
    """What other components offer the engine; each is made when first called, None is not there.

    Args:
        models: Base URL of the router for agents, when it runs as a daemon.
        models_key: The key it asks for.
        tell: Publishes what was written into the history.
        near: Share of a day's cap from which it is told to be near.
    """

    scanner: Callable[[], Scanner] | None = None
    completer: Callable[[], Completer] | None = None
    runbooks: Retriever | None = None
    bill: BillReader | None = None
    events: Events | None = None
    generator: Generator | None = None
    context: ContextSource | None = None
    models: str | None = None
    models_key: str | None = None
    tell: Callable[[], object] | None = None
    near: float = 0.8


def build_dispatcher(
    settings: EngineSettings,
    paths: Paths,
    environment: Environment,
    open_queue: Callable[[], TaskQueue],
    offers: Offers,
    *,
    directory: Path,
    clock: Clock = SYSTEM_CLOCK,
) -> Dispatcher:
    """A dispatcher as configured; it opens the queue, and starts nothing.

    Args:
        directory: The repository around it is the default one; relative paths of the settings start here.

    Raises:
        UsageError: there is no repository to work on.
        ConfigError: a node or an agent cannot be made.
    """
    root = paths.component("engine")
    attempts = Attempts(root / "attempts")
    reviewer = (
        Reviewer(offers.completer, settings.verify.checklist) if settings.verify.review and offers.completer else None
    )
    verifier = Verifier(settings.verify, attempts, environment, scanner=offers.scanner, reviewer=reviewer)
    places = _places(settings, root, directory, verifier)
    workshops = {place.workshop.repository.root: place.workshop for place in places.values()}
    parts = NodeParts(settings.agents, attempts, lambda path: workshops[path], environment)
    nodes = [_node(item, parts) for item in settings.nodes or (EngineNodeSettings(name="local"),)]
    caps = settings.caps
    agents = {item.name: item for item in settings.agents}

    roots = {name: place.workshop.repository.root for name, place in places.items()}
    names = names_of(roots, shared=settings.queue_url is not None)

    def place_of(task: Task) -> Place:
        if task.repository not in names:
            known = ", ".join(name or "(the default)" for name in places) or "none"
            raise UsageError(f"There is no repository {task.repository!r} here.", hint=f"Configured: {known}.")
        return places[names[task.repository]]

    def park(node: Node, agent: str, seconds: float, reason: str) -> None:
        dispatcher.park(node, agent, seconds, reason)

    day = DayCaps(
        clock,
        seconds=caps.day_wall,
        dollars=parse_usd(caps.day),
        bill=offers.bill,
        events=offers.events,
        near=offers.near,
    )
    around = Surroundings(
        attempts=attempts,
        verifier=verifier,
        place=place_of,
        access=_access(agents, environment, offers, caps.dollars),
        limits=Limits(Caps(caps.wall, caps.stall, caps.turns), caps.dollars),
        context=offers.context,
        context_tokens=settings.context_tokens,
        runbooks=offers.runbooks,
        passages=settings.runbooks,
        events=offers.events,
        approval=settings.merge.approval,
        park=park,
        bill=partial(_charged, offers.bill),
        day=day,
    )
    refill = None
    if offers.generator is not None and settings.generate.low_water > 0:
        generate = settings.generate
        refill = Refill(offers.generator, list(roots.values()), generate.low_water, generate.limit)
    dispatcher = Dispatcher(
        open_queue,
        nodes,
        around,
        places,
        offers=frozenset(f"{REPOSITORY}{word}" for word in names if word),
        pace=Pace(settings.tick, settings.heartbeat, settings.lease_timeout, min(1.0, settings.heartbeat / 4)),
        bill=offers.bill,
        day=day,
        refill=refill,
        tell=offers.tell,
        clock=clock,
        spending=partial(spending, settings, offers.models),
        lacking=partial(lacking, settings, offers.models, environment),
    )
    return dispatcher


def spending(settings: EngineSettings, models: str | None, agents: Sequence[str]) -> list[str]:
    """What of the caps on dollars does not hold, in words; nothing when the router bills every agent.

    Args:
        models: Base URL of the router.
        agents: Names of those that tasks are given to.
    """
    configured = {item.name: item for item in settings.agents}
    own: list[str] = []
    nobody: list[str] = []
    routable = False
    for name in agents:
        item = configured.get(name) or EngineAgentSettings(name=name)
        agent = make_agent(item)
        routable |= agent.routable
        if models is None or item.endpoint is not None or not agent.routable:
            (own if agent.counts_dollars else nobody).append(name)
    said = []
    if nobody:
        said.append(
            f"Nothing counts what {_and(nobody)} {'spends' if len(nobody) == 1 else 'spend'}: no cap on dollars holds"
            " there, only those on time, turns and no progress."
        )
    if own:
        one = len(own) == 1
        said.append(
            f"{_and(own)} {'counts its' if one else 'count their'} own dollars, by prices"
            f" {'it knows' if one else 'they know'} (an unknown model costs nothing)."
        )
    if said and models is None and routable:
        said.append("With a router (avyay serve marga, engine.models) every call is counted as it is made.")
    return said


def lacking(settings: EngineSettings, models: str | None, environment: Environment, agents: Sequence[str]) -> list[str]:
    """Which agents reach no model, in words: they see no login of the user's, only what they are given."""
    configured = {item.name: item for item in settings.agents}
    said = []
    for name in agents:
        item = configured.get(name) or EngineAgentSettings(name=name)
        agent = make_agent(item)
        own = _OWN_KEYS.get(item.kind or item.name)
        given = [item.api_key_env, own, *item.environment]
        if (
            agent.dialect is None
            or item.endpoint is not None
            or (models is not None and agent.routable)
            or any(variable and environment.value(variable) for variable in given)
            or item.program is not None  # it may bring its own
            or item.arguments
        ):
            continue
        ways = [
            *([f"set {own}"] if own else []),
            "give engine.agents an api_key_env",
            *(["or engine.models a router (avyay serve marga)"] if agent.routable else []),
        ]
        said.append(f"{name} reaches no model, for it does not see your login: {', '.join(ways)}.")
    return said


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _charged(bill: BillReader | None, task: Task) -> Picodollars | None:
    """What the router has charged for a task; None when it cannot be told."""
    try:
        return bill.customer(task.id, task.created).cost if bill is not None else None
    except AvyayError as error:
        log.warning("bill_unreadable", reason=error.message)
        return None


def build_nodes(settings: EngineSettings, paths: Paths, environment: Environment) -> list[Node]:
    """The nodes as configured, to be looked at: they know no repository, so they run nothing.

    Raises:
        ConfigError: a node or an agent cannot be made.
    """

    def no_workshop(path: Path) -> Workshop:
        raise UsageError(f"{path} is not worked on here.", hint="See: avyay engine run")

    attempts = Attempts(paths.component("engine") / "attempts")
    parts = NodeParts(settings.agents, attempts, no_workshop, environment)
    return [_node(item, parts) for item in settings.nodes or (EngineNodeSettings(name="local"),)]


def _places(settings: EngineSettings, root: Path, directory: Path, verifier: Verifier) -> dict[str, Place]:
    places = {}
    for name, repository in repositories_of(settings, directory).items():
        workshop = Workshop(repository, root / "repositories" / copy_name(name, repository), settings.merge.branch)
        merging = MergeQueue(workshop, verifier, mode=settings.merge.mode, remote=settings.merge.remote)
        places[name] = Place(name, workshop, merging)
    if not places:
        raise UsageError(f"{directory} is in no git repository.", hint="Change there, or set engine.repository.")
    return places


def _node(settings: EngineNodeSettings, parts: NodeParts) -> Node:
    try:
        module = import_module(NODE_KINDS[settings.kind])
    except ModuleNotFoundError as error:
        raise ConfigError(f"Nodes of kind {settings.kind!r} cannot be used.", hint="Use kind: local.") from error
    made: Node = module.make_node(settings, parts)
    made.drain_note = ensure_directory(parts.attempts.root.parent / "drained") / settings.name
    return made


def _access(
    agents: Mapping[str, EngineAgentSettings], environment: Environment, offers: Offers, dollars: str
) -> Callable[[Task, int, str, Node], Access]:
    """How agents reach models: their own endpoint, else the router, else the provider they come with."""

    def access(task: Task, fence: int, name: str, node: Node) -> Access:
        settings = agents.get(name) or EngineAgentSettings(name=name)
        key = environment.value(settings.api_key_env) if settings.api_key_env else None
        if settings.endpoint is not None:
            return Access(settings.endpoint.rstrip("/").removesuffix("/v1"), key, model=settings.model, budget=dollars)
        if offers.models is not None and make_agent(settings).routable:
            headers = {
                "x-avyay-service": "engine",
                "x-avyay-customer": task.id,
                "x-avyay-session": f"{task.id}/{fence}",
                "x-request-class": "engine-task",
            }
            key = key or offers.models_key or "avyay"
            return Access(offers.models.rstrip("/").removesuffix("/v1"), key, headers, settings.model, routed=True)
        own = _OWN_KEYS.get(settings.kind or settings.name)
        key = key or (environment.value(own) if own else None)
        return Access(key=key, model=settings.model, budget=dollars)

    return access
