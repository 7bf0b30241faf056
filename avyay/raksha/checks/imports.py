# ruff: noqa: E501 - long patterns read better whole
"""Imports that neither the standard library, nor the project, nor a declared dependency provides."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Collection, Iterator
from functools import lru_cache

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.checks.import_names import NODE_BUILTINS, PROVIDED_BY, TRANSITIVE

RULE = Rule(
    id="unknown-import",
    title="Import that nothing declared provides",
    severity="medium",
    security_severity=5.0,
    cwe=("CWE-1357",),
    owasp=("A06:2021",),
    precision="medium",
    category="hallucination",
    languages=("python", "javascript", "typescript", "go"),
    why=(
        "Code generators import packages that do not exist. Someone may register the invented name: the next install then"
        " runs his code."
    ),
    bad="from fastapi_security_headers_pro import Headers  # in no manifest",
    good='# pyproject.toml: dependencies = ["secure"]\nimport secure',
    fix="Declare the dependency if it is real (look it up first); else remove the import and write what was meant.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = True

PYTHON_IMPORT = re.compile(
    r"^([ \t]*)(?:from[ \t]+([A-Za-z_]\w*)[\w.]*[ \t]+import\b|import[ \t]+([A-Za-z_][\w., \t]*))", re.M
)
SCRIPT_IMPORT = re.compile(
    r"(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\(\s*)([\"'])(@[\w.-]+/[\w.-]+|[A-Za-z][\w.-]*)(?:/[^\"'\n]*)?\1"
)
GO_IMPORT = re.compile(r"^\s*(?:import\s+)?(?:[\w.]+\s+)?\"([\w-]+(?:\.[\w-]+)+/[\w./~-]+)\"\s*$", re.M)
SAMPLES = frozenset(
    {
        "docs",
        "doc",
        "docs_src",
        "examples",
        "example",
        "samples",
        "scripts",
        "vendor",
        "third_party",
        "node_modules",
        "benchmarks",
    }
)
BUILDING = frozenset({"setuptools", "pkg_resources", "distutils", "wheel"})
NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if file.is_test or any(part in SAMPLES for part in file.name.lower().split("/")[:-1]):
        return
    manifests = project.manifests
    if file.language == "python":
        found = _python(file, project) if any(_is_python(name) for name in manifests) else iter(())
    elif file.language == "go":
        found = _go(file, project) if any(name.endswith("go.mod") for name in manifests) else iter(())
    else:
        found = _script(file, project) if any(name.endswith("package.json") for name in manifests) else iter(())
    seen: set[str] = set()
    for name, start, end in found:
        if name not in seen and name.lower() not in project.allowed.packages:
            seen.add(name)
            yield file.finding(
                RULE, start, end, message=f"No manifest, lock file or module of this project provides `{name}`."
            )


def _is_python(name: str) -> bool:
    return not name.endswith(("package.json", "go.mod", "go.work", "pnpm-workspace.yaml"))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "", name).lower()


def _python(file: SourceFile, project: Project) -> Iterator[tuple[str, int, int]]:
    declared = _declared_python(_frozen(project, PYTHON_LOCKS))
    local = _local_python(project.files)
    text = file.text
    for match in PYTHON_IMPORT.finditer(text):
        if match.group(1) and _is_optional(text, match.start(), len(match.group(1))):
            continue
        names = (
            [match.group(2)]
            if match.group(2)
            else [part.split()[0].split(".")[0] for part in match.group(3).split(",") if part.split()]
        )
        for name in names:
            if name in BUILDING and file.name.rsplit("/", 1)[-1] == "setup.py":
                continue  # whoever builds brings them
            if (
                name in sys.stdlib_module_names
                or name in local
                or name.startswith("_")
                or _in_docstring(file, match.start())
            ):
                continue
            if not _provided(name, declared):
                yield name, match.start() + len(match.group(1)), match.end()


OPTIONAL = re.compile(r"\s*(?:try\s*:|if\b|elif\b|except\b|with\s+.*suppress|else\s*:)")


def _is_optional(text: str, offset: int, indent: int) -> bool:
    """Whether the block around an indented import is for type checkers, or catches its failure."""
    for line in reversed(text[:offset].split("\n")):
        width = len(line) - len(line.lstrip())
        if line.strip() and width < indent and not line.lstrip().startswith("#"):
            if OPTIONAL.match(line):
                return True
            indent = width
            if not width:
                return False
    return False


def _in_docstring(file: SourceFile, offset: int) -> bool:
    before = file.text[:offset]
    return before.count('"""') % 2 == 1 or before.count("'''") % 2 == 1


