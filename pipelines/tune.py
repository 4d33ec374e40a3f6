"""A sweep: many students that one teacher taught, and the best recipe among them.

    <output>/<recipe>-<space>/
        sweep.json                what was searched: the recipe, and the space as its file has it
        teacher/                  a run folder with what all trials share: rows, tokenizer, teacher, its answers
        control/                  a run folder: the student without a teacher
        trials/<id>/              a run folder per trial, and its trial.json, written last
        rungs.json                what the scheduler knows, where it stops trials
        tune/                     what Ray Tune keeps, and TensorBoard's event files with hyperparameters
        results.json, results.csv, best.yaml, report.md, report.html

The teacher answers once: a trial links the stages that were made from what it would make them from itself, and only a
trial that changes what the teacher must answer asks it, for what the store lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines import distill, mckd
from raykd.console import Console
from raykd.errors import RaykdError, RecipeError, RunError
from raykd.recipe import space
from raykd.recipe.load import changed_recipe, load_recipe, parse_recipe, recipe_differences, resolve_paths
from raykd.recipe.recipe import Recipe
from raykd.recipe.space import Objective, Point, Space
from raykd.report.gather import LAST, log_lines
from raykd.report.sweep import SEARCHED, TRIAL, write_sweep_report
from raykd.run.files import write_json
from raykd.run.manifests import manifests
from raykd.run.session import Session
from raykd.stages.rows import read_rows
from raykd.stages.sweep import search_space, trial_trainer, trials_at_once

METHODS: dict[str, ModuleType] = {"distill": distill, "mckd": mckd}
Report = Callable[[dict[str, float], Path | None], None]


@dataclass(frozen=True)
class Sweep:
    """What every trial must know."""

    folder: Path
    recipe: Recipe
    space: Space
    goals: list[Objective]


def run(recipe: Recipe, searched: Space, console: Console) -> dict[str, Any]:
    """Teacher, control arm, trials; what `sweep_report.write` found. The same sweep goes on where it was stopped.

    Raises RecipeError, before anything starts, for a space that does not fit the recipe.
    """
    recipe = resolve_paths(recipe)  # trials may run in other folders
    goals = space.resolve_goals(searched, recipe)
    points, teacher_recipe = space.plan_trials(searched, recipe)
    if "://" in recipe.output:
        raise RecipeError(f"output: {recipe.output}: a sweep needs a folder that every node sees, found a URL")
    folder = Path(recipe.output) / f"{recipe.name}-{searched.name}"
    _begin(folder, recipe, searched, goals)
    with ExitStack() as kept:
        kept.enter_context(console.quiet(folder / "driver.log"))
        teacher = kept.enter_context(Session(teacher_recipe, console, folder / "teacher"))
        concurrent, threads = trials_at_once(teacher, searched.search.concurrent)
        own = {"cluster.student.threads": threads}  # the best recipe says it too: another number gives another student
        sweep = Sweep(folder.absolute(), changed_recipe(recipe, own, ""), searched, goals)
        teacher = teacher.with_recipe(changed_recipe(teacher.recipe, own, ""))
        METHODS[recipe.method.kind].teacher(teacher, read_rows(teacher))
        if recipe.arms.gold_only:
            control = kept.enter_context(Session(sweep.recipe, console, folder / "control", teacher.path))
            distill.control(control)
        else:
            console.say("no control arm: arms.gold_only gives no rows for it")
        search_space(teacher, partial(trial, sweep), sweep.goals, searched, points, folder / "tune", concurrent)
    return write_sweep_report(folder)


def _begin(folder: Path, recipe: Recipe, searched: Space, goals: list[Objective]) -> None:
    """Refuse a folder of another sweep. Raises RunError."""
    file = folder / SEARCHED
    now = {"space": searched.source, "goals": goals, "recipe": recipe.model_dump(mode="json")}
    if not file.exists():
        write_json(file, now)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = recipe_differences(parse_recipe(before["recipe"], str(file)), recipe)
    if before["space"] != searched.source:
        changed.append("the space")
    if changed:
        raise RunError(f"{folder} holds another sweep ({'; '.join(changed[:3])}): give it another name, or remove it")


def trial(sweep: Sweep, name: str, point: Point, send: Report, resume: Path | None) -> None:
    """Train and score a point's student, in a process that Ray Tune started; its numbers are sent as they come.

    What a trial came to is in its trial.json, an error of raykd's as well: trying again would end the same way.
    """
    folder = sweep.folder / "trials" / name
    done = folder / TRIAL
    if done.exists():  # the sweep was killed before Ray Tune had noted it
        metrics = json.loads(done.read_text(encoding="utf-8"))["metrics"]
        return send(metrics, None) if metrics else None
    recipe = space.trial_recipe(sweep.space, sweep.recipe, point)
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "trial.log", "a", buffering=1, encoding="utf-8") as console.out:
        try:
            goal = LAST[recipe.method.kind]
            fit = trial_trainer(goal, send, resume)
            with Session(recipe, console, _run_folder(folder, recipe), sweep.folder / "teacher", fit) as made:
                METHODS[recipe.method.kind].run(made, alone=True)
            metrics = _metrics(made.path, goal, [metric for metric, _ in sweep.goals])
            result = {"point": point, "run": str(made.path), "metrics": metrics}
        except RaykdError as error:
            console.say(str(error))
            result = {"point": point, "error": str(error), "metrics": None}
        write_json(done, result)
    if result["metrics"]:
        send(result["metrics"], None)


def _run_folder(folder: Path, recipe: Recipe) -> Path:
    """The trial's run folder; another where it goes on with other settings, as population-based training has it."""
    number = 0
    while True:
        path = folder / f"run-{number}" if number else folder / "run"
        saved = path / "recipe.yaml"
        if not saved.exists() or not recipe_differences(load_recipe(saved), recipe):
            return path
        number += 1


def _metrics(folder: Path, goal: str, wanted: list[str]) -> dict[str, float]:
    """What a finished trial came to: at its chosen checkpoint, and on the test rows."""
    found = {manifest["stage"]: manifest for manifest in manifests(folder)}
    trained = found[goal]
    judged: dict[str, Any] = {}
    for line in log_lines(folder / goal / "log.jsonl"):
        if line["step"] == trained["results"]["best_step"]:
            judged |= line
    metrics = {name: value for name, value in judged.items() if name.startswith("dev_") or name in wanted}
    metrics |= {"parameters": trained["stats"]["parameters"], "progress": 100.0, "step": trained["results"]["steps"]}
    arm = goal.partition("/")[0]
    asked = found.get(f"evaluate/{arm}-predictions")
    if asked and asked["stats"]["new_rows"]:
        metrics["prediction_seconds"] = asked["stats"]["seconds"] / asked["stats"]["new_rows"]
    if f"evaluate/{arm}" in found:
        metrics |= {f"test/{name}": value for name, value in found[f"evaluate/{arm}"]["results"]["metrics"].items()}
    return metrics
