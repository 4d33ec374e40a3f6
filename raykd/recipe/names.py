"""Names in a recipe: of metrics, of formats, of functions `module:NAME`, and of methods' pages.

A field that holds such a name has a type of this file, as `kind: MetricName`. `require_names` finds every field of such
a type and checks its name without importing anything; `load` imports what a name is of.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, Field

from raykd.errors import RecipeError
from raykd.recipe import modules

SHOWN = 20  # known names that a message lists, at most
LONGEST = 500  # characters of a message about two names


@dataclass(frozen=True)
class Kind:
    """A kind of names.

    word     what has such a name, in messages
    package  the package of raykd whose files each end with a literal dict of names; None: only `module:NAME`
    table    the name of that dict
    further  names that are in no file
    other    a name without a colon is another's, which is checked elsewhere
    """

    word: str
    package: str | None = None
    table: str = ""
    further: tuple[str, ...] = ()
    other: bool = False


METRIC = Kind("metric", "raykd.metrics", "METRICS")
FORMAT = Kind("format", "raykd.data.tasks", "FORMATS", ("labels",))
FUNCTION = Kind("function")
SAMPLER = Kind("sampler", other=True)
PAGE = Kind("page")  # a module, without a colon

MetricName = Annotated[str, METRIC]
FormatName = Annotated[str, FORMAT]
FunctionName = Annotated[str, Field(pattern=rf"^{modules.FUNCTION.pattern}$"), FUNCTION]
SourceName = Annotated[str, SAMPLER]  # of sequences: a sampler module:NAME, or one of raykd's own sources
PageName = Annotated[str, Field(pattern=rf"^{modules.MODULE.pattern}$"), PAGE]
PAGE_NAMES = ("run", "labels", "teacher", "STUDENT", "ARM")  # what a method's page has


class NamedField(NamedTuple):
    """A field of a recipe that holds a name."""

    path: str
    kind: Kind
    name: str


def named_fields(value: Any, path: str = "") -> Iterator[NamedField]:
    """Every field of a section, and of the sections in it, that holds a name; `path` is where the section stands."""
    for name, field in type(value).model_fields.items():
        yield from _named(getattr(value, name), (field.annotation, *field.metadata), f"{path}.{name}" if path else name)


@cache
def known_names(kind: Kind) -> dict[str, str]:
    """name -> module that has it, for all names of this kind that come with raykd; in the order of the files."""
    package = kind.package and modules.find_module(kind.package)
    if not package:
        return {}
    files = [package, *sorted(file for file in package.parent.glob("*.py") if file != package)]
    return {name: f"{kind.package}.{file.stem}" for file in files for name in modules.literal(file, kind.table)}


def require_names(recipe: Any, where: str = "") -> None:
    """Check every name in a recipe. Raises RecipeError, in one line that begins with `where`, for wrong ones."""
    folder = recipe.modules
    problems = [require_modules(folder)] if folder else []
    if not any(problems):
        beside = folder or (str(Path(where).absolute().parent) if where else None)
        problems = [name_problem(field.path, field.kind, field.name, beside) for field in named_fields(recipe)]
    wrong = [problem for problem in problems if problem]
    if wrong:
        two = "; ".join(wrong[:2])
        raise RecipeError((f"{where}: " if where else "") + (two if len(two) < LONGEST else wrong[0]))


def require_modules(folder: str) -> str | None:
    """Why a folder cannot be that of a recipe's own modules, in one line; None if it can."""
    if not Path(folder).is_dir():
        return f"modules: {folder}: no such folder; give modules=FOLDER, where the recipe's own modules are"
    path = modules.shadowing(folder)
    return path and f"modules: {path}: a standard or installed module has the name {path.stem}: rename this one"


def name_problem(path: str, kind: Kind, name: str, folder: str | None = None) -> str | None:
    """What is wrong with the name in the field at `path`, in one line; None if nothing is. `folder`: own modules."""
    if kind is PAGE:
        return next(filter(None, (_missing(path, name, wanted, folder) for wanted in PAGE_NAMES)), None)
    if name in known_names(kind) or name in kind.further:
        return None
    if ":" not in name:
        return None if kind.other else f"{path}: {_unknown(kind, name)}"
    if not modules.FUNCTION.fullmatch(name):
        return f"{path}: expected module:NAME, found {name!r:.100}"
    module, _, wanted = name.partition(":")
    return _missing(path, module, wanted, folder)


