"""Who may know whom (docs/architecture.md), read from the source of every module."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("raykd", "pipelines", "tune_spaces")
PIPELINES_MAY = ("recipe", "run", "data", "stages", "report", "console", "errors")
PURE = ("raykd/metrics/", "raykd/data/tasks/", "raykd/recipe/")  # these load without torch


def imports(path: Path, package: str) -> Iterator[str]:
    """Dotted names a module imports anywhere in it: `import a.b`, `from a import b` (as a.b), import_module("a.b")."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )


def walk(root: Path) -> dict[str, list[str]]:
    """Every module's path from `root`, and what it imports."""
    files = sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))
    return {
        file.relative_to(root).as_posix(): list(imports(file, ".".join(file.relative_to(root).parent.parts)))
        for file in files
    }


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def stdlib(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def reached(modules: dict[str, list[str]], start: str) -> set[str]:
    """The modules of ours that one module imports, and those import, and so on."""
    names = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in modules}
    found, todo = set(), [start]
    while todo:
        for name in modules.get(todo.pop(), []):
            for file in {names.get(name), names.get(name.rpartition(".")[0])} - {None}:
                if file not in found:
                    found.add(file)
                    todo.append(file)
    return found


def violations(root: Path) -> list[str]:
    """`file: what it may not import`, for every breach of the rules."""
    modules = walk(root)
    found = []
    for file, names in modules.items():
        for name in names:
            allowed = {
                "ray": not within(name, "ray") or file.startswith(("raykd/cluster/", "tune_spaces/")),
                "vllm": not within(name, "vllm") or file == "raykd/engines/vllm.py",
                "losses": not file.startswith("raykd/losses/") or stdlib(name) or within(name, "torch", "raykd.losses"),
                "pure": not file.startswith(PURE) or not within(name, "torch", "transformers"),
                "pipelines": not file.startswith("pipelines/")
                or stdlib(name)
                or within(name, "pipelines", *(f"raykd.{module}" for module in PIPELINES_MAY)),
                "cli": not within(name, "pipelines") or file == "raykd/cli.py" or file.startswith("pipelines/"),
            }
            found += [f"{file}: {name} ({rule})" for rule, holds in allowed.items() if not holds]
    for training in (file for file in modules if file.startswith("raykd/training/")):
        through = [file for file in reached(modules, training) if file.startswith("raykd/cluster/")]
        found += [f"{training}: reaches {file} (training)" for file in sorted(through)]
    return found


def test_the_code_keeps_the_rules():
    assert violations(ROOT) == []


def test_the_known_modules_were_walked():
    modules = walk(ROOT)
    known = {"raykd/cli.py", "raykd/recipe/recipe.py", "raykd/training/loop.py", "raykd/cluster/train.py"}
    assert known | {"raykd/engines/vllm.py", "raykd/losses/tokens.py", "pipelines/mckd.py"} <= modules.keys()
    assert any(within(name, "ray") for name in modules["raykd/cluster/train.py"])
    assert any(within(name, "vllm") for name in modules["raykd/engines/vllm.py"])
    assert any(within(name, "raykd.stages") for name in modules["pipelines/mckd.py"])


@pytest.mark.parametrize(
    "file, line, rule",
    [
        ("raykd/data/rows.py", "import ray.data", "ray"),
        ("raykd/stages/label.py", "def f():\n    from ray import train", "ray"),
        ("raykd/store/store.py", "import importlib\nimportlib.import_module('ray')", "ray"),
        ("raykd/cluster/generate.py", "from vllm import LLM", "vllm"),
        ("raykd/losses/tokens.py", "from raykd.training import batches", "losses"),
        ("raykd/losses/tokens.py", "from ..recipe import Recipe", "losses"),
        ("raykd/losses/tokens.py", "import transformers", "losses"),
        ("raykd/metrics/edit.py", "import torch.nn", "pure"),
        ("raykd/data/tasks/slots.py", "from torch import Tensor", "pure"),
        ("raykd/recipe/losses.py", "from torch import Tensor", "pure"),
        ("raykd/recipe/models.py", "def f():\n    import transformers", "pure"),
        ("raykd/training/loop.py", "from raykd.cluster import train", "training"),
        ("raykd/training/setup.py", "from raykd import helper", "training"),
        ("pipelines/mckd.py", "from raykd import cluster", "pipelines"),
        ("pipelines/mckd.py", "import numpy", "pipelines"),
        ("raykd/stages/train.py", "from pipelines import mckd", "cli"),
        ("tune_spaces/sizes.py", "import pipelines.distill", "cli"),
    ],
)
def test_a_breach_is_found(tmp_path, file, line, rule):
    for name, text in {
        "raykd/helper.py": "import raykd.cluster.train",
        "raykd/cluster/train.py": "import ray",
        file: line,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = violations(tmp_path)
    assert [breach for breach in found if breach.startswith(f"{file}: ") and breach.endswith(f"({rule})")], found


def test_what_is_allowed_is_not_a_breach(tmp_path):
    for name, text in {
        "raykd/cluster/train.py": "import ray\nfrom raykd.training import loop",
        "raykd/training/loop.py": "import torch\nfrom raykd.recipe import recipe",
        "raykd/losses/tokens.py": "import math\nimport torch\nfrom raykd.losses import sparse\nfrom . import sparse",
        "pipelines/mckd.py": "import json\nfrom pipelines import distill\nfrom raykd.run.session import Session",
        "raykd/cli.py": "from pipelines import mckd",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
