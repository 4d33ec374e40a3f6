"""A space: what a sweep searches, its goal, how its trials are drawn, and which are stopped early.

A space is a Python file with

    SPACE      recipe field -> a domain of ray.tune, or a value that every trial has;
               or a name -> {choice: another such mapping}: a trial has one choice, and the fields of no other
    GOAL       {metric, direction}, or a list of them; default: the first of the student's dev_metrics, else dev_loss
    SEARCH     {kind: grid | random | optuna, ...}; default: 8 at random
    SCHEDULER  {kind: none | asha | pbt, ...}; default: asha

A point is where a trial is in the space: {field or name of a choice: value}. Nothing here imports Ray: domains are the
objects that ray.tune gave the space's file.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from raykd.errors import RecipeError
from raykd.metrics import lower_is_better
from raykd.recipe.load import changed_recipe
from raykd.recipe.metrics import metric_kinds
from raykd.recipe.recipe import Recipe
from raykd.recipe.renamed import renamed_names
from raykd.recipe.section import Section

FIELD = re.compile(r"\w+(\.\w+)+")
AT_THE_END = {"parameters": "min", "prediction_seconds": "min"}  # metrics of finished trials alone -> better direction
# fields that pbt may change while a student trains
WHILE_TRAINING = re.compile(r"student\.training\.(learning_rate|weight_decay|max_grad_norm|losses\..+)")
KINDS = ("grid", "random", "optuna", "none", "asha", "pbt")
Point = dict[str, Any]


class Goal(Section):
    """What the search minimises or maximises."""

    metric: str | None = Field(
        default=None,
        description="dev_loss, one of student.training.dev_metrics, parameters, or prediction_seconds: of a test input",
    )
    direction: Literal["min", "max"] | None = Field(
        default=None, description="default: the better direction of the metric"
    )


class Grid(Section):
    """Every combination. All domains are choices."""

    kind: Literal["grid"]
    concurrent: int | None = Field(default=None, ge=1, description="trials at a time; default: as many as fit")


class Random(Section):
    """Points drawn at random, from the recipe's seed."""

    kind: Literal["random"]
    trials: int = Field(default=8, ge=1)
    concurrent: int | None = Field(default=None, ge=1, description="trials at a time; default: as many as fit")


class Optuna(Section):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); several goals give a Pareto front."""

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
    reduction: float = Field(default=2, gt=1, description="at each rung one trial of so many goes on")
    brackets: int = Field(default=1, ge=1)


class Pbt(Section):
    """Population-based training (Jaderberg et al. 2017): a bad trial continues from a good trial's checkpoint."""

    kind: Literal["pbt"]
    every: float = Field(default=20, gt=0, lt=100, description="percent of the training between two comparisons")
    share: float = Field(
        default=0.25, gt=0, le=0.5, description="of the trials: the worst so many copy from the best so many"
    )


Search = Annotated[Grid | Random | Optuna, Field(discriminator="kind")]
Scheduler = Annotated[NoScheduler | Asha | Pbt, Field(discriminator="kind")]


@dataclass(frozen=True)
class Space:
    """A space as its file has it. `source` is the text of the file."""

    name: str
    fields: dict[str, Any]
    goals: tuple[Goal, ...]
    search: Grid | Random | Optuna
    scheduler: NoScheduler | Asha | Pbt
    source: str


class Objective(NamedTuple):
    """A goal whose metric and direction are known."""

    metric: str
    direction: str  # min or max


class TrialPlan(NamedTuple):
    """The points of all trials, none where the search learns; and the recipe that the teacher labels by."""

    points: list[Point]
    teacher_recipe: Recipe


def load_space(path: Path) -> Space:
    """The space in a file. Raises RecipeError, in one line."""
    module = _module(path)
    fields = getattr(module, "SPACE", None)
    if not isinstance(fields, dict) or not fields:
        raise RecipeError(f"{path}: SPACE: expected a mapping of recipe fields, found {fields!r:.40}")
    goal = getattr(module, "GOAL", {})
    goals = [_section(path, "GOAL", Goal, value) for value in (goal if isinstance(goal, list) else [goal])]
    search = _section(path, "SEARCH", Search, getattr(module, "SEARCH", {"kind": "random"}))
    scheduler = _section(path, "SCHEDULER", Scheduler, getattr(module, "SCHEDULER", {"kind": "asha"}))
    _check_shape(path, fields)
    return Space(
        name=path.stem,
        fields=fields,
        goals=tuple(goals),
        search=search,
        scheduler=scheduler,
        source=path.read_text(encoding="utf-8"),
    )


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"raykd_space_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RecipeError(f"{path}: no such space")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code raises any kind
        reason = str(error).splitlines()[0] if str(error) else ""
        raise RecipeError(f"{path}: {type(error).__name__}: {reason}") from None
    return module


