"""Lists of models as each dialect's clients expect them: `/v1/models` (both kinds) and `/api/tags`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from avyay.marga.wire.model import Dialect, JsonObject

__all__ = ["ListedModel", "render_model", "render_models"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model name callers may use. `created` is in Unix seconds."""

    id: str
    created: int = 0
    owner: str = "avyay"
    display_name: str | None = None


def _stamp(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(dialect: Dialect, model: ListedModel) -> JsonObject:
    if dialect == "anthropic_messages":
        return {
            "type": "model",
            "id": model.id,
            "display_name": model.display_name or model.id,
            "created_at": _stamp(model.created),
        }
    if dialect in ("ollama_chat", "ollama_generate"):
        details = {"parent_model": "", "format": "", "family": "", "families": [], "parameter_size": ""}
        return {
            "name": model.id,
            "model": model.id,
            "modified_at": _stamp(model.created),
            "size": 0,
            "digest": "",
            "details": {**details, "quantization_level": ""},
        }
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owner}


def render_model(dialect: Dialect, model: ListedModel) -> bytes:
    """One model."""
    return orjson.dumps(_entry(dialect, model))


def render_models(dialect: Dialect, models: Iterable[ListedModel]) -> bytes:
    """All of them, on one page."""
    entries = [_entry(dialect, m) for m in models]
    if dialect in ("ollama_chat", "ollama_generate"):
        return orjson.dumps({"models": entries})
    if dialect == "anthropic_messages":
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        return orjson.dumps({"data": entries, "has_more": False, "first_id": None, "last_id": None, **ends})
    return orjson.dumps({"object": "list", "data": entries})
