"""From files, environment and flags to one `Settings`, with the origin of every value.

Order: flag > `AVYAY_*` > project avyay.yaml > user avyay.yaml > default. `--config FILE` (or `AVYAY_CONFIG`) takes the
place of both files. Nested sections merge; lists do not.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import InitSettingsSource, PydanticBaseSettingsSource

from avyay.config.environment import Environment
from avyay.config.faults import Fault, FaultyConfigError, dotted, faults_of, section_of
from avyay.config.marga import MargaSettings
from avyay.config.schema import Settings
from avyay.config.trust import is_trusted
from avyay.config.yaml_file import KeyPath, YamlFile, read_yaml_file
from avyay.errors import ConfigError
from avyay.paths import Paths, open_paths

__all__ = ["Loaded", "Origin", "load_settings"]

FILE_NAME = "avyay.yaml"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# AVYAY_* variables that are no settings: they say where settings are, or belong to one command.
RESERVED = frozenset({"AVYAY_HOME", "AVYAY_CONFIG", "AVYAY_DEBUG", "AVYAY_LOG"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `kind` is flag, environment, project, user, file or default."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


@dataclass(frozen=True)
class Loaded:
    """Settings together with everything they were made of."""

    settings: Settings
    origins: Mapping[str, Origin]
    paths: Paths
    environment: Environment
    project_file: Path | None = None
    ignored: tuple[str, ...] = ()  # file:line of keys an untrusted project file may not set
    unknown_variables: tuple[str, ...] = ()

    def doubts(self) -> Iterator[Fault]:
        """What keeps nobody from using it, and is hardly meant: keys that are ignored, variables that are not set."""
        for place in self.ignored:
            where, _, key = place.rpartition(" ")
            yield Fault(f"{key} is ignored: the project is not trusted.", "avyay trust", "untrusted", where, key)
        known = ["AVYAY_" + "_".join(path).upper() for path in _scalar_paths(Settings)]
        for name in self.unknown_variables:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else "See: avyay config show"
            yield Fault(f"{name} is no setting.", hint, "unknown_variable", name)
        for path, value in _named_variables(self.settings.model_dump(mode="json")):
            origin = self.origin(dotted(path))
            if self.environment.value(value) is None and origin.kind != "default":
                key, what, hint = dotted(path), f"{value}, which is not set", f"export {value}=..."
                if _VARIABLE.fullmatch(value) is None:  # people put the secret itself here
                    what, hint = "no variable that is set", "Write the variable's name here, and the secret into it."
                yield Fault(f"{key} names {what}.", hint, "unset", origin.where, key)

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """Every leaf as (dotted key, value, origin)."""
        for key, value in _leaves(self.settings.model_dump(mode="json")):
            yield key, value, self.origin(key)

    def origin(self, key: str) -> Origin:
        """Where `key` (dotted) or the nearest enclosing section was set."""
        parts = key.split(".")
        while parts:
            if found := self.origins.get(".".join(parts)):
                return found
            parts.pop()
        return Origin("default")


@dataclass(frozen=True)
class _Source:
    kind: str
    data: dict[str, Any]
    file: YamlFile | None = None
    variables: Mapping[str, str] | None = None  # dotted key -> environment variable

    def where(self, path: KeyPath) -> str:
        if self.file is not None:
            return f"{self.file.path}:{self.file.line(path)}"
        if self.variables is not None:
            return self.variables.get(dotted(path), "")
        return ""


def load_settings(
    *,
    flags: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    directory: Path | None = None,
    environment: Environment | None = None,
) -> Loaded:
    """Build the settings for one process.

    Args:
        flags: Nested values that win over everything.
        config_file: What `--config` names.
        directory: Where the search for a project's avyay.yaml starts; the current directory by default.
        environment: By default the process's own.

    Raises:
        FaultyConfigError: values or keys cannot be used; names file and line, or the variable.
    """
    env = Environment() if environment is None else environment
    paths = open_paths(env.value("AVYAY_HOME"))
    sources: list[_Source] = []
    if flags:
        sources.append(_Source("flag", dict(flags)))
    variables, unknown = _from_environment(env)
    sources.append(variables)

    faults: list[Fault] = []

    def read(path: Path) -> tuple[dict[str, Any], YamlFile]:
        try:
            return _file(path)
        except ConfigError as error:
            faults.append(Fault.of(error))  # the other file may have faults of its own
            return {}, YamlFile(path, {})

    named = config_file or (Path(named_by_env) if (named_by_env := env.value("AVYAY_CONFIG")) else None)
    project_file: Path | None = None
    ignored: tuple[str, ...] = ()
    if named is not None:
        sources.append(_Source("file", *read(named.expanduser())))
    else:
        project_file = _find_project_file(directory or Path.cwd())
        if project_file is not None and project_file != paths.user_config_file:
            data, file = read(project_file)
            if not faults and not is_trusted(project_file, paths):
                data, ignored = _only_safe(data, file)
            sources.append(_Source("project", data, file))
        if paths.user_config_file.is_file():
            sources.append(_Source("user", *read(paths.user_config_file)))

    adapters: tuple[PydanticBaseSettingsSource, ...] = tuple(
        InitSettingsSource(Settings, init_kwargs=source.data) for source in sources
    )
    try:
        settings = Settings(_sources=adapters)  # type: ignore[call-arg]
    except ValidationError as error:
        raise FaultyConfigError([*faults, *faults_of(error, sources)]) from None
    if faults:
        raise FaultyConfigError(faults)
    origins: dict[str, Origin] = {}
    for source in reversed(sources):
        for path in _paths(source.data):
            origins[dotted(path)] = Origin(source.kind, source.where(path))
    return Loaded(settings, origins, paths, env, project_file, ignored, unknown)


def _file(path: Path) -> tuple[dict[str, Any], YamlFile]:
    file = read_yaml_file(path)
    known = set(Settings.model_fields)
    if file.data and not known & set(file.data) and set(file.data) & set(MargaSettings.model_fields):
        file = file.nested("marga")  # a router's own file: its keys stand at the top
    return file.data, file


def _find_project_file(directory: Path) -> Path | None:
    """avyay.yaml in `directory` or a parent, no higher than the root of its git repository."""
    folder = directory.absolute()
    for place in (folder, *folder.parents):
        if (candidate := place / FILE_NAME).is_file():
            return candidate
        if (place / ".git").exists():
            return None
    return None


def _from_environment(env: Environment) -> tuple[_Source, tuple[str, ...]]:
    """`AVYAY_<SECTION>_<KEY>` for every scalar of the tree, and `AVYAY_LOG=json`."""
    data: dict[str, Any] = {}
    variables: dict[str, str] = {}
    names = {"AVYAY_" + "_".join(path).upper(): path for path in _scalar_paths(Settings)}
    for name, path in names.items():
        if (value := env.value(name)) is not None:
            _put(data, path, value)
            variables[".".join(path)] = name
    if (value := env.value("AVYAY_LOG")) is not None:
        _put(data, ("log", "format"), value)
        variables["log.format"] = "AVYAY_LOG"
    unknown = tuple(
        sorted(name for name in env if name.startswith("AVYAY_") and name not in names and name not in RESERVED)
    )
    return _Source("environment", data, None, variables), unknown


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


def _scalar_paths(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            yield from _scalar_paths(section, (*at, name))
        elif typing.get_origin(info.annotation) not in (tuple, dict, list):
            yield (*at, name)


def _only_safe(data: dict[str, Any], file: YamlFile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The part of a stranger's file that can do no harm, and `file:line key` of the rest."""
    kept: dict[str, Any] = {}
    ignored: list[str] = []

    def walk(part: dict[str, Any], model: type[BaseModel] | None, at: tuple[str, ...]) -> None:
        for key, value in part.items():
            path = (*at, str(key))
            info = model.model_fields.get(str(key)) if model is not None else None
            section = section_of(info.annotation) if info is not None else None
            extra = info.json_schema_extra if info is not None else None
            if isinstance(value, dict) and section is not None:
                walk(value, section, path)
            elif info is None or (isinstance(extra, dict) and extra.get("x-project-safe")):
                _put(kept, path, value)  # unknown keys stay, to be refused with their line
            else:
                ignored.append(f"{file.path}:{file.line(path)} {dotted(path)}")

    walk(data, Settings, ())
    return kept, tuple(ignored)


def _paths(data: Any, at: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _paths(value, (*at, str(key)))
    elif at:
        yield at


def _named_variables(data: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Settings that name an environment variable."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        if isinstance(value, str) and str(key).endswith("_env"):
            yield (*at, key), value
        else:
            yield from _named_variables(value, (*at, key))


def _leaves(data: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, data
