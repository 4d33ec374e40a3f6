"""A sweep's folder to its results: `results.json`, `results.csv`, `best.yaml`, `report.md` and `report.html`.

Everything is read from files, so that a sweep that still runs, or was killed, has a report too.
"""

from __future__ import annotations

import csv
import html
import io
import math
from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.recipe.load import dump_recipe, load_recipe, parse_recipe
from raykd.recipe.recipe import Recipe
from raykd.recipe.space import Objective
from raykd.report.gather import TEACHER, arm_scores, json_object, log_lines
from raykd.report.importance import field_importance
from raykd.report.render import (
    Plot,
    ReportSection,
    Table,
    html_blocks,
    html_page,
    markdown_blocks,
    metric_names,
    safe,
    short_value,
    with_arrow,
)
from raykd.report.sweep_plots import sweep_plots
from raykd.run.files import write_json, write_text
from raykd.run.manifests import MANIFEST, manifests, read_manifest

TRIAL = "trial.json"  # of a trial, written last: {point, run, metrics} or {point, error}
RUNGS = "rungs.json"  # of a sweep: what its scheduler must remember
SEARCHED = "sweep.json"  # of a sweep: {recipe, space, goals}
FURTHER = ("dev_loss", "parameters", "prediction_seconds")  # numbers of a trial that are shown beside its goals
NO_IMPORTANCE = "Too few finished trials to say: eight are needed."
IMPORTANCE = "The share of each field in what sets good trials apart (PED-ANOVA); of fields that all trials have."


def write_sweep_report(folder: Path) -> dict[str, Any]:
    """Write the results and the reports of a sweep; returns the content of `results.json`.

    Raises RunError where there is no sweep, or a file of it is damaged.
    """
    folder = Path(folder)
    if not (folder / SEARCHED).exists():
        raise RunError(f"{folder}: no sweep: it has no {SEARCHED}")
    results = gather_sweep(folder)
    write_json(folder / "results.json", results)
    write_text(folder / "results.csv", _csv(results["trials"]))
    if results["best"]:
        write_text(folder / "best.yaml", _best_recipe(results, folder))
    name, summary, parts = results["name"], _summary(results), _parts(results, sweep_plots(results))
    markdown = [f"# {safe(name)}", safe(summary), *markdown_blocks(parts)]
    write_text(folder / "report.md", "\n\n".join(markdown) + "\n")
    blocks = [f"<h1>{html.escape(name)}</h1><p>{html.escape(summary)}</p>", *html_blocks(parts)]
    blocks.append(f"<h2>The space</h2><pre>{html.escape(results['space'])}</pre>")
    write_text(folder / "report.html", html_page(name, blocks))
    return results


def gather_sweep(folder: Path) -> dict[str, Any]:
    """The content of `results.json`. Finished trials come first, the best one at the top.

    Raises RunError for a damaged file of the sweep.
    """
    searched = json_object(folder / SEARCHED)
    recipe = parse_recipe(searched["recipe"], str(folder / SEARCHED))
    goals = [Objective(*goal) for goal in searched["goals"]]
    stopped = json_object(folder / RUNGS).get("stopped", [])
    names = [path.name for path in sorted((folder / "tune").glob("*")) if path.is_dir()]
    trials = [_trial(folder, name, name in stopped) for name in names]
    done = _best_first([t for t in trials if t["state"] == "done"], goals[0])
    others = [t for t in trials if t["state"] != "done"]
    others.sort(key=lambda t: (t["state"], -t["progress"], t["id"]))
    front = _front(done, goals)
    return {
        "name": folder.name,
        "goals": goals,
        "best": front[0]["id"] if front else None,
        "front": [t["id"] for t in front] if len(goals) > 1 else [],
        "trials": done + others,
        "arms": _arms(folder, recipe),
        "teacher_tokens": _teacher_tokens(folder),
        "trial_seconds": sum(t["seconds"] for t in trials),
        "importance": field_importance(done, goals[0]),
        "space": searched["space"],
    }


def _trial(folder: Path, name: str, stopped: bool) -> dict[str, Any]:
    """A trial: from its own file if it has ended, else from its reports to Ray Tune."""
    tune = folder / "tune" / name
    reports = log_lines(tune / "result.json") if (tune / "result.json").exists() else []
    last = reports[-1] if reports else {}
    config = last.get("config") or json_object(tune / "params.json")
    trial = {
        "id": name,
        "point": config.get("point", config),
        "progress": last.get("progress", 0.0),
        "seconds": last.get("time_total_s", 0.0),
        "metrics": {k: v for k, v in last.items() if k.startswith(("dev_", "test/"))},
        "curve": [{k: v for k, v in line.items() if k == "progress" or isinstance(v, float)} for line in reports],
        "state": "stopped" if stopped else "unfinished",
        "error": None,
    }
    ended = json_object(folder / "trials" / name / TRIAL)
    if ended:
        trial |= {"state": "failed" if ended.get("error") else "done", "error": ended.get("error")}
        trial |= {"point": ended["point"], "metrics": ended["metrics"] or {}, "run": ended.get("run")}
    return trial


def _best_first(trials: list[dict], goal: Objective) -> list[dict]:
    """Trials sorted by their value of a goal, the best first; trials without a value come last."""
    sign = 1 if goal.direction == "min" else -1
    scored = [t for t in trials if math.isfinite(t["metrics"].get(goal.metric, math.nan))]
    return sorted(scored, key=lambda t: sign * t["metrics"][goal.metric]) + [t for t in trials if t not in scored]


