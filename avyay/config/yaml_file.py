"""Reading avyay.yaml so that every value keeps its file and line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avyay.errors import ConfigError

__all__ = ["KeyPath", "YamlFile", "read_yaml_file"]

KeyPath = tuple[str | int, ...]
MAXIMUM_BYTES = 1_000_000
MAXIMUM_NODES = 100_000  # after aliases are followed: a small file can name a huge tree
_NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


@dataclass(frozen=True)
class YamlFile:
    """The content of one file, and the line (1-based) on which each key or list item stands."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """The line of `path` or of its nearest parent."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def nested(self, section: str) -> YamlFile:
        """The same file as if all of it stood under `section:`."""
        lines: dict[KeyPath, int] = {(section, *path): line for path, line in self.lines.items()}
        return YamlFile(self.path, {section: self.data}, {(section,): 1} | lines)


def read_yaml_file(path: Path) -> YamlFile:
    """Parse `path`.

    Raises:
        ConfigError: unreadable, too large, broken YAML, a duplicate key, or no mapping at the top.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, not a file.", hint="Name the avyay.yaml inside it.")
        if path.stat().st_size > MAXIMUM_BYTES:
            raise ConfigError(f"{path} is larger than 1 MB.", hint="Is it really a configuration file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {path}.", hint="Check --config or AVYAY_CONFIG, or run: avyay init"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", hint="Check the file's permissions.") from error
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[KeyPath, int] = {}
            if node is not None:
                _index(node, (), lines, path)
            data = loader.construct_document(node) if node is not None else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            f"{where}: broken YAML: {error.problem or error.context}.", hint="Check the indentation and the quotes."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: broken YAML: {error}.", hint="Check the file's content.") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected `key: value` lines at the top.", hint="See: avyay config schema")
    return YamlFile(path, data, lines)


def _index(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if len(lines) > MAXIMUM_NODES:
        raise ConfigError(f"{path}: too many values.", hint="Do not nest YAML aliases.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _NAMES:
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: {shown!r} is no name of a setting.",
                    hint='Write names as text; one that looks like a number or a yes needs quotes: "1": ...',
                )
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.start_mark)
            inner = (*at, name)
            if inner in lines and lines[inner] != key.start_mark.line + 1:
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: the key {name!r} stands here a second time"
                    f" (first on line {lines[inner]}).",
                    hint="Remove one of the two.",
                )
            lines[inner] = key.start_mark.line + 1
            _index(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*at, index)] = item.start_mark.line + 1
            _index(item, (*at, index), lines, path)
