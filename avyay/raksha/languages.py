"""Which language a file is in, told by its name, else by its first line."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

__all__ = ["STRUCTURED", "UNSUPPORTED", "language_of"]

_SUFFIXES = {
    "python": ("py", "pyi", "pyw"),
    "javascript": ("js", "jsx", "mjs", "cjs"),
    "typescript": ("ts", "tsx", "mts", "cts"),
    "go": ("go",),
    "dockerfile": ("dockerfile", "containerfile"),
    "yaml": ("yml", "yaml"),
    "json": ("json",),
    "terraform": ("tf", "hcl", "tfvars"),
    "bash": ("sh", "bash"),
    "html": ("html", "htm"),
    "java": ("java",),
    "kotlin": ("kt", "kts"),
    "ruby": ("rb",),
    "php": ("php",),
    "rust": ("rs",),
    "c": ("c", "h"),
    "cpp": ("cc", "cpp", "cxx", "hpp", "hh"),
    "csharp": ("cs",),
    "swift": ("swift",),
    "scala": ("scala",),
}
_BY_SUFFIX = {suffix: language for language, suffixes in _SUFFIXES.items() for suffix in suffixes}
_NO_DOCKERFILE = frozenset({".md", ".txt", ".py", ".yaml", ".yml", ".json", ".js", ".ts", ".go", ".sh"})
_DOCKERFILE = re.compile(r"(?i)^(dockerfile|containerfile)([.-].+)?$")
_SHEBANG = re.compile(rb"^#!.*?\b(python|node|deno|bun|bash|sh|zsh)[\d.]*\b")
_OTHER_SHEBANG = re.compile(rb"^#!.*?\b(ruby|perl|php|lua)[\d.]*\b")
_OTHERS = {b"ruby": "rb", b"perl": "pl", b"php": "php", b"lua": "lua"}
_INTERPRETERS = {b"python": "python", b"node": "javascript", b"deno": "typescript", b"bun": "typescript"}

# Languages whose structure our engines read: a file of these that nobody can parse was not checked.
STRUCTURED = frozenset({"python", "javascript", "typescript", "go", "dockerfile", "terraform", "yaml"})
# Programming languages of which only the text is read; the report says so.
UNSUPPORTED = frozenset({"java", "kotlin", "ruby", "php", "rust", "c", "cpp", "csharp", "swift", "scala"})


def language_of(name: str, head: bytes = b"") -> str:
    """The language of a file by its name (with slashes) and its first bytes; `text` when it is none of ours."""
    path = PurePosixPath(name)
    if _DOCKERFILE.match(path.name) and path.suffix.lower() not in _NO_DOCKERFILE:
        return "dockerfile"
    suffix = path.suffix.lstrip(".").lower()
    if suffix in _BY_SUFFIX and head.startswith(b"#!") and (other := _OTHER_SHEBANG.match(head.split(b"\n", 1)[0])):
        return _BY_SUFFIX.get(_OTHERS[other[1]], "text")  # a launcher that only bears the name of what it launches
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if not suffix and head.startswith(b"#!") and (match := _SHEBANG.match(head.split(b"\n", 1)[0])):
        return _INTERPRETERS.get(match[1], "bash")
    return "text"
