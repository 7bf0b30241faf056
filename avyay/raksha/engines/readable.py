"""Text that semgrep's parsers refuse although its own tools take it, said in a way they read: place by place the same.

Every line keeps its number and every character that is left its column, so what is found in the copy is found in the
file. Only what no parser of ours reads is rewritten: the rest of the file is then not lost with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.source import SourceFile

__all__ = ["readable"]

INSTRUCTION = re.compile(r"[ \t]*(?P<word>[A-Za-z]+)(?=[ \t]|\\?$)")
# What the parser knows of the instructions that declare values; other forms are as good, and no rule needs them.
VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'\\]+)"
KNOWN = {
    "arg": re.compile(rf"[ \t]*\w+[ \t]+\w+(?:={VALUE})?[ \t]*"),
    "env": re.compile(rf"[ \t]*\w+[ \t]+(?:[\w.-]+[ \t]+[^\s=]+|(?:[\w.-]+={VALUE}?(?:[ \t]+|$))+)"),
    "label": re.compile(rf"[ \t]*\w+[ \t]+(?:[\w./\"-]+={VALUE}(?:[ \t]+|$))+"),
}
FLAGS = re.compile(r"(?<=\s)--(?:link|parents|keep-git-dir|unpack)(?:=\w+)?(?=\s)")
ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def readable(file: SourceFile) -> bytes | None:
    """What the parser is given instead of the file; None: the file itself."""
    if file.language in ("dockerfile", "yaml") or file.encoding != "utf-8":
        text = _readable(file)
        return None if text.encode() == file.data else text.encode()
    return None


def _readable(file: SourceFile) -> str:
    if file.language == "dockerfile":
        return "\n".join(_dockerfile(file.lines))
    if file.language == "yaml" and "{{" in file.text and not file.is_yaml:
        return _template(file.text)
    return file.text  # in UTF-8, the only encoding the parser knows, and without a mark that it would read as code


def _dockerfile(lines: list[str]) -> Iterator[str]:
    index = 0
    while index < len(lines):
        match = INSTRUCTION.match(lines[index])
        word = match["word"].lower() if match is not None else ""
        end = index + 1
        if word in KNOWN or word in ("copy", "add"):
            end = _end(lines, index)
        whole = lines[index:end]
        index = end
        if word in KNOWN:
            plain = " ".join(line.rstrip().removesuffix("\\") for line in whole)
            if any(line.lstrip().startswith("#") for line in whole) or not KNOWN[word].fullmatch(plain):
                whole = [_comment(line) for line in whole]
        elif word in ("copy", "add"):
            whole = [FLAGS.sub(lambda flag: " " * len(flag.group()), line) for line in whole]
        yield from whole


def _end(lines: list[str], index: int) -> int:
    """The line after an instruction: comments and empty lines may stand between its parts."""
    while index < len(lines):
        text = lines[index].strip()
        index += 1
        if text and not text.startswith("#") and not text.endswith("\\"):
            break
    return index


def _comment(line: str) -> str:
    return "#" + line[1:].rstrip("\\") if line else line


def _template(text: str) -> str:
    """A Helm chart's template as the YAML around its actions: lines of actions alone become comments, values a word.

    The comments keep the actions' words: rules may ask whether a line is only there under a condition.
    """

    def plain(action: re.Match[str]) -> str:
        return "\n".join("x" * len(part) for part in action.group().split("\n"))

    filled = ACTION.sub(plain, text).split("\n")
    return "\n".join(
        "#" + before[1:] if before != after and not re.sub(r"[\sx]", "", after) else after
        for before, after in zip(text.split("\n"), filled, strict=True)
    )
