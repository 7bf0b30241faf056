"""One file under scan: bytes, text, lines and, for Python, the syntax tree; each read or made once, when first used."""

from __future__ import annotations

import ast
import bisect
import hashlib
import warnings
from functools import cached_property
from pathlib import Path

from avyay.raksha.encoding import encoding_of
from avyay.raksha.types import Edit, Finding, Rule

__all__ = ["SourceFile", "parse_python"]


class SourceFile:
    """A text file of the scan.

    Args:
        path: Where it lies; None for text that came over the wire.
        name: Relative to the scan root, with slashes.
        language: `python`, `javascript`, `typescript`, `go`, `dockerfile`, `yaml`, `terraform`, ... or `text`.
    """

    def __init__(self, name: str, data: bytes, language: str, *, path: Path | None = None) -> None:
        self.name = name
        self.path = path
        self.data = data
        self.language = language

    def __repr__(self) -> str:
        return f"SourceFile({self.name!r}, {self.language})"

    @cached_property
    def digest(self) -> bytes:
        """A hash of the content."""
        return hashlib.blake2b(self.data, digest_size=20).digest()

    @cached_property
    def text(self) -> str:
        """The content; a byte-order mark is dropped, bytes that the encoding does not know become U+FFFD."""
        return self.data.decode(self.encoding, "replace")

    @cached_property
    def encoding(self) -> str:
        """The codec the file says it is written in (byte-order mark, Python's coding line), else `utf-8`."""
        return encoding_of(self.data, self.language)

    @cached_property
    def _lower(self) -> str:
        return self.text.lower()

    def mentions(self, *words: str) -> bool:
        """Whether one of the texts, given in small letters, stands anywhere in the file. Far cheaper than a search."""
        return any(word in self._lower for word in words)

    @cached_property
    def lines(self) -> list[str]:
        """Without line ends. Only newline characters end a line, so that numbers agree with every other tool."""
        return [line.removesuffix("\r") for line in self.text.split("\n")]

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for line in self.text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        return starts

    @cached_property
    def is_test(self) -> bool:
        """Whether the path says that this is test code, an example or a fixture."""
        parts = self.name.lower().split("/")
        stem = parts[-1].rsplit(".", 1)[0]
        return (
            any(part in _TEST_FOLDERS for part in parts[:-1])
            or stem.startswith("test_")
            or stem.endswith(("_test", "_tests", ".test", ".spec", "-test", "-spec", "_testutil", "-unittest"))
            or stem in ("conftest", "tests", "testutil")
            or (parts[-2:-1] == ["ci"] and stem.endswith("values"))  # what a chart is tested with
        )

    @cached_property
    def tree(self) -> ast.Module | None:
        """The Python syntax tree; None when the file is no Python or cannot be parsed (the scan reports that)."""
        return self.parse()[0]

    @cached_property
    def syntax_problem(self) -> str:
        """Why the running Python cannot read the file; empty when it can, or need not. Keeps no tree."""
        return self.parse()[1]

    @cached_property
    def is_yaml(self) -> bool:
        """Whether a YAML parser reads the whole text, any number of documents."""
        import yaml

        try:
            for _ in yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                pass
        except (yaml.YAMLError, ValueError, RecursionError):
            return False
        return True

    def parse(self) -> tuple[ast.Module | None, str]:
        """(a new Python syntax tree, "") or (None, why there is none)."""
        if self.language != "python":
            return None, ""
        try:
            return parse_python(self.text), ""
        except SyntaxError as error:
            return None, f"{error.msg} at line {error.lineno}" if error.lineno else str(error.msg)
        except (ValueError, RecursionError, MemoryError) as error:
            return None, str(error) or type(error).__name__

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of `tree` (breadth first), or none: checks share one walk."""
        return tuple(ast.walk(self.tree)) if self.tree is not None else ()

    def line(self, number: int) -> str:
        """A line by its 1-based number; empty past the end."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""

    def position(self, offset: int) -> tuple[int, int]:
        """(line, column), 1-based, of a character offset into `text`."""
        line = bisect.bisect_right(self._starts, offset) - 1
        return line + 1, offset - self._starts[line] + 1

    def offset(self, line: int, column: int) -> int:
        """The character offset of a 1-based place."""
        return self._starts[line - 1] + column - 1

    def finding(
        self,
        rule: Rule,
        start: int | ast.AST,
        end: int | None = None,
        *,
        message: str | None = None,
        edits: tuple[Edit, ...] = (),
        secrets: tuple[str, ...] = (),
    ) -> Finding:
        """A finding at a syntax node, or at the characters `start` to `end` (exclusive) of the text.

        Args:
            message: What is wrong here, one sentence, no secrets; by default the rule's title.
            secrets: Literal secrets in these lines; every output replaces them.
        """
        if isinstance(start, int):
            line, column = self.position(start)
            end_line, end_column = self.position(start + 1 if end is None else end)
        else:
            line, column, end_line, end_column = self.place(start)
        return Finding(
            rule=rule.id,
            severity=rule.severity,
            message=message or rule.title,
            path=self.name,
            line=line,
            column=column,
            end_line=end_line,
            end_column=end_column,
            origins=(rule.engine,),
            cwe=rule.cwe,
            fix=rule.fix,
            edits=edits,
            secrets=secrets,
        )

    def place(self, node: ast.AST) -> tuple[int, int, int, int]:
        """(line, column, end line, end column) of a node, 1-based, in characters (the tree counts bytes)."""
        line, end_line = node.lineno, node.end_lineno or node.lineno  # type: ignore[attr-defined]
        column = self._characters(line, node.col_offset)  # type: ignore[attr-defined]
        end_column = self._characters(end_line, node.end_col_offset or 0)  # type: ignore[attr-defined]
        return line, column + 1, end_line, end_column + 1

    def _characters(self, line: int, byte_offset: int) -> int:
        text = self.line(line)
        return byte_offset if text.isascii() else len(text.encode()[:byte_offset].decode("utf-8", "replace"))


_TEST_FOLDERS = frozenset(
    {
        "test",
        "tests",
        "testing",
        "__tests__",
        "spec",
        "specs",
        "fixtures",
        "testdata",
        "test-data",
        "test_data",
        "testresources",
        "testutil",
        "testutils",
        "unittests",
        "__mocks__",
        "mocks",
    }
)


def parse_python(text: str) -> ast.Module:
    """The syntax tree of Python source.

    Raises:
        SyntaxError: it is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes of the scanned code are not our warnings
        return ast.parse(text)
