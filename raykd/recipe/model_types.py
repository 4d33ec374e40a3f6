"""The model types of the installed transformers, read from its source: importing it takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


@cache
def model_types() -> frozenset[str]:
    """The names of `transformers.AutoConfig.for_model`; empty where transformers is not installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models" / "auto"
    names: set[str] = set()
    for file in ("auto_mappings.py", "configuration_auto.py"):
        for statement in ast.parse((folder / file).read_text(encoding="utf-8")).body:
            if "CONFIG_MAPPING_NAMES" in ast.unparse(statement)[:80]:  # its mapping, and what is added to it
                names |= _names(statement)
    return frozenset(names)


def _names(statement: ast.stmt) -> set[str]:
    """The texts that stand before the name of a configuration's class, in pairs and in mappings."""
    pairs: list[tuple[ast.expr | None, ast.expr]] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Dict):
            pairs += zip(node.keys, node.values, strict=True)
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
            pairs.append((node.elts[0], node.elts[1]))
    constants = ((name, value) for name, value in pairs if isinstance(name, ast.Constant))
    return {str(name.value) for name, value in constants if isinstance(value, ast.Constant)}
