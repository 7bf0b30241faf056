"""Reading untrusted JSON: every wrong type becomes a `MalformedError` that names the field."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.model import JsonObject
from avyay.marga.wire.notes import MalformedError

__all__ = [
    "as_list",
    "as_object",
    "as_str",
    "load_arguments",
    "load_body",
    "opt_bool",
    "opt_float",
    "opt_int",
    "opt_list",
    "opt_object",
    "opt_str",
    "required_str",
]


def load_body(raw: bytes) -> JsonObject:
    """The request body as an object.

    Raises:
        MalformedError: It is no JSON, or no object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedError(
            f"The request body is not valid JSON: {error.msg} at byte {error.pos}.",
            code="invalid_json",
            hint="Send one JSON object, encoded in UTF-8.",
        ) from error
    if not isinstance(body, dict):
        raise MalformedError(
            f"The request body must be a JSON object, not {_kind(body)}.", code="invalid_json", hint="Send one object."
        )
    return body


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "an unknown value")


def _wrong(path: str, expected: str, value: Any) -> MalformedError:
    return MalformedError(f"`{path}` must be {expected}, not {_kind(value)}.", field=path, code="invalid_type")


def as_object(value: Any, path: str) -> JsonObject:
    if not isinstance(value, dict):
        raise _wrong(path, "an object", value)
    return value


def as_list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(path, "an array", value)
    return value


def as_str(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "a string", value)
    return value


def required_str(obj: JsonObject, key: str, path: str) -> str:
    value = obj.get(key)
    where = f"{path}.{key}" if path else key
    if value is None:
        raise MalformedError(f"`{where}` is required.", field=where, code="missing_field")
    return as_str(value, where)


def opt_str(obj: JsonObject, key: str) -> str | None:
    value = obj.get(key)
    return None if value is None else as_str(value, key)


def opt_int(obj: JsonObject, key: str) -> int | None:
    value = obj.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(key, "a whole number", value)
    return value


def opt_float(obj: JsonObject, key: str) -> float | None:
    value = obj.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(key, "a number", value)
    return value


def opt_bool(obj: JsonObject, key: str) -> bool | None:
    value = obj.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(key, "a boolean", value)
    return value


def opt_list(obj: JsonObject, key: str) -> list[Any]:
    value = obj.get(key)
    return [] if value is None else as_list(value, key)


def opt_object(obj: JsonObject, key: str) -> JsonObject:
    value = obj.get(key)
    return {} if value is None else as_object(value, key)


def load_arguments(text: str) -> JsonObject | None:
    """Tool arguments as an object; None when the model wrote something else."""
    if not text.strip():
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
