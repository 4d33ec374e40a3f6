"""A sweep's folder to its results: `results.json`, `results.csv`, `best.yaml`, `report.md` and `report.html`.

Everything is read from files, so that a sweep that still runs, or was killed, has a report too.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

from raykd.errors import RunError
from raykd.metrics import lower_is_better
from raykd.recipe.load import dump_recipe, load_recipe, parse_recipe
from raykd.recipe.recipe import Recipe
from raykd.report.gather import log_lines
from raykd.report.render import ReportSection, Table, html_table, markdown_table, page, safe
from raykd.report.sweep_plots import shown_value, sweep_plots
from raykd.run.files import write_json, write_text
from raykd.run.manifests import MANIFEST, manifests, read_manifest

TRIAL = "trial.json"  # of a trial, written last: {point, run, metrics} or {point, error}
RUNGS = "rungs.json"  # of a sweep: what its scheduler must not forget
SEARCHED = "sweep.json"  # of a sweep: {recipe, space, goals}
TOLD = ("dev_loss", "parameters", "prediction_seconds")  # numbers of a trial that are shown beside its goals


def write_sweep_report(folder: Path) -> dict[str, Any]:
    """Write everything; returns what is in `results.json`. Raises RunError where there is no sweep."""
    folder = Path(folder)
    if not (folder / SEARCHED).exists():
        raise RunError(f"{folder}: no sweep: it has no {SEARCHED}")
    found = gather_sweep(folder)
    write_json(folder / "results.json", found)
    write_text(folder / "results.csv", _csv(found["trials"]))
    if found["best"]:
        write_text(folder / "best.yaml", _best_recipe(found, folder))
    sections = _sections(found)
    text = [f"# {safe(found['name'])}", safe(_summary(found))]
    parts = [f"<h1>{html.escape(found['name'])}</h1><p>{html.escape(_summary(found))}</p>"]
    for title, said, table in sections:
        text += [f"## {title}", safe(said)] + ([markdown_table(table)] if len(table) > 1 else [])
        parts += [f"<h2>{title}</h2><p>{html.escape(said)}</p>"] + ([html_table(table)] if len(table) > 1 else [])
        if title == "Trials":
            parts += [f"<h2>{head}</h2>{picture}" for head, picture in sweep_plots(found)]
    code = html.escape(found["space"])
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    write_text(folder / "report.html", page(found["name"], [*parts, f"<h2>The space</h2><pre>{code}</pre>"]))
    return found


def gather_sweep(folder: Path) -> dict[str, Any]:
    """All that the report says. Trials come best first, then those that are not done."""
    searched = json.loads((folder / SEARCHED).read_text(encoding="utf-8"))
    recipe = parse_recipe(searched["recipe"], str(folder / SEARCHED))
    goals = [tuple(goal) for goal in searched["goals"]]
    trials = [_trial(folder, path.name) for path in sorted((folder / "tune").glob("*")) if path.is_dir()]
    done = _ordered([t for t in trials if t["state"] == "done"], goals)
    rest = [t for t in trials if t["state"] != "done"]
    rest.sort(key=lambda t: (t["state"], -t["progress"], t["id"]))
    # rglob follows no links, so that what trials share counts once
    own = [read_manifest(path) for path in folder.rglob(MANIFEST) if not path.parent.is_symlink()]
    asked = [m for m in own if m["kind"] == "label" and m["stage"].startswith(("teacher/", "evaluate/teacher-"))]
    front = _front(done, goals)
    return {
        "name": folder.name,
        "goals": goals,
        "best": front[0]["id"] if front else None,
        "front": [t["id"] for t in front] if len(goals) > 1 else [],
        "trials": done + rest,
        "arms": _arms(folder, recipe),
        "teacher_tokens": sum(m["stats"].get("output_tokens", 0) for m in asked),
        "trial_seconds": sum(t["seconds"] for t in trials),
        "importance": _importance(done, goals[0]),
        "space": searched["space"],
    }


def _trial(folder: Path, name: str) -> dict[str, Any]:
    """What is known of a trial: of one that is over from its own file, else from what Ray Tune heard of it."""
    told = folder / "tune" / name / "result.json"
    heard = log_lines(told) if told.exists() else []
    last = heard[-1] if heard else {}
    config = last.get("config") or _config(folder / "tune" / name / "params.json")
    found = {
        "id": name,
        "point": config.get("point", config),
        "progress": last.get("progress", 0.0),
        "seconds": last.get("time_total_s", 0.0),
        "metrics": {k: v for k, v in last.items() if k.startswith(("dev_", "test/"))},
        "curve": [{k: v for k, v in line.items() if k == "progress" or isinstance(v, float)} for line in heard],
        "state": "stopped" if name in _stopped(folder) else "unfinished",
        "error": None,
    }
    file = folder / "trials" / name / TRIAL
    if file.exists():
        over = json.loads(file.read_text(encoding="utf-8"))
        found |= {"state": "failed" if over.get("error") else "done", "error": over.get("error")}
        found |= {"point": over["point"], "metrics": over["metrics"] or {}, "run": over.get("run")}
    return found


def _config(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _stopped(folder: Path) -> list[str]:
    file = folder / RUNGS
    return json.loads(file.read_text(encoding="utf-8"))["stopped"] if file.exists() else []


def _ordered(trials: list[dict], goals: list[tuple[str, str]]) -> list[dict]:
    metric, mode = goals[0]
    sign = 1 if mode == "min" else -1
    known = [t for t in trials if math.isfinite(t["metrics"].get(metric, math.nan))]
    return sorted(known, key=lambda t: sign * t["metrics"][metric]) + [t for t in trials if t not in known]


def _front(done: list[dict], goals: list[tuple[str, str]]) -> list[dict]:
    """Trials that no other is better than by every goal; of one goal the best."""

    def values(trial: dict) -> list[float]:
        return [(1 if mode == "min" else -1) * trial["metrics"].get(metric, math.inf) for metric, mode in goals]

    def beaten(trial: dict) -> bool:
        mine = values(trial)
        others = [values(other) for other in done]
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    front = [trial for trial in done if not beaten(trial)]
    return front if len(goals) > 1 else front[:1]


def _arms(folder: Path, recipe: Recipe) -> dict[str, dict[str, float]]:
    """The test metrics of the teacher, and of the student without one."""
    arms: dict[str, dict[str, float]] = {}
    for part in ("teacher", "control"):
        for m in manifests(folder / part) if (folder / part).exists() else []:
            if m["kind"] == "evaluate":
                arms[m["results"]["arm"]] = m["results"]["metrics"]
    return arms


def _importance(done: list[dict], goal: tuple[str, str]) -> dict[str, float]:
    """By field the share of what differs between good trials and others (PED-ANOVA, Watanabe et al. 2023).

    Of fields that every trial has; empty where there are fewer than eight trials, or nothing differs.
    """
    metric, mode = goal
    known = [t for t in done if metric in t["metrics"]]
    names = [name for name in (known[0]["point"] if known else {}) if all(name in t["point"] for t in known)]
    names = [name for name in names if len({str(t["point"][name]) for t in known}) > 1]
    if len(known) < 8 or not names:
        return {}
    import optuna

    def distribution(name: str) -> Any:
        values = [t["point"][name] for t in known]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            low, high = float(min(values)), float(max(values))
            return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
        return optuna.distributions.CategoricalDistribution(sorted({shown_value(v) for v in values}))

    kinds = {name: distribution(name) for name in names}
    numbers = [name for name, kind in kinds.items() if isinstance(kind, optuna.distributions.FloatDistribution)]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    for t in known:
        params = {name: float(t["point"][name]) if name in numbers else shown_value(t["point"][name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=t["metrics"][metric]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}


def _best_recipe(found: dict[str, Any], folder: Path) -> str:
    """The best trial's recipe, under a name of its own: `raykd run` of it trains the same student, and its arms."""
    best = found["trials"][0] if not found["front"] else next(t for t in found["trials"] if t["id"] == found["best"])
    recipe = load_recipe(Path(best["run"]) / "recipe.yaml")
    return dump_recipe(recipe.model_copy(update={"name": f"{folder.name}-best"}))


