"""Reading and writing recipes: YAML, overrides, differences, and every error in one line."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raykd.errors import RecipeError
from raykd.recipe.data import DatasetRows
from raykd.recipe.methods import Method
from raykd.recipe.modules import names_a_module_of
from raykd.recipe.recipe import Recipe
from raykd.recipe.renamed import renamed_names


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file, changed by overrides, each `section.field=value`. Relative paths stay as they are.

    If it names a module in its own folder, and says no folder of modules, that is its `modules`. Raises RecipeError, in
    one line that names the file, for a missing file, broken YAML, an unknown key, a name that
    recipes had before, or a value that does not fit.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    for text in overrides or []:
        _override(tree, text)
    if tree.get("modules") is None and names_a_module_of(tree, path.absolute().parent):
        tree["modules"] = str(path.absolute().parent)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """The recipe in nested settings, as YAML or JSON has them.

    Raises RecipeError, in one line that names `where` they are from, for names that recipes had before and for what
    does not fit.
    """
    old_names = renamed_names(tree)
    if old_names:
        raise RecipeError(f"{where}: {'; '.join(old_names)}")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{where}: {_one_line(details)}" for details in error.errors())) from None


def changed_recipe(recipe: Recipe, changes: dict[str, Any], where: str) -> Recipe:
    """The recipe with other values of some fields: `section.field` -> value, set in this order.

    Raises RecipeError, in one line that names `where` the changes are from.
    """
    tree = recipe.model_dump(mode="json")
    for name, value in changes.items():
        _set(tree, name, value)
    return parse_recipe(tree, where)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out. Loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve_paths(recipe: Recipe) -> Recipe:
    """The same recipe with absolute local paths, so that it means the same in any working folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, BaseModel):
            changes = {}
            for name in type(value).model_fields:
                old = getattr(value, name)
                new = absolute(old)
                local = name in ("path", "modules") or (name == "name" and isinstance(value, DatasetRows))
                if local and old is not None and "://" not in old and Path(old).exists():
                    new = str(Path(old).absolute())
                if new is not old:
                    changes[name] = new
            return value.model_copy(update=changes) if changes else value
        return value

    resolved = absolute(recipe)
    output = recipe.output if "://" in recipe.output else str(Path(recipe.output).absolute())
    return resolved.model_copy(update={"output": output})


def method_settings(method: Method) -> list[str]:
    """The settings of a method in words: its numbers, such as "2 partitions", then what differs from the defaults."""
    numbers = {name: getattr(method, name) for name in ("partitions", "stages") if hasattr(method, name)}
    others = method.model_dump(mode="json", exclude={"kind", *numbers}, exclude_defaults=True)
    words = [f"{value} {name}" for name, value in numbers.items()]
    return words + [name if value is True else f"{name} {value}" for name, value in flatten(others).items() if name]


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Fields with different values, as `field: old -> new`, without those that do not change what a run computes."""
    skip: Any = {"cluster": True, "description": True, "modules": True, "trackers": True}
    skip |= {"student": {"push_to_hub"}, "data": {"max_bad_rows"}}
    left = flatten(old.model_dump(mode="json", exclude=skip))
    right = flatten(new.model_dump(mode="json", exclude=skip))
    names = [*left, *(name for name in right if name not in left)]
    return [f"{n}: {left.get(n)!r} -> {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """Nested settings as `section.field` -> value. An empty section is a value of its own."""
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in flatten(part, f"{at}.{key}" if at else key).items()}
    return {at: value}


def _override(tree: dict, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise RecipeError(f"override {text!r}: expected section.field=value")
    try:
        _set(tree, name, yaml.safe_load(value))
    except yaml.YAMLError:
        raise RecipeError(f"override {text!r}: the value is not YAML") from None


def _set(tree: dict, name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise RecipeError(f"{name}: {section} is no section")
    tree[field] = value


def _one_line(error: Any) -> str:
    """One error of pydantic as `field: reason`, with the nearest known name for an unknown key."""
    names: list[str] = []  # of the field, as a user writes it
    annotation: Any = Recipe
    for part in error["loc"]:
        if isinstance(part, int) and get_origin(annotation) is list:
            names.append(str(part))
            annotation = get_args(annotation)[0]
            continue
        models = _models(annotation)
        by_kind = [
            m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)
        ]
        if by_kind and not any(part in m.model_fields for m in models):
            annotation = by_kind[0]  # pydantic names the member of a union; a user does not
            continue
        names.append(str(part))
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if error["type"] == "extra_forbidden" and part == error["loc"][-1] and not fields:
            return f"{'.'.join(names)}: unknown key; {_hint(str(part), models)}"
        annotation = fields[0] if fields else None
    message = error["msg"].removeprefix("Value error, ")
    if not names:
        return message
    value = error.get("input")
    shows_value = not isinstance(value, (dict, BaseModel)) and error["type"] != "missing"
    return f"{'.'.join(names)}: {message}" + (f", found {value!r}" if shows_value else "")


def _hint(key: str, models: list[type[BaseModel]]) -> str:
    """The key that a user may have meant, or all keys that are known there."""
    known = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, list, Literal):
        return []
    return [model for part in get_args(annotation) for model in _models(part)]
