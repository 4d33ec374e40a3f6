"""Reading and writing recipes: YAML, overrides, differences, and every error in one line."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from raykd.errors import RecipeError
from raykd.recipe.data import DatasetRows
from raykd.recipe.messages import FIELD, VALUE, one_message, shortened
from raykd.recipe.methods import Method
from raykd.recipe.modules import names_a_module_of
from raykd.recipe.recipe import Recipe
from raykd.recipe.renamed import renamed_names

NESTED = "sections are nested too deeply, or hold themselves"


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
        raise RecipeError(f"{where}: not YAML: {shortened(str(getattr(error, 'problem', error)), VALUE)}") from None
    except (ValueError, OverflowError, RecursionError) as error:  # a date that does not exist, thousands of brackets
        raise RecipeError(f"{path}: not YAML: {shortened(str(error), VALUE)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    for text in overrides or []:
        _override(tree, text)
    try:
        own = tree.get("modules") is None and names_a_module_of(tree, path.absolute().parent)
    except RecursionError:
        raise RecipeError(f"{path}: {NESTED}") from None
    if own:
        tree["modules"] = str(path.absolute().parent)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """The recipe in nested settings, as YAML or JSON has them.

    Raises RecipeError, in one line that names `where` they are from, for names that recipes had before and for what
    does not fit.
    """
    try:
        lines = renamed_names(tree) or list(_unusable(tree))
        if not lines:
            return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_one_line(details) for details in error.errors() if not _of_another_member(details)]
    except RecursionError:
        lines = [NESTED]
    raise RecipeError(one_message(where, lines))


def _unusable(value: Any, at: str = "") -> Iterator[str]:
    """A line for each key that is no text, and for each value that a recipe cannot hold, at any depth."""
    if isinstance(value, dict):
        for key, part in value.items():
            name = f"{at}.{key}" if at else str(key)
            if not isinstance(key, str) and at.rpartition(".")[2] != "logit_bias":
                yield f"{shortened(name, FIELD)}: expected a name, found {shortened(repr(key), VALUE)}"
            else:
                yield from _unusable(part, name)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _unusable(part, f"{at}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{shortened(at, FIELD)}: expected a finite number, found {value}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        yield f"{shortened(at, FIELD)}: expected a number of 64 bits"
    elif isinstance(value, str) and (reason := _unusable_text(value)):
        yield f"{shortened(at, FIELD)}: {reason}"
    elif value is not None and not isinstance(value, str | int | float):
        yield f"{shortened(at, FIELD)}: expected text, found {type(value).__name__} {shortened(str(value), VALUE)}"


def _unusable_text(text: str) -> str:
    """Why a text cannot be in a recipe; empty if it can."""
    if "\0" in text:
        return "a text holds no NUL"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not UTF-8 at character {error.start + 1}"
    return ""


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
                local = name == "path" or (name, type(value)) in (("modules", Recipe), ("name", DatasetRows))
                # os.path.exists is False too for a name that is too long
                if local and old is not None and "://" not in old and os.path.exists(old):
                    new = str(Path(old).absolute())
                if new is not old:
                    changes[name] = new
            return value.model_copy(update=changes) if changes else value
        if isinstance(value, dict):
            parts = {name: absolute(part) for name, part in value.items()}
            return parts if any(parts[name] is not value[name] for name in value) else value
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
    shown = shortened(repr(text), VALUE)
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise RecipeError(f"override {shown}: expected section.field=value")
    try:
        _set(tree, name, yaml.safe_load(value))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        raise RecipeError(f"override {shown}: the value is not YAML") from None


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
        if part == "[key]":  # the name before it is what is wrong
            continue
        annotation = _without_none(annotation)
        container = _container(annotation)
        if container is not None:
            names.append(str(part))
            annotation = get_args(container)[-1]
            continue
        models = _models(annotation)
        by_kind = _tagged(annotation, part) or [
            m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)
        ]
        by_kind = by_kind or [m for m in models if m.__name__ == part]
        if part == "str" and len(get_args(annotation)) > 1:
            continue
        if by_kind and not any(part in m.model_fields for m in models):
            annotation = by_kind[0]  # pydantic names the member of a union; a user does not
            continue
        names.append(str(part))
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if error["type"] == "extra_forbidden" and part == error["loc"][-1] and not fields:
            return f"{_field(names)}: unknown key; {_hint(str(part), models)}"
        annotation = fields[0] if fields else None
    message = error["msg"].removeprefix("Value error, ")
    if not names:
        return message
    value = error.get("input")
    shows_value = not isinstance(value, (dict, BaseModel)) and error["type"] != "missing"
    return f"{_field(names)}: {message}" + (f", found {shortened(repr(value), VALUE)}" if shows_value else "")


def _of_another_member(error: Any) -> bool:
    """Whether an error only says that a section is no text, where either may stand."""
    return error["type"] == "string_type" and error["loc"][-1] == "str" and isinstance(error["input"], dict)


def _field(names: list[str]) -> str:
    return shortened(".".join(names), FIELD)


def _without_none(annotation: Any) -> Any:
    """The type of a field that may be left out."""
    others = [part for part in get_args(annotation) if part is not type(None)]
    return others[0] if len(others) == 1 and len(get_args(annotation)) == 2 else annotation


def _tagged(annotation: Any, tag: Any) -> list[type[BaseModel]]:
    """The member of a union that has this tag."""
    members = [member for union in get_args(annotation) for member in get_args(union)]
    marks = ((member, getattr(member, "__metadata__", ())) for member in members)
    return [
        m for member, data in marks if any(isinstance(t, Tag) and t.tag == tag for t in data) for m in _models(member)
    ]


def _hint(key: str, models: list[type[BaseModel]]) -> str:
    """The key that a user may have meant, or all keys that are known there."""
    known = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _container(annotation: Any) -> Any:
    """The type of a list or mapping that a field of this type may be; None if it is neither."""
    if get_origin(annotation) in (dict, list):
        return annotation
    if isinstance(annotation, type) or get_origin(annotation) is Literal:
        return None
    return next((found for found in map(_container, get_args(annotation)) if found is not None), None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, list, Literal):
        return []
    return [model for part in get_args(annotation) for model in _models(part)]
