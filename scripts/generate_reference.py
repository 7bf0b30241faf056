"""Write docs/reference/ and the static help pages from the code: every command, every setting.

python scripts/generate_reference.py            write the pages
python scripts/generate_reference.py --check    exit 1 when a page is not what the code says
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(COLUMNS="100", TERM="dumb", NO_COLOR="1")

import typer
from typer.core import TyperGroup

from avyay.cli.app import application
from avyay.cli.documents import DOCUMENTS, schema
from avyay.cli.main import COMMANDS, help_text
from avyay.config import Settings

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
STATIC_PAGES = ROOT / "avyay" / "cli" / "help_pages.txt"
HEADER = "<!-- Generated from the code by `make docs`; edits here are lost. -->\n\n"


def pages(name: str, command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    """The help page of a command and of its subcommands, as (path, text)."""
    context = type(parent)(command, info_name=name, parent=parent, **command.context_settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, TyperGroup):
        for inner in command.list_commands(context):
            yield from pages(inner, command.get_command(context, inner), context)


def command_pages() -> list[tuple[str, str]]:
    root = typer.main.get_command(application())
    context = typer.Context(root, info_name="avyay")
    return [page for name in COMMANDS for page in pages(name, root.get_command(context, name), context)]


def command_reference(found: list[tuple[str, str]]) -> str:
    parts = [f"# Command line\n\n## avyay\n\n```text\n{help_text().rstrip()}\n```\n"]
    parts += [f"\n## {path}\n\n```text\n{text.rstrip()}\n```\n" for path, text in found]
    return HEADER + "".join(parts)


def static_pages(found: list[tuple[str, str]]) -> str:
    """The file behind `avyay VERB --help`: a form feed and the command line before each page."""
    return "".join(f"\f{path}\n{text.rstrip()}\n" for path, text in found)


def settings_reference() -> str:
    schema = Settings.json_schema()
    definitions = schema["$defs"]
    out = [
        HEADER,
        "# Settings\n\nEvery key of `avyay.yaml`. A scalar can also be set as `AVYAY_<SECTION>_<KEY>`.",
        " Keys marked *project* may be set by a project's file before `avyay trust`.\n",
    ]

    def rows(section: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in section.get("properties", {}).items():
            name = f"{prefix}.{key}" if prefix else key
            reference = value.get("$ref") or next((p["$ref"] for p in value.get("allOf", []) if "$ref" in p), None)
            if reference:
                yield from rows(definitions[reference.split("/")[-1]], name)
                continue
            safe = " *project*" if value.get("x-project-safe") else ""
            yield f"| `{name}` | {kind(value)} | {default(value)} | {value.get('description', '')}{safe} |"
            for item in item_sections(value):
                yield from rows(definitions[item], f"{name}[]")

    def item_sections(value: dict[str, Any]) -> Iterator[str]:
        items = value.get("items") or {}
        for choice in items.get("anyOf", [items]):
            if isinstance(choice, dict) and "$ref" in choice:
                yield choice["$ref"].split("/")[-1]

    def kind(value: dict[str, Any]) -> str:
        if "enum" in value:
            return " \\| ".join(f"`{choice}`" for choice in value["enum"])
        if "anyOf" in value:
            return " or ".join(kind(choice) for choice in value["anyOf"] if choice.get("type") != "null")
        return str(value.get("type", "section"))

    def default(value: dict[str, Any]) -> str:
        return f"`{value['default']}`" if value.get("default") not in (None, [], {}, "") else ""

    for key, value in schema["properties"].items():
        section = definitions[value["$ref"].split("/")[-1]]
        out.append(f"\n## {key}\n\n{section.get('description', '').strip()}\n\n")
        out.append("| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        out.append("\n".join(rows(section, key)) + "\n")
    return "".join(out)


def import_graph() -> str:
    """The packages and the imports between them, drawn from the source."""
    package = ROOT / "avyay"
    tops = sorted(p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file())
    tops = [top for top in tops if not top.startswith("__")]
    edges: set[tuple[str, str]] = set()
    for file in package.rglob("*.py"):
        source = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "avyay" and len(parts) > 1 and parts[1] in tops and parts[1] != source:
                    edges.add((source, parts[1]))
    shells = [top for top in tops if top in ("cli", "serve")]
    composed = [top for top in tops if top in ("wiring", "doctor", "quickstart")]
    components = [top for top in tops if top in ("marga", "rag", "raksha", "siddhi", "engine")]
    kernel = [top for top in tops if top not in {*shells, *composed, *components}]
    lines = [
        HEADER,
        "# Imports\n\nWho imports whom, from the source; a test refuses an arrow that points up.\n\n",
    ]
    lines.append("```mermaid\nflowchart TD\n")
    for title, members in (("shells", shells), ("composition", composed), ("components", components)):
        lines.append(f"  subgraph {title}\n" + "".join(f"    {m}\n" for m in members) + "  end\n")
    lines.append("  kernel[" + "kernel: " + ", ".join(kernel) + "]\n")
    drawn = {(a if a not in kernel else "kernel", b if b not in kernel else "kernel") for a, b in edges}
    lines += [f"  {a} --> {b}\n" for a, b in sorted(drawn) if a != b]
    lines.append("```\n\n## Inside the kernel\n\n| module | imports |\n| --- | --- |\n")
    for member in kernel:
        lines.append(f"| {member} | {', '.join(sorted(b for a, b in edges if a == member))} |\n")
    return "".join(lines)


def json_schemas() -> Iterator[tuple[Path, str]]:
    """A JSON schema for each document that a command prints."""
    rows = []
    for command in DOCUMENTS:
        name = f"{command.replace(' ', '-')}.json"
        rows.append(f"| `avyay {command} --json` | [{name}](json/{name}) |\n")
        yield REFERENCE / "json" / name, json.dumps(schema(command), indent=2) + "\n"
    head = (
        "# JSON outputs\n\nSchemas of what commands print with `--json`. Keys may be added; none is taken away within a"
    )
    head += " `schema_version`.\n\n| command | schema |\n| --- | --- |\n"
    yield REFERENCE / "json.md", HEADER + head + "".join(rows)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    found = command_pages()
    files = {
        REFERENCE / "cli.md": command_reference(found),
        REFERENCE / "settings.md": settings_reference(),
        REFERENCE / "imports.md": import_graph(),
        STATIC_PAGES: static_pages(found),
        **dict(json_schemas()),
    }
    for file, text in files.items():
        if check and (not file.is_file() or file.read_text(encoding="utf-8") != text):
            stale.append(file.name)
        elif not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    if stale:
        print(f"stale: {', '.join(stale)}; run: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
