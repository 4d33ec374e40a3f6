"""Sweeps on Ray Tune: trials at the same time, early stopping that survives a kill, a search that learns."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Integer

from raykd.cluster import counters, score
from raykd.cluster import train as ray_train
from raykd.console import Console
from raykd.errors import RunError
from raykd.recipe.cluster import Cluster
from raykd.recipe.recipe import Recipe
from raykd.recipe.space import Asha, Objective, Optuna, Pbt, Point, Space, build_point, is_domain, point_line
from raykd.report.sweep import RUNGS
from raykd.run.files import put, replaced

if TYPE_CHECKING:
    from raykd.stages.sweep import Report, SearchPlan, Trial
    from raykd.training.job import TrainingResult, TrainingSpec

LAST = "last"  # in a training's folder: its last checkpoint
TIME = "progress"  # percent of the training that is searched
END = 99.9  # of TIME; no rung lies beyond it, so that a trial that came so far is scored


def search(plan: SearchPlan, trial: Trial, recipe: Recipe, console: Console) -> None:
    """Run `trial(id, point, report, checkpoint)` for each point; a stopped search in this folder is continued.

    Raises RunError if a trial's process died more often than `cluster.student.max_failures`.
    """
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that failed reports nothing
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would make an interrupted sweep look finished
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a recipe's functions may read files beside the recipe
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    body = tune.with_resources(_Body(trial), tune.PlacementGroupFactory([_resources(recipe.cluster)]))
    _Announcer.console, _Announcer.goals, _Announcer.count = console, plan.goals, _trial_count(plan)
    console.say(f"tune: {_Announcer.count} trials, {plan.concurrent} at a time")
    if tune.Tuner.can_restore(str(plan.folder)):
        tuner = tune.Tuner.restore(str(plan.folder), body, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _new_tuner(body, plan, recipe)
    results = tuner.fit()
    if results.num_errors:
        first = str(results.errors[0]).strip().splitlines()[-1]
        raise RunError(
            f"{plan.folder}: {results.num_errors} trials were lost, the first by: {first}; run it again to retry"
        )


def _trial_count(plan: SearchPlan) -> int:
    return len(plan.points) or getattr(plan.space.search, "trials", 0)


def _new_tuner(body: Any, plan: SearchPlan, recipe: Recipe) -> tune.Tuner:
    space, folder = plan.space, plan.folder
    goal = plan.goals[0] if len(plan.goals) == 1 else None
    return tune.Tuner(
        body,
        param_space={"point": tune.grid_search(plan.points)} if plan.points else None,
        tune_config=tune.TuneConfig(
            metric=goal and goal.metric,
            mode=goal and goal.direction,
            search_alg=_searcher(plan, recipe.seed),
            num_samples=1 if plan.points else getattr(space.search, "trials", 1),
            scheduler=_scheduler(space, folder.parent / RUNGS),  # Ray Tune restores older files in its own folder
            max_concurrent_trials=None if plan.points else plan.concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.absolute()),
            verbose=0,
            callbacks=[_Announcer()],
            # population-based training goes on from checkpoints of other trials, also from older ones
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None if isinstance(space.scheduler, Pbt) else 1),
            failure_config=tune.FailureConfig(max_failures=recipe.cluster.student.max_failures),
        ),
    )


def _point(config: dict[str, Any]) -> Point:
    """A trial's point: `config["point"]` if it was known from the start, `config` itself if Optuna proposed it."""
    return config.get("point", config)


def _name(trial: Any) -> str:
    return trial.trial_id


def _resources(cluster: Cluster) -> dict[str, float]:
    """The resources of a trial's process: its only worker's; almost none if Ray Train starts workers of its own."""
    if cluster.student.bounds()[1] > 1:
        return {"CPU": 0.01}
    return dict(cluster.student.resources) or {"CPU": 0.01}


class _Body:
    """The function that Ray Tune calls in a trial's process."""

    __name__ = "trial"

    def __init__(self, trial: Trial):
        self.trial = trial

    def __call__(self, config: dict[str, Any]) -> None:
        checkpoint = tune.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            self.trial(tune.get_context().get_trial_id(), _point(config), _report, Path(folder) if folder else None)


def _report(metrics: dict[str, float], folder: Path | None) -> None:
    """Report to Ray Tune; returns when Ray Tune has decided whether the trial goes on."""
    tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(str(folder)) if folder else None)


def trial_fit(stage: str, report: Report, checkpoint: Path | None) -> Callable[..., TrainingResult]:
    """A trial's function in place of `train.fit`: it trains in this process, or on Ray Train for several workers.

    Every evaluation of the training `stage` is reported, and that training begins with `checkpoint`, if there is one.
    Each training keeps its last checkpoint in its folder, and resumes from it.
    """

    def fit(spec: TrainingSpec, cluster: Cluster, progress: Callable[[int, str], None]) -> TrainingResult:
        if cluster.student.bounds()[1] > 1:
            return ray_train.fit(spec, cluster, progress, [TuneReportCallback()] if spec.name == stage else [])
        from raykd.training.loop import train

        last = Path(spec.folder) / LAST
        counts: dict[str, int] = {}

        def keep(metrics: dict, folder: Path) -> None:
            if spec.name == stage:
                report(metrics, folder)  # before the copy: an evaluation that was not reported is done again
            with replaced(last) as part:
                shutil.copytree(folder, part, dirs_exist_ok=True)
            for name in ("examples", "tokens"):
                counters.add(f"{name}_trained", metrics[name] - counts.get(name, 0), spec.run, spec.name)
                counts[name] = metrics[name]
            progress(metrics["step"], f"dev loss {metrics['dev_loss']:.3f}")

        resume = last if last.exists() else checkpoint if spec.name == stage else None
        with score.scorers(spec, cluster) as scorer:
            result = train(spec, keep, resume, scorer)
        shutil.rmtree(last, ignore_errors=True)
        return result

    return fit


