"""The composition root: settings become services, joined through the ports.

Used by the CLI, the daemons, MCP and Python programs alike:

    from avyay.wiring import open_services

    with open_services() as services:
        print(services.scanner.scan([Path(".")]).findings)

How one component's services are made stands in the module of its name, which like the component is loaded when one of
them is first asked for.
"""

from __future__ import annotations

from avyay.wiring.services import MCP_COMPONENTS, Services, open_services

__all__ = ["MCP_COMPONENTS", "Services", "open_services"]