def _sections(found: dict[str, Any]) -> list[ReportSection]:
    goals = ", ".join(
        f"{metric} ({'lower' if mode == 'min' else 'higher'} is better)" for metric, mode in found["goals"]
    )
    return [
        (
            "Trials",
            f"Goal: {goals}, of held-out rows at the chosen checkpoint. Nothing is chosen by test rows.",
            _trials(found),
        ),
        ("To compare with", "On the test rows; gold_only is the student without a teacher.", _compared(found)),
        (
            "What mattered",
            "The share of each field in what sets good trials apart (PED-ANOVA); of fields that all trials have."
            if found["importance"]
            else "Too few finished trials to say: eight are needed.",
            [["field", "share"], *([name, f"{100 * value:.0f} %"] for name, value in found["importance"].items())],
        ),
    ]


def _trials(found: dict[str, Any]) -> Table:
    trials, goals = found["trials"], [metric for metric, _ in found["goals"]]
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    told = [name for name in TOLD if name not in goals and any(name in t["metrics"] for t in trials)]
    tests = list(dict.fromkeys(name for t in trials for name in t["metrics"] if name.startswith("test/")))
    short = [name.removeprefix("student.training.") for name in fields]
    table = [["trial", "state", *short, *goals, *told, *tests, "seconds"]]
    best = found["front"] or [found["best"]]
    for t in trials:
        state = {"stopped": f"stopped at {t['progress']:.0f} %"}.get(t["state"], t["error"] or t["state"])
        cells = [shown_value(t["point"][name]) if name in t["point"] else "" for name in fields]
        numbers = [_number(t["metrics"].get(name)) for name in [*goals, *told, *tests]]
        name = f"**{t['id']}**" if t["id"] in best else t["id"]
        table.append([name, state, *cells, *numbers, f"{t['seconds']:.0f}"])
    return table


def _compared(found: dict[str, Any]) -> Table:
    best = next((t for t in found["trials"] if t["id"] == found["best"]), None)
    arms = dict(found["arms"])
    if best:
        arms[f"best trial, {best['id']}"] = {
            name.removeprefix("test/"): v for name, v in best["metrics"].items() if name.startswith("test/")
        }
    metrics = list(dict.fromkeys(name for values in arms.values() for name in values))
    if not metrics:
        return [[]]
    shown = [f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in metrics]
    return [["", *shown], *([arm, *(_number(values.get(name)) for name in metrics)] for arm, values in arms.items())]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _summary(found: dict[str, Any]) -> str:
    states = [t["state"] for t in found["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tokens = f"The teacher wrote {found['teacher_tokens']:,} tokens for all of them."
    again = f"The best recipe: raykd run {found['name']}/best.yaml." if found["best"] else "No trial is done."
    return f"{len(states)} trials: {counts}. {tokens} {again}"


def _csv(trials: list[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(name for t in trials for name in t["point"]))
    metrics = list(dict.fromkeys(name for t in trials for name in t["metrics"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "progress", "seconds", *fields, *metrics])
    for t in trials:
        cells = [*(t["point"].get(name, "") for name in fields), *(t["metrics"].get(name, "") for name in metrics)]
        writer.writerow([t["id"], t["state"], t["progress"], f"{t['seconds']:.1f}", *cells])
    return out.getvalue()