def _provided(name: str, declared: frozenset[str]) -> bool:
    normal = _normal(name)
    for candidate in (normal, *map(_normal, PROVIDED_BY.get(name, ()))):
        if candidate in declared:
            return True
    # Names that say so themselves: `google` from google-cloud-storage, `psycopg` from psycopg-binary.
    return len(normal) > 2 and any(normal in item for item in declared)


PYTHON_LOCKS = frozenset({"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"})
SCRIPT_LOCKS = {  # how each names the packages it installs
    "package-lock.json": re.compile(r"\"(?:[^\"\n]*/)?node_modules/((?:@[^/\"\n]+/)?[^/\"\n]+)\": \{"),
    "yarn.lock": re.compile(r"(?m)^\"?((?:@[^/@\s]+/)?[^@\s\"]+)@"),
    "pnpm-lock.yaml": re.compile(r"(?m)^\s+['\"]?/?((?:@[^/@\s]+/)?[^/@\s'\"(]+)[@/]\d"),
    "bun.lock": re.compile(r"(?m)^\s+\"((?:@[^/\"]+/)?[^/\"]+)\": \["),
}


def _frozen(project: Project, kinds: Collection[str]) -> tuple[tuple[str, str], ...]:
    locks = [name for name in project.files if name.rsplit("/", 1)[-1] in kinds]
    texts = [(name, project.read(name, limit=8_000_000) or "") for name in locks]
    return (*sorted(project.manifests.items()), *texts)


@lru_cache(maxsize=4)
def _declared_python(manifests: tuple[tuple[str, str], ...]) -> frozenset[str]:
    names: set[str] = set()
    for path, text in manifests:
        base = path.rsplit("/", 1)[-1]
        if base == "pyproject.toml":
            names |= _from_pyproject(text)
        elif base.endswith(".lock"):
            names |= set(re.findall(r"^name = \"([^\"]+)\"", text, re.M)) | set(
                re.findall(r"^\s*\"([\w.-]+)\": \{", text, re.M)
            )
        elif base in ("setup.py", "setup.cfg", "Pipfile", "environment.yml", "environment.yaml"):
            names |= set(
                re.findall(r"(?m)^[\s\"'-]*([A-Za-z][A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(?:[=<>~!]=?|[\"',]|$)", text)
            )
        elif _is_python(path):
            names |= {
                match.group(1)
                for line in text.splitlines()
                if (match := NAME.match(line)) and not line.lstrip().startswith(("#", "-"))
            }
            names |= set(re.findall(r"#egg=([\w.-]+)", text))
    for name in tuple(names):
        names |= set(TRANSITIVE.get(_normal(name), ()))
    return frozenset(_normal(name) for name in names)


def _from_pyproject(text: str) -> set[str]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return set()
    project = document.get("project", {})
    lines: list[object] = [*project.get("dependencies", ()), project.get("name", "")]
    for group in project.get("optional-dependencies", {}).values():
        lines.extend(group)
    for group in document.get("dependency-groups", {}).values():
        lines.extend(group)
    lines.extend(document.get("build-system", {}).get("requires", ()))
    tool = document.get("tool", {})
    poetry = tool.get("poetry", {})
    lines.extend(poetry.get("dependencies", {}))
    lines.extend(poetry.get("dev-dependencies", {}))
    for group in poetry.get("group", {}).values():
        lines.extend(group.get("dependencies", {}))
    lines.extend(tool.get("uv", {}).get("dev-dependencies", ()))
    for group in tool.get("pdm", {}).get("dev-dependencies", {}).values():
        lines.extend(group)
    return {match.group(1) for line in lines if isinstance(line, str) and (match := NAME.match(line))}


