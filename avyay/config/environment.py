"""The process environment as a value: the only reader of `os.environ`, so that everything else can be given another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

__all__ = ["Environment", "refuse_telemetry", "withhold"]

# Read by a library once, when it is loaded. ONNX Runtime since 1.29 writes a device id below the home folder and sends
# events about every session (file names and graph names of models included) to its maker unless this is set.
TELEMETRY_SWITCHES = ("ORT_DISABLE_TELEMETRY",)


class Environment(Mapping[str, str]):
    """An immutable copy of environment variables. Its repr shows no values: some of them are keys."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(os.environ if values is None else values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Environment({len(self._values)} variables)"

    def value(self, name: str) -> str | None:
        """The value of `name` without surrounding white space; None when unset or blank."""
        return self._values.get(name, "").strip() or None


def refuse_telemetry() -> None:
    """Tell libraries about to be imported to send nothing home; what the user has set stays."""
    for name in TELEMETRY_SWITCHES:
        os.environ.setdefault(name, "1")


def withhold(*names: str) -> None:
    """Keep variables that are meant for this process from the programs it starts."""
    for name in names:
        os.environ.pop(name, None)
