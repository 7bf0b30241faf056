"""What the gateway offers, as an OpenAPI document: its own pages in full, the components' paths by their outlines.

A component's own /openapi.json is the whole contract of its paths; what stands here holds for every caller of the
gateway: where a path leads, what a key needs for it, and how refusals look.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from avyay import __version__

__all__ = ["openapi_document"]

_TEXT = {"type": "string", "minLength": 1, "maxLength": 4_000}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _TEXT},
    },
}
_CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {"model": _TEXT, "messages": _MESSAGES, "stream": {"type": "boolean"}},
}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/messages": {
        **_CHAT,
        "required": ["model", "messages", "max_tokens"],
        "properties": {**_CHAT["properties"], "max_tokens": {"type": "integer", "minimum": 1}},  # type: ignore[dict-item]
    },
    "/v1/messages/count_tokens": _CHAT,
    "/v1/responses": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {"model": _TEXT, "input": _TEXT, "stream": {"type": "boolean"}},
    },
    "/v1/embeddings": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {"model": _TEXT, "input": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}},
    },
    "/api/chat": _CHAT,
    "/api/generate": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {"model": _TEXT, "prompt": _TEXT},
    },
    "/v1/ask": {"type": "object", "required": ["question"], "properties": {"question": _TEXT}},
    "/v1/search": {
        "type": "object",
        "required": ["query"],
        "properties": {"query": _TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 100}},
    },
    "/v1/scan": {
        "type": "object",
        "properties": {
            "files": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["path", "content"],
                    "properties": {"path": _TEXT, "content": {"type": "string"}},
                },
            }
        },
    },
}
_READS = {
    "/v1/models": "The models that can be named.",
    "/api/tags": "The same, as Ollama lists them.",
    "/v1/sources": "What the runbook index holds.",
    "/v1/rules": "What the scanner looks for.",
}
_POSTS = {
    "/v1/chat/completions": "A conversation, as OpenAI has it.",
    "/v1/responses": "A response, as OpenAI has it.",
    "/v1/messages": "A conversation, as Anthropic has it.",
    "/v1/messages/count_tokens": "Count a conversation's tokens.",
    "/v1/embeddings": "Vectors of texts.",
    "/api/chat": "A conversation, as Ollama has it.",
    "/api/generate": "A completion, as Ollama has it.",
    "/v1/ask": "Ask the runbooks.",
    "/v1/search": "Find passages of the runbooks.",
    "/v1/scan": "Scan code.",
}


def _refusals() -> dict[str, Any]:
    anything: dict[str, Any] = {"application/json": {}, "application/problem+json": {}}
    return {
        "400": {"description": "What was sent cannot be understood.", "content": anything},
        "401": {"description": "No key, or not one that is believed.", "content": anything},
        "403": {"description": "The key has no scope for this.", "content": anything},
        "404": {"description": "There is no such thing.", "content": anything},
        "409": {"description": "Not in this state.", "content": anything},
        "413": {"description": "Too large.", "content": anything},
        "422": {"description": "Not of the expected shape.", "content": anything},
        "429": {"description": "A limit is reached; Retry-After says for how long.", "content": anything},
        "503": {"description": "The component is not available; Retry-After says when to try again."},
    }


@lru_cache(maxsize=1)
def openapi_document() -> dict[str, Any]:
    """The document."""
    paths: dict[str, Any] = {}
    for path, summary in _POSTS.items():
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": _BODIES[path]}}},
                "responses": {
                    "200": {"description": "Answered; `stream` gives events."},
                    "202": {"description": "Accepted as a job."},
                    **_refusals(),
                },
            }
        }
    for path, summary in _READS.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "Listed."}, **_refusals()}}}
    days = {"type": "integer", "minimum": 1, "maximum": 3_660, "default": 7}
    paths["/v1/usage"] = {
        "get": {
            "summary": "Requests the gateway counted, tokens and cost the router did, and whether they agree.",
            "parameters": [{"name": "days", "in": "query", "required": False, "schema": days}],
            "responses": {"200": {"description": "Usage of this key; of all keys for `admin`."}, **_refusals()},
        }
    }
    after = {"name": "after", "in": "query", "required": False, "schema": {"type": "string"}}
    kind = {"name": "kind", "in": "query", "required": False, "schema": {"type": "array", "items": {"type": "string"}}}
    limit = {"type": "integer", "minimum": 1, "maximum": 1_000}  # told as required: a stream has no end to document
    paths["/v1/events"] = {
        "get": {
            "summary": "What happened, as far as this key may see it: a page with `limit`, else a stream without end.",
            "parameters": [after, kind, {"name": "limit", "in": "query", "required": True, "schema": limit}],
            "responses": {"200": {"description": "Events, oldest first."}, **_refusals()},
        }
    }
    paths["/metrics"] = {
        "get": {"summary": "For Prometheus.", "responses": {"200": {"description": "Text."}, **_refusals()}}
    }
    for path, summary in (("/health", "The state of each component."), ("/ready", "Whether requests are taken.")):
        paths[path] = {"get": {"summary": summary, "security": [], "responses": {"200": {"description": "As it is."}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "avyay gateway", "version": __version__},
        "security": [{"bearer": []}, {"key": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
        "paths": paths,
    }
