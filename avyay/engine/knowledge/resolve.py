"""Which files an import leads to, within one repository. Pure: knows paths, reads nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

from avyay.engine.knowledge.types import Import

__all__ = ["Resolver"]

_SCRIPT_SUFFIXES = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts", ".d.ts")


class Resolver:
    """The files of a repository by the names that imports use.

    Args:
        paths: All files.
        go_modules: Folder of each `go.mod` ("" for the top) -> its module path.
    """

    def __init__(self, paths: Iterable[str], go_modules: Mapping[str, str] | None = None) -> None:
        self._paths = set(paths)
        self._modules: dict[str, str] = {}
        self._go_packages: dict[str, list[str]] = {}
        modules = sorted((go_modules or {}).items(), key=lambda item: -len(item[0]))
        for path in sorted(self._paths):
            if path.endswith((".py", ".pyi")):
                for name in self._module_names(path):
                    self._modules.setdefault(name, path)
            elif path.endswith(".go") and not path.endswith("_test.go"):
                folder = posixpath.dirname(path)
                for top, module in modules:
                    if not top or folder == top or folder.startswith(f"{top}/"):
                        package = posixpath.normpath(
                            posixpath.join(module, posixpath.relpath(folder or ".", top or "."))
                        )
                        self._go_packages.setdefault(package, []).append(path)
                        break

    def targets(self, path: str, language: str, item: Import) -> list[str]:
        """Files of this repository that an import in `path` leads to; none for other people's packages."""
        if language == "python":
            found = self._python(path, item)
        elif language == "go":
            found = self._go_packages.get(item.module, [])
        else:
            found = self._script(path, item.module)
        return [target for target in dict.fromkeys(found) if target != path]

    def _module_names(self, path: str) -> list[str]:
        """Dotted names: from the topmost package folder, and from the top of the repository."""
        parts = path.rsplit(".", 1)[0].split("/")
        if parts[-1] == "__init__":
            parts.pop()
        top = len(path.split("/")) - 1
        while top > 0 and "/".join([*path.split("/")[:top], "__init__.py"]) in self._paths:
            top -= 1
        names = [".".join(parts[top:]), ".".join(parts)]
        if parts[:1] == ["src"]:
            names.append(".".join(parts[1:]))
        return [name for name in dict.fromkeys(names) if name]

    def _python(self, path: str, item: Import) -> list[str]:
        dots = len(item.module) - len(item.module.lstrip("."))
        module = item.module.lstrip(".")
        if not dots:
            return self._python_module(module, item.names)
        folder = path.split("/")[:-dots]
        if dots > len(path.split("/")):
            return []
        base = "/".join([*folder, *(module.split(".") if module else [])])
        found = []
        for name in item.names or ("",):
            inner = [f"{base}/{name}.py", f"{base}/{name}/__init__.py"] if name else []
            outer = [f"{base}.py", f"{base}/__init__.py"] if base else ["__init__.py"]
            found += next(([p.lstrip("/")] for p in [*inner, *outer] if p.lstrip("/") in self._paths), [])
        return found

    def _python_module(self, module: str, names: tuple[str, ...]) -> list[str]:
        found = []
        for name in names:
            target = self._modules.get(f"{module}.{name}") or self._modules.get(module)
            if target:
                found.append(target)
        if not names and module in self._modules:
            found.append(self._modules[module])
        return found

    def _script(self, path: str, module: str) -> list[str]:
        if not module.startswith("."):
            return []
        base = posixpath.normpath(posixpath.join(posixpath.dirname(path), module))
        stem, suffix = posixpath.splitext(base)
        bases = [base, stem] if suffix in (".js", ".mjs", ".cjs", ".jsx") else [base]  # TypeScript writes .js for .ts
        for start in bases:
            for candidate in (
                *(start + s for s in _SCRIPT_SUFFIXES),
                *(f"{start}/index{s}" for s in _SCRIPT_SUFFIXES[1:]),
            ):
                if candidate in self._paths:
                    return [candidate]
        return []
