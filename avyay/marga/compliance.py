"""Which provider may see a request: rules on personal data per provider and key, and where data may be processed. Pure.

Fails closed: a provider of unknown region is nowhere, a request that cannot be read holds every kind of data.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from avyay.config.marga import PiiRuleSettings, PiiSettings
from avyay.marga.pii import KINDS, PiiKind
from avyay.marga.types import Provider

__all__ = [
    "Action",
    "PiiPolicy",
    "PiiRule",
    "Verdict",
    "answer_kinds",
    "judge_candidate",
    "on_own_network",
    "pii_policy",
    "resident",
]

Action: TypeAlias = Literal["allow", "mask", "local_only", "block"]
"""What a rule asks for, from loose to strict. `local_only`: no provider beyond the user's own machines sees it."""

_STRICTNESS: Mapping[Action, int] = {"allow": 0, "mask": 1, "local_only": 2, "block": 3}

# Names of regions by the zone they lie in; a zone asked for takes in all that begin so.
_ZONES: Mapping[str, tuple[str, ...]] = {
    "eu": (
        "eu-",
        "eu_",
        "europe-",
        "westeurope",
        "northeurope",
        "france",
        "germany",
        "sweden",
        "italy",
        "poland",
        "spain",
        "finland",
        "austria",
        "belgium",
        "denmark",
    ),
    "us": ("us-", "us_", "eastus", "westus", "centralus", "northcentralus", "southcentralus", "westcentralus"),
    "in": ("in-", "ap-south-1", "ap-south-2", "asia-south1", "asia-south2", "centralindia", "southindia", "westindia"),
    "uk": ("uk-", "eu-west-2", "europe-west2", "uksouth", "ukwest"),
    "ch": ("ch-", "eu-central-2", "europe-west6", "switzerland"),
}
# Inside "eu-" and "europe-" by name, outside the Union by law.
_NOT_EU = ("eu-west-2", "europe-west2", "eu-central-2", "europe-west6")


def resident(wanted: str, region: str | None) -> bool:
    """Whether a provider's region lies where data may be: the same name, a longer one (`eu` and `eu-west`), or a zone.

    An unknown region never does.
    """
    if not region:
        return False
    asked, place = wanted.strip().lower(), region.strip().lower()
    if place == asked or (place.startswith((f"{asked}-", f"{asked}_")) and not (asked == "eu" and place in _NOT_EU)):
        return True
    if asked == "eu" and place in _NOT_EU:
        return False
    return place.startswith(_ZONES.get(asked, ())) if asked in _ZONES else False


@dataclass(frozen=True, slots=True)
class PiiRule:
    """What happens to personal data: `action` for all kinds, `kinds` where one differs."""

    action: Action = "allow"
    kinds: Mapping[PiiKind, Action] = field(default_factory=dict)

    def of(self, kind: PiiKind) -> Action:
        return self.kinds.get(kind, self.action)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one provider may be sent a request, and which kinds have to be masked for it."""

    allowed: bool
    masked: frozenset[PiiKind] = frozenset()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PiiPolicy:
    """Rules by provider and by caller's key. A provider without one has the default; a key's can only be stricter."""

    default: PiiRule = PiiRule()
    providers: Mapping[str, PiiRule] = field(default_factory=dict)
    keys: Mapping[str, PiiRule] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether nothing is ever asked of anybody, so that no request needs to be read."""
        rules = (self.default, *self.providers.values(), *self.keys.values())
        return all(rule.action == "allow" and set(rule.kinds.values()) <= {"allow"} for rule in rules)

    def judge(self, found: frozenset[PiiKind] | None, provider: str, key: str | None, *, local: bool) -> Verdict:
        """What holds for a request at one provider.

        Args:
            found: The kinds in the request; None when it could not be read, which counts as all of them.
            local: The provider runs on the user's own machines. The default rule does not hold there: nothing leaves.
        """
        rule = self.providers.get(provider, PiiRule() if local else self.default)
        of_key = self.keys.get(key) if key is not None else None
        masked: set[PiiKind] = set()
        for kind in KINDS if found is None else sorted(found):
            action = rule.of(kind)
            if of_key is not None and _STRICTNESS[of_key.of(kind)] > _STRICTNESS[action]:
                action = of_key.of(kind)
                if action == "mask" and local and provider not in self.providers:
                    action = "allow"
            unread = " (the request could not be read)" if found is None else ""
            if action == "block":
                return Verdict(False, reason=f"{kind} may not be sent{unread}")
            if action == "local_only" and not local:
                return Verdict(False, reason=f"{kind} may not leave this network{unread}")
            if action == "mask":
                if found is None:
                    return Verdict(False, reason=f"{kind} cannot be masked{unread}")
                masked.add(kind)
        return Verdict(True, frozenset(masked))


def pii_policy(settings: PiiSettings) -> PiiPolicy | None:
    """The policy a configuration describes; None when it asks for nothing."""

    def rule(of: PiiRuleSettings) -> PiiRule:
        return PiiRule(of.action, dict(of.kinds))

    policy = PiiPolicy(
        rule(settings.default),
        {name: rule(of) for name, of in settings.providers.items()},
        {name: rule(of) for name, of in settings.keys.items()},
    )
    return None if policy.idle else policy


def answer_kinds(settings: PiiSettings) -> tuple[frozenset[PiiKind], frozenset[PiiKind]] | None:
    """The kinds that are masked in answers, and those that forbid one; None when everything may be written."""
    rule = settings.answers
    actions = {kind: rule.kinds.get(kind, rule.action) for kind in KINDS}
    mask = frozenset(kind for kind, action in actions.items() if action == "mask")
    block = frozenset(kind for kind, action in actions.items() if action == "block")
    return (mask, block) if mask or block else None


def judge_candidate(
    policy: PiiPolicy, found: frozenset[PiiKind] | None, provider: Provider, key: str | None
) -> Verdict:
    """What a policy says of a request at a provider."""
    return policy.judge(found, provider.name, key, local=on_own_network(provider.endpoint))


_TAILNET = ipaddress.ip_network("100.64.0.0/10")


@lru_cache(maxsize=1024)
def on_own_network(endpoint: str) -> bool:
    """Whether an endpoint is a machine of the user's own: loopback, a private address, the tailnet, a local name."""
    host = urlsplit(endpoint).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal", ".lan", ".ts.net"))
    return address.is_loopback or address.is_private or address.is_link_local or address in _TAILNET
