"""From settings to the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.environment import Environment
from avyay.config.siddhi import SiddhiSettings
from avyay.errors import AuthError, ConfigError
from avyay.http import async_client, client
from avyay.money import parse_usd
from avyay.paths import Paths
from avyay.ports import Completer, Embedder, Scanner
from avyay.siddhi.ads.base import AdPlatform
from avyay.siddhi.budget import Caps, Governor
from avyay.siddhi.deploy import open_target
from avyay.siddhi.mail import Mailer, SmtpMailer
from avyay.siddhi.miners.base import Miner
from avyay.siddhi.pipeline import Siddhi, Terms
from avyay.siddhi.store import Store
from avyay.siddhi.visitors import Visitors, load_key

__all__ = ["build_mailer", "build_siddhi", "open_miners", "query_jobs"]

SOURCES = ("hn", "reddit", "producthunt", "x", "rss", "file")


def build_siddhi(
    settings: SiddhiSettings,
    paths: Paths,
    environment: Environment,
    *,
    embedder: Callable[[], Embedder],
    completer: Callable[[], Completer | None],
    scanner: Callable[[], Scanner] | None = None,
    near: float = 0.8,
    clock: Clock = SYSTEM_CLOCK,
) -> Siddhi:
    """The service that the settings describe. Opens files; calls nobody.

    Args:
        near: Share of a budget, 0..1, from which it is told to be near its cap.

    Raises:
        AuthError: A platform is named and its keys are not in the environment.
        ConfigError: A platform's account is not named, or the place to publish does not exist.
    """
    home = paths.component("siddhi")
    budget, test, page = settings.budget, settings.test, settings.page
    platforms = _platforms(settings, environment, clock)
    caps = Caps(
        hypothesis=parse_usd(budget.hypothesis),
        day=parse_usd(budget.day),
        month=parse_usd(budget.month),
        total=parse_usd(budget.total),
        sources={name: parse_usd(amount) for name, amount in budget.sources.items()},
    )
    target = open_target(page.publish, project=page.project, command=page.command) if page.publish else None
    terms = Terms(
        bar=test.bar,
        gain=test.gain,
        caution=test.caution,
        mode=test.mode,
        price=test.price,
        days=test.days,
        least_score=test.least_score,
        platform=test.platform,
        countries=test.countries,
        contact=page.contact,
        url=page.url,
        collector=page.collector,
        confirmed_only=settings.mail.host is not None,
    )
    return Siddhi(
        home=home,
        terms=terms,
        store=Store(home / "siddhi.db", clock=clock),
        governor=Governor(home / "budget.db", caps, platforms, near=near, clock=clock),
        visitors=Visitors(home / "visitors.db", load_key(home / "key", environment.value("SIDDHI_KEY")), clock=clock),
        embedder=embedder,
        completer=completer,
        target=target,
        scanner=scanner,
        clock=clock,
    )


def build_mailer(settings: SiddhiSettings, environment: Environment) -> Mailer | None:
    """The mail server; None when none is set.

    Raises:
        ConfigError: It has no From address.
    """
    mail = settings.mail
    if mail.host is None:
        return None
    if not mail.sender:
        raise ConfigError("Mail needs a From address.", hint="Set siddhi.mail.sender.")
    return SmtpMailer(mail.host, mail.port, mail.sender, mail.user, environment.value(mail.password_env), mail.tls)


def query_jobs(settings: SiddhiSettings) -> list[tuple[str, str]]:
    """(source, query) for all that is to be mined."""
    return [(source, query) for source in SOURCES for query in getattr(settings.mine, source)]


def open_miners(sources: Sequence[str], environment: Environment, clock: Clock) -> tuple[dict[str, Miner], list[str]]:
    """A miner for each source, and what is missing for the others. Close them when done."""
    made: dict[str, Miner] = {}
    missing: list[str] = []

    def keys(source: str, *names: str) -> list[str] | None:
        values = [environment.value(name) for name in names]
        if all(values):
            return [value for value in values if value]
        missing.append(f"{source} is left out: set {' and '.join(names)} in the environment")
        return None

    for source in dict.fromkeys(sources):
        if source == "hn":
            from avyay.siddhi.miners.hn import HackerNews

            made[source] = HackerNews(async_client(), clock)
        elif source == "rss":
            from avyay.siddhi.miners.rss import Feeds

            made[source] = Feeds(async_client(), clock)
        elif source == "file":
            from avyay.siddhi.miners.file import Files

            made[source] = Files()
        elif source == "reddit" and (found := keys(source, "REDDIT_CLIENT_ID", "REDDIT_CLIENT_SECRET")):
            from avyay.siddhi.miners.reddit import Reddit

            made[source] = Reddit(async_client(), clock, found[0], found[1])
        elif source == "producthunt" and (found := keys(source, "PRODUCTHUNT_TOKEN")):
            from avyay.siddhi.miners.producthunt import ProductHunt

            made[source] = ProductHunt(async_client(), clock, found[0])
        elif source == "x" and (found := keys(source, "X_BEARER_TOKEN")):
            from avyay.siddhi.miners.x import XSearch

            made[source] = XSearch(async_client(), clock, found[0])
    return made, missing


def _platforms(settings: SiddhiSettings, environment: Environment, clock: Clock) -> dict[str, AdPlatform]:
    test = settings.test

    def key(name: str) -> str:
        value = environment.value(name)
        if value is None:
            raise AuthError(f"{name} is not set, and siddhi.test.platform is {test.platform}.", hint=f"export {name}=…")
        return value

    if test.platform == "google":
        from avyay.siddhi.ads.google import GoogleAds, GoogleKeys

        if test.google_customer is None:
            raise ConfigError("Google Ads needs an account.", hint="Set siddhi.test.google_customer.")
        google = GoogleKeys(
            test.google_customer.replace("-", ""),
            key("GOOGLE_ADS_DEVELOPER_TOKEN"),
            key("GOOGLE_ADS_CLIENT_ID"),
            key("GOOGLE_ADS_CLIENT_SECRET"),
            key("GOOGLE_ADS_REFRESH_TOKEN"),
            test.google_login_customer,
        )
        return {"google": GoogleAds(client(read=10.0), google, clock=clock)}
    if test.platform == "meta":
        from avyay.siddhi.ads.meta import MetaAds, MetaKeys

        if test.meta_account is None or test.meta_page is None:
            raise ConfigError("Meta needs an account and a page.", hint="Set siddhi.test.meta_account and meta_page.")
        meta = MetaKeys(test.meta_account.removeprefix("act_"), test.meta_page, key("META_ACCESS_TOKEN"))
        return {"meta": MetaAds(client(read=10.0), meta, clock=clock)}
    return {}
