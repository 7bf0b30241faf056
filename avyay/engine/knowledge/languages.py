"""The languages that are parsed: their grammar, what defines a symbol, what imports, what refers to a name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tree_sitter import Parser, Query

__all__ = ["LANGUAGES", "Grammar", "grammar", "is_test", "language_of"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A language. In `definitions` the outer capture is the symbol's kind and `@name` its name."""

    module: str
    entry: str
    definitions: str
    imports: str
    references: str


_JS_DEFINITIONS = """
(function_declaration name: (identifier) @name) @function
(generator_function_declaration name: (identifier) @name) @function
(method_definition name: (_) @name) @method
(variable_declarator name: (identifier) @name value: [(arrow_function) (function_expression)]) @function
(program (lexical_declaration (variable_declarator name: (identifier) @name) @constant))
(program (export_statement (lexical_declaration (variable_declarator name: (identifier) @name) @constant)))
"""
_JS_IMPORTS = """
(import_statement source: (string (string_fragment) @source)) @import
(export_statement source: (string (string_fragment) @source)) @import
(call_expression function: (import) arguments: (arguments (string (string_fragment) @source))) @import
(call_expression function: (identifier) @callee arguments: (arguments . (string (string_fragment) @source))
  (#eq? @callee "require")) @import
"""
_TS_DEFINITIONS = """
(class_declaration name: (type_identifier) @name) @class
(abstract_class_declaration name: (type_identifier) @name) @class
(interface_declaration name: (type_identifier) @name) @type
(type_alias_declaration name: (type_identifier) @name) @type
(enum_declaration name: (identifier) @name) @type
"""
_JS_REFERENCES = "[(identifier) (property_identifier) (shorthand_property_identifier)] @name"
_TS_REFERENCES = "[(identifier) (property_identifier) (shorthand_property_identifier) (type_identifier)] @name"

LANGUAGES: dict[str, Spec] = {
    "python": Spec(
        "tree_sitter_python",
        "language",
        """
        (function_definition name: (identifier) @name) @function
        (class_definition name: (identifier) @name) @class
        (module (expression_statement (assignment left: (identifier) @name) @constant))
        """,
        "[(import_statement) (import_from_statement)] @import",
        "(identifier) @name",
    ),
    "javascript": Spec(
        "tree_sitter_javascript",
        "language",
        "(class_declaration name: (identifier) @name) @class" + _JS_DEFINITIONS,
        _JS_IMPORTS,
        _JS_REFERENCES,
    ),
    "typescript": Spec(
        "tree_sitter_typescript",
        "language_typescript",
        _TS_DEFINITIONS + _JS_DEFINITIONS,
        _JS_IMPORTS,
        _TS_REFERENCES,
    ),
    "tsx": Spec(
        "tree_sitter_typescript",
        "language_tsx",
        _TS_DEFINITIONS + _JS_DEFINITIONS,
        _JS_IMPORTS,
        _TS_REFERENCES,
    ),
    "go": Spec(
        "tree_sitter_go",
        "language",
        """
        (function_declaration name: (identifier) @name) @function
        (method_declaration name: (field_identifier) @name) @method
        (type_spec name: (type_identifier) @name) @type
        (source_file (const_declaration (const_spec name: (identifier) @name) @constant))
        (source_file (var_declaration (var_spec name: (identifier) @name) @constant))
        """,
        "(import_spec path: (interpreted_string_literal) @source) @import",
        "[(identifier) (field_identifier) (type_identifier)] @name",
    ),
}

_SUFFIXES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript",
    ".jsx": "javascript", ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "tsx", ".go": "go",
}  # fmt: skip
_TEST_FOLDERS = frozenset({"test", "tests", "__tests__", "spec", "testing"})


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language ready to parse; parsers are not shared between threads."""

    name: str
    parser: Parser
    definitions: Query
    imports: Query
    references: Query


@cache
def grammar(name: str) -> Grammar:
    """The grammar of a language, loaded when first asked for."""
    from tree_sitter import Language, Parser, Query

    spec = LANGUAGES[name]
    module: Any = importlib.import_module(spec.module)
    language = Language(getattr(module, spec.entry)())
    return Grammar(
        name,
        Parser(language),
        Query(language, spec.definitions),
        Query(language, spec.imports),
        Query(language, spec.references),
    )


def language_of(path: str) -> str | None:
    """The language of a file by its name, or None when it is not parsed."""
    dot = path.rfind(".")
    return _SUFFIXES.get(path[dot:].lower()) if dot > path.rfind("/") else None


def is_test(path: str) -> bool:
    """Whether a file holds tests, by the conventions of its language."""
    *folders, name = path.split("/")
    stem = name.split(".", 1)[0]
    language = language_of(path)
    if language == "go":
        return stem.endswith("_test")
    if language == "python":
        return stem.startswith("test_") or stem.endswith("_test") or (stem != "__init__" and _in_tests(folders))
    if language is not None:
        return ".test." in name or ".spec." in name or _in_tests(folders)
    return False


def _in_tests(folders: list[str]) -> bool:
    return any(folder in _TEST_FOLDERS for folder in folders)
