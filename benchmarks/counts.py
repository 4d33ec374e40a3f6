"""How much of the code must be read, and how large its parts are; of one checkout, or of two side by side.

    python benchmarks/counts.py [CHECKOUT [CHECKOUT]]

Without an argument, of the checkout it stands in. Nothing is imported or run: names alone are followed.

One training step: every raykd function reached from the method `step` under raykd/training and from the `forward` of
raykd's nn.Modules, which a step calls as its model; each once, from its `def` to its last line, docstring included. A
function reaches the functions that it names, called or handed on; those named in constants that it names (a table of
losses); constructors of classes that it calls; the `forward` of an autograd function that it applies; and as
`x.method()` that method of every class which its module defines or imports, by name or with its module, a Protocol's
implementations in the same folder included, or which alone has it. A property reads like a field: followed, not
counted. What ends in `raise` only words a refusal: left out. With its loader: from the methods of classes named
...Loader as well, so that planning, cutting and padding of what a step is fed are among it.

Sizes are of raykd/, pipelines/ and tune_spaces/; parameters those written out, without self, *args and **kwargs. A file
of raykd/ or pipelines/ knows a method if an identifier, or a string that is no docstring, has the method's name in it
(`own`: its pipeline, and the file of its section of the recipe). Words count where they are a whole identifier: a
variable, an attribute, an argument, the name of a function or of an import.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("raykd", "pipelines", "tune_spaces")
FILE, FUNCTION, PARAMETERS = 400, 60, 6  # the house's limits: lines, lines, and how many
METHODS = {"mckd": re.compile("mckd", re.I), "distill": re.compile("(?<![a-z])distill(?![a-z])", re.I)}
WORDS = ("found", "said", "given", "asked", "made", "told", "here", "following", "together", "chosen")
DEF = (ast.FunctionDef, ast.AsyncFunctionDef)
Key = tuple[str, str]  # a definition: its module, and its name or `Class.method`


def trees(root: Path, *folders: str) -> dict[str, ast.Module]:
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def largest_files(root: Path) -> list[tuple[int, str]]:
    """(lines, path) of every file, the largest first."""
    names = trees(root, *FOLDERS)
    return sorted(((len((root / name).read_text("utf-8").splitlines()), name) for name in names), reverse=True)


def largest_functions(root: Path) -> list[tuple[int, int, str]]:
    """(lines, parameters, path:line name) of every function, nested ones too, the largest first."""
    counted = []
    for path, tree in trees(root, *FOLDERS).items():
        for node in (n for n in ast.walk(tree) if isinstance(n, DEF)):
            names = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            counted.append((lines(node), parameters, f"{path}:{node.lineno} {node.name}"))
    return sorted(counted, reverse=True)


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_property(node: ast.stmt) -> bool:
    return any("property" in ast.unparse(one) for one in getattr(node, "decorator_list", ()))


def has_base(node: ast.stmt, name: str) -> bool:
    return any(name in ast.unparse(one) for one in getattr(node, "bases", ()))


class Code:
    """raykd's definitions, and what each leads to as far as names tell."""

    def __init__(self, root: Path):
        self.known: dict[Key, ast.stmt] = {}
        self.imports: dict[str, dict[str, Key]] = {}
        self.fields: dict[Key, set[str]] = {}  # of each class: what it declares, and what it sets
        for path, tree in trees(root, "raykd").items():
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            self.imports[module] = {a.asname or a.name: (n.module or "", a.name) for n in froms for a in n.names}
            for node in tree.body:
                stored = [n for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store)]
                if isinstance(node, ast.ClassDef):
                    self.known |= {(module, f"{node.name}.{m.name}"): m for m in node.body if isinstance(m, DEF)}
                    self.fields[module, node.name] = {getattr(n, "attr", getattr(n, "id", "")) for n in stored}
                named = isinstance(node, (*DEF, ast.ClassDef))
                names = [node.name] if named else [n.id for n in stored if isinstance(n, ast.Name)]
                self.known |= {(module, name): node for name in names}

    def find(self, module: str, name: str) -> Key | str | None:
        """What a name means in a module: a definition of raykd, or a module of it."""
        if (module, name) in self.known:
            return module, name
        at, what = self.imports.get(module, {}).get(name, ("", ""))
        return f"{at}.{what}" if f"{at}.{what}" in self.imports else self.find(at, what) if at else None

    def classes(self, module: str) -> set[Key]:
        """Those that a module defines or imports, and Protocols' implementations."""
        means = {self.find(module, name) for name in self.imports[module]}
        seen = {k for k in self.fields if k[0] == module or k in means or (k[0] in means and k[1][0] != "_")}
        for face in [k for k in seen if has_base(self.known[k], "Protocol")]:
            methods = [name.partition(".")[2] for at, name in self.known if (at, name.partition(".")[0]) == face]
            beside = [k for k in self.fields if k[0].rpartition(".")[0] == face[0].rpartition(".")[0]]
            seen |= {k for k in beside if all((k[0], f"{k[1]}.{m}") in self.known for m in methods if m)}
        return seen

    def leads_to(self, key: Key) -> Iterator[Key]:
        (module, name), node, classes = key, self.known[key], self.classes(key[0])
        called = {id(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        local = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        local |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        for n in ast.walk(node):
            means: Key | str | None = None
            if isinstance(n, ast.Name) and n.id not in local:
                means = self.find(module, n.id)
            elif isinstance(n, ast.Attribute):
                owner = n.value.id if isinstance(n.value, ast.Name) else None
                of = None if owner is None or owner in local else self.find(module, owner)
                of = (module, name.partition(".")[0]) if owner == "self" else of
                if isinstance(of, str):
                    means = self.find(of, n.attr)
                elif of:
                    means = of[0], f"{of[1]}.{'forward' if n.attr == 'apply' else n.attr}"
                elif owner is None or owner in local:
                    every = [k for k in ((at, f"{c}.{n.attr}") for at, c in self.fields) if k in self.known]
                    near = [k for k in every if (k[0], k[1].partition(".")[0]) in classes]
                    have = every if len(every) == 1 and every[0][1][0] != "_" else near
                    field = any(n.attr in self.fields[c] for c in classes)
                    yield from (k for k in have if (not field if is_property(self.known[k]) else id(n) in called))
            if means in self.fields:
                means = (means[0], f"{means[1]}.__init__") if id(n) in called else None
            if isinstance(means, tuple) and means in self.known:
                yield means

    def reached(self, starts: list[Key]) -> dict[Key, int]:
        """The lines of every function that is reached."""
        seen, ahead = set[Key](), list(starts)
        while ahead:
            key = ahead.pop()
            if key not in seen and not isinstance(getattr(self.known[key], "body", [None])[-1], ast.Raise):
                seen.add(key)
                ahead += self.leads_to(key)
        nodes = {k: self.known[k] for k in seen}
        return {k: lines(node) for k, node in nodes.items() if isinstance(node, DEF) and not is_property(node)}


def identifiers(tree: ast.Module) -> list[str]:
    """Every identifier, as often as it stands there; of an imported module its dotted name."""
    parts = ("id", "attr", "arg", "name", "module", "asname")
    return [one for n in ast.walk(tree) for p in parts if isinstance(one := getattr(n, p, None), str)]


def knows(tree: ast.Module, pattern: re.Pattern[str]) -> bool:
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    owners = [n for n in ast.walk(tree) if isinstance(n, (*DEF, ast.ClassDef, ast.Module))]
    texts -= {ast.get_docstring(n, clean=False) or "" for n in owners}
    return any(pattern.search(text) for text in [*texts, *identifiers(tree)])


def measure(root: Path) -> dict[str, int | str]:
    """Every figure by its name."""
    code, counted = Code(root), {}
    starts = [k for k in code.known if f"{k[0]}.".startswith("raykd.training.") and k[1].endswith(".step")]
    if not starts:
        raise LookupError(f"{root}: no class under raykd/training has a method step")
    forwards = [(k[0], f"{k[1]}.forward") for k in code.fields if has_base(code.known[k], "nn.Module")]
    starts += [key for key in forwards if key in code.known]  # some modules only hold parameters
    loaders = [k for k in code.known if re.search(r"Loader\.(?!__init__|__exit__)", k[1])]
    for name, keys in {"one training step": starts, "with its loader": starts + loaders}.items():
        reached = code.reached(keys)
        counted |= {
            f"{name}, lines": sum(reached.values()),
            f"{name}, files": len({module for module, _ in reached}),
        }
    sizes, parts = largest_files(root), largest_functions(root)
    counted["largest file"] = f"{sizes[0][0]} {sizes[0][1]}"
    counted[f"files above {FILE} lines"] = sum(size > FILE for size, _ in sizes)
    counted["largest function"] = f"{parts[0][0]} {parts[0][2]}"
    counted[f"functions above {FUNCTION} lines"] = sum(size > FUNCTION for size, _, _ in parts)
    counted[f"functions of more than {PARAMETERS} parameters"] = sum(count > PARAMETERS for _, count, _ in parts)
    parsed = trees(root, "raykd", "pipelines")
    for method, pattern in METHODS.items():
        know = {path: tree for path, tree in parsed.items() if knows(tree, pattern)}
        counted[f"files that know {method}"] = len(know)
        for path, tree in know.items():
            section = any(isinstance(n, ast.ClassDef) and n.name == method.capitalize() for n in tree.body)
            counted[f"  {method}: {path}"] = "own" if section or Path(path).stem == method else "yes"
    words = Counter(one for tree in parsed.values() for one in identifiers(tree))
    return counted | {f"identifiers named {word}": words[word] for word in WORDS}


def main() -> None:
    roots = [Path(root).resolve() for root in sys.argv[1:3] or [Path(__file__).parents[1]]]
    columns = [{"checkout": root.name} | measure(root) for root in roots]
    width = max(len(str(value)) for value in columns[0].values()) + 2
    names = dict.fromkeys(name for column in columns for name in column)
    for name in sorted(names, key=lambda name: name if name[0] == " " else ""):  # the lists of files come last
        print(f"{name:45}" + "".join(f"{column.get(name, '-')!s:{width}}" for column in columns).rstrip())


if __name__ == "__main__":
    main()
