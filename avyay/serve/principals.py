"""How a component recognises callers the gateway has authenticated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avyay.errors import UsageError
from avyay.principal import PrincipalVerifier, secret_source

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["verifier"]


def verifier(services: Services, component: str) -> PrincipalVerifier:
    """Believes what the gateway of this installation says to a component.

    Raises:
        UsageError: the configuration names a variable for the secret that is not set.
    """
    given = None
    if (variable := services.settings.serve.principal_secret_env) is not None:
        given = services.loaded.environment.value(variable)
        if given is None:
            raise UsageError(
                f"serve.principal_secret_env names {variable}, which is not set.", hint=f"export {variable}=..."
            )
    return PrincipalVerifier(secret_source(services.paths, given), component, services.clock)
