"""One MCP server with the components' tools."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from mcp.server.fastmcp import FastMCP

from avyay import __version__
from avyay.errors import UsageError

if TYPE_CHECKING:
    from avyay.wiring.services import Services

__all__ = ["make_mcp_server"]


def make_mcp_server(
    services: Services, components: dict[str, str], names: Sequence[str] | None, at: tuple[str, int]
) -> FastMCP:
    """A server with the tools of the named components, by default of all.

    Args:
        components: The module that registers a component's tools, by its name.
        at: Host and port, for HTTP.

    Raises:
        UsageError: a component has no tools.
    """
    chosen = list(components) if names is None else list(names)
    for name in chosen:
        if name not in components:
            raise UsageError(f"{name!r} has no tools.", hint=f"Components are: {', '.join(components)}.")
    modules = [import_module(components[name]) for name in chosen]
    with warnings.catch_warnings():
        # The SDK's own settings class holds a forward reference that pydantic-settings remarks on.
        warnings.filterwarnings("ignore", message="Field .* has an unresolved|.*model_rebuild")
        server = FastMCP(
            "avyay",
            instructions="\n".join(module.INSTRUCTIONS for module in modules),
            log_level="WARNING",
            host=at[0],
            port=at[1],
            stateless_http=True,
        )
    server._mcp_server.version = __version__  # else it says the SDK's; there is no public way
    for name, module in zip(chosen, modules, strict=True):
        module.register(server, services.engine_desk if name == "engine" else getattr(services, name))
    return server
