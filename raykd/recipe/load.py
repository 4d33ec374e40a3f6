"""TODO: docstring."""

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
from raykd.recipe.recipe import Recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file, with `section.field=value` overrides; relative paths are taken from here.

    Raises RecipeError, in one line, for a missing file, broken YAML, an unknown key or a value that does not fit.
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
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{path}: {_one_line(e)}" for e in error.errors())) from None


def changed_recipe(recipe: Recipe, changes: dict[str, Any], where: str) -> Recipe:
    """The recipe with other values of `section.field`s, set in this order. Raises RecipeError, which names `where`."""
    tree = recipe.model_dump(mode="json")
    for name, value in changes.items():
        _set(tree, name, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{where}: {_one_line(e)}" for e in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default written out, and loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve_paths(recipe: Recipe) -> Recipe:
    """The same recipe with local paths made absolute, so that it means the same from any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, BaseModel):
            changes = {}
            for name in type(value).model_fields:
                old = getattr(value, name)
                new = absolute(old)
                local = name == "path" or (name == "name" and isinstance(value, DatasetRows))
                if local and "://" not in old and Path(old).exists():
                    new = str(Path(old).absolute())
                if new is not old:
                    changes[name] = new
            return value.model_copy(update=changes) if changes else value
        return value

    resolved = absolute(recipe)
    output = recipe.output if "://" in recipe.output else str(Path(recipe.output).absolute())
    return resolved.model_copy(update={"output": output})


def method_settings(method: Method) -> list[str]:
    """The numbers of a method, and what of it is not as by default, as a reader would say them."""
    numbers = {name: getattr(method, name) for name in ("partitions", "stages") if hasattr(method, name)}
    others = method.model_dump(mode="json", exclude={"kind", *numbers}, exclude_defaults=True)
    said = [f"{value} {name}" for name, value in numbers.items()]
    return said + [name if value is True else f"{name} {value}" for name, value in flatten(others).items() if name]


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Fields whose values differ and that change what a run computes, as `field: old -> new`."""
    skip: Any = {"cluster": True, "description": True, "trackers": True}
    skip |= {"student": {"push_to_hub"}, "data": {"max_bad_rows"}}
    left = flatten(old.model_dump(mode="json", exclude=skip))
    right = flatten(new.model_dump(mode="json", exclude=skip))
    names = [*left, *(name for name in right if name not in left)]
    return [f"{n}: {left.get(n)!r} -> {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]


def flatten(value: Any, at: str = "") -> dict[str, Any]:
    """Nested settings as `section.field` -> value; an empty section is a value."""
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
    """One validation error as `field: what is wrong`, with the nearest known name for an unknown key."""
    at, known = [], Recipe
    for part in error["loc"]:
        if isinstance(part, int) and get_origin(known) is list:
            at.append(str(part))
            known = get_args(known)[0]
            continue
        models = _models(known)
        tags = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tags and not any(part in m.model_fields for m in models):
            known = tags[0]  # pydantic names the chosen member of a union; a user does not
            continue
        at.append(str(part))
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if error["type"] == "extra_forbidden" and part == error["loc"][-1] and not fields:
            names = [name for m in models for name in m.model_fields]
            near = difflib.get_close_matches(str(part), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
            return f"{'.'.join(at)}: unknown key; {hint}"
        known = fields[0] if fields else None
    message = error["msg"].removeprefix("Value error, ")
    found = error.get("input")
    shown = (
        f", found {found!r}" if at and not isinstance(found, (dict, BaseModel)) and error["type"] != "missing" else ""
    )
    return f"{'.'.join(at)}: {message}{shown}" if at else message


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, list, Literal):
        return []
    return [model for part in get_args(annotation) for model in _models(part)]
