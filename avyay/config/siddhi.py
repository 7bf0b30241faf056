"""The settings of the product-market-fit engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from avyay.config.types import Fraction, Port, Seconds, Section, Usd, Workers

__all__ = [
    "SiddhiBudgetSettings",
    "SiddhiMailSettings",
    "SiddhiMineSettings",
    "SiddhiPageSettings",
    "SiddhiSettings",
    "SiddhiTestSettings",
]


class SiddhiBudgetSettings(Section):
    """Hard limits on what may be billed, in US dollars; what an ad platform may overspend is inside them."""

    hypothesis: Usd = Field("30", description="For one hypothesis, in all its rounds.")
    day: Usd = Field("60", description="In a day of the platform's time zone.")
    month: Usd = Field("300", description="In a month of the platform's time zone.")
    total: Usd = Field("300", description="For everything, ever.")
    sources: dict[str, Usd] = Field({}, description="For one ad platform or paid API, by name: google, meta, x, model.")


class SiddhiMineSettings(Section):
    """What to listen for; each list holds queries in the source's own form."""

    hn: tuple[str, ...] = Field((), description="Hacker News: words to search for.")
    reddit: tuple[str, ...] = Field((), description="Subreddits, or `subreddit: words`.")
    producthunt: tuple[str, ...] = Field((), description="Slugs of topics.")
    x: tuple[str, ...] = Field((), description="Queries in X's language; every post read costs money.")
    rss: tuple[str, ...] = Field((), description="Addresses of RSS or Atom feeds.")
    file: tuple[str, ...] = Field((), description="Files of JSON lines.")
    pages: int = Field(5, ge=1, le=100, description="Pages read of each query in one run.")


class SiddhiTestSettings(Section):
    """When a hypothesis is worth building, and how it is tested."""

    bar: Fraction = Field(0.05, description="Sign-up rate from which it is worth building.")
    gain: float = Field(300.0, gt=0, description="US dollars won by a product at twice the bar.")
    mode: Literal["value", "strict"] = Field("value", description="value: most money; strict: few false alarms.")
    caution: float = Field(
        0.5, ge=0, le=10, description="Share of the gain that validating a rate 20 % below the bar costs besides."
    )
    price: float = Field(0.6, gt=0, description="US dollars a click is expected to cost.")
    days: int = Field(3, ge=1, le=30, description="Longest test; the platform itself stops then.")
    least_score: Fraction = Field(0.4, description="A hypothesis that scores less is not tested.")
    platform: Literal["google", "meta"] | None = Field(None, description="Where clicks are bought; none: bring them.")
    countries: tuple[str, ...] = Field(("US",), description="ISO 3166 codes of where ads are shown.")
    google_customer: str | None = Field(None, description="Ten digits of the Google Ads account.")
    google_login_customer: str | None = Field(None, description="The manager account, when there is one.")
    meta_account: str | None = Field(None, description="Number of the Meta ad account, without act_.")
    meta_page: str | None = Field(None, description="The Facebook page that ads appear under.")


class SiddhiPageSettings(Section):
    """Landing pages and the collector behind them."""

    contact: str = Field("", description="Who asks, and how to reach them: shown on every page.")
    url: str = Field("", description="Base URL under which published pages appear; {id} is the hypothesis.")
    publish: str = Field("", description="directory:PATH, git:PATH#BRANCH, cloudflare, netlify, vercel or command.")
    project: str = Field("", description="The host's name or id of the project.")
    command: tuple[str, ...] = Field((), description="For `publish: command`; {folder} is the page.")
    collector: str = Field("http://127.0.0.1:8085", description="Where visitors' browsers reach the collector.")
    own: tuple[str, ...] = Field((), description="Networks whose visits do not count.")
    proxies: tuple[str, ...] = Field((), description="Networks whose X-Forwarded-For is believed.")


class SiddhiMailSettings(Section):
    """The mail server that sends requests to confirm an address."""

    host: str | None = Field(None, description="Name of the SMTP server; none: no mail is sent.")
    port: Port = Field(587, description="Its port.")
    sender: str = Field("", description="The From address.")
    user: str | None = Field(None, description="Login name.")
    password_env: str = Field("SIDDHI_MAIL_PASSWORD", description="Environment variable that holds the password.")
    tls: bool = Field(True, description="STARTTLS; off only on this machine.")


class SiddhiSettings(Section):
    """SIDDHI, the finder of products."""

    budget: SiddhiBudgetSettings = SiddhiBudgetSettings()
    mine: SiddhiMineSettings = SiddhiMineSettings()
    test: SiddhiTestSettings = SiddhiTestSettings()
    page: SiddhiPageSettings = SiddhiPageSettings()
    mail: SiddhiMailSettings = SiddhiMailSettings()
    api_key_env: str | None = Field(None, description="Environment variable with the key the daemon's callers send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    run_interval: Seconds = Field(0.0, description="The daemon makes a dry run so often; 0: never.")
