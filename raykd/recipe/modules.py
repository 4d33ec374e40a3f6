"""A recipe's own modules: Python files beside the recipe. They are found and read; nothing is imported.

`modules` is the folder of a recipe's own modules everywhere below, None where the recipe has none.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # module:NAME
OURS = ("raykd", "pipelines", "tune_spaces")  # packages that come with raykd
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def names_a_module_of(tree: Any, folder: Path) -> bool:
    """Whether a `module:NAME`, or a method's page, in a recipe as YAML has it is a module in this folder."""
    if isinstance(tree, dict):
        tree = {str(key): value for key, value in tree.items()}
        page = [f"{tree['page']}:run"] if tree.get("kind") == "own" and "page" in tree else []
        return any(names_a_module_of(part, folder) for part in (*tree, *tree.values(), *page))
    if isinstance(tree, list):
        return any(names_a_module_of(part, folder) for part in tree)
    if not isinstance(tree, str) or not FUNCTION.fullmatch(tree):
        return False
    module = tree.partition(":")[0]
    return module.partition(".")[0] not in OURS and _source(module, folder) is not None


def put_on_path(modules: str | None) -> None:
    """Make the recipe's own modules importable in this process."""
    if modules is not None and modules not in sys.path:
        sys.path.append(modules)


def find_module(module: str, modules: str | None = None) -> Path | None:
    """The file of a module, perhaps no Python source; None if there is no such module.

    A module in `modules` is found first, then those on Python's path. At most the package that raykd is in is imported.
    """
    for folder in ([modules] if modules else []) + sys.path:
        if file := _source(module, Path(folder or ".")):
            return file
    top, *names = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # also finds what is built in, or installed in place
    except (ImportError, ValueError):
        return None
    if spec is None or not names:
        return Path(spec.origin) if spec and spec.origin else None
    for folder in spec.submodule_search_locations or []:
        if file := _source(".".join(names), Path(folder)):
            return file
    loaded = getattr(sys.modules.get(module), "__file__", None)  # such as os.path, which is a module of another name
    return Path(loaded) if loaded else None


def top_level_names(file: Path) -> set[str] | None:
    """The names that a Python source defines or imports at its top level; None where only importing it would tell.

    Raises SyntaxError.
    """
    names: set[str] = set()
    for node in _top_level(_parsed(file).body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)}
    return None if names & {"*", "__getattr__"} else names


def literal(file: Path, name: str) -> list[str]:
    """The strings of a literal at the top level of a source: a dict's keys, or the items of a tuple, list or set.

    Empty if there is none of this name, or the file is no Python source.
    """
    for node in _top_level(_statements(file)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            items = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return []


def code_digest(module: str, modules: str | None) -> str | None:
    """A hash (16 hex digits) of a recipe's own module and of all that it imports beside it; None for any other."""
    if modules is None or not _source(module, Path(modules)):
        return None
    files = sorted(_closure(module, Path(modules)))
    parts = [(file.relative_to(modules).as_posix(), file.read_bytes()) for file in files]
    joined = b"".join(b"%s\0%d\0%s" % (name.encode(), len(data), data) for name, data in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def shipped(names: set[str], modules: str | None) -> list[Path]:
    """The top-level files and packages in `modules` that these modules are in, or import."""
    if modules is None:
        return []
    folder = Path(modules)
    files = {file for module in names for file in _closure(module, folder)}
    return sorted({folder / file.relative_to(folder).parts[0] for file in files})


def shadowing(modules: str) -> Path | None:
    """A file or package in the folder that has the name of a standard or installed module, None if there is none."""
    folder = Path(modules).resolve()
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() != folder]
    own = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
    for path in sorted(own):
        if path.stem in sys.stdlib_module_names:
            return path
        spec = PathFinder.find_spec(path.stem, elsewhere) if path.stem.isidentifier() else None
        if spec and spec.origin and Path(spec.origin).resolve() not in (path, path / "__init__.py"):
            return path
    return None


def _source(module: str, folder: Path) -> Path | None:
    """The Python source of a module below a folder."""
    path = folder.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if os.path.isfile(file)), None)  # whatever the name, of any length


def _closure(module: str, folder: Path) -> set[Path]:
    """The sources in a folder that importing a module of it may load, as far as its `import` lines say."""
    files: set[Path] = set()
    todo = [module]
    while todo:
        module = todo.pop()
        parents = module.split(".")
        for end in range(1, len(parents) + 1):
            file = _source(".".join(parents[:end]), folder)
            if file and file not in files:
                files.add(file)
                todo += _imports(file, file.parent.relative_to(folder).parts)
    return files


def _imports(file: Path, package: tuple[str, ...]) -> Iterator[str]:
    """The modules that a source names in its `import` lines, anywhere in it; `package` is the one that it is in."""
    for node in (node for statement in _statements(file) for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _statements(file: Path) -> list[ast.stmt]:
    """The statements of a file; none if it is no Python source."""
    try:
        return _parsed(file).body if file.suffix == ".py" else []
    except SyntaxError:  # whoever imports it says so
        return []


def _parsed(file: Path) -> ast.Module:
    """Raises SyntaxError."""
    try:
        return ast.parse(file.read_bytes(), str(file))
    except ValueError as error:  # a byte of zero
        raise SyntaxError(str(error), (str(file), 1, 0, "")) from None


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, with those in its `if`, `try`, `with` and loops."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)
