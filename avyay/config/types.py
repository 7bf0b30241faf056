"""Value types of the configuration: durations, money, names."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from avyay.errors import AvyayError

__all__ = ["Fraction", "Name", "Port", "Seconds", "Section", "Severity", "Tier", "Usd", "Workers", "project_safe"]

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> Any:
    """`30s`, `500ms`, `5m`, `2h`, `1d`, or a number of seconds."""
    if isinstance(value, str):
        match = _DURATION.match(value)
        if match is None:
            raise ValueError("not a duration: write 30s, 500ms, 5m, 2h or 1d")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def parse_amount(value: Any) -> Any:
    """`30`, `0.5`, `"$1,000"`: checked here, kept as written."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        from avyay.money import parse_usd

        try:
            if parse_usd(value) >= 0:
                return repr(value) if isinstance(value, int | float) else value
        except AvyayError as error:
            raise ValueError(f"{error}; {error.hint}") from error
    raise ValueError("not an amount of US dollars: write 30 or 0.50")


Usd = Annotated[str, BeforeValidator(parse_amount)]
Port = Annotated[int, Field(ge=0, le=65535)]
Workers = Annotated[int, Field(ge=1, le=64)]
Tier = Literal["local", "medium", "premium"]
Severity = Literal["critical", "high", "medium", "low", "info"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def project_safe(default: Any, description: str, **options: Any) -> Any:
    """A field that an untrusted project's avyay.yaml may set: it can loosen no policy and start nothing."""
    return Field(default, description=description, json_schema_extra={"x-project-safe": True}, **options)
