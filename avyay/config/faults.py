"""What is wrong with a configuration: every fault with its place, its key and what to do about it."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from avyay.config.schema import Settings
from avyay.config.yaml_file import KeyPath
from avyay.errors import ConfigError

__all__ = ["Fault", "FaultyConfigError", "did_you_mean", "dotted", "faults_of", "section_of"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: File and line, or the environment variable; empty where the message says it, or nothing does.
        key: The dotted key; empty where it is the file that cannot be read.
    """

    message: str
    hint: str | None
    code: str
    where: str = ""
    key: str = ""

    @classmethod
    def of(cls, error: ConfigError) -> Fault:
        """What another check has found."""
        return cls(error.message, error.hint, error.code)

    @property
    def sentence(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class FaultyConfigError(ConfigError):
    """A configuration with faults; its message is the one most worth saying.

    Attributes:
        faults: All of them, in the order of the files.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        # A misspelt key often shows as a missing one too: the spelling is the more useful thing to say.
        first = next((fault for fault in faults if fault.code == "unknown_key"), faults[0])
        super().__init__(first.sentence, hint=first.hint, code=first.code)
        self.faults = tuple(faults)


class Place(Protocol):
    """A file, or the environment."""

    @property
    def data(self) -> dict[str, Any]: ...

    def where(self, path: KeyPath) -> str: ...


def faults_of(error: ValidationError, sources: Sequence[Place]) -> list[Fault]:
    """What a validation error says, in words of the file, each fault once."""
    found: dict[KeyPath, Mapping[str, Any]] = {}
    for fault in error.errors(include_url=False, include_input=False):
        location = tuple(part for part in fault["loc"] if not _is_union_tag(part))
        found.setdefault(location, typing.cast("Mapping[str, Any]", fault))
    # An item that may be a name or a section is told off as both: what is inside it says more.
    inner = {location[:depth] for location in found for depth in range(len(location))}
    made = [_fault(location, fault, sources) for location, fault in found.items() if location not in inner]
    misspelt = {(_parent(fault.key), fault.hint) for fault in made if fault.code == "unknown_key"}

    def is_there(fault: Fault) -> bool:
        """It is missing only because it is misspelt."""
        missing = fault.message == f"{fault.key}: {_MESSAGES['missing']}."
        return missing and (_parent(fault.key), did_you_mean(fault.key)) in misspelt

    return sorted((fault for fault in made if not is_there(fault)), key=_place)


def _fault(location: KeyPath, fault: Mapping[str, Any], sources: Sequence[Place]) -> Fault:
    where = next((found for source in sources if _has(source.data, location) and (found := source.where(location))), "")
    key = dotted(location)
    if fault["type"] == "extra_forbidden":
        names = _known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), names, n=1)
        hint = did_you_mean(close[0]) if close else f"Known here: {', '.join(names)}."
        return Fault(f"unknown key {key!r}.", hint, "unknown_key", where, key)
    message = _MESSAGES.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    return Fault(f"{key}: {message}.", "See the key's meaning: avyay config schema", "config", where, key)


def _place(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return file, int(line) if line.isdecimal() else 0


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def did_you_mean(key: str) -> str:
    """The question, about the last part of a key."""
    return f"Did you mean {key.rpartition('.')[2]!r}?"


# Where pydantic's own words speak of Python and not of YAML.
_MESSAGES = dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "expected a list: [one, two]")
_MESSAGES |= dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "expected `key: value` lines")
_MESSAGES["missing"] = "is required"


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or part.endswith("Settings"))


def _has(data: Any, path: KeyPath) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return isinstance(data, dict | list) and part != path[0] and path[-1] == part
    return True


def _known_keys(path: KeyPath) -> list[str]:
    model: type[BaseModel] | None = Settings
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        info = model.model_fields.get(part)
        model = _inner_section(info.annotation) if info is not None else None
    return sorted(model.model_fields) if model is not None else []


def _inner_section(annotation: Any) -> type[BaseModel] | None:
    """The section inside `X`, `X | None`, `tuple[X, ...]`, `tuple[str | X, ...]`."""
    if (section := section_of(annotation)) is not None:
        return section
    if typing.get_origin(annotation) in (tuple, list, dict, types.UnionType, typing.Union):
        for inner in typing.get_args(annotation):
            if (section := _inner_section(inner)) is not None:
                return section
    return None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is; None when it is a value."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
