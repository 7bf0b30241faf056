"""The part of the router's OpenAPI document that its wire endpoints make up: `MargaApp` answers them, not FastAPI.

Bodies are those of the dialects; what is listed is what the router reads. Everything else is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

__all__ = ["add_wire_endpoints"]

Json: TypeAlias = dict[str, Any]
Style: TypeAlias = Literal["openai", "anthropic", "ollama"]

_TEXT: Json = {"type": "string"}
_MODEL: Json = {
    "type": "string",
    "minLength": 1,
    "description": "`auto`, an alias, a model, or `provider/model`.",
    "examples": ["auto"],
}
_STREAM: Json = {"type": "boolean", "description": "Whether the answer comes in pieces."}
_TOOLS: Json = {"type": "array", "items": {"type": "object"}}
_CONTENT: Json = {"description": "Text, or blocks of the dialect.", "oneOf": [_TEXT, {"type": "array"}]}
_MESSAGES: Json = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"role": _TEXT, "content": {"description": "Text, or blocks of the dialect."}},
        "required": ["role"],
    },
}
_LIMIT: Json = {"type": "integer", "minimum": 1}
_HINTS: Mapping[str, tuple[str, Json]] = {
    "X-Cost-Tier": ("The tier to prefer.", {"type": "string", "enum": ["local", "medium", "premium"]}),
    "X-Quality-Min": (
        "Quality relative to premium on this request class.",
        {"type": "number", "minimum": 0, "maximum": 1},
    ),
    "X-Latency-Budget": (
        "Milliseconds to the first byte of a stream, else to the end.",
        {"type": "integer", "minimum": 1},
    ),
    "X-Request-Class": ("A name for this kind of request.", {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}),
    "X-Data-Residency": ("What the provider's region must start with.", _TEXT),
    "X-Avyay-Service": ("Who pays: for statistics and budgets.", _TEXT),
    "X-Avyay-Customer": ("Who pays: for statistics and budgets.", _TEXT),
    "X-Avyay-Session": ("The conversation: it keeps its model in a tool loop.", _TEXT),
}
_TOLD: Mapping[str, str] = {
    "x-avyay-decision-id": "The decision; `/marga/decisions/{id}` has its reasons, attempts and final cost.",
    "x-avyay-provider": "The provider that answered.",
    "x-avyay-model": "The model that answered.",
    "x-avyay-tier": "Its tier.",
    "x-avyay-cost": "US dollars; of a whole answer.",
    "x-avyay-cost-estimated": "US dollars expected; of a stream, whose cost is known at its end.",
    "x-avyay-notes": "What could not be carried over to the provider's dialect as it was.",
}
_ERRORS: Mapping[Style, Json] = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "code"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "code": {"type": ["string", "null"]},
                    "param": {"type": ["string", "null"]},
                },
            }
        },
    },
    "anthropic": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT, "code": _TEXT},
            },
        },
    },
    "ollama": {"type": "object", "required": ["error"], "properties": {"error": _TEXT, "code": _TEXT}},
}
_REFUSALS: Mapping[str, str] = {
    "400": "The request cannot be read, or nobody can do what it asks (`no_capable_provider`, `untranslatable`, …).",
    "401": "The router's own key is missing or wrong.",
    "403": "Refused by a rule: `budget_exceeded`, `price_unknown`, `pii_refused`.",
    "404": "Nobody has this model (`model_not_found`).",
    "413": "Larger than `marga.max_body`.",
    "429": "Every provider that could answer is at its limit; `retry-after` says until when.",
    "502": "A provider refused the router's key (`provider_key_refused`), or broke off.",
    "503": "No provider (`no_provider`), all down (`all_providers_down`), or the ledger of a budget cannot be written.",
}


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": True}


_CHAT = _object(
    ("model", "messages"),
    model=_MODEL,
    messages=_MESSAGES,
    stream=_STREAM,
    max_completion_tokens=_LIMIT,
    max_tokens=_LIMIT,
    temperature={"type": "number", "minimum": 0, "maximum": 2},
    tools=_TOOLS,
)
_MESSAGE_REQUEST = _object(
    ("model", "messages", "max_tokens"),
    model=_MODEL,
    messages=_MESSAGES,
    max_tokens=_LIMIT,
    system=_CONTENT,
    stream=_STREAM,
    tools=_TOOLS,
)
_RESPONSE_REQUEST = _object(
    ("model", "input"),
    model=_MODEL,
    input=_CONTENT,
    instructions=_TEXT,
    stream=_STREAM,
    store={"type": "boolean", "description": "Kept by the provider; what continues it goes there."},
    previous_response_id={"type": "string", "description": "Refused where the provider keeps no responses."},
    tools=_TOOLS,
)
_EMBEDDING = _object(
    ("model", "input"), model=_MODEL, input={"oneOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
)
_OLLAMA_CHAT = _object(("model", "messages"), model=_MODEL, messages=_MESSAGES, stream=_STREAM, tools=_TOOLS)
_OLLAMA_GENERATE = _object(("model", "prompt"), model=_MODEL, prompt=_TEXT, system=_TEXT, stream=_STREAM)

# path: (style, id of the operation, summary, body, content types of the answer)
_POSTS: Mapping[str, tuple[Style, str, str, Json, tuple[str, ...]]] = {
    "/v1/chat/completions": (
        *("openai", "chat_completions", "A completion, as OpenAI's chat completions."),
        *(_CHAT, ("application/json", "text/event-stream")),
    ),
    "/v1/responses": (
        *("openai", "responses", "A completion, as OpenAI's responses."),
        *(_RESPONSE_REQUEST, ("application/json", "text/event-stream")),
    ),
    "/v1/embeddings": ("openai", "embeddings", "Vectors, as OpenAI's embeddings.", _EMBEDDING, ("application/json",)),
    "/v1/messages": (
        *("anthropic", "messages", "A completion, as Anthropic's messages."),
        *(_MESSAGE_REQUEST, ("application/json", "text/event-stream")),
    ),
    "/v1/messages/count_tokens": (
        *("anthropic", "count_tokens", "Tokens of a request, as Anthropic counts them; `x-avyay-estimated` where not."),
        *(_object(("model", "messages"), model=_MODEL, messages=_MESSAGES), ("application/json",)),
    ),
    "/api/chat": (
        *("ollama", "ollama_chat", "A completion, as Ollama's chat."),
        *(_OLLAMA_CHAT, ("application/json", "application/x-ndjson")),
    ),
    "/api/generate": (
        *("ollama", "ollama_generate", "A completion, as Ollama's generate."),
        *(_OLLAMA_GENERATE, ("application/json", "application/x-ndjson")),
    ),
}
_GETS: Mapping[str, tuple[str, str]] = {
    "/v1/models": ("models", "Models, as OpenAI or (with the header `anthropic-version`) Anthropic lists them."),
    "/v1/models/{model}": ("model", "One model, as OpenAI shows it."),
    "/api/tags": ("tags", "Models, as Ollama lists them."),
}


def add_wire_endpoints(document: Json) -> Json:
    """The document with the endpoints of every dialect."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for style, schema in _ERRORS.items():
        components[_error_name(style)] = schema
    told = {name: {"description": text, "schema": _TEXT} for name, text in _TOLD.items()}
    hints = [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in _HINTS.items()
    ]
    for path, (style, identity, summary, body, kinds) in _POSTS.items():
        answers: Json = {
            "200": {
                "description": "The answer in the dialect of the path.",
                "headers": told,
                "content": {kind: {"schema": {} if kind != "application/json" else _ANY} for kind in kinds},
            }
        }
        for status, text in _REFUSALS.items():
            schema = {"$ref": f"#/components/schemas/{_error_name(style)}"}
            answers[status] = {"description": text, "content": {"application/json": {"schema": schema}}}
        document["paths"][path] = {
            "post": {
                "summary": summary,
                "operationId": identity,
                "parameters": hints,
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": answers,
            }
        }
    for path, (identity, summary) in _GETS.items():
        operation: Json = {
            "summary": summary,
            "operationId": identity,
            "responses": {"200": {"description": "The list.", "content": {"application/json": {"schema": _ANY}}}},
        }
        if "{model}" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]
            operation["responses"]["404"] = {"description": "Nobody has it."}
        document["paths"][path] = {"get": operation}
    return document


_ANY: Json = {"type": "object"}


def _error_name(style: Style) -> str:
    return f"{style.capitalize()}Error"