def load(kind: Kind, name: str, path: str) -> Any:
    """What has this name, imported; `path` is the field that names it, for messages.

    Raises RecipeError for a name that is not known, a module that cannot be imported, and a NAME that it lacks.
    """
    module = known_names(kind).get(name)
    if module:
        return getattr(importlib.import_module(module), kind.table)[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise RecipeError(f"{path}: {_unknown(kind, name)}")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # of the user's own module: whatever its code raises
        first = (str(error).splitlines() or [""])[0]
        raise RecipeError(f"{path}: {name}: {type(error).__name__}: {first}") from None
    if not hasattr(imported, attribute):
        raise RecipeError(f"{path}: {name}: {module} has no {kind.word} {attribute}")
    return getattr(imported, attribute)


def code_digests(section: BaseModel, folder: str | None) -> dict[str, dict[str, str]]:
    """{"code": {name: hash of its module}} for the names in a section that are of the recipe's own modules, else {}.

    It is part of the inputs of a stage whose results these functions decide: a changed function is noticed.
    """
    return own_code([field.name for field in named_fields(section)], folder)


def own_code(names: list[str], folder: str | None) -> dict[str, dict[str, str]]:
    """As `code_digests`, of these names."""
    digests = {name: modules.code_digest(name.partition(":")[0], folder) for name in names if ":" in name}
    own = {name: digest for name, digest in digests.items() if digest}
    return {"code": own} if own else {}


def code_of(recipe: Any, *paths: str) -> dict[str, dict[str, str]]:
    """As `code_digests`, of the names below these paths of a recipe, as `metrics`."""
    fields = named_fields(recipe)
    names = [field.name for field in fields if any(field.path.startswith(f"{path}.") for path in paths)]
    return own_code(names, recipe.modules)


def own_modules(recipe: Any) -> list[Path]:
    """The files and packages of the recipe's own modules that its names need, for processes on other machines."""
    folder = recipe.modules
    names = {name.partition(":")[0] for _, kind, name in named_fields(recipe) if ":" in name or kind is PAGE}
    return modules.shipped(names, folder)


def _named(value: Any, annotations: tuple[Any, ...], path: str) -> Iterator[NamedField]:
    """The names in a value whose type is the first annotation; the others are what `Annotated` says of it."""
    annotation, *about = annotations
    if get_origin(annotation) is Annotated:
        yield from _named(value, (*get_args(annotation), *about), path)
    elif isinstance(value, BaseModel):
        yield from named_fields(value, path)
    elif isinstance(value, str):
        kinds = [mark for mark in about if isinstance(mark, Kind)]
        yield from (NamedField(path, kind, value) for kind in kinds)
        for part in () if kinds else get_args(annotation):
            yield from _named(value, (part,), path)
    elif isinstance(value, list | tuple):
        item = next(iter(get_args(_member(annotation, list, tuple))), Any)
        for number, part in enumerate(value):
            yield from _named(part, (item,), f"{path}.{number}")
    elif isinstance(value, dict):
        key_type, value_type = get_args(_member(annotation, dict)) or (Any, Any)
        for key, part in value.items():
            yield from _named(key, (key_type,), path)
            yield from _named(part, (value_type,), f"{path}.{key}")


def _member(annotation: Any, *origins: type) -> Any:
    """The member of a union that is of one of these types; the annotation itself where it is no union."""
    if get_origin(annotation) in origins:
        return annotation
    return next((part for part in get_args(annotation) if get_origin(part) in origins), annotation)


def _unknown(kind: Kind, name: str) -> str:
    known = [*known_names(kind), *kind.further]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    more = ", ..." if len(known) > SHOWN else ""
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:SHOWN])}{more}, or module:NAME"
    return f"unknown {kind.word} {name!r:.100}; {hint}"


def _missing(path: str, module: str, wanted: str, folder: str | None) -> str | None:
    """Why a module has nothing of this name, in one line; None where it has, or where only importing it would tell."""
    named = f"{path}: {module}:{wanted}"
    file = modules.find_module(module, folder)
    if file is None:
        beside = sorted(file.stem for file in Path(folder).glob("*.py")) if folder else []
        near = difflib.get_close_matches(module, beside, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{named:.200}: no module {module:.100} beside the recipe or on Python's path{hint}"
    try:
        names = modules.top_level_names(file) if file.suffix == ".py" else None
    except SyntaxError as error:
        return f"{named:.200}: {file}:{error.lineno}: not Python: {error.msg}"
    if names is None or wanted in names or modules.find_module(f"{module}.{wanted}", folder):
        return None
    near = difflib.get_close_matches(wanted, sorted(names), n=1, cutoff=0.5)
    return f"{named:.200}: {file.name} has no {wanted}" + (f"; did you mean {near[0]}?" if near else "")
