"""A space: what a sweep searches, its goal, how its trials are drawn, and which are stopped early.

A space is a Python file with

    SPACE      recipe field -> a domain of ray.tune, or a value that every trial has;
               or a name -> {choice: another such mapping}: a trial has one of them, and no other's fields
    GOAL       {metric, direction}, or a list of them; default: the first of the student's dev_metrics, else dev_loss
    SEARCH     {kind: grid | random | optuna, ...}; default: 8 at random
    SCHEDULER  {kind: none | asha | pbt, ...}; default: asha

A point is what one trial was given: {field or name of a choice: value}. Domains are used as ray.tune made them; nothing
here imports Ray.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from raykd.errors import RecipeError
from raykd.metrics import lower_is_better
from raykd.recipe.load import changed_recipe
from raykd.recipe.recipe import Recipe
from raykd.recipe.section import Section

FIELD = re.compile(r"\w+(\.\w+)+")
AT_THE_END = {"parameters": "min", "prediction_seconds": "min"}  # what only a finished trial can say, and what is better
WHILE_TRAINING = re.compile(
    r"student\.training\.(learning_rate|weight_decay|max_grad_norm|losses\..+)"
)  # pbt may change
Point = dict[str, Any]


class Goal(Section):
    """What is searched for."""

    metric: str | None = Field(
        default=None,
        description="dev_loss, one of student.training.dev_metrics, parameters, or prediction_seconds: of a test input",
    )
    direction: Literal["min", "max"] | None = Field(default=None, description="default: as the metric's name has it")


class Grid(Section):
    """Every combination; all domains are choices."""

    kind: Literal["grid"]
    concurrent: int | None = Field(default=None, ge=1, description="trials at a time; default: as many as fit")


class Random(Section):
    """Points drawn at random, by the recipe's seed."""

    kind: Literal["random"]
    trials: int = Field(default=8, ge=1)
    concurrent: int | None = Field(default=None, ge=1, description="trials at a time; default: as many as fit")


class Optuna(Section):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); several goals make a front."""

    kind: Literal["optuna"]
    trials: int = Field(default=16, ge=1)
    concurrent: int | None = Field(default=None, ge=1, description="trials at a time; default: as many as fit")


class NoScheduler(Section):
    """Every trial is trained to its end."""

    kind: Literal["none"]


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2018); with several brackets, Hyperband."""

    kind: Literal["asha"]
    grace: float = Field(default=25, gt=0, lt=100, description="percent of its training before a trial may be stopped")
    reduction: float = Field(default=2, gt=1, description="one of so many goes on at each rung")
    brackets: int = Field(default=1, ge=1)


class Pbt(Section):
    """Population-based training (Jaderberg et al. 2017): a bad trial goes on from a good one's checkpoint."""

    kind: Literal["pbt"]
    every: float = Field(default=20, gt=0, lt=100, description="percent of the training between two comparisons")
    share: float = Field(default=0.25, gt=0, le=0.5, description="of the trials that copies, and that is copied")


Search = Annotated[Grid | Random | Optuna, Field(discriminator="kind")]
Scheduler = Annotated[NoScheduler | Asha | Pbt, Field(discriminator="kind")]


@dataclass(frozen=True)
class Space:
    """A space as its file has it."""

    name: str
    fields: dict[str, Any]
    goals: tuple[Goal, ...]
    search: Grid | Random | Optuna
    scheduler: NoScheduler | Asha | Pbt
    source: str