def _section(path: Path, name: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([name, *(str(part) for part in first["loc"] if part not in KINDS)])
        raise RecipeError(f"{path}: {field}: {first['msg']}, found {first.get('input')!r:.60}") from None


def _check_shape(path: Path, fields: dict[str, Any]) -> None:
    """Raise RecipeError for a name that is neither a recipe field nor has choices."""
    for name, value in fields.items():
        if not _is_choice(name):
            continue
        if old_names := renamed_names({name: None}):
            raise RecipeError(f"{path}: SPACE.{old_names[0]}")
        if not isinstance(value, dict) or not value or not all(isinstance(part, dict) for part in value.values()):
            raise RecipeError(f"{path}: SPACE.{name}: expected a recipe field, or a name with {{choice: fields}}")
        for part in value.values():
            _check_shape(path, part)


def is_domain(value: Any) -> bool:
    """Whether a value is a domain of ray.tune."""
    return callable(getattr(value, "sample", None)) and hasattr(value, "domain_str")


def _is_choice(name: str) -> bool:
    """Whether a name of a space is no recipe field."""
    return not (FIELD.fullmatch(name) or name in Recipe.model_fields)


def build_point(fields: dict[str, Any], pick: Callable[[str, Any], Any]) -> Point:
    """A point. `pick(name, domain or list of choices)` returns each value; the fields of a choice come after it."""
    point: Point = {}
    for name, value in fields.items():
        if _is_choice(name):
            point[name] = pick(name, list(value))
            point |= build_point(value[point[name]], pick)
        elif is_domain(value):
            point[name] = pick(name, value)
    return point


def draw_points(space: Space, seed: int) -> list[Point]:
    """The points of a grid or random search, in order. Raises RecipeError for a grid over what is no choice."""
    if isinstance(space.search, Grid):
        return list(_grid(space.name, space.fields))
    assert isinstance(space.search, Random)
    random = np.random.default_rng([seed, 41])

    def pick(_: str, domain: Any) -> Any:
        if isinstance(domain, list):
            return domain[random.integers(len(domain))]
        value = domain.sample(random_state=np.random.default_rng(random.integers(2**32)))
        return value.item() if isinstance(value, np.generic) else value

    return [build_point(space.fields, pick) for _ in range(space.search.trials)]


def _grid(space: str, fields: dict[str, Any]) -> Iterator[Point]:
    parts: list[list[Point]] = []  # for each field or choice, what it can add to a point
    for name, value in fields.items():
        if _is_choice(name):
            parts.append([{name: choice, **rest} for choice, part in value.items() for rest in _grid(space, part)])
        elif is_domain(value):
            if not hasattr(value, "categories"):
                raise RecipeError(f"{space}: SPACE.{name}: a grid needs choices, found {value.domain_str}")
            parts.append([{name: category} for category in value.categories])
    for combination in itertools.product(*parts):
        yield {name: value for part in combination for name, value in part.items()}


def changed_fields(fields: dict[str, Any], point: Point) -> dict[str, Any]:
    """The recipe fields that a point sets, and their values, in the order in which they are set."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if _is_choice(name):
            values |= changed_fields(value[point[name]], point)
        else:
            values[name] = point[name] if is_domain(value) else value
    return values


def trial_recipe(space: Space, recipe: Recipe, point: Point) -> Recipe:
    """The recipe of a point's trial. Raises RecipeError, which names the space and the field."""
    return changed_recipe(recipe, changed_fields(space.fields, point), f"{space.name}: SPACE")


def plan_trials(space: Space, recipe: Recipe) -> TrialPlan:
    """The points of a grid or random search, and the recipe of the trial that needs most of the teacher.

    Most is: probabilities, then the number of samples. The teacher labels by that recipe, and the other trials read
    what it wrote. For a search that learns, that recipe is one of 32 random points', and there are no points yet.
    Raises RecipeError where the recipe of one of the points is not right.
    """
    learns = isinstance(space.search, Optuna)
    drawn_from = replace(space, search=Random(kind="random", trials=32)) if learns else space
    points = draw_points(drawn_from, recipe.seed)
    recipes = [trial_recipe(space, recipe, point) for point in points]

    def demand(trial: Recipe) -> tuple[bool, int]:
        training = trial.student.training
        return training.reads_store(), trial.teacher.sampling.n

    return TrialPlan([] if learns else points, max(recipes, key=demand))


def resolve_goals(space: Space, recipe: Recipe) -> list[Objective]:
    """Metric and direction of each goal.

    Raises RecipeError for a metric that no trial reports, one that trials cannot be compared by, and a scheduler that
    does not go with the goals.
    """
    dev_metrics = metric_kinds(recipe.student.training.dev_metrics)
    reported = ["dev_loss", *dev_metrics]
    losses_differ = any(name.startswith("student.training.losses") for name in _all_fields(space.fields))
    objectives = []
    for goal in space.goals:
        metric = goal.metric or (dev_metrics or ["dev_loss"])[0]
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
        better = AT_THE_END.get(metric) or ("min" if lower_is_better(metric) else "max")
        objectives.append(Objective(metric, goal.direction or better))
    _check_scheduler(space, [objective.metric for objective in objectives])
    return objectives


def _check_scheduler(space: Space, metrics: list[str]) -> None:
    """Raise RecipeError for a scheduler that does not go with the search or the metrics of the goals."""
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
    """The recipe fields of a space, those of every choice too."""
    for name, value in fields.items():
        if _is_choice(name):
            for part in value.values():
                yield from _all_fields(part)
        else:
            yield name


def point_line(point: Point) -> str:
    """A point in one line: the last part of each field's name, and its value."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in point.items()}
    return ", ".join(f"{name.rpartition('.')[2]} {text}" for name, text in texts.items())