@lru_cache(maxsize=4)
def _local_python(files: tuple[str, ...]) -> frozenset[str]:
    names: set[str] = set()
    for name in files:
        if name.endswith((".py", ".pyi", ".so", ".pyd", ".pyx", ".proto", ".ipynb")):
            parts = name.split("/")
            names.update(parts[:-1])
            stem = parts[-1].split(".")[0]
            names.add(stem)
            if parts[-1].endswith(".proto"):
                names.update((f"{stem}_pb2", f"{stem}_pb2_grpc"))
    return frozenset(names)


def _script(file: SourceFile, project: Project) -> Iterator[tuple[str, int, int]]:
    declared, aliases = _declared_script(_frozen(project, SCRIPT_LOCKS))
    configs = "\n".join(
        project.read(name) or ""
        for name in project.files
        if re.search(r"(?:^|/)(?:tsconfig[\w.]*\.json|jsconfig\.json|vite\.config\.\w+|webpack\.config\.\w+)$", name)
    )
    for match in SCRIPT_IMPORT.finditer(file.text):
        name = match.group(2)
        line = file.text[file.text.rfind("\n", 0, match.start()) + 1 : match.start()].lstrip()
        if name.removeprefix("node:") in NODE_BUILTINS or line.startswith(("//", "*", "#")):
            continue
        types = f"@types/{name.lstrip('@').replace('/', '__')}"
        if (
            name in declared
            or name in aliases
            or types in declared
            or re.search(rf"[\"']{re.escape(name.split('/')[0])}(?:/|\")", configs)
        ):
            continue
        if name.startswith(("bun", "deno", "cloudflare", "virtual", "astro", "vscode", "electron", "next")) or any(
            (folder := f.split("/"))[0] == name or name in folder[:-1] for f in project.files
        ):
            continue
        yield name, match.start(2), match.end(2)


@lru_cache(maxsize=4)
def _declared_script(manifests: tuple[tuple[str, str], ...]) -> tuple[frozenset[str], frozenset[str]]:
    declared: set[str] = set()
    aliases: set[str] = set()
    for path, text in manifests:
        if (pattern := SCRIPT_LOCKS.get(path.rsplit("/", 1)[-1])) is not None:
            declared.update(pattern.findall(text))
        if not path.endswith("package.json"):
            continue
        try:
            document = json.loads(text)
        except ValueError:
            continue
        if not isinstance(document, dict):
            continue
        for key in ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies"):
            if isinstance(document.get(key), dict):
                declared.update(document[key])
        aliases.add(str(document.get("name", "")))
        if isinstance(document.get("imports"), dict):
            aliases.update(document["imports"])
    return frozenset(declared), frozenset(aliases)


def _go(file: SourceFile, project: Project) -> Iterator[tuple[str, int, int]]:
    modules: set[str] = set()
    folders = [path.removesuffix("go.mod") for path in project.manifests if path.endswith("go.mod")]
    if not any(file.name.startswith(folder) or folder.startswith("/") for folder in folders):
        return  # built without modules: nothing says what it may import
    for path, text in project.manifests.items():
        if path.endswith("go.mod"):
            modules.update(
                re.findall(
                    r"(?m)^\s*(?:module|require|replace)?\s*([\w-]+(?:\.[\w-]+)+[\w./~-]*|[\w./-]+)(?:\s+v\S+|\s*$|\s+=>)",
                    text,
                )
            )
    for match in GO_IMPORT.finditer(file.text):
        name = match.group(1)
        if not any(name == module or name.startswith(f"{module}/") for module in modules):
            yield name, match.start(1), match.end(1)