def _front(done: list[dict], goals: list[Objective]) -> list[dict]:
    """The Pareto front: no other trial is at least as good in all goals and better in one. For one goal: the best."""
    if len(goals) == 1:
        return done[:1]

    def values(trial: dict) -> list[float]:  # lower is better
        return [(1 if goal.direction == "min" else -1) * trial["metrics"].get(goal.metric, math.inf) for goal in goals]

    def is_beaten(trial: dict) -> bool:
        of_trial = values(trial)
        others = [values(other) for other in done]
        return any(all(a <= b for a, b in zip(o, of_trial, strict=True)) and o != of_trial for o in others)

    return [trial for trial in done if not is_beaten(trial)]


def _arms(folder: Path, recipe: Recipe) -> dict[str, dict[str, float]]:
    """The test metrics of the teacher, and of the student without one."""
    arms: dict[str, dict[str, float]] = {}
    for run in (folder / "teacher", folder / "control"):
        arms |= arm_scores(manifests(run) if run.exists() else [])
    return arms


def _teacher_tokens(folder: Path) -> int:
    """The tokens that the teacher wrote in all runs of a sweep."""
    # rglob follows no links, so that what trials share counts once
    own = [read_manifest(path) for path in folder.rglob(MANIFEST) if not path.parent.is_symlink()]
    by_teacher = [m for m in own if m["kind"] == "label" and m["arm"] == TEACHER]
    return sum(m["stats"].get("output_tokens", 0) for m in by_teacher)


def _best_recipe(results: dict[str, Any], folder: Path) -> str:
    """The best trial's recipe as YAML, under a name of its own: `raykd run` trains the same student, and its arms."""
    best = next(t for t in results["trials"] if t["id"] == results["best"])
    recipe = load_recipe(Path(best["run"]) / "recipe.yaml")
    return dump_recipe(recipe.model_copy(update={"name": f"{folder.name}-best"}))


def _parts(results: dict[str, Any], plots: list[Plot]) -> list[ReportSection | Plot]:
    """The sections in their order, with the plots after the trials."""
    goals = ", ".join(
        f"{goal.metric} ({'lower' if goal.direction == 'min' else 'higher'} is better)" for goal in results["goals"]
    )
    importance = [[name, f"{100 * share:.0f} %"] for name, share in results["importance"].items()]
    return [
        ReportSection(
            "Trials",
            f"Goal: {goals}, of held-out rows at the chosen checkpoint. Nothing is chosen by test rows.",
            _trial_table(results),
        ),
        *plots,
        ReportSection(
            "To compare with", "On the test rows; gold_only is the student without a teacher.", _arm_table(results)
        ),
        ReportSection("What mattered", IMPORTANCE if importance else NO_IMPORTANCE, [["field", "share"], *importance]),
    ]


def _trial_table(results: dict[str, Any]) -> Table:
    trials, goals = results["trials"], [goal.metric for goal in results["goals"]]
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    further = [name for name in FURTHER if name not in goals and any(name in t["metrics"] for t in trials)]
    tests = [name for name in metric_names(t["metrics"] for t in trials) if name.startswith("test/")]
    short = [name.removeprefix("student.training.") for name in fields]
    table = [["trial", "state", *short, *goals, *further, *tests, "seconds"]]
    best = results["front"] or [results["best"]]
    for t in trials:
        state = {"stopped": f"stopped at {t['progress']:.0f} %"}.get(t["state"], t["error"] or t["state"])
        cells = [short_value(t["point"][name]) if name in t["point"] else "" for name in fields]
        numbers = [_number(t["metrics"].get(name)) for name in [*goals, *further, *tests]]
        name = f"**{t['id']}**" if t["id"] in best else t["id"]
        table.append([name, state, *cells, *numbers, f"{t['seconds']:.0f}"])
    return table


def _arm_table(results: dict[str, Any]) -> Table:
    """The test metrics of the arms and of the best trial."""
    best = next((t for t in results["trials"] if t["id"] == results["best"]), None)
    arms = dict(results["arms"])
    if best:
        arms[f"best trial, {best['id']}"] = {
            name.removeprefix("test/"): value for name, value in best["metrics"].items() if name.startswith("test/")
        }
    metrics = metric_names(arms.values())
    if not metrics:
        return [[]]
    rows = [[arm, *(_number(scores.get(metric)) for metric in metrics)] for arm, scores in arms.items()]
    return [["", *map(with_arrow, metrics)], *rows]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _summary(results: dict[str, Any]) -> str:
    states = [t["state"] for t in results["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tokens = f"The teacher wrote {results['teacher_tokens']:,} tokens for all of them."
    best = f"The best recipe: raykd run {results['name']}/best.yaml." if results["best"] else "No trial is done."
    return f"{len(states)} trials: {counts}. {tokens} {best}"


def _csv(trials: list[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    metrics = metric_names(t["metrics"] for t in trials)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "progress", "seconds", *fields, *metrics])
    for t in trials:
        cells = [*(t["point"].get(name, "") for name in fields), *(t["metrics"].get(name, "") for name in metrics)]
        writer.writerow([t["id"], t["state"], t["progress"], f"{t['seconds']:.1f}", *cells])
    return out.getvalue()
