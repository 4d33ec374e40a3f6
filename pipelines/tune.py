"""A sweep: many students of one teacher, and the best recipe among them.

    <output>/<recipe>-<space>/
        sweep.json                what is searched: the recipe, the goals, and the text of the space
        teacher/                  a run folder that all trials share: rows, tokenizer, teacher, its pseudo-targets
        control/                  a run folder: the student without a teacher
        trials/<id>/              a run folder per trial, and its trial.json, written last
        rungs.json                the scheduler's memory, where it stops trials
        tune/                     what Ray Tune keeps, and TensorBoard's event files with hyperparameters
        results.json, results.csv, best.yaml, report.md, report.html

The teacher labels once: a trial links the stages whose inputs equal its own. Only a trial that changes what the teacher
labels, or how, lets it label again what the store lacks.
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

from raykd.console import Console
from raykd.errors import RaykdError, RecipeError, RunError
from raykd.recipe import space
from raykd.recipe.load import changed_recipe, load_recipe, parse_recipe, recipe_differences, resolve_paths
from raykd.recipe.methods import Method
from raykd.recipe.recipe import Recipe
from raykd.recipe.space import Objective, Point, Space
from raykd.report.gather import log_lines
from raykd.report.sweep import SEARCHED, TRIAL, write_sweep_report
from raykd.run.files import write_json
from raykd.run.manifests import manifests
from raykd.run.session import Session
from raykd.stages.arms import gold_only, score_arms
from raykd.stages.preflight import preflight
from raykd.stages.rows import read_rows
from raykd.stages.sweep import Report, SearchPlan, search_space, trial_fit, trials_at_once
from raykd.stages.train import train_students


@dataclass(frozen=True)
class Sweep:
    """What every trial must know. `method_page` returns the page of a method."""

    folder: Path
    recipe: Recipe
    space: Space
    goals: list[Objective]
    method_page: Callable[[Method], ModuleType]


def run(
    recipe: Recipe, searched: Space, console: Console, method_page: Callable[[Method], ModuleType]
) -> dict[str, Any]:
    """Teacher, control arm, trials; returns what `write_sweep_report` returns. A sweep goes on where it was stopped.

    Raises RecipeError, before anything starts, for a space that does not fit the recipe.
    """
    recipe = resolve_paths(recipe)  # trials may run in other folders
    goals = space.resolve_goals(searched, recipe)
    points, teacher_recipe = space.plan_trials(searched, recipe)
    if "://" in recipe.output:
        raise RecipeError(f"output: {recipe.output}: a sweep needs a folder that every node sees, found a URL")
    folder = Path(recipe.output) / f"{recipe.name}-{searched.name}"
    _begin(folder, recipe, searched, goals)
    with ExitStack() as opened:
        opened.enter_context(console.quiet(folder / "driver.log"))
        teacher = opened.enter_context(Session(teacher_recipe, console, folder / "teacher"))
        preflight(teacher)
        concurrent, threads = trials_at_once(teacher, searched.search.concurrent)
        own = {"cluster.student.threads": threads}  # the best recipe has it too: another number gives another student
        sweep = Sweep(
            folder=folder.absolute(),
            recipe=changed_recipe(recipe, own, ""),
            space=searched,
            goals=goals,
            method_page=method_page,
        )
        teacher = teacher.with_recipe(changed_recipe(teacher.recipe, own, ""))
        method_page(teacher.recipe.method).teacher(teacher, read_rows(teacher))  # a space may choose the method
        if recipe.arms.gold_only:
            _train_control(opened.enter_context(Session(sweep.recipe, console, folder / "control", teacher.path)))
        else:
            console.say("no control arm: arms.gold_only gives no rows for it")
        plan = SearchPlan(space=searched, goals=goals, points=points, folder=folder / "tune", concurrent=concurrent)
        search_space(teacher, plan, partial(trial, sweep))
    return write_sweep_report(folder)


def _train_control(session: Session) -> None:
    splits = read_rows(session)
    score_arms(session, splits, train_students(session, splits, gold_only(session, splits)).values())


def _begin(folder: Path, recipe: Recipe, searched: Space, goals: list[Objective]) -> None:
    """Write what is searched into the folder. Raises RunError where it is another sweep's."""
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


def trial(sweep: Sweep, name: str, point: Point, report: Report, checkpoint: Path | None) -> None:
    """Train and score the student of a point, in a process that Ray Tune started; metrics are reported as they come.

    The result is in trial.json, also where raykd raised an error: trying again would end the same way.
    """
    folder = sweep.folder / "trials" / name
    done = folder / TRIAL
    if done.exists():  # the sweep was killed before Ray Tune had noted it
        metrics = json.loads(done.read_text(encoding="utf-8"))["metrics"]
        return report(metrics, None) if metrics else None
    recipe = space.trial_recipe(sweep.space, sweep.recipe, point)
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "trial.log", "a", buffering=1, encoding="utf-8") as console.out:
        try:
            page = sweep.method_page(recipe.method)
            fit = trial_fit(page.STUDENT, report, checkpoint)
            path = _run_folder(folder, recipe)
            with Session(recipe, console, path, sweep.folder / "teacher", fit) as session:
                page.run(session, alone=True)
            metrics = _metrics(path, page, [goal.metric for goal in sweep.goals])
            result = {"point": point, "run": str(path), "metrics": metrics}
        except RaykdError as error:
            console.say(str(error))
            result = {"point": point, "error": str(error), "metrics": None}
        write_json(done, result)
    if result["metrics"]:
        report(result["metrics"], None)


def _run_folder(folder: Path, recipe: Recipe) -> Path:
    """The trial's run folder; another where it goes on with other settings, as population-based training has it."""
    number = 0
    while True:
        path = folder / f"run-{number}" if number else folder / "run"
        saved = path / "recipe.yaml"
        if not saved.exists() or not recipe_differences(load_recipe(saved), recipe):
            return path
        number += 1


def _metrics(folder: Path, page: ModuleType, wanted: list[str]) -> dict[str, float]:
    """The metrics of a finished trial: at the checkpoint that its dev rows chose, and on the test rows."""
    by_stage = {manifest["stage"]: manifest for manifest in manifests(folder)}
    training, arm = by_stage[page.STUDENT], page.ARM.arm
    at_best: dict[str, Any] = {}
    for line in log_lines(folder / page.STUDENT / "log.jsonl"):
        if line["step"] == training["results"]["best_step"]:
            at_best |= line
    metrics = {name: value for name, value in at_best.items() if name.startswith("dev_") or name in wanted}
    metrics |= {"parameters": training["stats"]["parameters"], "progress": 100.0, "step": training["results"]["steps"]}
    predictions = by_stage.get(f"evaluate/{arm}-predictions")
    if predictions and predictions["stats"]["new_rows"]:
        metrics["prediction_seconds"] = predictions["stats"]["seconds"] / predictions["stats"]["new_rows"]
    if f"evaluate/{arm}" in by_stage:
        metrics |= {f"test/{name}": value for name, value in by_stage[f"evaluate/{arm}"]["results"]["metrics"].items()}
    return metrics