def load_space(path: Path) -> Space:
    """The space in a file. Raises RecipeError, in one line."""
    module = _module(path)
    fields = getattr(module, "SPACE", None)
    if not isinstance(fields, dict) or not fields:
        raise RecipeError(f"{path}: SPACE: expected a mapping of recipe fields, found {fields!r:.40}")
    given = getattr(module, "GOAL", {})
    goals = [_section(path, "GOAL", Goal, one) for one in (given if isinstance(given, list) else [given])]
    search = _section(path, "SEARCH", Search, getattr(module, "SEARCH", {"kind": "random"}))
    scheduler = _section(path, "SCHEDULER", Scheduler, getattr(module, "SCHEDULER", {"kind": "asha"}))
    space = Space(path.stem, fields, tuple(goals), search, scheduler, path.read_text(encoding="utf-8"))
    _known_shape(path, fields)
    return space


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"raykd_space_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RecipeError(f"{path}: no such space")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of any kind: it is a person's Python
        raise RecipeError(
            f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from None
    return module


def _section(path: Path, name: str, kind: Any, given: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        one = error.errors()[0]
        at = ".".join([name, *(str(part) for part in one["loc"] if part not in ("grid", "random", "optuna", "asha"))])
        raise RecipeError(f"{path}: {at}: {one['msg']}, found {one.get('input')!r:.60}") from None


def _known_shape(path: Path, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if FIELD.fullmatch(name) or name in Recipe.model_fields:
            continue
        if not isinstance(value, dict) or not value or not all(isinstance(part, dict) for part in value.values()):
            raise RecipeError(f"{path}: SPACE.{name}: expected a recipe field, or a name with {{choice: fields}}")
        for part in value.values():
            _known_shape(path, part)


def is_domain(value: Any) -> bool:
    """Whether it is a domain of ray.tune."""
    return callable(getattr(value, "sample", None)) and hasattr(value, "domain_str")


def _is_choice(name: str) -> bool:
    return not (FIELD.fullmatch(name) or name in Recipe.model_fields)


def made(fields: dict[str, Any], pick: Callable[[str, Any], Any]) -> Point:
    """A point: `pick(name, domain or list of choices)` says each value; a choice's fields follow it."""
    point: Point = {}
    for name, value in fields.items():
        if _is_choice(name):
            point[name] = pick(name, list(value))
            point |= made(value[point[name]], pick)
        elif is_domain(value):
            point[name] = pick(name, value)
    return point


def drawn(space: Space, seed: int) -> list[Point]:
    """The points of a grid or random search, in order."""
    if isinstance(space.search, Grid):
        return list(_grid(space.name, space.fields))
    assert isinstance(space.search, Random)
    random = np.random.default_rng([seed, 41])

    def pick(_: str, domain: Any) -> Any:
        if isinstance(domain, list):
            return domain[random.integers(len(domain))]
        value = domain.sample(random_state=np.random.default_rng(random.integers(2**32)))
        return value.item() if isinstance(value, np.generic) else value

    return [made(space.fields, pick) for _ in range(space.search.trials)]


def _grid(space: str, fields: dict[str, Any]) -> Iterator[Point]:
    ways: list[list[Point]] = []
    for name, value in fields.items():
        if _is_choice(name):
            ways.append([{name: choice, **rest} for choice, part in value.items() for rest in _grid(space, part)])
        elif is_domain(value):
            if not hasattr(value, "categories"):
                raise RecipeError(f"{space}: SPACE.{name}: a grid needs choices, found {value.domain_str}")
            ways.append([{name: one} for one in value.categories])
    for combined in itertools.product(*ways):
        yield {name: value for part in combined for name, value in part.items()}


def changes(fields: dict[str, Any], point: Point) -> dict[str, Any]:
    """What a point sets: recipe field -> value, in the order in which they are set."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if _is_choice(name):
            found |= changes(value[point[name]], point)
        else:
            found[name] = point[name] if is_domain(value) else value
    return found


def recipe_of(space: Space, recipe: Recipe, point: Point) -> Recipe:
    """The recipe of a trial. Raises RecipeError, which names the space and the field."""
    return changed_recipe(recipe, changes(space.fields, point), f"{space.name}: SPACE")


def all_of(space: Space, recipe: Recipe) -> tuple[list[Point], Recipe]:
    """Every point that is known from the start, none of a search that learns; and what to ask the teacher first.

    That is the recipe of the trial that asks most of it: probabilities, then samples; others read from its answers.
    Raises RecipeError where a point, or one of some of a search that learns, is no recipe.
    """
    learns = isinstance(space.search, Optuna)
    tried = replace(space, search=Random(kind="random", trials=32)) if learns else space
    points = drawn(tried, recipe.seed)
    made = [recipe_of(space, recipe, point) for point in points]

    def asks(one: Recipe) -> tuple[bool, int]:
        training = one.student.training
        return training.needs_teacher() and training.teacher.kind == "store", one.teacher.sampling.n

    return [] if learns else points, max(made, key=asks)


def goals(space: Space, recipe: Recipe) -> list[tuple[str, str]]:
    """(metric, min or max) of each goal. Raises RecipeError for what nobody reports, or cannot be compared."""
    training = recipe.student.training
    reported = ["dev_loss", *training.dev_metrics]
    losses_differ = any(name.startswith("student.training.losses") for name in _all_fields(space.fields))
    found = []
    for goal in space.goals:
        metric = goal.metric or (training.dev_metrics or ["dev_loss"])[0]
        if metric not in [*reported, *AT_THE_END]:
            raise RecipeError(
                f"{space.name}: GOAL.metric: nobody reports {metric!r}; known: {', '.join([*reported, *AT_THE_END])}"
                " (student.training.dev_metrics adds others)"
            )
        if metric == "dev_loss" and losses_differ:
            raise RecipeError(
                f"{space.name}: GOAL.metric: dev_loss says nothing where losses differ: "
                "give one of student.training.dev_metrics"
            )
        usual = AT_THE_END.get(metric) or ("min" if lower_is_better(metric) else "max")
        found.append((metric, goal.direction or usual))
    _scheduler_serves(space, [metric for metric, _ in found])
    return found


def _scheduler_serves(space: Space, metrics: list[str]) -> None:
    kind = space.scheduler.kind
    if len(metrics) > 1 and not isinstance(space.search, Optuna):
        raise RecipeError(f"{space.name}: GOAL: several goals need SEARCH of kind optuna, found {space.search.kind}")
    if kind != "none" and len(metrics) > 1:
        raise RecipeError(
            f"{space.name}: SCHEDULER: several goals have no order to stop by: expected none, found {kind}"
        )
    if kind != "none" and metrics[0] in AT_THE_END:
        raise RecipeError(
            f"{space.name}: SCHEDULER: {metrics[0]} is known only at the end: expected none, found {kind}"
        )
    if kind != "pbt":
        return
    if isinstance(space.search, Optuna):
        raise RecipeError(
            f"{space.name}: SCHEDULER: pbt chooses by itself: SEARCH of kind random or grid, found optuna"
        )
    for name, value in space.fields.items():
        if _is_choice(name) or is_domain(value) and not WHILE_TRAINING.fullmatch(name):
            raise RecipeError(
                f"{space.name}: SPACE.{name}: pbt changes it while a student trains: expected learning_rate, "
                "weight_decay, max_grad_norm or a field of losses, of student.training"
            )


def _all_fields(fields: dict[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if _is_choice(name):
            for part in value.values():
                yield from _all_fields(part)
        else:
            yield name


def said(point: Point) -> str:
    """A point in one line: the last part of each field, and its value."""
    short = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in point.items()}
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in short.items())