# --------------------------------------------------------------------------------------------- searchers


def _searcher(plan: SearchPlan, seed: int) -> Any:
    if not isinstance(plan.space.search, Optuna):
        return BasicVariantGenerator(max_concurrent=plan.concurrent)
    from optuna.samplers import TPESampler

    metrics, modes = [goal.metric for goal in plan.goals], [goal.direction for goal in plan.goals]
    sampler = TPESampler(seed=seed, multivariate=True, group=True)  # group: fields of a choice that was not drawn
    several = len(plan.goals) > 1
    return OptunaSearch(
        _Proposal(plan.space),
        metric=metrics if several else metrics[0],
        mode=modes if several else modes[0],
        sampler=sampler,
    )


class _Proposal:
    """Lets Optuna propose a point; the fields of a choice are proposed only where that choice is drawn."""

    def __init__(self, space: Space):
        self.space = space

    def __call__(self, trial: Any) -> None:
        build_point(self.space.fields, lambda name, domain: _suggest(trial, name, domain))


def _suggest(trial: Any, name: str, domain: Any) -> Any:
    if isinstance(domain, list):
        return trial.suggest_categorical(name, domain)
    assert is_domain(domain)
    if hasattr(domain, "categories"):
        return trial.suggest_categorical(name, domain.categories)
    sampler = domain.get_sampler()
    step = getattr(sampler, "q", None)
    log = "Log" in type(getattr(sampler, "sampler", sampler)).__name__
    if isinstance(domain, Integer):
        return trial.suggest_int(name, domain.lower, domain.upper - 1, log=log, step=step or 1)
    return trial.suggest_float(name, domain.lower, domain.upper, log=log, step=step)


# -------------------------------------------------------------------------------------------- schedulers


def _scheduler(space: Space, memory: Path) -> Any:
    settings = space.scheduler
    if isinstance(settings, Asha):
        return _RememberingAsha(
            memory,
            time_attr=TIME,
            max_t=END,
            grace_period=settings.grace,
            reduction_factor=settings.reduction,
            brackets=settings.brackets,
            stop_last_trials=False,
        )
    if isinstance(settings, Pbt):
        changed = {name: value for name, value in space.fields.items() if is_domain(value)}
        return PopulationBasedTraining(
            time_attr=TIME,
            perturbation_interval=settings.every,
            quantile_fraction=settings.share,
            hyperparam_mutations={"point": changed},
        )
    return FIFOScheduler()


class _RememberingAsha(ASHAScheduler):
    """ASHA that keeps its rungs on disk, because a scheduler that Ray Tune restores has lost them.

    The file is {rungs: [bracket: [[milestone, {trial: value}]]], brackets: {trial: number}, stopped: [trial]}.
    """

    def __init__(self, memory: Path, **settings: Any):
        super().__init__(**settings)
        self.memory, self.brackets_of, self.stopped, self.read = memory, {}, [], False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not self.read and self.memory.exists():
            memory = json.loads(self.memory.read_text(encoding="utf-8"))
            self.brackets_of, self.stopped = memory["brackets"], memory["stopped"]
            for bracket, rungs in zip(self._brackets, memory["rungs"], strict=True):
                bracket._rungs = [(milestone, recorded) for milestone, recorded in rungs]
        self.read = True
        super().on_trial_add(tune_controller, trial)
        number = self.brackets_of.setdefault(trial.trial_id, self._brackets.index(self._trial_info[trial.trial_id]))
        self._trial_info[trial.trial_id] = self._brackets[number]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if trial.trial_id in self.stopped:
            return self.STOP
        action = super().on_trial_result(tune_controller, trial, result)
        if action == self.STOP:
            self.stopped.append(trial.trial_id)
        self._remember()
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._remember()

    def _remember(self) -> None:
        rungs = [bracket._rungs for bracket in self._brackets]
        memory = {"rungs": rungs, "brackets": self.brackets_of, "stopped": self.stopped}
        put(self.memory, json.dumps(memory).encode())


class _Announcer(tune.Callback):
    """Prints the events of trials. Ray Tune pickles callbacks, so the console is an attribute of the class."""

    console: Console
    goals: list[Objective]
    count: int
    ended = 0  # trials

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        numbers = [f"{name} {result[name]:.4g}" for name, _ in self.goals if name in result]
        numbers += [f"{name} {value:.4g}" for name, value in result.items() if name.startswith("test/")]
        progress = f"{result[TIME]:.0f} %" if TIME in result else "?"
        self.console.say(
            f"trial {trial.trial_id}: {progress}, {', '.join(numbers)} ({point_line(_point(trial.config))})"
        )

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        type(self).ended += 1
        last = (trial.last_result or {}).get(TIME)
        end = "failed" if last is None else "done" if last >= 100 else f"stopped at {last:.0f} %"
        self.console.say(f"trial {trial.trial_id}: {end}; {self.ended} of {self.count} over")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.console.say(f"trial {trial.trial_id}: its process was lost")
