"""The documents behind `--json`: command -> the type that describes what it prints, as `module:name`.

`docs/reference/json/` is written from this table; a command added here gets its schema there.
"""

from __future__ import annotations

import importlib
from typing import Any

from avyay.cli.output import SCHEMA_VERSION

__all__ = ["DOCUMENTS", "document_type", "schema"]

DOCUMENTS: dict[str, str] = {
    "scan": "avyay.raksha.report.documents:ScanDocument",
    "raksha rules": "avyay.raksha.report.documents:RuleList",
    "raksha explain": "avyay.raksha.report.documents:ExplainedRule",
    "raksha db update": "avyay.raksha.report.documents:AdvisoriesFetched",
    "raksha db show": "avyay.raksha.report.documents:AdvisoriesAge",
}


def document_type(command: str) -> Any:
    """The type that describes a command's document, `schema_version` aside."""
    module, _, name = DOCUMENTS[command].partition(":")
    return getattr(importlib.import_module(module), name)


def schema(command: str) -> dict[str, Any]:
    """The JSON schema of a command's document. More keys may come: nothing forbids them."""
    from pydantic import TypeAdapter

    inner = TypeAdapter(document_type(command)).json_schema()
    version = {"const": SCHEMA_VERSION, "description": "Changes only when something is taken away or changes meaning."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **inner,
        "title": f"avyay {command} --json",
        "properties": {"schema_version": version, **inner["properties"]},
        "required": ["schema_version", *inner["required"]],
    }
